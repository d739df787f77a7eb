"""Which devices a run trains on, and a whole run on two of them."""

import types

import pytest
import tensorflow as tf

from tests.fresh_processes import run_fresh
from tests.model.test_replicas import TWO_DEVICES
from xbm_keras.config.schema import Training
from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.experiment import devices

RUN = """
import itertools, json, pathlib, shutil
import pandas as pd
import yaml
from absl import flags
from absl.testing import flagsaver
from xbm_keras.cli import train
from xbm_keras.experiment import phases
from xbm_keras.training.checkpoints import Checkpoints

flags.FLAGS.mark_as_parsed()
folder = pathlib.Path(sys.argv[1])
labels = np.repeat(np.arange(12), 8)
features = rng.normal(size=(12, 8))[labels] + rng.normal(size=(96, 8))
np.savez(folder / "vectors.npz", features=features.astype(np.float32), label=labels)
config = {
    "data": {"source": "features", "path": str(folder / "vectors.npz")},
    "backbone": {"kind": "none"},
    "head": {"embedding_dim": 4, "start": "random"},
    "memory": {"memory_size": 32, "storage_dtype": "int8"},
    "top_k": {"num_negatives": 3, "num_positives": 2, "mine_in": "features"},
    "training": {
        "epochs": 3, "batch_size": 9, "samples_per_class": 3, "steps_per_epoch": 3, "refit": False, "folds": 1,
        "checkpoint_every_seconds": 0.0, "learning_rate": 0.03, "patience": 9,
    },
}
(folder / "run.yaml").write_text(yaml.safe_dump(config))
counts, fit = [], phases.fit


def counted(config, dataset, model, *args, **kwargs):
    counts.append(model.distribute_strategy.num_replicas_in_sync)
    fit(config, dataset, model, *args, **kwargs)


phases.fit = counted


def run(workdir, strategy):
    options = dict(workdir=str(workdir), set=[f"training.strategy={strategy}"], resume="auto", report=False)
    with flagsaver.flagsaver(config=str(folder / "run.yaml"), **options):
        train.main(["train.py"])


class Killed(BaseException):
    pass


def end_epoch(callback, epoch, logs=None, end=Checkpoints.on_epoch_end):
    end(callback, epoch, logs)
    if epoch == 0:
        raise Killed


unharmed, Checkpoints.on_epoch_end = Checkpoints.on_epoch_end, end_epoch
with pytest.raises(Killed):
    run(folder / "resumed", "mirrored")
Checkpoints.on_epoch_end = unharmed
shutil.copytree(folder / "resumed", folder / "moved")
run(folder / "resumed", "mirrored")
run(folder / "moved", "none")
run(folder / "one", "auto")
assert counts == [2, 2, 1, 1]


def left_by(name):
    model = keras.saving.load_model(folder / name / "model.keras")
    history = pd.read_csv(folder / name / "history.csv").drop(columns="phase").to_numpy()
    return [history, *[v.numpy() for v in model.variables]]


expected = left_by("one")
for name in ("resumed", "moved"):
    for mine, other in zip(left_by(name), expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)
"""


def test_a_run_on_two_devices_killed_and_resumed_is_that_of_one_device(tmp_path):
    run_fresh(TWO_DEVICES + RUN, tmp_path)


def strategy_on(monkeypatch, num_gpus, num_cpus=1, **training):
    """The strategy on a machine with so many devices; of several the names alone, for there are none here."""
    found = {"GPU": num_gpus, "CPU": num_cpus}
    monkeypatch.setattr(
        tf.config,
        "list_logical_devices",
        lambda kind: [types.SimpleNamespace(name=f"{kind}:{i}") for i in range(found[kind])],
    )
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda names, **_: names)
    strategy = devices.make_strategy(Training(**training))
    return "one device" if strategy is tf.distribute.get_strategy() else strategy


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_gpus": 0}, "one device"),
        ({"num_gpus": 0, "num_cpus": 2}, "one device"),
        ({"num_gpus": 1}, "one device"),
        ({"num_gpus": 2}, ["GPU:0", "GPU:1"]),
        ({"num_gpus": 2, "strategy": "none"}, "one device"),
        ({"num_gpus": 3, "strategy": "mirrored"}, ["GPU:0", "GPU:1", "GPU:2"]),
        ({"num_gpus": 0, "num_cpus": 2, "strategy": "mirrored"}, ["CPU:0", "CPU:1"]),
    ],
)
def test_the_strategy_follows_from_the_devices(monkeypatch, arguments, expected):
    assert strategy_on(monkeypatch, **arguments) == expected


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_a_batch_that_cannot_be_split_is_told(monkeypatch, num_gpus):
    with pytest.raises(
        ConfigError, match=rf"Received training.strategy 'mirrored'.* {num_gpus} GPU.*; expected two .*'auto'"
    ):
        strategy_on(monkeypatch, num_gpus, strategy="mirrored")


def test_memory_of_gpus_grows_unless_they_are_divided(monkeypatch):
    grown = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["divided", "begun", "new"])
    divided = {"divided": [tf.config.LogicalDeviceConfiguration()]}
    monkeypatch.setattr(tf.config, "get_logical_device_configuration", divided.get)
    monkeypatch.setattr(tf.config.experimental, "get_memory_growth", lambda gpu: False)

    def grow(gpu, enable):
        if gpu == "begun":
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        grown.append((gpu, enable))

    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grow)
    devices.let_memory_grow()
    assert grown == [("new", True)]
