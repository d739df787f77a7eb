"""Mining keys against a plain account of when each row's key was made."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from xbm_keras import CircularMemory
from xbm_keras.stages.hard_top_k.mining_keys import MiningKeys


def setup(memory_size, num_refreshed, mode="eager"):
    """A step that enqueues a batch and updates the keys: of a row its feature, and the step that made the key."""
    memory, keys = CircularMemory(memory_size), MiningKeys(memory_size, 2, num_refreshed)
    memory.build((None, 1))
    clock = tf.Variable(0.0)

    def make_keys(features):
        return tf.concat([features, tf.fill(tf.shape(features), 1.0) * clock], axis=1)

    def step(features, ids):
        clock.assign_add(1.0)
        rows = memory.enqueue(features, ids, ids)
        keys.update(make_keys, rows)
        return keys.block(0, memory_size)

    return memory, keys, in_mode(step, mode)


def batch(step, n):
    numbers = np.arange(step * n, step * n + n)
    return tf.constant(numbers[:, None] + 1, tf.float32), tf.constant(numbers)


@pytest.mark.parametrize(
    ("memory_size", "n", "num_refreshed"), [(12, 3, 2), (10, 4, 3), (7, 7, 20), (5, 9, 1), (9, 2, 0)]
)
def test_every_key_belongs_to_its_row_and_is_young_enough(memory_size, n, num_refreshed, mode):
    memory, _, step = setup(memory_size, num_refreshed, mode)
    for i in range(3 * memory_size // n + 4):
        keys = step(*batch(i, n)).numpy()
        filled = int(memory.occupancy())
        np.testing.assert_array_equal(keys[:filled, 0], memory.features.value.numpy()[:filled, 0])
        newest = (np.arange(max((i + 1) * n - memory_size, i * n), (i + 1) * n)) % memory_size
        assert (keys[newest, 1] == i + 1).all()  # in the step that enqueued them
        if num_refreshed:
            age = i + 1 - keys[:filled, 1]
            assert age.max() <= math.ceil(memory_size / num_refreshed)


def test_a_prefilled_memory_gets_all_its_keys_at_once(mode):
    memory, keys, step = setup(10, 3, mode)
    features = np.arange(1, 11, dtype=np.float32)[:, None]
    memory.prefill(features, np.arange(10), np.arange(100, 110))
    made = step(*batch(0, 2)).numpy()
    assert (made[:, 1] == 1).all()
    np.testing.assert_array_equal(made[:, 0], memory.features.value.numpy()[:, 0])
    assert (step(*batch(1, 2)).numpy()[:, 1] == 2).sum() < 10  # and then in turn
    memory.reset()
    assert (step(*batch(2, 2)).numpy()[:, 1] == 3).all()
    assert int(keys.num_seen.value) == 2


def test_no_gradient_passes_and_the_state_is_in_the_weights():
    memory, keys, _ = setup(4, 2)
    kernel = tf.Variable([[1.0, 2.0]])
    with tf.GradientTape() as tape:
        rows = memory.enqueue(*batch(0, 2), batch(0, 2)[1])
        keys.update(lambda features: features @ kernel, rows)
        total = tf.reduce_sum(keys.block(0, 4))
    assert tape.gradient(total, kernel) is None
    assert keys.trainable_variables == []
    assert [weight.name for weight in keys.weights] == ["keys", "next_row", "num_seen"]


def test_what_is_refused_and_config():
    with pytest.raises(ValueError, match="num_refreshed=-1; expected a whole number, 0 or more"):
        MiningKeys(4, 2, -1)
    with pytest.raises(TypeError, match=r"no call\(\); use update"):
        MiningKeys(4, 2)(tf.ones([1, 2]))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(MiningKeys(9, 2, 3, name="k")))
    assert (again.memory_size, again.width, again.num_refreshed, again.name) == (9, 2, 3, "k")
