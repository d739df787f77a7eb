"""What a training refuses to go on from."""

import json

import keras
import pytest

from tests.small_models import compiled
from xbm_keras import HardTopK, RelevantTopK
from xbm_keras.training.checkpoints import CheckpointError, Checkpoints


def training(first, factor, top_k):
    """A model before its first step, whose learning rate begins so and changes by a factor in 20 steps."""
    schedule = keras.optimizers.schedules.ExponentialDecay(first, 20, factor)
    model = compiled(top_k=top_k, optimizer=keras.optimizers.Adam(schedule))
    model.build({"features": (None, 6)})
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of a training whose rate grows, the second epoch done."""
    (tmp_path / "history.csv").write_text("epoch\n")
    checkpoints = Checkpoints(tmp_path / "select", 0.0, tmp_path / "history.csv")
    checkpoints.set_model(training(0.001, 30, HardTopK(4, 2)))
    checkpoints.set_params({"epochs": 9})
    checkpoints.on_epoch_end(1)
    return checkpoints


def test_no_training_goes_on_under_another_learning_rate(saved):
    assert saved.restore(training(0.001, 30, HardTopK(4, 2))) == 2
    for other in ((0.03, 1 / 30), (0.002, 30)):
        with pytest.raises(CheckpointError, match=r"'initial_learning_rate': 0.001, .*start anew with --resume=never"):
            saved.restore(training(*other, HardTopK(4, 2)))


def test_of_earlier_versions_only_trainings_on_classes_go_on(saved):
    """They noted no learning rate, and that of queries and documents has changed since."""
    about = saved.folder / "1/about.json"
    noted = json.loads(about.read_text())
    del noted["learning_rate"]
    about.write_text(json.dumps(noted))
    assert saved.restore(training(0.001, 30, HardTopK(4, 2))) == 2
    with pytest.raises(CheckpointError, match=r"that of an earlier version.*start anew with --resume=never"):
        saved.restore(training(0.03, 1 / 30, RelevantTopK(4, 2)))
