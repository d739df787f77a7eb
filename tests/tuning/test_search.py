"""tune.py as a user meets it, and its trials as train.py meets them."""

import gc
import json
import os
import pathlib
import shutil

import filelock
import keras
import keras_tuner
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml
from absl import flags
from absl.testing import flagsaver

from tests.tuning.conftest import mean_of_queries, save_vectors
from xbm_keras import tuning
from xbm_keras.cli import train, tune
from xbm_keras.config.yaml_files import load_config
from xbm_keras.experiment import build
from xbm_keras.tuning import HeadHyperModel, load_data, oracles
from xbm_keras.tuning import page as tuning_page
from xbm_keras.tuning import search as search_module
from xbm_keras.tuning.hypermodel import estimate_bytes

flags.FLAGS.mark_as_parsed()
SPACE = {
    "memory.memory_size": [0, 64],
    "top_k.num_negatives": [4, "all"],
    "training.learning_rate": {"min": 1e-3, "max": 1e-1, "log": True},
}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A config of a small search."""
    folder = tmp_path_factory.mktemp("vectors")
    save_vectors(folder / "vectors.npz")
    config = {
        "data": {"source": "features", "path": str(folder / "vectors.npz")},
        "backbone": {"kind": "none"},
        "head": {"embedding_dim": 8, "start": "lda", "shrinkage": 0.4},
        "training": {"epochs": 2, "folds": 1, "batch_size": 16},
        "search": {"space": SPACE},
    }
    (folder / "vectors.yaml").write_text(yaml.safe_dump(config))
    return folder / "vectors.yaml"


def search(config, workdir, max_trials, *overrides, tuner="random", resume="auto"):
    """tune.py with these flags; the table of trials."""
    given = {"config": str(config), "workdir": str(workdir), "max_trials": max_trials, "tuner": tuner}
    with flagsaver.flagsaver(**given, set=list(overrides), resume=resume, report=False):
        tune.main(["tune.py"])
    return pd.read_csv(pathlib.Path(workdir) / "trials.csv", dtype={"trial": str})


def run(config, workdir, *overrides):
    """train.py with these flags; the metrics of the run."""
    with flagsaver.flagsaver(config=str(config), workdir=str(workdir), set=list(overrides)):
        train.main(["train.py"])
    return json.loads((pathlib.Path(workdir) / "metrics.json").read_text())


@pytest.fixture(autouse=True, scope="module")
def _pages_draw_no_keys():
    """Which test_page.py looks at, and which would be drawn after each of these searches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning_page, "_keys", lambda findings: tuning_page.PageSection("Each key", []))
        yield


