"""Random rows of a class, without replacement, and without a random number for each row of the memory.

Letters: B anchors, M memory rows, C codes, k rows per anchor.
"""

import keras
import numpy as np
import tensorflow as tf

from xbm_keras.stages.circular_memory import replicas
from xbm_keras.stages.circular_memory.ring import Rows

UNROLLED = 17  # draws of an anchor, up to which a graph repeats them: a loop costs more than they do


class DrawsRows(keras.layers.Layer):
    """A layer that draws by `seed_generator`, whose state is saved with it: Keras by itself does not."""

    seed_generator: keras.random.SeedGenerator

    def save_own_variables(self, store):
        """Weights, and the state of the draws."""
        super().save_own_variables(store)
        store["seed_state"] = self.seed_generator.state.value.numpy()

    def load_own_variables(self, store):
        """What `save_own_variables` stored."""
        super().load_own_variables({key: store[key] for key in store.keys() if key != "seed_state"})  # noqa: SIM118
        self.seed_generator.state.assign(store["seed_state"])

    def some_rows(self, rows: Rows, count: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Random rows, the same for all anchors and each at most once: indices, ascending, and validity, each [count].

        The slots filled so far are cut into `count` sections of equal length, and one row is drawn of each: all rows
        are equally likely, and no look at all of them is taken. Of fewer slots than `count` each is drawn.
        """
        num_rows = tf.shape(rows.sample_ids, tf.int64)[0]
        num_filled = num_rows if rows.num_enqueued is None else tf.minimum(rows.num_enqueued, num_rows)
        ends = tf.range(count + 1, dtype=tf.int64) * num_filled // count
        widths = ends[1:] - ends[:-1]
        # Bits, because TensorFlow's random floats differ between graph and XLA (tensorflow#121243).
        seed = tf.cast(self.seed_generator.next(), tf.int64)
        bits = tf.cast(tf.random.stateless_uniform([count], seed, None, None, tf.uint32, alg="philox"), tf.int64)
        drawn = ends[:-1] + tf.bitwise.right_shift(bits * widths, tf.constant(32, tf.int64))
        drawn = tf.minimum(drawn, num_rows - 1)  # a section without rows may stand behind the last one
        return drawn, (widths > 0) & rows.valid_at(drawn)


def none_of(drawn: tf.Tensor, indices: tf.Tensor, is_valid: tf.Tensor) -> tf.Tensor:
    """Which of the rows of `some_rows`, [S], are none of an anchor's `indices` [B, k] that are valid: [B, S] bool."""
    num_anchors, k = tf.shape(indices, tf.int64)[0], tf.shape(indices, tf.int64)[1]
    flat = tf.reshape(indices, [-1])
    place = tf.maximum(tf.searchsorted(drawn, flat, side="right", out_type=tf.int64) - 1, 0)  # they ascend
    is_drawn = tf.reshape(is_valid, [-1]) & (tf.gather(drawn, place) == flat)
    cells = tf.stack([tf.repeat(tf.range(num_anchors), k), place], axis=1)
    shape = tf.stack([num_anchors, tf.size(drawn, tf.int64)])
    return tf.scatter_nd(cells, tf.cast(is_drawn, tf.float32), shape) == 0.0


def random_rows(
    codes: tf.Tensor, num_codes: tf.Tensor, wanted: tf.Tensor, k: int, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """For each anchor k of the rows that bear the wanted code, every set of k being equally likely.

    A row is drawn by its rank among the rows of its code; counts per section of the memory tell where it stands. That
    is O(M) additions, where a random number for each pair of anchor and row would be O(B M).

    Args:
        codes: [M] int64, below `num_codes`.
        num_codes: C.
        wanted: [B] int64, the code that each anchor asks for.
        k: rows per anchor.
        seed: [2]. The same seed draws the same rows, eager, in graphs and under XLA.

    Returns:
        Rows [B, k] int64, each at most once per anchor, and validity [B, k]: False, with row 0, in the first places
        where fewer than k rows bear the code.

    Reference:
        The sets are drawn by Floyd's algorithm, Bentley and Floyd, CACM 30(9), 1987.
    """
    num_rows = codes.shape[0]
    section = 1 << ((num_rows or 1024).bit_length() // 2)  # about sqrt(M) sections of about sqrt(M) rows
    num_sections = -(-tf.shape(codes, tf.int64)[0] // section)
    missing = num_sections * section - tf.shape(codes, tf.int64)[0]
    codes = tf.concat([codes, tf.fill([missing], tf.constant(-1, tf.int64))], axis=0)  # a GPU pads no int64
    codes = tf.reshape(codes, [num_sections, section])
    cells = tf.where(codes >= 0, tf.range(num_sections)[:, None] * num_codes + codes, -1)
    # In float32, which counts the rows of a section exactly, and of which a GPU sums segments, unlike int64.
    counts = tf.math.unsorted_segment_sum(tf.ones_like(cells, tf.float32), cells, num_sections * num_codes)
    counts = tf.cast(tf.reshape(counts, [num_sections, num_codes]), tf.int64)
    up_to = tf.cumsum(counts, axis=0)  # rows of a code up to a section's end
    up_to = tf.gather(tf.transpose(up_to), wanted)  # [B, sections]

    ranks = _random_ranks(up_to[:, -1], k, seed)  # [B, k]
    is_before = up_to[:, None, :] <= ranks[:, :, None]  # [B, k, sections]
    sections = tf.cast(tf.reduce_sum(tf.cast(is_before, tf.float32), axis=2), tf.int64)
    within = ranks - tf.reduce_max(tf.where(is_before, up_to[:, None, :], 0), axis=2)
    is_wanted = tf.gather(codes, sections) == wanted[:, None, None]  # [B, k, section]
    up_to_row = tf.cumsum(tf.cast(is_wanted, tf.float32), axis=2)
    is_before = up_to_row <= tf.cast(within, tf.float32)[:, :, None]
    rows = sections * section + tf.cast(tf.reduce_sum(tf.cast(is_before, tf.float32), axis=2), tf.int64)
    return tf.where(ranks >= 0, rows, 0), ranks >= 0


class RowsByLabel:
    """The rows of each row's label, sorted once, for rows that change no more: draws without a look at all M of them.

    Args:
        labels: [M].
        is_valid: [M] bool, which of the rows may be drawn.
    """

    def __init__(self, labels: np.ndarray, is_valid: np.ndarray):
        order = np.argsort(labels, kind="stable")
        order = order[is_valid[order]]
        first, behind = (np.searchsorted(labels[order], labels, side) for side in ("left", "right"))
        columns = order if len(order) else np.zeros(1, np.int64), first, behind - first
        self.order, self.first, self.counts = (keras.Variable(each, dtype="int64", trainable=False) for each in columns)

    def random_rows(self, rows: tf.Tensor, k: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """For each of `rows` [B] k rows of its label: those that `random_rows` draws by the same seed, as it does."""
        ranks = _random_ranks(tf.gather(self.counts.value, rows), k, seed)
        places = tf.gather(self.first.value, rows)[:, None] + tf.maximum(ranks, 0)
        drawn = tf.gather(self.order.value, tf.minimum(places, self.order.shape[0] - 1))
        return tf.where(ranks >= 0, drawn, 0), ranks >= 0


def random_bits(num_anchors: tf.Tensor, k: int, seed: tf.Tensor) -> tf.Tensor:
    """Random numbers below 2^32 for anchors of this replica, [B, k] int64: those of their places in the whole batch."""

    def make(n):
        # Bits, because TensorFlow's random floats differ between graph and XLA (tensorflow#121243).
        bits = tf.random.stateless_uniform([n, k], tf.cast(seed, tf.int64), None, None, tf.uint32, alg="philox")
        return tf.cast(bits, tf.int64)

    return replicas.of_whole_batch(make, num_anchors)


def _random_ranks(counts: tf.Tensor, k: int, seed: tf.Tensor) -> tf.Tensor:
    """k different numbers below each of `counts` [B], [B, k] int64; all of them, after -1s, where there are fewer."""
    shape = [tf.shape(counts)[0], k]
    bits = random_bits(shape[0], k, seed)

    def draw(i, drawn):
        highest = counts - k + tf.cast(i, tf.int64)  # [B]
        rank = tf.bitwise.right_shift(tf.gather(bits, i, axis=1) * (highest + 1), tf.constant(32, tf.int64))
        is_taken = tf.reduce_any(drawn == rank[:, None], axis=1)
        rank = tf.where(highest < 0, tf.constant(-1, tf.int64), tf.where(is_taken, highest, rank))
        return i + 1, tf.where(tf.range(k) == i, rank[:, None], drawn)

    state = tf.constant(0), tf.fill(shape, tf.constant(-1, tf.int64))
    if k > UNROLLED:
        return tf.while_loop(lambda i, _: i < k, draw, state, maximum_iterations=k)[1]
    for _ in range(k):
        state = draw(*state)
    return state[1]
