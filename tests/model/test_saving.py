"""A model that is saved, killed, loaded: it goes on as if nothing had happened."""

import keras
import numpy as np
import pytest

from tests.fresh_processes import run_fresh
from tests.small_models import (
    assert_same_training,
    built_kernel,
    compiled,
    dataset,
    images,
    loss_of,
    memory_of,
    small_backbone,
    some,
)
from tests.test_contract import FEATURES, SAVED, embed
from xbm_keras import CircularMemory, ContrastiveLoss, HardTopK, Head, InEmbeddings, StartAlignment, XBMModel
from xbm_keras.model.fused_adam import FusedAdam

CONTINUE = """
import sys
import numpy as np
import keras
import xbm_keras
model = keras.saving.load_model(sys.argv[1])
with np.load(sys.argv[2]) as data:
    x, y = {"inputs": data["inputs"], "sample_id": data["sample_id"]}, data["y"]
losses = [model.train_on_batch({k: v[i:i + 8] for k, v in x.items()}, y[i:i + 8])[0] for i in (0, 8)]
state = [v.numpy() for v in (*model.head.variables, *model.optimizer.variables, *model.memory.variables)]
np.savez(sys.argv[3], np.array(losses), model.encoder.predict(x["inputs"], verbose=0), *state)
"""


def test_fresh_process_loads_and_trains_on_as_if_nothing_had_happened(tmp_path):
    # Pitfall: a model saved in one session does not load in the next (TF Similarity #139, #188).
    x, y = images(24)
    optimizer = FusedAdam(0.01)
    model = compiled(20, HardTopK(4, 2, seed=5), backbone=small_backbone(), optimizer=optimizer, mode="graph")
    model.fit(x, y, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", y=y, **x)
    run_fresh(CONTINUE, tmp_path / "model.keras", tmp_path / "data.npz", tmp_path / "out.npz")

    losses = [model.train_on_batch(*some(x, y, slice(i, i + 8)))[0] for i in (0, 8)]
    state = [v.numpy() for v in (*model.head.variables, *model.optimizer.variables, *model.memory.variables)]
    expected = [np.array(losses), model.encoder.predict(x["inputs"], verbose=0), *state]
    with np.load(tmp_path / "out.npz") as out:
        assert len(out.files) == len(expected)
        for name, value in zip(out.files, expected, strict=True):
            np.testing.assert_array_equal(out[name], value)


def test_random_positives_depend_on_the_saved_seed_state(tmp_path):
    # The comparison above would not see a lost seed if the picks did not depend on it.
    x, y = dataset(24)
    model = compiled(24, HardTopK(2, 1))
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded, other = (keras.saving.load_model(tmp_path / "model.keras") for _ in range(2))
    np.testing.assert_array_equal(loaded.top_k.seed_generator.state, model.top_k.seed_generator.state)
    other.top_k.seed_generator.state.assign(HardTopK(2, 1).seed_generator.state)
    batch = some(x, y, slice(0, 8))
    expected = loss_of(model, *batch, training=True)
    assert loss_of(loaded, *batch, training=True) == expected
    assert loss_of(other, *batch, training=True) != expected


def test_dropout_and_l2_to_the_start_of_an_earlier_version_are_left_out():
    """Its files hold the state of the dropout among the head's weights, too."""
    with pytest.warns(UserWarning, match=r"start_l2=0.1, dropout of the head=0.2; expected one without"):
        model = keras.saving.load_model(SAVED / "dropout_and_l2.keras")
    with np.load(SAVED / "dropout_and_l2.npz") as saved:
        np.testing.assert_allclose(embed(model, FEATURES)[1], saved["embeddings"], atol=1e-6)
        np.testing.assert_array_equal(model.memory.read().features, saved["memory"])
    head = Head.from_config({**model.head.get_config(), "dropout": 0.2})  # a head that was saved by itself
    assert head.get_config() == model.head.get_config()


def test_weights_file_restores_rows_labels_ids_and_counter(tmp_path):
    # Pitfall: PML 2.x saves the rows without the pointer; TF Similarity, OML, Quaterion save nothing.
    x, y = dataset()
    model = compiled(17)
    path = str(tmp_path / "epoch.weights.h5")
    callback = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[callback])
    restored = compiled(17)
    built_kernel(restored, x)
    restored.optimizer.build(restored.trainable_variables)
    restored.load_weights(path)
    assert memory_of(restored) == memory_of(model)
    assert memory_of(model)["num_enqueued"] == 48
    of_rows = {"features", "labels", "sample_ids", "is_newest", "previous_in_bucket"}
    assert set(memory_of(model)) == of_rows | {"newest_in_bucket", "num_enqueued"}
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    restored.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert_same_training(restored, model)


class Killed(Exception):
    pass


def test_backup_and_restore_resumes_as_if_never_killed(tmp_path):
    x, y = dataset()

    def start():
        model = compiled(17, HardTopK(2, 1), optimizer=keras.optimizers.Adam(0.01))
        built_kernel(model, x)
        model.optimizer.build(model.trainable_variables)
        return model

    def run(model, *callbacks):
        model.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0, callbacks=[*callbacks])

    def kill(epoch, logs=None):
        if epoch == 2:
            raise Killed

    through, killed, resumed = start(), start(), start()
    run(through)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(Killed):
        run(killed, backup, keras.callbacks.LambdaCallback(on_epoch_begin=kill))
    assert int(killed.memory.num_enqueued.value) == 48
    run(resumed, keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    assert int(resumed.memory.num_enqueued.value) == 96
    assert_same_training(resumed, through)


def test_config_round_trip_keeps_every_argument():
    # Pitfall: the layers of keras-rs lose arguments in get_config.
    model = XBMModel(
        small_backbone(),
        Head(5, "mlp", 7, seed=3),
        CircularMemory(9, "float16", frozen=True),
        HardTopK(3, "all", "easiest", InEmbeddings(5), max_rows_for_all=100, seed=4),
        ContrastiveLoss(0.8, 0.2),
        StartAlignment(2.0),
        name="mine",
    )
    twin = XBMModel.from_config(model.get_config())
    assert (twin.top_k.mining.refresh, twin.memory.frozen, twin.name) == (5, True, "mine")
    assert twin.start_alignment.weight == 2.0
    assert twin.get_config() == model.get_config()
    assert twin.head.get_config() == model.head.get_config()
    assert twin.memory.get_config() == model.memory.get_config()
    assert twin.top_k.get_config() == model.top_k.get_config()
    assert twin.pair_loss.get_config() == {"positive_margin": 0.8, "negative_margin": 0.2}
