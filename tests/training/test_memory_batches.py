"""Batches that a prefilled memory gives by itself: the same training, and no feature on the way."""

import numpy as np
import pytest
import tensorflow as tf

from tests.small_models import assert_same_training, clusters, compiled
from xbm_keras import HardTopK, Head, NonFiniteFeatures, RelevantTopK
from xbm_keras.data.batches import PKSampler, batch_dataset, slot_dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.model.labels_and_ids import with_items
from xbm_keras.training.memory_batches import prefill_order, training_batches

SEED = 3


def prefilled(storage_dtype="float32", memory_size=160, frozen=True, mode="graph", repeats=1):
    """A model whose memory holds 160 items, their rows, labels and ids; each id `repeats` times, as views have it."""
    x, y = clusters()
    ids = x["sample_id"] // repeats + 2**60
    model = compiled(
        memory_size, HardTopK(8, 3), head=Head(4), frozen=frozen, mode=mode, width=16, storage_dtype=storage_dtype
    )
    model.build({"features": (None, 16)})
    model.optimizer.build(model.trainable_variables)
    rows, order = UnitRows(x["features"], np.arange(160)), prefill_order(160, SEED)
    model.memory.prefill(UnitRows(x["features"], order), y[order], ids[order])
    return model, rows, y, ids


@pytest.mark.parametrize(("mode", "repeats"), [("eager", 1), ("graph", 2), ("xla", 1)])
def test_slots_train_as_features_do(mode, repeats):
    runs = []
    for is_by_slot in (False, True):
        model, rows, y, ids = prefilled(mode=mode, repeats=repeats)
        sampler = PKSampler(y, 6, 4, SEED)
        make = training_batches if is_by_slot else lambda model, *data: batch_dataset(*data[:4], data[5])
        batches = make(model, rows, y, ids, sampler, SEED, 5)
        assert ("slot" in batches.element_spec[0]) == is_by_slot
        history = model.fit(batches, epochs=2, steps_per_epoch=4, verbose=0, shuffle=False).history
        runs.append((model, history))
    if mode == "xla":  # which may fuse other sums
        assert_same_training(runs[0][0], runs[1][0], rtol=1e-5, atol=1e-6)
    else:
        assert_same_training(runs[0][0], runs[1][0])
        assert runs[0][1] == runs[1][1]


def test_batches_of_slots_hold_nothing_else():
    model, rows, y, ids = prefilled()
    (batch,) = next(iter(training_batches(model, rows, y, ids, PKSampler(y, 6, 4, SEED), SEED, 7)))
    assert list(batch) == ["slot"]
    items = PKSampler(y, 6, 4, SEED)(7)
    features, labels, sample_ids = model.memory.items(batch["slot"])
    np.testing.assert_array_equal(features, rows[items])
    np.testing.assert_array_equal(labels, y[items])
    np.testing.assert_array_equal(sample_ids, ids[items])


@pytest.mark.parametrize(
    "options",
    [{"storage_dtype": "float16"}, {"storage_dtype": "int8"}, {"frozen": False}, {"memory_size": 100}],
    ids=str,
)
def test_features_come_from_outside_where_the_memory_does_not_hold_each_bit_of_them(options):
    model, rows, y, ids = prefilled(**options)
    x, labels = next(iter(training_batches(model, rows, y, ids, PKSampler(y, 6, 4, SEED), SEED)))
    np.testing.assert_array_equal(x["features"], rows[PKSampler(y, 6, 4, SEED)(0)])
    assert labels.shape == (24,)


@pytest.mark.parametrize("what", ["ids", "labels", "order"])
def test_a_memory_of_other_items_is_not_read(what):
    model, rows, y, ids = prefilled()
    if what == "ids":
        ids = ids + 1
    elif what == "labels":
        y = y[::-1].copy()
    batches = training_batches(model, rows, y, ids, PKSampler(y, 6, 4, SEED), SEED + (what == "order"))
    assert "features" in batches.element_spec[0]


def test_slots_of_a_memory_that_changes_are_refused():
    model, _, y, _ = prefilled(frozen=False)
    batches = slot_dataset(np.arange(160), PKSampler(y, 6, 4, SEED))
    with pytest.raises(ValueError, match="slots of a memory with frozen=False and memory_size=160; expected one"):
        model.fit(batches, steps_per_epoch=1, verbose=0, shuffle=False)


@pytest.mark.parametrize(("dtype", "is_column"), [("int8", False), ("uint8", True), ("int32", True)])
def test_slots_are_integers_of_any_kind(dtype, is_column):
    a, b = (prefilled(mode="eager")[0] for _ in range(2))
    slots = np.arange(100)
    a.fit({"slot": slots}, batch_size=50, verbose=0, shuffle=False)
    slots = slots.astype(dtype)
    b.fit({"slot": slots[:, None] if is_column else slots}, batch_size=50, verbose=0, shuffle=False)
    assert_same_training(a, b)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (np.arange(8.0), r"slot of dtype float32; expected integer slots of the memory.* Give np.arange"),
        (np.ones((8, 2), int), r"slot of shape \(8, 2\); expected integer slots"),
    ],
    ids=["floats", "pairs"],
)
def test_other_slots_are_refused(slots, message):
    model = prefilled(mode="eager")[0]
    with pytest.raises(ValueError, match=message):
        model.fit({"slot": slots}, batch_size=8, verbose=0)


@pytest.mark.parametrize("kind", [HardTopK, RelevantTopK])
@pytest.mark.parametrize(("slot", "mode"), [(160, "eager"), (-1, "eager"), (100, "eager"), (160, "graph"), (-1, "xla")])
def test_a_slot_that_holds_no_row_is_not_trained(slot, mode, kind):
    x, y = clusters()
    model = compiled(160, kind(8, 3), frozen=True, mode=mode, width=16)
    model.build({"features": (None, 16)})
    model.memory.prefill(x["features"][:100], y[:100], x["sample_id"][:100])
    before = model.head.kernel.numpy()
    with pytest.raises(NonFiniteFeatures, match=rf"features for 1 item\(s\), with sample id {slot};"):
        model.fit({"slot": np.array([0, 1, slot, 3])}, verbose=0)
    np.testing.assert_array_equal(model.head.kernel, before)


@pytest.mark.parametrize("storage_dtype", ["float16", "bfloat16", "int8"])
def test_rounded_rows_of_slots_have_unit_length(storage_dtype):
    model = prefilled(storage_dtype)[0]
    inputs, _, _ = with_items(({"slot": tf.range(160)},), model.memory)
    features = model(inputs)["features"]
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-6)
    assert np.abs(np.linalg.norm(model.memory.items(tf.range(160))[0], axis=1) - 1.0).max() > 1e-4


def test_evaluate_takes_slots_as_it_takes_features():
    model = prefilled(mode="eager")[0]
    slots = np.arange(0, 160, 2)
    features, labels, sample_ids = model.memory.items(slots)
    by_feature = model.evaluate({"features": features, "sample_id": sample_ids}, labels, batch_size=16, verbose=0)
    assert model.evaluate({"slot": slots}, batch_size=16, verbose=0) == by_feature
