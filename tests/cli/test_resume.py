"""Runs that are killed and started again: they end as if nothing had happened."""

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys

import filelock
import keras
import numpy as np
import pandas as pd
import pytest
import yaml
from absl import flags
from absl.testing import flagsaver

from tests.fresh_processes import run_python
from xbm_keras import atomic_files
from xbm_keras.cli import train
from xbm_keras.config.yaml_files import load_config
from xbm_keras.experiment import phases, run_folder
from xbm_keras.export import saved_model

flags.FLAGS.mark_as_parsed()
same_as_new_processes = True  # to the last digit


class Killed(BaseException):
    """Nothing in the library catches it."""


def run(config, workdir, *overrides, resume="auto", report=False):
    workdir = workdir and str(workdir)
    with flagsaver.flagsaver(config=str(config), workdir=workdir, set=list(overrides), resume=resume, report=report):
        train.main(["train.py"])


def fails(*args, capsys, **options):
    with pytest.raises(SystemExit) as exit:
        run(*args, **options)
    assert exit.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run whose memory turns over, with random positives and keys that age: all state that there is."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 12)
    features = np.concatenate(
        [rng.normal(size=(24, 6))[labels] + rng.normal(size=(288, 6)), 1.5 * rng.normal(size=(288, 18))], axis=1
    )
    np.savez(folder / "vectors.npz", features=features.astype(np.float32), label=labels)
    values = {
        "data": {"source": "features", "path": str(folder / "vectors.npz")},
        "backbone": {"kind": "none"},
        "head": {"embedding_dim": 8, "start": "random"},
        "memory": {"memory_size": 64, "prefill": False},
        "top_k": {"mine_in": 7, "num_negatives": 3, "num_positives": 2, "num_random": 5},
        "training": {
            "epochs": 4, "batch_size": 16, "learning_rate": 0.03, "steps_per_epoch": 5,
            "checkpoint_every_seconds": 0.0,
        },
    }  # fmt: skip
    (folder / "vectors.yaml").write_text(yaml.safe_dump(values))
    return folder / "vectors.yaml"


def left_by(workdir):
    """All that a run ends with: metrics, history, and every variable of the model and its optimizer."""
    model = keras.saving.load_model(workdir / "model.keras")
    variables = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    return [(workdir / name).read_text() for name in ("metrics.json", "history.csv")], variables


def assert_same(workdir, undisturbed):
    texts, variables = left_by(workdir)
    assert texts == undisturbed[0]
    assert len(variables) == len(undisturbed[1])
    for mine, other in zip(variables, undisturbed[1], strict=True):
        np.testing.assert_array_equal(mine, other)
    assert [path.name for path in (workdir / "export").iterdir() if path.is_dir()] == ["1"]
    assert not (workdir / "checkpoints").exists()


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    run(config, workdir)
    return left_by(workdir)


DETERMINISTIC = """
import tensorflow as tf
tf.config.experimental.enable_op_determinism()  # an op that has no such form would raise an error
from absl import app
from xbm_keras.cli import train
app.run(train.main)
"""


def test_a_second_run_is_the_same_to_the_last_digit(config, undisturbed, tmp_path):
    start_process(DETERMINISTIC, config, tmp_path / "again")
    assert_same(tmp_path / "again", undisturbed)


def killed_at(number, function):
    """The function, whose numbered call, from 0, ends as Killed in place of its work."""
    calls = itertools.count()

    def called(*args, **kwargs):
        if next(calls) == number:
            raise Killed
        return function(*args, **kwargs)

    return called


KILLED = """
import importlib, os, signal
from absl import app
from xbm_keras.cli import train

module = importlib.import_module("xbm_keras.{module}")
number = {number}
function = module.{name}

def killed(*args, **kwargs):
    global number
    number -= 1
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)

module.{name} = killed
app.run(train.main)
"""


def run_until_killed(config, workdir, module, name, number):
    """In a process of its own, which dies by kill -9 at the numbered call of a function, from 0."""
    return start_process(KILLED.format(module=module, name=name, number=number), config, workdir)


def start_process(code, config, workdir):
    """Run code that ends in train.py, in a new process; its exit status, which is 0 or that of kill -9."""
    done = run_python(["-c", code, f"--config={config}", f"--workdir={workdir}", "--noreport"])
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-4000:]
    return done.returncode


def test_killed_again_and_again(config, undisturbed, tmp_path, monkeypatch):
    assert run_until_killed(config, tmp_path, "training.checkpoints", "write_whole", 5)  # in the third checkpoint
    assert {path.name for path in (tmp_path / "checkpoints/select").iterdir()} == {"1", "2", "3.tmp"}
    for where, name, number in [
        (phases.HistoryCsv, "on_epoch_end", 3),  # in the refit: two epochs of the selection were left
        (saved_model, "write_requests", 0),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, killed_at(number, getattr(where, name)))
            with pytest.raises(Killed):
                run(config, tmp_path, resume="must")
    assert not (tmp_path / "metrics.json").exists()
    run(config, tmp_path)
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_at_ten_random_moments(config, undisturbed, tmp_path):
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    num_killed = 0
    while num_killed < 10:  # where a process came to its end, it is the next run that is killed
        module, name, most = [
            ("experiment.phases", "TrainingProgress.on_train_batch_end", 24),
            ("training.checkpoints", "tf.train.Checkpoint.write", 5),
            ("atomic_files", "os.fsync", 90),  # in checkpoints, the history, the model, the export
        ][rng.integers(3)]
        number = int(rng.integers(most))
        print(f"to be killed at call {number} of {module}.{name}")
        if run_until_killed(config, tmp_path, module, name, number):
            num_killed += 1
        else:
            assert_same(tmp_path, undisturbed)
            shutil.rmtree(tmp_path)
    run(config, tmp_path)
    assert_same(tmp_path, undisturbed)


