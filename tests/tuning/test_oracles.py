"""Oracles that go on where they were killed; no model is trained here."""

import itertools
import time

import keras_tuner
import numpy as np
import pytest
from keras_tuner.engine.trial import Trial, TrialStatus

from xbm_keras.tuning import gaussian_process
from xbm_keras.tuning.oracles import make_oracle, reason_of

KINDS = ["bayesian", "hyperband", "random", "grid"]
NAME = "val_map_at_r"


@pytest.fixture(autouse=True)
def _few_initial_points(monkeypatch):
    monkeypatch.setattr(gaussian_process, "INITIAL_POINTS", 4)


def make(kind, folder, max_trials=8, seed=0, declare=None):
    oracle = make_oracle(kind, keras_tuner.Objective(NAME, "max"), max_trials, 9, seed)
    oracle._set_project_dir(folder, "keras_tuner")
    hp = keras_tuner.HyperParameters()
    (declare or declare_three)(hp)
    oracle.update_space(hp)
    if oracle.path.exists():
        oracle.reload()
    return oracle


def declare_three(hp):
    hp.Choice("k", [1, 2, 4])
    hp.Choice("kind", ["a", "b"])
    hp.Float("rate", 0.001, 1.0, sampling="log", parent_name="kind", parent_values=["b"])


def finish(oracle, trial):
    values = trial.hyperparameters.values
    score = -((values["k"] - 2) ** 2) - np.log(values.get("rate", 0.5)) ** 2
    oracle.update_trial(trial.trial_id, {NAME: float(score)})
    trial.status = TrialStatus.COMPLETED
    oracle.end_trial(trial)


def fail(oracle, trial, message="ValueError: no"):
    trial.status, trial.message = TrialStatus.FAILED, message
    oracle.end_trial(trial)


def search(oracle, steps=None):
    """Run trials to the end, or so many."""
    for _ in itertools.count() if steps is None else range(steps):
        trial = oracle.create_trial("tuner0")
        if trial.status == TrialStatus.STOPPED:
            break
        finish(oracle, trial)
    return oracle


def results(oracle):
    return [(t.trial_id, t.hyperparameters.values, t.score, t.status) for t in oracle.trials.values()]


