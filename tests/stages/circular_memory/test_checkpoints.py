"""Checkpoints of the memory. PML saves the rows but not the pointer; TF Similarity, OML and Quaterion save nothing."""

import keras
import numpy as np
import pytest

from tests.fresh_processes import run_fresh
from tests.stages.circular_memory.test_ring import assert_same_state, state_of
from xbm_keras import CircularMemory, HardTopK, Head, SupConLoss, XBMModel
from xbm_keras.stages.circular_memory import ring


@pytest.fixture(autouse=True)
def _blocks_of_three_rows(monkeypatch):
    """Several blocks per checkpoint, the last one smaller."""
    monkeypatch.setattr(ring, "CHECKPOINT_ROWS", 3)


def test_a_memory_of_another_shape_is_refused(tmp_path):
    """Keras' own message speaks of the number of variables."""
    make_model().save_weights(tmp_path / "m.weights.h5")
    for memory in (CircularMemory(8), CircularMemory(7, "int8")):
        other = XBMModel(None, Head(2), memory, HardTopK(3, 2), SupConLoss())
        other.build({"features": (None, 4)})
        with pytest.raises(ValueError, match=rf"expected one of {memory.memory_size} rows of width 4 in"):
            other.load_weights(tmp_path / "m.weights.h5")


def make_model():
    model = XBMModel(None, Head(2), CircularMemory(7), HardTopK(3, 2), SupConLoss())
    model.build({"features": (None, 4)})
    model.compile(keras.optimizers.SGD(0.1))
    return model


def training_data():
    random = np.random.default_rng(3)
    ids = 2**61 + np.array([0, 1, 2, 3, 4, 3, 5, 6, 5, 1])  # of the last 7, one id comes twice in a batch, one across
    return {"features": random.normal(size=(10, 4)).astype("float32"), "sample_id": ids}, np.arange(10) % 2 + 2**41


@pytest.fixture(scope="module")
def trained():
    """A model whose memory has wrapped and holds a superseded row."""
    model = make_model()
    model.fit(*training_data(), batch_size=5, shuffle=False, verbose=0)
    state = state_of(model.memory)
    assert state["num_enqueued"] == 10
    assert not state["is_newest"].all()
    return model


def test_weights_file_restores_it_exactly(trained, tmp_path):
    trained.save_weights(tmp_path / "m.weights.h5")
    model = make_model()
    model.load_weights(tmp_path / "m.weights.h5")
    assert_same_state(state_of(trained.memory), state_of(model.memory))


def test_keras_file_restores_it_exactly_also_in_a_fresh_process(trained, tmp_path):
    """A model saved in one session does not load in the next (TF Similarity #139, #188)."""
    trained.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert_same_state(state_of(trained.memory), state_of(again.memory))
    code = """
import sys, keras, numpy, xbm_keras
memory = keras.saving.load_model(sys.argv[1]).memory
numpy.savez(sys.argv[2], **{v.name: v.numpy() for v in memory.weights})
"""
    run_fresh(code, tmp_path / "m.keras", tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz") as fresh:
        assert_same_state(state_of(trained.memory), dict(fresh))


@pytest.mark.parametrize("storage_dtype", ["float16", "bfloat16", "int8"])
def test_half_precision_rows_are_restored_exactly(storage_dtype, tmp_path):
    model = XBMModel(None, Head(2), CircularMemory(4, storage_dtype), HardTopK(3, 2), SupConLoss())
    model.build({"features": (None, 3)})
    model.memory.prefill(np.random.default_rng(0).normal(size=(6, 3)), np.arange(6), np.arange(6))
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    for name in ("features", "sample_ids", "num_enqueued"):
        before, after = getattr(model.memory, name).value.numpy(), getattr(again.memory, name).value.numpy()
        assert before.dtype == after.dtype
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5"])
def test_model_checkpoint_restores_it_exactly(name, tmp_path):
    model = make_model()
    saver = keras.callbacks.ModelCheckpoint(tmp_path / name, save_weights_only=name == "m.weights.h5")
    model.fit(*training_data(), batch_size=5, verbose=0, callbacks=[saver])
    if name == "m.keras":
        again = keras.saving.load_model(tmp_path / name)
    else:
        again = make_model()
        again.load_weights(tmp_path / name)
    assert_same_state(state_of(model.memory), state_of(again.memory))


def test_backup_and_restore_resumes_with_the_same_memory(tmp_path):
    class Killed(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise Killed

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                seen.append(state_of(self.model.memory))

    seen = []
    model = make_model()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(Killed):
        model.fit(*training_data(), batch_size=5, epochs=2, verbose=0, callbacks=[backup, Kill()])
    again = make_model()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    again.fit(*training_data(), batch_size=5, epochs=2, verbose=0, callbacks=[backup, Look()])
    assert_same_state(state_of(model.memory), seen[0])
    assert int(again.memory.num_enqueued.value) == 20