# --- which folder, and what is refused ---


@pytest.fixture(scope="module")
def killed(config, tmp_path_factory):
    """A folder in which two epochs were saved."""
    workdir = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases.HistoryCsv, "on_epoch_end", killed_at(2, phases.HistoryCsv.on_epoch_end))
        with pytest.raises(Killed):
            run(config, workdir)
    return workdir


@pytest.fixture
def unfinished(killed, tmp_path):
    return shutil.copytree(killed, tmp_path / "unfinished")


def epochs_done(monkeypatch, *args, **options):
    """The first epoch that a run trains."""
    epochs = []

    def fit(*args):
        epochs.append(args[-1])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(phases, "fit", fit)
        with pytest.raises(Killed):
            run(*args, **options)
    return epochs[0]


def test_auto_and_must_go_on_and_never_starts_anew(config, unfinished, tmp_path, monkeypatch, capsys):
    assert epochs_done(monkeypatch, config, unfinished) == 2
    assert epochs_done(monkeypatch, config, unfinished, resume="must") == 2
    assert len(pd.read_csv(unfinished / "history.csv")) == 2
    assert epochs_done(monkeypatch, config, unfinished, resume="never") == 0
    assert not (unfinished / "history.csv").exists()
    said = fails(config, tmp_path / "new", resume="must", capsys=capsys)
    assert "holds no checkpoint of an unfinished run; leave --resume out" in said


def test_without_a_workdir_the_newest_unfinished_run_goes_on(config, unfinished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vectors-1", "vectors-2"):
        shutil.copytree(unfinished, f"runs/{name}")
    shutil.rmtree("runs/vectors-2/checkpoints")  # finished, or killed at once
    with filelock.FileLock("runs/vectors-1/.lock"):
        assert epochs_done(monkeypatch, config, None) == 0
    assert epochs_done(monkeypatch, config, None, "training.seed=1") == 0
    assert epochs_done(monkeypatch, config, None, resume="never") == 0
    assert epochs_done(monkeypatch, config, None) == 2


def test_another_config_is_refused_with_the_difference(config, unfinished, capsys):
    said = fails(config, unfinished, "memory.memory_size=96", "loss.name=triplet", capsys=capsys)
    assert "an unfinished run of another config:" in said
    assert "  memory.memory_size: 64 there, 96 here\n" in said
    assert "  loss.name: 'supcon' there, 'triplet' here\n" in said
    assert "start anew with --resume=never" in said


def test_what_decides_nothing_may_change(config, unfinished, monkeypatch):
    changed = ["training.checkpoint_every_seconds=5.0", "export.weights=float16", "cache.dir=elsewhere"]
    assert epochs_done(monkeypatch, config, unfinished, *changed) == 2


@pytest.mark.parametrize(
    ("there", "here", "differences"),
    [
        ("128", "auto", []),
        ("64", "auto", []),  # of features of 64
        ("auto", "64", []),
        ("64", "128", ["head.embedding_dim: 64 there, 128 here"]),
    ],
)
def test_an_earlier_run_that_says_how_wide_its_head_is_goes_on(there, here, differences):
    earlier, config = (load_config("default", [f"head.embedding_dim={dim}"]) for dim in (there, here))
    assert run_folder._differences(earlier, config) == differences


@pytest.mark.parametrize(
    ("there", "here", "differences"),
    [
        ("auto", "auto", []),
        ("[class,gem]", "auto", []),  # what it came to
        ("[class]", "[gem]", ["backbone.parts: ['class'] there, ['gem'] here"]),
        ("[class]", "pooled", ["backbone.parts: ['class'] there, 'pooled' here"]),
    ],
)
def test_an_unfinished_run_that_says_which_parts_it_took_goes_on(there, here, differences):
    earlier, config = (load_config("birds_dinov2", [f"backbone.parts={parts}"]) for parts in (there, here))
    assert run_folder._differences(earlier, config) == differences


def test_other_data_are_refused(config, unfinished, tmp_path, capsys):
    path = config.with_name("vectors.npz")
    with np.load(path) as data:
        arrays = dict(data)
    before = path.read_bytes()
    try:
        np.savez(path, features=arrays["features"][::-1], label=arrays["label"])
        assert "data that changed since the unfinished run" in fails(config, unfinished, capsys=capsys)
    finally:
        path.write_bytes(before)


def test_a_folder_in_use_is_refused_and_a_dead_process_does_not_block(config, unfinished, monkeypatch, capsys):
    code = (
        "import filelock, signal, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(); signal.pause()"
    )
    command = [sys.executable, "-u", "-c", code, str(unfinished / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"\n"
            assert "in which another process is at work" in fails(config, unfinished, capsys=capsys)
        finally:
            other.kill()
    assert epochs_done(monkeypatch, config, unfinished) == 2


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"null", b"{}"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(config, unfinished, monkeypatch, capsys, content):
    (unfinished / "checkpoints/select/2/variables.index").write_bytes(b"no such thing")
    assert epochs_done(monkeypatch, config, unfinished) == 1
    (unfinished / "checkpoints/select/1/about.json").write_bytes(content)
    assert "none of whose checkpoints can be read" in fails(config, unfinished, capsys=capsys)


def test_a_full_disk_ends_in_one_message(config, unfinished, tmp_path, capsys, monkeypatch):
    def full(path, sync=atomic_files.sync):
        if "checkpoints" not in path.parts:
            return sync(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(atomic_files, "sync", full)
    said = fails(config, unfinished, capsys=capsys)
    assert "No space left on device" in said
    assert "the same command goes on from what is kept" in said
    assert {path.name for path in (unfinished / "checkpoints/select").iterdir()} == {"1", "2"}
