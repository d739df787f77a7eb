"""Which row of an id is the newest, within a batch."""

import tensorflow as tf


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
