"""train.py with the flags of a test, and what it exports in a process of its own."""

import json
import pathlib
import textwrap

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from tests.fresh_processes import run_fresh
from tests.picture_files import encode, noise
from xbm_keras.cli import train

flags.FLAGS.mark_as_parsed()

SERVE = """
    import sys
    import numpy as np
    import tensorflow as tf
    serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    inputs = np.load(sys.argv[2])
    outputs = [serve(**{name: tf.constant(inputs[:n])})["embeddings"].numpy() for n in (1, 33, 0)]
    assert "xbm_keras" not in sys.modules
    np.savez(sys.argv[3], *outputs)
"""
METRICS = {"recall_at_1", "recall_at_5", "recall_at_10", "map_at_r", "r_precision"}


def means_of(scores):
    """The metrics, without intervals and differences."""
    return {name: scores[name] for name in METRICS}


def serve_in_a_fresh_process(export, inputs, tmp_path):
    """What the SavedModel gives for the first 1, 33 and 0 inputs, loaded by a process that imports TensorFlow alone."""
    np.save(tmp_path / "inputs.npy", inputs)
    run_fresh(textwrap.dedent(SERVE), export, tmp_path / "inputs.npy", tmp_path / "outputs.npz")
    with np.load(tmp_path / "outputs.npz") as outputs:
        return list(outputs.values())


def run(config, workdir, *overrides, report=False):
    """train.py with these flags; the metrics of the run."""
    with flagsaver.flagsaver(config=str(config), workdir=str(workdir), set=list(overrides), report=report):
        train.main(["train.py"])
    return json.loads((pathlib.Path(workdir) / "metrics.json").read_text())


def fails(config, workdir, *overrides, capsys):
    """The message on standard error of a run that ends with exit code 2."""
    with (
        pytest.raises(SystemExit) as exit,
        flagsaver.flagsaver(config=str(config), workdir=str(workdir), set=list(overrides)),
    ):
        train.main(["train.py"])
    assert exit.value.code == 2
    return capsys.readouterr().err


def folder_of_pictures(folder):
    """Two classes of one picture each."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").write_bytes(encode(noise(), "PNG"))
    return str(folder)
