"""KerasTuner's oracles, with what a search that may be killed at any moment needs besides.

The stock ones write their state in several files, do not save the state of the Bayesian search's random numbers nor
where a grid search stands, and in a search with workers wait for ever for one that died.
"""

import collections
import itertools
import json
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.hyperparameters import Choice
from keras_tuner.engine.trial import Trial, TrialStatus

from xbm_keras.atomic_files import write_whole
from xbm_keras.tuning.gaussian_process import GaussianProcessOracle

MAX_ATTEMPTS = 2
REASON = "tuner/reason"
QUERY_SCORES = "tuner/query_scores"
TRIAL_STATE = ("trial_id", "status", "message", "score", "best_step")


class ResumableOracle(keras_tuner.Oracle):
    """Draws from (seed, number of the trial), keeps its whole state in one file, and outlives its workers.

    A mixin: it stands before one of KerasTuner's oracles.

    Attributes:
        journal: is told of trials, where the oracle is: `on_trial_begin(trial)` when one is handed out,
            `on_trial_end(trial)` when it has its final status, before that `on_query_scores(trial, text)`.
        max_failures: so many failed trials in a row end the search; their reasons are in `stop_reason`.
        worker_timeout: seconds after which the trial of a silent worker is given to another one.
    """

    journal: Any = None
    max_failures = 5
    worker_timeout = math.inf
    stop_reason = ""

    def __init__(self, *args, seed: int = 0, **kwargs):
        # KerasTuner takes a seed of 0 for none. Failures are counted below: its own count raises inside its lock.
        super().__init__(*args, seed=seed + 1, max_consecutive_failed_trials=1_000_000_000, **kwargs)
        self.verbose = 0
        self.attempts: collections.Counter[str] = collections.Counter()
        self.last_heard: dict[str, float] = {}
        self.has_stopped = False
        self._failures: list[Trial] = []

    def populate_space(self, trial_id):
        """Values for a trial, which depend on the seed, its number and the finished trials alone.

        The first trial gets the defaults of the space: what the search is to beat, and a good place to look around.
        """
        state = np.random.SeedSequence([self.seed, int(trial_id)]).generate_state(2)
        self._seed_state = int(state[0])
        self._random_state = np.random.RandomState(state[1])
        populated = super().populate_space(trial_id)
        if int(trial_id) == 0 and populated["status"] == TrialStatus.RUNNING:
            of_tuner = {name: value for name, value in populated["values"].items() if name.startswith("tuner/")}
            populated["values"] = {**self.get_space().values, **of_tuner}
        return populated

    def _compute_values_hash(self, values):
        """By which a trial is known as tried: decimal numbers to three digits, since less would teach nothing new."""
        rounded = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in values.items()}
        return super()._compute_values_hash(rounded)

    @keras_tuner.synchronized
    def create_trial(self, tuner_id):
        """The next trial; one whose process died is given out again, and failed after the second death."""
        self.last_heard[tuner_id] = time.monotonic()
        self._forget_silent()
        while not self.stop_reason:
            trial = super().create_trial(tuner_id)
            if trial.status == TrialStatus.STOPPED and self.ongoing_trials:
                # One of them may yet come back, from a worker that dies.
                self.tuner_ids.add(tuner_id)
                return Trial(self.get_space(), status=TrialStatus.IDLE)
            if trial.status == TrialStatus.STOPPED:
                break
            if trial.status != TrialStatus.RUNNING:
                return trial
            self.attempts[trial.trial_id] += 1
            if self.attempts[trial.trial_id] <= MAX_ATTEMPTS:
                self.save()
                if self.journal:
                    self.journal.on_trial_begin(trial)
                return trial
            trial.status = TrialStatus.FAILED
            trial.message = f"The process died {MAX_ATTEMPTS} times in this trial, perhaps for want of memory."
            self.end_trial(trial)
        self.tuner_ids.discard(tuner_id)
        self.has_stopped = True
        return Trial(self.get_space(), status=TrialStatus.STOPPED)

    @keras_tuner.synchronized
    def update_trial(self, trial_id, metrics, step=0):
        """Note metrics; a worker that was given up may report a trial that another one finished meanwhile."""
        if trial_id in self.end_order:
            return self.trials[trial_id]
        return super().update_trial(trial_id, metrics, step)

    @keras_tuner.synchronized
    def end_trial(self, trial):
        """Note the result, whoever brings it first."""
        known = self.trials[trial.trial_id]
        if trial.trial_id in self.end_order:
            return
        if trial.trial_id in self._retry_queue:
            self._retry_queue.remove(trial.trial_id)
        # A trial that a worker sends back lost its message, and the digits of its numbers, in KerasTuner's protocol.
        trial.message = trial.hyperparameters.values.pop(REASON, trial.message)
        scores = trial.hyperparameters.values.pop(QUERY_SCORES, None)
        if self.journal and scores:  # before the state says that the trial has ended: else it may end without them
            self.journal.on_query_scores(known, scores)
        trial.hyperparameters = known.hyperparameters
        super().end_trial(trial)
        self.save()
        self._failures = [*self._failures, known] if known.status == TrialStatus.FAILED else []
        if len(self._failures) >= self.max_failures:
            reasons = "\n".join(f"  {each.trial_id}: {reason_of(each)}" for each in self._failures)
            self.stop_reason = f"{len(self._failures)} trials in a row failed:\n{reasons}"
        if self.journal:
            self.journal.on_trial_end(known)

    def get_trial(self, trial_id):
        """The trial. Workers ask for theirs now and then, as a sign of life."""
        for tuner_id, trial in list(self.ongoing_trials.items()):
            if trial.trial_id == trial_id:
                self.last_heard[tuner_id] = time.monotonic()
        return super().get_trial(trial_id)

    @keras_tuner.synchronized
    def is_over(self) -> bool:
        """Whether no worker waits for anything, and none needs to."""
        self._forget_silent()
        return self.has_stopped and not (self.ongoing_trials or self._retry_queue or self.tuner_ids)

    def _forget_silent(self):
        now = time.monotonic()
        for tuner_id in list(self.tuner_ids):
            if now - self.last_heard.get(tuner_id, now) > self.worker_timeout:
                self.tuner_ids.discard(tuner_id)
                trial = self.ongoing_trials.pop(tuner_id, None)
                if trial is not None:
                    self._retry_queue.append(trial.trial_id)

    def get_state(self):
        """All that a new process needs, trials included; of their hyperparameters the values: they share a space."""
        trials = [
            {
                **{name: getattr(trial, name) for name in TRIAL_STATE},
                "metrics": trial.metrics.get_config(),
                "values": trial.hyperparameters.values,
            }
            for trial in self.trials.values()
        ]
        return {**super().get_state(), "attempts": self.attempts, "trials": trials}

    def set_state(self, state):
        """What `get_state` gave; trials in the order of their numbers, which the Gaussian process sees."""
        super().set_state({**state, "ongoing_trials": {}})
        self.attempts = collections.Counter(state["attempts"])
        for each in sorted(state["trials"], key=lambda each: int(each["trial_id"])):
            trial = Trial(self.get_space())
            trial.hyperparameters.values = each["values"]
            trial.metrics = trial.metrics.from_config(each["metrics"])
            for name in TRIAL_STATE:
                setattr(trial, name, each[name])
            self.trials[trial.trial_id] = trial

    @property
    def path(self) -> pathlib.Path:
        """The file of the state."""
        return pathlib.Path(self._get_oracle_fname())

    def save(self):
        """Write the state, whole or not at all."""
        write_whole(self.path, json.dumps(self.get_state()))

    def reload(self):
        """Go on where another process stopped: what it ran and did not finish is run again first."""
        self.set_state(json.loads(self.path.read_text()))
        unfinished = [trial.trial_id for trial in self.trials.values() if trial.status == TrialStatus.RUNNING]
        self._retry_queue = unfinished[::-1]  # KerasTuner takes the last one first

    def _save_trial(self, trial):
        """Nothing: the state holds the trials."""


