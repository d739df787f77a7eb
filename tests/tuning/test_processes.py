"""Searches in real processes, some of which are killed."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pandas as pd
import pytest
import yaml

from tests.conftest import ROOT
from tests.tuning.conftest import mean_of_queries, save_vectors

DRIVER = """
    import pathlib, sys
    from xbm_keras.config.yaml_files import load_config
    from xbm_keras.tuning import HeadHyperModel, HeadSearch, gaussian_process, load_data, take_role, tuner, work
    gaussian_process.INITIAL_POINTS = 2
    tuner.HEARTBEAT_SECONDS, tuner.WORKER_TIMEOUT_SECONDS = 0.5, 10
    folder, max_trials, chief, worker = sys.argv[1:]
    role = take_role(chief, worker)
    config = load_config(str(pathlib.Path(folder).parent / "x.yaml"))
    hypermodel = HeadHyperModel(*load_data(config))
    if role == "worker":
        work(hypermodel)
    else:
        HeadSearch(hypermodel, pathlib.Path(folder), "bayesian", int(max_trials)).run(is_chief=role == "chief")
"""
SPACE = {
    "memory.memory_size": [0, 64, 128],
    "loss.name": ["supcon", "triplet"],
    "loss.margin": {"min": 0.05, "max": 0.5, "when": {"loss.name": "triplet"}},
    "training.learning_rate": {"min": 1e-3, "max": 3e-2, "log": True},
}


@pytest.fixture
def folder(tmp_path):
    save_vectors(tmp_path / "x.npz")
    config = {
        "data": {"source": "features", "path": str(tmp_path / "x.npz")},
        "backbone": {"kind": "none"},
        "head": {"embedding_dim": 8, "start": "random"},
        "training": {"epochs": 2, "folds": 1, "batch_size": 16},
        "search": {"space": SPACE},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def start(folder, max_trials, chief="", worker=""):
    """A process that searches."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(folder), str(max_trials), chief, worker]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process):
    """Its output, once it is done."""
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-4000:]
    return output


def wait_for(path, process):
    """Until a process has written a file."""
    while not path.exists():
        assert process.poll() is None, process.communicate()[0][-4000:]
        time.sleep(0.02)


def table(folder):
    return pd.read_csv(folder / "trials.csv", dtype={"trial": str}).drop(columns="seconds")


@pytest.mark.slow
def test_kill_9_and_again_gives_the_trials_of_an_undisturbed_search(folder):
    end(start(folder / "undisturbed", 6))
    for trial in ("0001", "0004"):  # a random one, and one of the Gaussian process
        killed = start(folder / "killed", 6)
        wait_for(folder / "killed" / "trials" / f"{trial}.yaml", killed)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    end(start(folder / "killed", 6))
    pd.testing.assert_frame_equal(table(folder / "killed"), table(folder / "undisturbed"))
    for trial in range(6):
        paths = [folder / name / "trials" / f"{trial:04d}.yaml" for name in ("killed", "undisturbed")]
        assert paths[0].read_text() == paths[1].read_text()


@pytest.mark.slow
def test_a_chief_and_two_workers_one_of_which_is_killed(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    chief = start(folder / "search", 5, chief=address)
    first = start(folder / "unused", 5, worker=address)
    wait_for(folder / "search/trials/0000.yaml", chief)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second, third = (start(folder / "unused", 5, worker=address) for _ in range(2))
    end(second), end(third), end(chief)
    found = table(folder / "search")
    assert found.trial.tolist() == [f"{i:04d}" for i in range(5)]
    assert set(found.status) == {"completed"}
    assert not (folder / "unused").exists()


@pytest.mark.slow
def test_two_trials_at_a_time(folder):
    command = [sys.executable, "tune.py", "--config", str(folder / "x.yaml"), "--workdir", str(folder / "search")]
    command += ["--max_trials", "4", "--parallel", "2", "--set", "search.space={memory.memory_size: [0, 64, 128, 256]}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    found = table(folder / "search")
    assert set(found.status) == {"completed"}
    assert len(found) == 4
    for row in found.itertuples():  # what a worker scored has come to the chief
        assert mean_of_queries(folder / "search", row.trial) == pytest.approx(row.val_map_at_r, abs=1e-5)
    assert len(list((folder / "search/workers").iterdir())) == 2
    assert (folder / "search/best/metrics.json").exists()
