"""The memory against a plain queue. pitfalls.md: wrap-around, sentinels, checkpoints, retracing, copies of one id."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import in_mode, run_fresh
from tests.reference_pairs import DequeMemory
from xbm_keras import CircularMemory, HardTopK, Head, SupConLoss, XBMModel, batch_as_rows
from xbm_keras.stages.circular_memory import ring

STATE = (
    "features",
    "labels",
    "sample_ids",
    "is_newest",
    "newest_in_bucket",
    "previous_in_bucket",
    "num_enqueued",
)
# n not dividing M, n = M, n > M, n = 0, M = 1: what broke research-xbm, lightly, OML and Quaterion.
SIZES = [(1, 1), (1, 3), (5, 2), (7, 3), (6, 6), (4, 9), (5, 13), (8, 4), (3, 0)]


def make_memory(memory_size, width=2, **kwargs):
    memory = CircularMemory(memory_size, **kwargs)
    memory.build((None, width))
    return memory


def make_batches(num_batches, n, seed=0, num_ids=11):
    """Features that name their row, labels (class 0 among them), ids that come again and again."""
    random = np.random.default_rng(seed)
    for step in range(num_batches):
        number = np.arange(step * n, (step + 1) * n)
        features = np.stack([number, -number], axis=1).astype("float32")
        yield features, random.integers(0, 3, n), random.integers(0, num_ids, n)


def enqueue_in(memory, mode):
    return in_mode(lambda f, y, i: memory.enqueue(f, y, i), mode)


def valid_rows(rows):
    is_valid = rows.is_valid.numpy()
    triples = zip(rows.features.numpy().tolist(), rows.labels.numpy(), rows.sample_ids.numpy(), strict=True)
    return sorted((tuple(f), int(y), int(i)) for (f, y, i), valid in zip(triples, is_valid, strict=True) if valid)


def state_of(memory):
    return {v.name: v.numpy() for v in memory.weights}


def assert_same_state(a, b):
    for name in STATE:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize(("memory_size", "n"), SIZES)
def test_equals_a_deque_after_every_enqueue(memory_size, n, mode):
    memory, queue = make_memory(memory_size), DequeMemory(memory_size)
    enqueue = enqueue_in(memory, mode)
    num_batches = 3 + (3 * memory_size) // max(n, 1)
    for features, labels, ids in make_batches(num_batches, n):
        rows = enqueue(tf.constant(features), tf.constant(labels), tf.constant(ids))
        queue.enqueue(features, labels, ids)
        assert valid_rows(rows) == queue.valid_rows() == valid_rows(memory.read())
        assert int(memory.occupancy()) == len(queue.rows)
    assert int(memory.num_enqueued.value) == num_batches * n


@settings(max_examples=25)
@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=8), st.integers(1, 20), st.integers(0, 99))
def test_equals_a_deque_for_batches_of_changing_size(memory_size, sizes, num_ids, seed):
    memory, queue = make_memory(memory_size), DequeMemory(memory_size)
    for step, n in enumerate(sizes):
        (batch,) = make_batches(1, n, seed + step, num_ids)
        batch = (batch[0] + 100 * step, *batch[1:])
        rows = memory.enqueue(*map(tf.constant, batch))
        queue.enqueue(*batch)
        assert valid_rows(rows) == queue.valid_rows()


def test_a_batch_larger_than_the_memory_writes_each_slot_once(monkeypatch):
    """Of two writes to one slot a GPU's scatter keeps either, where the CPU keeps the last: the oracle cannot tell."""
    memory, written = make_memory(4), []
    update = tf.raw_ops.ResourceScatterNdUpdate

    def spy(ref, indices, updates):
        if ref is memory.labels.value.handle:
            written.append(indices.numpy()[:, 0].tolist())
        return update(ref=ref, indices=indices, updates=updates)

    monkeypatch.setattr(tf.raw_ops, "ResourceScatterNdUpdate", spy)
    for batch in make_batches(2, 9):
        memory.enqueue(*map(tf.constant, batch))
    assert written == [[1, 2, 3, 0], [2, 3, 0, 1]]


