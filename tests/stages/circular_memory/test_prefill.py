"""Rows that fill the memory before the first step."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference_pairs import DequeMemory
from tests.stages.circular_memory.test_ring import ROWS, make_batches, make_memory, valid_rows
from xbm_keras import CircularMemory, HardTopK, Head, SupConLoss, XBMModel
from xbm_keras.stages.circular_memory import ring


@pytest.mark.parametrize("num_rows", [0, 3, 5, 17])
def test_prefill_keeps_the_newest_rows(num_rows, monkeypatch):
    monkeypatch.setattr(ring, "PREFILL_ROWS", 4)  # several blocks, the last one smaller
    memory, queue = make_memory(5), DequeMemory(5)
    ((_, *rest),) = make_batches(1, num_rows, num_ids=10**6)
    angles = np.arange(num_rows, dtype=np.float32)
    batch = (np.stack([np.cos(angles), np.sin(angles)], axis=1), *rest)  # of unit length: kept bit by bit
    memory.prefill(*batch)
    assert int(memory.num_enqueued.value) == min(num_rows, 5)  # rows that would leave at once are not even read
    queue.enqueue(*batch)
    assert valid_rows(memory.read()) == queue.valid_rows()
    after = next(make_batches(1, 2, seed=1))
    memory.enqueue(*map(tf.constant, after))
    queue.enqueue(*after)
    assert valid_rows(memory.read()) == queue.valid_rows()


def test_prefill_reads_a_mapped_file(tmp_path):
    np.save(tmp_path / "features.npy", np.array([[0, 1], [3, 4], [-6, 8], [0, 0]], "float16"))
    memory = make_memory(4, storage_dtype="float16")
    memory.prefill(np.load(tmp_path / "features.npy", mmap_mode="r"), [3, 2, 1, 0], [10, 11, 12, 13])
    unit = np.array([[0, 1], [0.6, 0.8], [-0.6, 0.8], [0, 0]], "float16")
    np.testing.assert_array_equal(memory.read().features, unit)
    np.testing.assert_array_equal(memory.read().labels, [3, 2, 1, 0])


@pytest.mark.parametrize("storage_dtype", ["float32", "float16", "int8"])
def test_a_prefilled_row_is_what_a_step_would_enqueue(storage_dtype):
    x = {"features": np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) * 7, "sample_id": np.arange(6)}
    x["features"][4] = 0
    stepped, prefilled = (
        XBMModel(None, Head(2), CircularMemory(6, storage_dtype), HardTopK(3, 2), SupConLoss()) for _ in range(2)
    )
    stepped.compute_loss(x, np.arange(6) % 2, stepped(x), training=True)
    prefilled.build({"features": (None, 5)})
    prefilled.memory.prefill(x["features"], np.arange(6) % 2, x["sample_id"])
    rows, expected = (model.memory.read().block(0, 6).numpy() for model in (prefilled, stepped))
    np.testing.assert_allclose(rows, expected, atol={"float32": 1e-6, "float16": 1e-3, "int8": 0.01}[storage_dtype])
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 1, 0, 1], atol=1e-6 if storage_dtype == "float32" else 0.02)


def test_prefill_of_very_long_and_very_short_rows():
    memory = make_memory(4)
    memory.prefill(np.array([[3e30, 4e30], [3e-30, -4e-30], [0, 1e-38], [0, 0]]), np.zeros(4, int), np.arange(4))
    np.testing.assert_allclose(memory.read().features, [[0.6, 0.8], [0.6, -0.8], [0, 1], [0, 0]], rtol=1e-6)


def test_rows_of_unit_length_stay_bit_by_bit():
    rows = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    memory = make_memory(500, 64)
    memory.prefill(rows, np.zeros(500, int), np.arange(500))
    np.testing.assert_array_equal(memory.read().features, rows)
    again = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert (again != rows).any()  # which a second division would not leave


def test_prefill_names_the_items_that_are_not_finite():
    memory = make_memory(6)
    features = np.ones((5, 2))
    features[[1, 3], 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 item\(s\), with sample id 21, 23; expected finite"):
        memory.prefill(features, np.zeros(5, int), np.arange(20, 25))
    assert int(memory.num_enqueued.value) == 0


@pytest.mark.parametrize("case", ROWS)
def test_prefill_refuses_other_rows_before_it_writes(case):
    memory, (change, message) = make_memory(4), ROWS[case]
    items = {"features": np.eye(3, 2), "labels": [0, 1, 2], "sample_ids": [0, 1, 2], **change}
    with pytest.raises(ValueError, match=message):
        memory.prefill(**{name: np.asarray(values) for name, values in items.items()})
    assert int(memory.num_enqueued.numpy()) == 0


def test_prefill_takes_columns_and_lists():
    memory = make_memory(4)
    memory.prefill([[1.0, 0.0], [0.0, 2.0]], np.array([[5], [6]], np.uint8), [[2**40], [7]])
    assert memory.labels.numpy().tolist() == [5, 6, 0, 0]
    assert memory.sample_ids.numpy().tolist() == [2**40, 7, 0, 0]
