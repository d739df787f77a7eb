"""Newest row of each id: the one that counts. An item whose id comes again is in the memory twice, and valid once."""

from collections.abc import Callable

import keras
import tensorflow as tf

from xbm_keras.stages.circular_memory.writes import write_rows

HASH_FACTOR = -7046029254386353131  # 2^64 over the golden ratio: Fibonacci hashing, Knuth, TAOCP 3, section 6.4


class NewestOfId:
    """Which rows of a ring are the newest of their id, found without a look at all M of them.

    Rows are linked by hash of their id: from each bucket to its newest row, and from each row to the one before it in
    its bucket. A link is 1 + the row's number in the order of enqueues; 0 is none. Links lead to older rows only, so
    one to a row that has left the ring ends the chain.

    Args:
        sample_ids: the ring's ids, [M] int64.
        add_rows: from a name and a dtype to a new variable of zeros [M].
    """

    def __init__(self, sample_ids: keras.Variable, add_rows: Callable[[str, str], keras.Variable]):
        self.sample_ids = sample_ids
        self.num_rows = sample_ids.shape[0]
        self.is_newest = add_rows("is_newest", "int8")  # 0 or 1: a GPU scatters no bool
        self.newest_in_bucket = add_rows("newest_in_bucket", "int64")
        self.previous_in_bucket = add_rows("previous_in_bucket", "int64")

    def enqueue(self, sample_ids: tf.Tensor, numbers: tf.Tensor, num_enqueued: tf.Tensor, only_if: tf.Tensor) -> None:
        """Older rows with the ids of a batch count no more; of several in the batch the last one counts.

        Args:
            sample_ids: [n] int64, not written to the ring yet.
            numbers: [n] int64, consecutive, of these rows in the order of enqueues.
            num_enqueued: rows that were enqueued before, a scalar int64.
            only_if: a scalar bool; False leaves all as it is.
        """
        slots = numbers % self.num_rows
        buckets = bucket_of(sample_ids, self.num_rows)
        in_bucket = tf.gather(self.newest_in_bucket.value, buckets)
        superseded = self._find(sample_ids, in_bucket, num_enqueued)
        before, last = neighbours_in_bucket(buckets, numbers)
        for variable, at, rows in (
            (self.is_newest, tf.where(superseded < 0, slots, superseded), tf.zeros_like(slots)),
            (self.is_newest, slots, is_last_of_its_id(sample_ids)),
            (self.previous_in_bucket, slots, tf.where(before > 0, before, in_bucket)),
            (self.newest_in_bucket, buckets, last),
        ):
            write_rows(variable, at, rows, only_if)

    def reset(self) -> None:
        """Forget all rows."""
        self.newest_in_bucket.assign(tf.zeros_like(self.newest_in_bucket.value))

    def _find(self, sample_ids, in_bucket, num_enqueued):
        """Slots [n] of the newest rows with these ids, -1 where there is none, in a walk along their buckets."""
        oldest = tf.maximum(num_enqueued - self.num_rows, 0)  # links at most this are to rows that left

        def step(links, found):
            slots = (links - 1) % self.num_rows
            is_left = links > oldest
            is_here = is_left & (tf.gather(self.sample_ids.value, slots) == sample_ids)
            before = tf.gather(self.previous_in_bucket.value, slots)
            return tf.where(is_left & ~is_here, before, none), tf.where(is_here, slots, found)

        none = tf.zeros_like(in_bucket)
        return tf.while_loop(lambda links, _: tf.reduce_any(links > oldest), step, (in_bucket, none - 1))[1]


def bucket_of(sample_ids: tf.Tensor, num_buckets: int) -> tf.Tensor:
    """Hash of ids, [n] int64 below the number of buckets."""
    mixed = tf.bitwise.right_shift(sample_ids * HASH_FACTOR, tf.constant(32, tf.int64))
    return tf.bitwise.bitwise_and(mixed, tf.constant(0x7FFFFFFF, tf.int64)) % num_buckets


def neighbours_in_bucket(buckets: tf.Tensor, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """For each row of a batch the links, 1 + number, to the row before it and to the last one in its bucket, [n].

    0 where none stands before it in the batch.
    """
    is_same = buckets[:, None] == buckets[None, :]
    links = tf.where(is_same, numbers[None, :] + 1, 0)  # [n, n]
    is_before = numbers[None, :] < numbers[:, None]
    return tf.reduce_max(tf.where(is_before, links, 0), axis=1), tf.reduce_max(links, axis=1)


def is_last_of_its_id(sample_ids: tf.Tensor) -> tf.Tensor:
    """[n] bool, False where the same id comes again later in the batch."""
    n = tf.size(sample_ids, tf.int64)
    is_later = tf.range(n)[None, :] > tf.range(n)[:, None]
    return ~tf.reduce_any((sample_ids[:, None] == sample_ids[None, :]) & is_later, axis=1)