def test_an_empty_enqueue_does_not_make_the_memory_full(mode):
    """PML 2.x then counts zero rows as class 0."""
    memory = make_memory(4)
    empty = tf.zeros([0, 2]), tf.zeros([0], tf.int64), tf.zeros([0], tf.int64)
    rows = enqueue_in(memory, mode)(*empty)
    assert not rows.is_valid.numpy().any()
    assert int(memory.occupancy()) == 0


def test_label_and_id_zero_are_no_sentinels():
    """research-xbm reads "last label is not 0" as "full"."""
    rows = make_memory(3).enqueue(tf.ones([3, 2]), tf.constant([0, 0, 0]), tf.constant([0, 1, -1]))
    assert rows.is_valid.numpy().tolist() == [True, True, True]
    np.testing.assert_array_equal(rows.sample_ids, [0, 1, -1])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_one_trace_for_many_enqueues(jit_compile):
    """TF Similarity's memory grows, and retraces."""
    memory, traces = make_memory(5), []

    @tf.function(jit_compile=jit_compile)
    def enqueue(features, labels, ids):
        traces.append(1)
        return memory.enqueue(features, labels, ids)

    for batch in make_batches(9, 3):
        enqueue(*map(tf.constant, batch))
    assert len(traces) == 1


def test_large_labels_and_ids_are_exact(mode):
    memory = make_memory(4)
    labels = np.array([2**40 + 1, 2**53 + 1, -(2**62), 0])
    ids = 2**62 + np.arange(4)
    rows = enqueue_in(memory, mode)(tf.ones([4, 2]), tf.constant(labels), tf.constant(ids))
    np.testing.assert_array_equal(rows.labels, labels)
    np.testing.assert_array_equal(rows.sample_ids, ids)
    assert rows.is_valid.numpy().all()  # ids that a float could not tell apart are different


