"""The memory against a plain queue. pitfalls.md: wrap-around, sentinels, checkpoints, retracing, copies of one id."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import in_mode
from tests.reference_pairs import DequeMemory
from xbm_keras import CircularMemory, batch_as_rows

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
