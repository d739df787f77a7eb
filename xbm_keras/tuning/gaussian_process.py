"""Bayesian optimisation by KerasTuner's Gaussian process, with a quicker search for the next point."""

import warnings
from collections.abc import Iterable

import keras_tuner
import numpy as np
import sklearn.exceptions
import threadpoolctl
from keras_tuner.engine.hyperparameters import Choice
from keras_tuner.engine.trial import Trial, TrialStatus

NUM_CANDIDATES = 4096
INITIAL_POINTS = 15  # random trials before the Gaussian process; KerasTuner's default, 3 per key, would be most trials


class GaussianProcessOracle(keras_tuner.oracles.BayesianOptimizationOracle):
    """KerasTuner's Gaussian process and confidence bound, sought among many candidates at once.

    KerasTuner climbs from 50 points with one prediction for each step, which takes longer than a trial here.
    """

    def populate_space(self, trial_id):
        """Random values at first; then the candidate with the best confidence bound, if it is new."""
        finished = [trial for trial in self.trials.values() if trial.status == TrialStatus.COMPLETED]
        if len(finished) < INITIAL_POINTS:
            return self._random_populate_space()
        with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
            x, y = self._fit(finished)
            candidates = self._candidates(x[y.argmin()])
            mean, deviation = self.gpr.predict(candidates, return_std=True)
        values = self._vector_to_values(candidates[np.argmin(mean - self.beta * deviation)])
        if self._duplicate(values):
            return self._random_populate_space()
        return {"status": TrialStatus.RUNNING, "values": values}

    def _fit(self, finished: list[Trial]) -> tuple[np.ndarray, np.ndarray]:
        """Fit the process to the finished trials, x [n, keys] and -score [n], and give those."""
        x, y = self._vectors(finished), np.array([-trial.score for trial in finished])
        self.gpr.fit(x, y)
        if self.ongoing_trials:  # as if they came out a little worse than expected, so that none is proposed again
            ongoing = self._vectors(self.ongoing_trials.values())
            mean, deviation = self.gpr.predict(ongoing, return_std=True)
            self.gpr.fit(np.concatenate([x, ongoing]), np.concatenate([y, mean + deviation]))
        return x, y

    def _vectors(self, trials: Iterable[Trial]) -> np.ndarray:
        """Points [n, keys] of the unit cube; a key that is not active stands at its default."""
        values, space = [trial.hyperparameters.values for trial in trials], self._nonfixed_space()
        return np.array([[key.value_to_prob(each.get(key.name, key.default)) for key in space] for each in values])

    def _candidates(self, best: np.ndarray) -> np.ndarray:
        """Points [n, keys] that stand for values: random ones, and as many near the best trial."""
        space, random = self._nonfixed_space(), self._random_state
        points = random.uniform(size=(NUM_CANDIDATES, len(space)))
        near = best + random.normal(scale=0.1, size=points.shape)
        is_kept = random.uniform(size=points.shape) < 0.5  # of the best trial's values about half
        points = np.concatenate([points, np.clip(np.where(is_kept, best, near), 0, 1)])
        column = {key.name: i for i, key in enumerate(space)}
        for i, key in enumerate(space):  # keys of a condition come before those that depend on them
            if isinstance(key, Choice):
                n = len(key.values)
                points[:, i] = (np.minimum(np.floor(points[:, i] * n), n - 1) + 0.5) / n
            for condition in key.conditions:
                parent = space[column[condition.name]]
                allowed = [parent.value_to_prob(value) for value in condition.values]
                is_active = np.isclose(points[:, [column[condition.name]]], allowed).any(axis=1)
                points[~is_active, i] = key.value_to_prob(key.default)
        return points