@pytest.mark.parametrize(("storage_dtype", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_half_precision_storage(storage_dtype, dtype, mode):
    memory = make_memory(3, width=5, storage_dtype=storage_dtype)
    features = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    rows = enqueue_in(memory, mode)(tf.constant(features), tf.range(4), tf.range(4))
    assert rows.features.dtype == storage_dtype
    in_order_of_age = rows.features.numpy()[[1, 2, 0]]
    assert in_order_of_age.tobytes() == features[1:].astype(dtype).tobytes()


def test_int8_storage_has_a_scale_per_row(mode):
    """A plain cast of unit vectors to int8 is all zeros."""
    memory = make_memory(5, width=6, storage_dtype="int8")
    features = np.random.default_rng(0).normal(size=(4, 6)).astype("float32") * [[1], [1e-3], [1e3], [0]]
    rows = enqueue_in(memory, mode)(tf.constant(features, tf.float32), tf.range(4), tf.range(4))
    assert rows.features.dtype == "int8"
    largest = np.abs(features).max(axis=1, keepdims=True)
    for read in (rows.block(0, 4), rows.take(tf.range(4)), tf.concat([rows.block(0, 1), rows.block(1, 3)], axis=0)):
        assert (np.abs(read - features) <= 0.501 * largest / 127).all()  # half a step of rounding
    np.testing.assert_array_equal(np.abs(rows.features.numpy()).max(axis=1), [127, 127, 127, 0, 0])
    np.testing.assert_array_equal(rows.take(tf.constant([[2, 0]]))[0], tf.gather(rows.block(0, 5), [2, 0]))


@pytest.mark.parametrize("storage_dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_read_in_float32(storage_dtype):
    memory = make_memory(3, width=4, storage_dtype=storage_dtype)
    features = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")
    rows = memory.enqueue(tf.constant(features), tf.range(3), tf.range(3))
    expected = tf.cast(tf.cast(features, storage_dtype), tf.float32)
    np.testing.assert_array_equal(rows.block(1, 2), expected[1:])
    np.testing.assert_array_equal(rows.take(tf.constant([2, 2, 0])), tf.gather(expected, [2, 2, 0]))


def test_storage_does_not_follow_the_dtype_policy():
    keras.config.set_dtype_policy("mixed_float16")
    memory = make_memory(2)
    assert memory.enqueue(tf.ones([1, 2]), [0], [0]).features.dtype == "float32"


def test_only_the_newest_row_of_an_id_is_valid(mode):
    memory = make_memory(6)
    enqueue = enqueue_in(memory, mode)
    features = tf.constant(np.arange(6, dtype="float32").reshape(3, 2))
    labels = tf.zeros([3], tf.int64)
    in_batch = enqueue(features, labels, tf.constant([7, 8, 7], tf.int64))
    assert in_batch.is_valid.numpy().tolist() == [False, True, True, False, False, False]
    across = enqueue(features, labels, tf.constant([8, 9, 7], tf.int64))
    assert across.is_valid.numpy().tolist() == [False, False, False, True, True, True]
    after_wrap = enqueue(features, labels, tf.constant([9, 1, 2], tf.int64))
    assert after_wrap.is_valid.numpy().tolist() == [True, True, True, True, False, True]


def test_the_batch_as_rows_holds_each_id_once(mode):
    rows = in_mode(batch_as_rows, mode)(tf.ones([4, 2]), tf.zeros([4], tf.int64), tf.constant([5, 6, 5, 5], tf.int64))
    assert rows.is_valid.numpy().tolist() == [False, True, False, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_batch_with_a_non_finite_row_is_not_written(bad, mode):
    memory = make_memory(5)
    enqueue = enqueue_in(memory, mode)
    batch = tf.constant(np.ones([3, 2], "float32")), tf.range(3, dtype=tf.int64), tf.range(3, dtype=tf.int64)
    enqueue(*batch)
    before = state_of(memory)
    features = np.ones([3, 2], "float32")
    features[2, 1] = bad
    # Ids 1 and 2 stand in the memory: their rows must stay valid, as what would supersede them was refused.
    rows = enqueue(tf.constant(features), batch[1], tf.constant([9, 1, 2], tf.int64))
    assert_same_state(before, state_of(memory))
    assert rows.is_valid.numpy().tolist() == [True, True, True, False, False]
    enqueue(*batch)
    assert int(memory.num_enqueued.value) == 6


def test_rows_that_were_read_do_not_change_with_the_next_enqueue():
    """The memory is written in place; what a step read is its own."""
    memory = make_memory(3)
    batches = list(make_batches(2, 3))
    rows = memory.enqueue(*map(tf.constant, batches[0]))
    held = rows.features.numpy().copy()
    memory.enqueue(*map(tf.constant, batches[1]))
    np.testing.assert_array_equal(rows.features, held)


def ops_of_enqueue(jit_compile):
    memory = make_memory(50)
    enqueue = tf.function(lambda f, y, i: memory.enqueue(f, y, i), jit_compile=jit_compile)
    graph = enqueue.get_concrete_function(
        tf.TensorSpec([3, 2]), tf.TensorSpec([3], tf.int64), tf.TensorSpec([3], tf.int64)
    ).graph
    return [op.type for op in graph.get_operations()]


def test_enqueue_in_a_graph_scatters_in_place_and_leaves_copy_on_read_mode():
    """Without the second op every read after a scatter copies all M rows; a scatter into a tensor copies them too."""
    ops = ops_of_enqueue(jit_compile=False)
    assert ops.count("ResourceScatterNdUpdate") == ops.count("DisableCopyOnRead") == 7
    assert "TensorScatterUpdate" not in ops
    assert ops.count("AssignVariableOp") == 1  # the counter, not M elements


def test_enqueue_for_xla_leaves_out_the_op_that_has_no_kernel_there():
    ops = ops_of_enqueue(jit_compile=True)
    assert ops.count("ResourceScatterNdUpdate") == 7
    assert "DisableCopyOnRead" not in ops


def test_rows_that_nobody_reads_cost_a_graph_nothing():
    """Of what a function returns nothing of, TensorFlow runs the ops on variables and leaves out the others."""
    memory = make_memory(50)
    take = tf.function(lambda at: tf.size(memory.read().take(at)))
    ops = [op.type for op in take.get_concrete_function(tf.TensorSpec([3, 4], tf.int64)).graph.get_operations()]
    assert "GatherV2" in ops
    assert "ResourceGather" not in ops


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


def test_reset_forgets_all_rows(mode):
    memory, queue = make_memory(4), DequeMemory(4)
    enqueue = enqueue_in(memory, mode)
    batches = list(make_batches(3, 3, num_ids=4))
    enqueue(*map(tf.constant, batches[0]))
    enqueue(*map(tf.constant, batches[1]))
    memory.reset()
    assert int(memory.occupancy()) == 0
    assert not memory.read().is_valid.numpy().any()
    queue.enqueue(*batches[2])
    assert valid_rows(enqueue(*map(tf.constant, batches[2]))) == queue.valid_rows()


def test_memory_of_size_0_gives_the_batch_back(mode):
    memory = make_memory(0)
    features = tf.constant([[1.0, 2.0], [3.0, 4.0]])
    rows = enqueue_in(memory, mode)(features, tf.constant([1, 2]), tf.constant([4, 4]))
    np.testing.assert_array_equal(rows.features, features)
    assert rows.labels.dtype == rows.sample_ids.dtype == tf.int64
    assert rows.is_valid.numpy().tolist() == [False, True]
    memory.reset()
    memory.prefill(features.numpy(), [1, 2], [3, 4])
    assert int(memory.occupancy()) == 0
    assert memory.weights == []
    with pytest.raises(ValueError, match=r"Received memory_size=0.*batch_as_rows"):
        memory.read()


@pytest.mark.parametrize("memory_size", [-1, 2.0, "8", None])
def test_sizes_that_are_refused(memory_size):
    with pytest.raises(ValueError, match=r"Received memory_size=.*expected a whole number"):
        CircularMemory(memory_size)


def test_errors_say_what_was_expected():
    with pytest.raises(
        ValueError, match="storage_dtype='int4'; expected one of 'float32', 'float16', 'bfloat16', 'int8'"
    ):
        CircularMemory(4, storage_dtype="int4")
    with pytest.raises(ValueError, match="width 3; this memory was built for width 2"):
        make_memory(4).enqueue(tf.ones([1, 3]), [0], [0])
    for shape in [(None, None), (None, 4, 4, 8), (None,)]:
        with pytest.raises(ValueError, match="expected \\(batch, D\\) with a known width"):
            CircularMemory(4).build(shape)
    for memory in (make_memory(4), CircularMemory(4)):
        for features in (tf.ones([1, 2]), keras.Input((2,))):
            with pytest.raises(TypeError, match=r"no call\(\); use enqueue"):
                memory(features)


ROWS = {
    "labels that are fractions": ({"labels": [0.5, 1.5, 2.5]}, "labels of dtype float64; expected integer labels"),
    "labels that are missing": ({"labels": [None] * 3}, "labels of type ndarray; expected integer labels"),
    "one-hot labels": ({"labels": np.eye(3, dtype=int)}, r"labels of shape \(3, 3\); expected .* np.argmax"),
    "ids that are floats": ({"sample_ids": [0.0, 1.0, 2.0]}, "sample_id of dtype float64; expected integer ids"),
    "ids that are text": ({"sample_ids": list("abc")}, "sample_id of dtype string; expected integer ids"),
    "fewer labels": ({"labels": [0, 1]}, "2 labels for 3 features; expected one for each item"),
    "more ids": ({"sample_ids": [0, 1, 2, 3]}, "4 sample_ids for 3 features; expected one for each item"),
    "one vector": ({"features": np.ones(3)}, r"features of shape \(3,\); expected \[B, D\]"),
    "maps": ({"features": np.ones((3, 1, 2))}, r"features of shape \(3, 1, 2\); expected \[B, D\]"),
    "another width": ({"features": np.ones((3, 5))}, "width 5; this memory was built for width 2"),
}


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


def test_rows_for_a_memory_that_is_not_built_are_refused():
    with pytest.raises(ValueError, match=r"a memory that is not built; expected .* width D first\. Call"):
        CircularMemory(4).prefill(np.ones((1, 2)), [0], [0])


def test_nothing_in_it_is_trainable():
    memory = make_memory(4)
    memory.trainable = True
    assert memory.trainable_variables == []
    assert len(memory.weights) == len(STATE)


def test_config_round_trip():
    memory = CircularMemory(12, storage_dtype="bfloat16", name="m")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(memory))
    assert (again.memory_size, again.storage_dtype, again.name) == (12, "bfloat16", "m")


# Checkpoints. PML saves the rows but not the pointer; TF Similarity, OML and Quaterion save nothing.


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