@pytest.fixture(scope="module")
def finished(vectors, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("search")
    return workdir, search(vectors, workdir, 3)


def test_a_search_leaves_what_the_docs_say(finished):
    workdir, table = finished
    assert {p.name for p in workdir.iterdir()} == {
        "best", "best.yaml", "default", "keras_tuner", "search.html", "search.yaml", "trials", "trials.csv",
    }  # fmt: skip
    assert {p.name for p in (workdir / "trials").iterdir()} == {
        "0000.yaml", "0001.yaml", "0002.yaml", "default.json", "default.yaml",
        "0000_queries.json", "0001_queries.json", "0002_queries.json", "default_queries.json",
    }  # fmt: skip
    assert table.trial.tolist() == ["0000", "0001", "0002"]
    assert set(table.status) == {"completed"}
    assert table.val_map_at_r.between(0, 1).all()
    assert set(SPACE) < set(table.columns)
    for name in ("default", "best"):
        assert (workdir / name / "export/1/saved_model.pb").exists()


def test_the_best_config_gives_the_best_score(finished):
    workdir, table = finished
    default = json.loads((workdir / "trials/default.json").read_text())["val_map_at_r"]
    assert load_config(str(workdir / "best.yaml")) == load_config(str(workdir / "best/config.yaml"))
    metrics = json.loads((workdir / "best/metrics.json").read_text())
    assert metrics["phase"] == "refit"
    score = metrics["validation"]["leave_one_out"]["trained"]["map_at_r"]
    assert score == pytest.approx(max(default, table.val_map_at_r.max()), abs=1e-4)


def test_the_mean_of_what_is_kept_is_the_score(finished):
    workdir, table = finished
    for row in table.itertuples():
        assert mean_of_queries(workdir, row.trial) == pytest.approx(row.val_map_at_r, abs=1e-6)
    default = json.loads((workdir / "trials/default.json").read_text())["val_map_at_r"]
    assert mean_of_queries(workdir, "default") == pytest.approx(default, abs=1e-6)


@pytest.mark.parametrize("kind", ["surely", "perhaps", "an earlier version"])
def test_the_page_and_the_last_lines_say_how_sure_it_is(finished, vectors, tmp_path, capsys, monkeypatch, kind):
    """A finished search that is gone on with, and whose default is told to be worse than it was."""
    workdir = shutil.copytree(finished[0], tmp_path / "search")
    monkeypatch.setattr(tune, "train_once", lambda *args, **like: None)
    table = pd.read_csv(workdir / "trials.csv", dtype={"trial": str})
    best = table.trial[table.val_map_at_r.idxmax()]
    trials, file = workdir / "trials", workdir / "trials/default_queries.json"
    found = json.loads((trials / f"{best}_queries.json").read_text())
    less = [0.1 if kind == "surely" or unit % 2 else -0.1 for unit in found["units"]]
    file.write_text(json.dumps(found | {"values": [v - d for v, d in zip(found["values"], less, strict=True)]}))
    (trials / "default.json").write_text(json.dumps({"val_map_at_r": 0.01, "epoch": 1}))
    if kind == "an earlier version":
        file.unlink()
    search(vectors, workdir, 3)
    said = " ".join(capsys.readouterr().out.split())
    page = (workdir / "search.html").read_text("utf-8")
    for text in (said, page):
        assert (f"Trial {best} is not surely better than the config as it is" in text) == (kind == "perhaps")
        assert ("over classes +0.1000 to +0.1000" in text) == (kind == "surely")
        assert ("95 % interval of the difference" in text) == (kind != "an earlier version")
        assert "instead of 0.0100" in text
    assert (workdir / "best.yaml").read_text() != (workdir / "trials/default.yaml").read_text()


def test_more_than_a_message_holds_is_not_kept(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning.tuner, "MAX_CHARACTERS", 10)
    monkeypatch.setattr(tune, "train_once", lambda *args, **like: None)
    assert search(vectors, tmp_path, 1).status.tolist() == ["completed"]
    assert not (tmp_path / "trials/0000_queries.json").exists()


def test_a_trial_runs_through_train_as_it_is(finished, tmp_path):
    workdir, table = finished
    row = table.iloc[1]
    config = load_config(str(workdir / "trials" / f"{row.trial}.yaml"), ["training.refit=false"])
    assert config.memory.memory_size == row["memory.memory_size"]
    assert config.training.learning_rate == row["training.learning_rate"]
    metrics = run(workdir / "trials" / f"{row.trial}.yaml", tmp_path / "again", "training.refit=false")
    assert metrics["validation"]["leave_one_out"]["trained"]["map_at_r"] == pytest.approx(row.val_map_at_r, abs=1e-4)
    assert metrics["validation"]["epoch"] == row.epoch


def test_more_trials_go_on(finished, vectors):
    workdir, table = finished
    stamp = (workdir / "trials/0002.yaml").stat().st_mtime_ns
    longer = search(vectors, workdir, 4)
    assert (workdir / "trials/0002.yaml").stat().st_mtime_ns == stamp
    pd.testing.assert_frame_equal(longer[:3], table)
    assert len(longer) == 4


@pytest.mark.parametrize("overrides", [["head.embedding_dim=4"], ["training.seed=2"]])
def test_another_config_is_refused_where_a_search_is(finished, vectors, capsys, overrides):
    with pytest.raises(SystemExit):
        search(vectors, finished[0], 4, *overrides)
    assert "holds a search of another config, space or tuner" in capsys.readouterr().err


def test_failed_trials_have_their_reason_and_end_a_hopeless_search(vectors, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(oracles.ResumableOracle, "max_failures", 3)
    monkeypatch.setattr(tune, "train_once", lambda *args, **like: None)
    config = yaml.safe_load(vectors.read_text())
    config["search"]["space"] = {"memory.memory_size": [1, 2, 3, 64]}  # less than a batch of 16, but the last
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stopped:
        search(tmp_path / "x.yaml", tmp_path, 10, tuner="grid")
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "3 trials in a row failed" in message
    assert "memory.memory_size 3 is smaller than the batch of 16" in message
    table = search(tmp_path / "x.yaml", tmp_path, 10, tuner="grid")  # told once, the search may go on
    assert table.status.tolist() == ["failed"] * 3 + ["completed"]
    assert "smaller than the batch" in table.reason[0]
    assert (tmp_path / "trials/0000.yaml").exists()


def test_without_labels_trials_are_scored_by_what_the_epoch_is_chosen_by(tmp_path):
    features = np.random.default_rng(0).normal(size=(300, 16)) * np.linspace(2, 0.2, 16)
    np.save(tmp_path / "x.npy", features.astype(np.float32))
    config = {
        "data": {"source": "features", "path": str(tmp_path / "x.npy")},
        "backbone": {"kind": "none"},
        "head": {"widths": [2, 4]},
        "loss": {"name": "similarity_alignment"},
        "training": {"epochs": 2, "folds": 1, "batch_size": 32, "steps_per_epoch": 4},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    table = search(tmp_path / "x.yaml", tmp_path / "search", 1)
    (row,) = table.itertuples()
    assert mean_of_queries(tmp_path / "search", row.trial) == pytest.approx(row.val_neighbor_overlap_at_10, abs=1e-6)
    assert row.status == "completed"
    keys = {"memory.memory_size", "top_k.num_neighbors", "top_k.num_random", "top_k.centring", "loss.temperature"}
    assert keys < set(table.columns)
    run(tmp_path / "search/trials" / f"{row.trial}.yaml", tmp_path / "again")
    history = pd.read_csv(tmp_path / "again/history.csv")
    if row.epoch:
        assert history.val_neighbor_overlap_at_10[row.epoch - 1] == pytest.approx(
            row.val_neighbor_overlap_at_10, abs=1e-4
        )
    page = (tmp_path / "search/search.html").read_text("utf-8")
    assert "Scores are overlap@10 on held-out items." in page
    assert "test overlap@10, against the frozen features" in page
    assert "MAP@R" not in page
    start = load_config(str(tmp_path / "x.yaml"), ["training.epochs=0"])
    scores = HeadHyperModel(*load_data(start)).evaluate(start)  # of the start alone
    assert 0 < scores["val_neighbor_overlap_at_10"] <= 1
    assert scores["epoch"] == 0


def test_the_first_trial_of_the_default_space_is_what_auto_stands_for(vectors):
    config = load_config(str(vectors), ["search.space=null", "head.start=auto", "head.shrinkage=auto"])
    hypermodel = HeadHyperModel(*load_data(config))
    hp = keras_tuner.HyperParameters()
    hypermodel.declare_hyperparameters(hp)
    first = hypermodel.config_of(hp)
    assert "auto" not in first.head.model_dump().values()
    assert hypermodel.evaluate(first)["val_map_at_r"] == pytest.approx(
        hypermodel.evaluate(config)["val_map_at_r"], abs=1e-4
    )


def test_where_the_network_does_not_tell_its_width_the_features_do(vectors, monkeypatch):
    monkeypatch.setattr(build, "width_of", lambda source, backbone: None)
    config, dataset = load_data(load_config(str(vectors), ["head.embedding_dim=auto"]))
    assert config.head.embedding_dim == dataset.features.shape[1] < 128


def test_test_classes_are_never_scored(vectors):
    config = load_config(str(vectors))
    hypermodel = HeadHyperModel(*load_data(config))
    dataset = hypermodel.dataset
    dataset.features[dataset.splits.test] = np.nan  # whatever reads them, shows it
    dataset.labels[dataset.splits.test] = -1
    assert 0 < hypermodel.evaluate(config)["val_map_at_r"] < 1


def test_nothing_that_a_trial_traced_outlives_it(vectors):
    config = load_config(str(vectors), ["training.epochs=1", "training.steps_per_epoch=1"])
    hypermodel = HeadHyperModel(*load_data(config))
    graphs = []
    for _ in range(2):
        hypermodel.evaluate(config)
        keras.backend.clear_session()
        gc.collect()
        graphs.append(sum(isinstance(each, tf.__internal__.FuncGraph) for each in gc.get_objects()))
    assert graphs[0] == graphs[1]  # those of exact search, which stay for the next trial


def test_a_trial_that_does_not_fit_into_memory_is_not_begun(vectors, monkeypatch):
    config = load_config(str(vectors))
    hypermodel = HeadHyperModel(*load_data(config))
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    hp = keras_tuner.HyperParameters()
    hypermodel.declare_hyperparameters(hp)
    with pytest.raises(keras_tuner.errors.FailedTrialError, match=r"needs about 0\.0 GB of memory, and 0\.0 GB"):
        hypermodel.build(hp)
    assert estimate_bytes(config, 100_000, 512) > 65_536 * 512 * 4


def test_users_bring_their_own_tuner(vectors, tmp_path):
    config = load_config(str(vectors))
    hypermodel = HeadHyperModel(*load_data(config))
    tuner = keras_tuner.RandomSearch(
        hypermodel, hypermodel.objective, max_trials=1, directory=tmp_path, seed=3, executions_per_trial=1
    )
    tuner.search(verbose=0)
    trial = tuner.oracle.get_best_trials()[0]
    best = hypermodel.config_of(trial.hyperparameters)
    assert best.memory.memory_size in (0, 64)
    assert hypermodel.evaluate(best)["val_map_at_r"] == pytest.approx(trial.score, abs=1e-4)
    assert isinstance(tuner.get_best_models()[0], keras.Model)
    assert "KERASTUNER_ORACLE_IP" not in os.environ


def test_resume_means_what_it_means_to_train(finished, vectors, tmp_path, capsys):
    with pytest.raises(SystemExit):
        search(vectors, tmp_path / "none", 2, resume="must")
    assert "which holds no search; leave --resume out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        search(vectors, finished[0], 2, resume="never")
    assert "holds a finished search; give another folder" in capsys.readouterr().err
    assert (finished[0] / "best/metrics.json").exists()

    unfinished = shutil.copytree(finished[0], tmp_path / "unfinished")
    shutil.rmtree(unfinished / "best")
    stamp = (unfinished / "trials/0000.yaml").stat().st_mtime_ns
    assert len(search(vectors, unfinished, 1, "training.epochs=1", resume="never")) == 1
    assert (unfinished / "trials/0000.yaml").stat().st_mtime_ns != stamp
    assert not (unfinished / "trials/0001.yaml").exists()
    assert load_config(str(unfinished / "default/config.yaml")).training.epochs == 1


def test_a_best_that_is_the_config_as_it_is_is_not_trained_again(finished, vectors, tmp_path, capsys, monkeypatch):
    workdir = shutil.copytree(finished[0], tmp_path / "search")
    shutil.rmtree(workdir / "best")
    score = json.loads((workdir / "trials/default.json").read_text())
    (workdir / "trials/default.json").write_text(json.dumps({name: 1.0 for name in score}))
    monkeypatch.setattr(tune, "train", lambda *args: pytest.fail("trained"))
    (workdir / "default/report.html").write_text("<title>default</title>\n<h1>default</h1>\n<title>default</title>")
    (workdir / "best").mkdir()
    shutil.copy(workdir / "default/config.yaml", workdir / "best")
    with filelock.FileLock(workdir / "best/.lock"), pytest.raises(SystemExit):
        search(vectors, workdir, 3)
    assert "search/best, in which another process is at work" in " ".join(capsys.readouterr().err.split())
    assert (workdir / "best/config.yaml").exists()
    search(vectors, workdir, 3)
    told = (workdir / "best/report.html").read_text()
    assert told == "<title>best</title>\n<h1>best</h1>\n<title>default</title>"
    for name in ("metrics.json", "config.yaml", "model.keras"):
        assert (workdir / "best" / name).read_bytes() == (workdir / "default" / name).read_bytes()


def test_a_page_that_cannot_be_made_loses_no_search(finished, vectors, tmp_path, capsys, monkeypatch):
    workdir = shutil.copytree(finished[0], tmp_path / "search")
    (workdir / "search.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(search_module, "search_page", lambda *args: 1 / 0)
        search(vectors, workdir, 4)
    assert "The report could not be written: ZeroDivisionError" in " ".join(capsys.readouterr().out.split())
    assert "1 / 0" in (workdir / "report_error.txt").read_text("utf-8")
    monkeypatch.chdir(tmp_path.parent)
    search(vectors, f"{tmp_path.name}/search", 4)
    assert f"python train.py --config {tmp_path.name}/search/best.yaml" in (workdir / "search.html").read_text("utf-8")
    assert not (workdir / "report_error.txt").exists()
