"""Which row of an id counts, against a look at all rows."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from xbm_keras.stages.circular_memory import newest_of_id
from xbm_keras.stages.circular_memory.newest_of_id import (
    NewestOfId,
    bucket_of,
    is_last_of_its_id,
    neighbours_in_bucket,
)

M = 7


class Ring:
    """The ids of a ring, and which of them count."""

    def __init__(self, mode):
        def add_rows(name, dtype):
            return keras.Variable(np.zeros(M), dtype=dtype, trainable=False, name=name)

        self.sample_ids, self.num_enqueued = add_rows("sample_ids", "int64"), 0
        self.newest = NewestOfId(self.sample_ids, add_rows)
        self._enqueue = in_mode(self.newest.enqueue, mode)

    def enqueue(self, ids, only_if=True):
        numbers = self.num_enqueued + np.arange(len(ids))
        self._enqueue(tf.constant(ids), tf.constant(numbers), tf.constant(self.num_enqueued, tf.int64), only_if)
        if only_if:
            held = self.sample_ids.numpy()
            held[numbers % M] = ids
            self.sample_ids.assign(held)
            self.num_enqueued += len(ids)

    def newest_slots(self):
        filled = min(self.num_enqueued, M)
        return np.flatnonzero(self.newest.is_newest.numpy()[:filled]).tolist()


def newest_by_hand(all_ids):
    """Slots of the last M of all ids ever enqueued that do not come again."""
    first = max(len(all_ids) - M, 0)
    return sorted(i % M for i in range(first, len(all_ids)) if all_ids[i] not in all_ids[i + 1 :])


@pytest.mark.parametrize("collide", [False, True])
def test_the_newest_row_of_each_id_counts(collide, mode, monkeypatch):
    """Also where all are in one bucket: the walk meets other ids, rows that have left, and rows of its own batch."""
    if collide:
        monkeypatch.setattr(newest_of_id, "bucket_of", lambda ids, num_buckets: tf.zeros_like(ids))
    ring, seen, random = Ring(mode), [], np.random.default_rng(0)
    for i in range(12):
        batch = random.integers(-3, 4, 3)
        ring.enqueue(batch, only_if=tf.constant(i != 5))
        seen += batch.tolist() if i != 5 else []
        assert ring.newest_slots() == newest_by_hand(seen)
    ring.newest.reset()
    ring.num_enqueued, seen = 0, []
    for _ in range(4):
        batch = random.integers(0, 6, 3)
        ring.enqueue(batch, only_if=tf.constant(True))
        seen += batch.tolist()
        assert ring.newest_slots() == newest_by_hand(seen)


def test_buckets_lie_within_and_spread_consecutive_ids(mode):
    ids = np.r_[np.arange(1000), -5, 2**62, -(2**63)]
    buckets = in_mode(lambda ids: bucket_of(ids, 1000), mode)(tf.constant(ids)).numpy()
    assert set(buckets) <= set(range(1000))
    assert len(np.unique(buckets)) > 600  # chance alone gives 632 of 1000


def test_links_of_a_batch_lead_to_the_row_before_and_the_last_one(mode):
    before, last = in_mode(neighbours_in_bucket, mode)(
        tf.constant([4, 2, 4, 4], tf.int64), tf.constant([10, 11, 12, 13], tf.int64)
    )
    assert before.numpy().tolist() == [0, 0, 11, 13]  # 1 + number
    assert last.numpy().tolist() == [14, 12, 14, 14]


def test_the_last_of_each_id_in_a_batch(mode):
    found = in_mode(is_last_of_its_id, mode)(tf.constant([3, 0, 3, -1, 0], tf.int64))
    assert found.numpy().tolist() == [False, False, True, True, True]