@pytest.mark.parametrize("kind", ["bayesian", "hyperband", "random"])
@pytest.mark.parametrize("own", ["a", "b"])
def test_the_first_trial_takes_the_defaults(kind, own, tmp_path):
    def declare(hp):
        hp.Choice("k", [1, 2, 4], default=4)
        hp.Choice("kind", ["a", "b"], default=own)
        hp.Float("rate", 0.001, 1.0, default=0.25, parent_name="kind", parent_values=["b"])

    trials = [search(make(kind, tmp_path / str(seed), seed=seed, declare=declare), 1).trials["0"] for seed in (0, 1)]
    for trial in trials:
        values = {key: value for key, value in trial.hyperparameters.values.items() if not key.startswith("tuner/")}
        assert values == {"k": 4, "kind": own, **({"rate": 0.25} if own == "b" else {})}
    if kind == "hyperband":
        assert trials[0].hyperparameters.values["tuner/epochs"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_killed_anywhere_it_runs_the_same_trials(kind, tmp_path):
    expected = results(search(make(kind, tmp_path / "undisturbed")))
    assert len(expected) == 8
    assert {status for *_, status in expected} == {TrialStatus.COMPLETED}
    for steps in (0, 3, 5):
        folder = tmp_path / str(steps)
        search(make(kind, folder), steps)
        cut = make(kind, folder).create_trial("tuner0")  # killed in this trial
        oracle = make(kind, folder)
        again = oracle.create_trial("another name")
        assert (again.trial_id, again.hyperparameters.values) == (cut.trial_id, cut.hyperparameters.values)
        finish(oracle, again)
        assert results(search(make(kind, folder))) == expected  # and killed between two trials


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_search_is_over_and_can_be_made_longer(kind, tmp_path):
    first = results(search(make(kind, tmp_path)))
    assert results(search(make(kind, tmp_path))) == first
    longer = results(search(make(kind, tmp_path, max_trials=10)))
    assert longer[:8] == first
    assert len(longer) == 10


@pytest.mark.parametrize("kind", ["bayesian", "hyperband", "random"])
def test_the_seed_decides(kind, tmp_path):
    values = [[v for _, v, *_ in results(search(make(kind, tmp_path / str(s), seed=s)))] for s in (0, 1)]
    assert values[0] != values[1]


def test_values_are_drawn_evenly(tmp_path):
    oracle = search(make("random", tmp_path, max_trials=100))
    values = [trial.hyperparameters.values for trial in oracle.trials.values() if "rate" in trial.hyperparameters]
    counts = [sum(v["k"] == k for v in values) for k in (1, 2, 4)]
    assert min(counts) > 0.2 * len(values)
    assert 0.4 < np.mean([np.log10(v["rate"]) for v in values]) / -3 < 0.6


def test_bayesian_search_finds_the_best(tmp_path):
    oracle = search(make("bayesian", tmp_path, max_trials=16))
    best = oracle.get_best_trials()[0].hyperparameters.values
    assert best["k"] == 2
    assert best["kind"] == "a" or 0.4 < best["rate"] < 2


@pytest.mark.parametrize("kind", ["bayesian", "random"])
def test_no_combination_is_tried_twice(kind, tmp_path):
    def declare(hp):
        hp.Choice("k", [1, 2, 4])
        hp.Choice("b", [True, False])

    oracle = search(make(kind, tmp_path, max_trials=20, declare=declare))
    tried = [tuple(trial.hyperparameters.values.items()) for trial in oracle.trials.values()]
    assert len(tried) == len(set(tried)) == 6


def test_nearly_the_same_is_the_same(tmp_path):
    def declare(hp):
        hp.Choice("k", [1, 2])
        hp.Float("rate", 0.5, 2.0, sampling="log")

    oracle = search(make("bayesian", tmp_path, max_trials=16, declare=declare))
    values = [trial.hyperparameters.values for trial in oracle.trials.values()]
    assert len({(each["k"], f"{each['rate']:.3g}") for each in values}) == 16


def test_grid_search_is_the_product_without_what_a_condition_switches_off(tmp_path):
    def declare(hp):
        hp.Choice("kind", ["a", "b"])
        hp.Int("n", 1, 3, parent_name="kind", parent_values=["b"])
        hp.Choice("k", [4, 2])

    oracle = search(make("grid", tmp_path, max_trials=100, declare=declare))
    values = [trial.hyperparameters.values for trial in oracle.trials.values()]
    expected = [{"kind": "a", "k": k} for k in (4, 2)]
    expected += [{"kind": "b", "n": n, "k": k} for n in (1, 2, 3) for k in (4, 2)]
    assert values == expected


def test_hyperband_runs_the_best_again_for_longer(tmp_path):
    oracle = make("hyperband", tmp_path, max_trials=23)
    assert oracle.rungs() == [1, 3, 9]
    assert oracle.trials_per_iteration() == 9 + 3 + 1 + 5 + 2 + 3  # the paper's brackets of 9 epochs
    search(oracle)
    assert len(oracle.trials) == 23
    longer = [t for t in oracle.trials.values() if t.hyperparameters.values["tuner/round"] > 0]
    for trial in longer:
        values = dict(trial.hyperparameters.values)
        before = oracle.trials[values["tuner/trial_id"]]
        assert values["tuner/epochs"] == 3 * before.hyperparameters.values["tuner/epochs"]
        assert values["k"] == before.hyperparameters.values["k"]


def test_a_trial_in_which_the_process_dies_twice_has_failed(tmp_path):
    for _ in range(2):
        assert make("random", tmp_path).create_trial("tuner0").trial_id == "0"
    oracle = make("random", tmp_path)
    assert oracle.create_trial("tuner0").trial_id == "1"
    assert oracle.trials["0"].status == TrialStatus.FAILED
    assert reason_of(oracle.trials["0"]).startswith("The process died 2 times in this trial")


def test_failures_in_a_row_end_the_search_and_others_do_not(tmp_path):
    oracle = make("random", tmp_path, max_trials=50)
    for _ in range(3):
        for _ in range(oracle.max_failures - 1):
            fail(oracle, oracle.create_trial("tuner0"))
        finish(oracle, oracle.create_trial("tuner0"))
    assert oracle.stop_reason == ""
    for i in range(oracle.max_failures):
        fail(oracle, oracle.create_trial("tuner0"), f"Traceback (most recent call last):\n  x\nValueError: no {i}")
    assert oracle.create_trial("tuner0").status == TrialStatus.STOPPED
    assert oracle.stop_reason.startswith("5 trials in a row failed:\n  15: ValueError: no 0\n")
    assert make("random", tmp_path, max_trials=50).create_trial("tuner0").trial_id == "20"  # told once, it may go on


def test_reasons_are_one_line():
    traceback = "Traceback (most recent call last):\n  File 'a'\n    b()\n"
    chained = (
        f"{traceback}KeyError: 1\n\nThe above exception was the direct cause:\n\n{traceback}x.Error: It:\n  a: b\n"
    )
    assert reason_of(Trial(None, status=TrialStatus.FAILED, message=chained)) == "x.Error: It: a: b"
    assert reason_of(Trial(None, status=TrialStatus.FAILED)) == "The score is not a number."
    assert reason_of(Trial(None, status=TrialStatus.COMPLETED)) == ""


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_the_score_nan_is_a_failure(tmp_path):
    oracle = make("random", tmp_path)
    trial = oracle.create_trial("tuner0")
    oracle.update_trial(trial.trial_id, {NAME: float("nan")})
    trial.status = TrialStatus.COMPLETED
    oracle.end_trial(trial)
    assert oracle.trials["0"].status == TrialStatus.FAILED


def test_the_trial_of_a_silent_worker_goes_to_another(tmp_path):
    oracle = make("random", tmp_path, max_trials=2)
    oracle.worker_timeout = 0.2
    lost, other = (Trial.from_state(oracle.create_trial(f"worker {name}").get_state()) for name in "ab")
    time.sleep(0.25)
    oracle.get_trial(other.trial_id)  # a sign of life
    finish(oracle, other)
    again = oracle.create_trial("worker b")
    assert (again.trial_id, again.hyperparameters.values) == (lost.trial_id, lost.hyperparameters.values)
    assert not oracle.is_over()
    finish(oracle, again)
    score = oracle.trials[lost.trial_id].score
    assert oracle.create_trial("worker b").status == TrialStatus.STOPPED
    assert oracle.is_over()
    fail(oracle, lost)  # it was only slow: the first result counts
    oracle.update_trial(lost.trial_id, {NAME: 5.0})
    assert (oracle.trials[lost.trial_id].status, oracle.trials[lost.trial_id].score) == (TrialStatus.COMPLETED, score)


def test_workers_wait_while_others_still_run(tmp_path):
    oracle = make("random", tmp_path, max_trials=1)
    trial = oracle.create_trial("worker a")
    assert oracle.create_trial("worker b").status == TrialStatus.IDLE
    finish(oracle, trial)
    assert oracle.create_trial("worker b").status == TrialStatus.STOPPED
    assert not oracle.is_over()  # a was not told yet
    assert oracle.create_trial("worker a").status == TrialStatus.STOPPED
    assert oracle.is_over()
