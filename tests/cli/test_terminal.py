"""What a run says, and how Ctrl-C ends it: real processes."""

import errno
import functools
import io
import logging
import os
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pandas as pd
import pytest
import rich
import rich.console
import tensorflow as tf
import yaml

from tests.conftest import ROOT
from xbm_keras.cli import terminal
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.retrieval import embed, evaluate_retrieval
from xbm_keras.experiment import phases


def test_ctrl_c_keeps_the_best_head_and_says_how_to_go_on(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 12)
    features = np.concatenate(
        [rng.normal(size=(24, 6))[labels] * 1.5 + rng.normal(size=(288, 6)), rng.normal(size=(288, 18))], axis=1
    )
    np.savez(tmp_path / "vectors.npz", features=features, label=labels)
    config = {
        "data": {"source": "features", "path": str(tmp_path / "vectors.npz"), "split": {"num_train_classes": 16}},
        "backbone": {"kind": "none"},
        "head": {"embedding_dim": 8, "start": "random"},
        "training": {"epochs": 100_000, "patience": 100_000, "batch_size": 16},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, str(ROOT / "train.py"), f"--config={tmp_path}/x.yaml", f"--workdir={tmp_path}/run"]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Tests that a shell runs in the background would hand down that Ctrl-C is ignored.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=environment, cwd=ROOT, preexec_fn=listen, **pipes) as process:
        history = tmp_path / "run/history.csv"
        deadline = time.monotonic() + 120
        while not (history.exists() and history.read_text().count("\n") > 5):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    epochs = pd.read_csv(history)
    best = epochs.loc[epochs.val_map_at_r.idxmax()]
    epoch = int(re.search(r"of epoch (\d+)", err)[1])
    # Between the note of a best head and its row in the history there is a moment, too.
    assert epoch in (best.epoch, epochs.epoch.max() + 1)
    assert err.splitlines() == [  # and nothing of TensorFlow or CUDA
        f"The best head so far, of epoch {epoch}, is in {tmp_path}/run/model.keras; it was not tested. "
        f"For a run that ends there: --set training.epochs={epoch} and another --workdir",
        "Interrupted. The same command goes on from what is kept: features computed, epochs saved, trials done.",
    ]
    assert "\r" not in out
    assert "\x1b" not in out
    assert not (tmp_path / "run/metrics.json").exists()  # not a finished run: the folder can be used again

    model = keras.saving.load_model(tmp_path / "run/model.keras")
    trained_on = np.unique(model.memory.read().labels.numpy())
    validation = np.flatnonzero((labels < 16) & ~np.isin(labels, trained_on))  # label i is also called number i
    vectors = embed(model.head, UnitRows(features, validation))
    if epoch == best.epoch:
        assert np.isclose(evaluate_retrieval(vectors, labels[validation])["map_at_r"], best.val_map_at_r, atol=1e-5)


def test_sigterm_is_told_as_ctrl_c_is(capsys):
    former = signal.getsignal(signal.SIGTERM)

    @terminal.readable_errors()
    def run():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt as interrupt:  # as a phase does, which keeps its head
            raise phases.Interrupted(None, 0) from interrupt

    with pytest.raises(SystemExit) as raised:
        run()
    assert raised.value.code == 143
    assert capsys.readouterr().err.startswith("Terminated. The same command goes on from what is kept: features")
    assert signal.getsignal(signal.SIGTERM) is former


def test_a_full_disk_is_no_lack_of_memory(capsys):
    for message, told in (
        ("x.pb; No space left on device", "Error: x.pb; No space left on device. Once that is mended"),
        ("OOM when allocating", "needs more memory than there is: OOM"),
    ):
        with pytest.raises(SystemExit), terminal.readable_errors():
            raise tf.errors.ResourceExhaustedError(None, None, message)
        assert told in capsys.readouterr().err


def test_what_cannot_be_written_ends_no_training(monkeypatch, capsys):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(rich, "get_console", lambda: rich.console.Console(file=stream))
    terminal.set_up()
    logging.getLogger("xbm_keras").info("klasse ä")
    assert stream.buffer.getvalue() == b"klasse \\xe4\n"

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    stream = Full()
    logging.getLogger("xbm_keras").info("an epoch")
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert "an epoch" in told


@pytest.mark.parametrize("is_terminal", [True, False])
def test_messages_break_between_words_and_only_in_a_terminal(monkeypatch, is_terminal):
    console = rich.console.Console(file=io.StringIO(), width=40, force_terminal=is_terminal, color_system=None)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    path = "/data/" + "a-long-folder/" * 9 + "[x].html"
    terminal.Messages().emit(logging.makeLogRecord({"msg": f"{path}: one two three four five six seven eight nine"}))
    expected = [f"{path}: one two three four five six seven eight nine"]
    if is_terminal:
        expected = [f"{path}:", "one two three four five six seven eight", "nine"]
    assert console.file.getvalue().splitlines() == expected