class RandomOracle(ResumableOracle, keras_tuner.oracles.RandomSearchOracle):
    """Random search."""


class BayesianOracle(ResumableOracle, GaussianProcessOracle):
    """Bayesian optimisation."""


class HyperbandOracle(ResumableOracle, keras_tuner.oracles.HyperbandOracle):
    """Many short trials, the best of which are run again, longer."""

    def __init__(self, *, max_trials: int, max_epochs: int, **kwargs):
        super().__init__(max_epochs=max_epochs, **kwargs)
        self.max_trials = max_trials
        self.hyperband_iterations = math.ceil(max_trials / self.trials_per_iteration())

    def trials_per_iteration(self) -> int:
        """Trials in one sweep over all brackets."""
        return sum(self._get_size(bracket, round_) for bracket, round_ in self._rounds())

    def rungs(self) -> list[int]:
        """Numbers of epochs that trials are run for."""
        return sorted({self._get_epochs(bracket, round_) for bracket, round_ in self._rounds()})

    def _rounds(self):
        return [(b, r) for b in range(self._get_num_brackets()) for r in range(self._get_num_rounds(b))]


class GridOracle(ResumableOracle):
    """All combinations, in the order of the space, the last key fastest; of a range ten values."""

    def populate_space(self, trial_id):
        """The combination of this number."""
        values = next(itertools.islice(self.combinations(), int(trial_id), None), None)
        if values is None:
            return {"status": TrialStatus.STOPPED, "values": None}
        return {"status": TrialStatus.RUNNING, "values": values}

    def combinations(self) -> Iterator[dict]:
        """The values of the active keys of each combination."""

        def extend(hps, remaining):
            if not remaining:
                yield dict(hps.values)
                return
            key, *others = remaining
            if not hps.is_active(key):
                yield from extend(hps, others)
                return
            for value in key.values if isinstance(key, Choice) else sorted(key.values):
                hps.values[key.name] = value
                yield from extend(hps, others)
            del hps.values[key.name]

        yield from extend(self.get_space(), self.hyperparameters.space)


def make_oracle(kind: str, objective: keras_tuner.Objective, max_trials: int, max_epochs: int, seed: int):
    """The oracle of that name: "bayesian", "hyperband", "random" or "grid".

    Args:
        kind: the name.
        objective: what is maximised.
        max_trials: trials at most.
        max_epochs: of the longest trials; for "hyperband".
        seed: of all drawing.
    """
    if kind == "hyperband":
        return HyperbandOracle(objective=objective, max_trials=max_trials, max_epochs=max(max_epochs, 1), seed=seed)
    return {"bayesian": BayesianOracle, "random": RandomOracle, "grid": GridOracle}[kind](
        objective=objective, max_trials=max_trials, seed=seed
    )


def reason_of(trial: Trial) -> str:
    """Why a trial failed, in one line: of a traceback the last error."""
    if trial.status != TrialStatus.FAILED:
        return ""
    text = (trial.message or "The score is not a number.").rsplit("Traceback (most recent call last):\n", 1)[-1]
    lines = itertools.dropwhile(lambda line: line.startswith(" "), text.splitlines())  # where it was raised
    return " ".join(" ".join(lines).split())
