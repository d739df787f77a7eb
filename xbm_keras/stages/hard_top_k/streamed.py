"""Exact top-k of a score matrix that is never held whole: blocks of memory rows are scored, reduced and merged.

Letters: B anchors, M memory rows, W rows of a block.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from xbm_keras.stages.cosine_scores import Keys, score_blocks

GROUP = 16  # rows of a group of the prefilter
LOWEST = -float("inf")


class Search(NamedTuple):
    """What is sought: the k rows of highest `sign * score + penalty`."""

    k: int
    sign: float
    """1 for the highest scores first, -1 for the lowest."""
    penalties: tf.Tensor
    """[C, B], 0 or -inf for each code of a row and each anchor: rows of -inf are no candidates."""
    ceilings: tf.Tensor | None = None
    """[B]: rows whose guard score is higher are no candidates either."""
    common_code: tf.Tensor | None = None
    """A code without penalties that nearly all rows have: then only the others are looked at. XLA has no op for it."""


def streamed_top_k(
    keys: Keys, codes: tf.Tensor, searches: Sequence[Search], guard: Keys | None = None
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """The best rows of each anchor for each search, best first; of equal scores the lower row comes first.

    One pass over the memory serves all searches. It holds a few blocks of scores at a time, whatever M is.

    Args:
        keys: the space of the scores.
        codes: [M] int64, the row of `penalties` that applies to each memory row.
        searches: what is sought.
        guard: the space of the guard scores, if it is another.

    Returns:
        For each search values `sign * score` [B, k] float32 and rows [B, k] int64; where fewer than k candidates were
        to be had, -inf and some row.
    """
    # Whatever is as large as the memory or the picks is int64: TensorFlow keeps int32 numbers in host memory, so that
    # arithmetic with them would be a copy from a GPU and one back.
    num_anchors = tf.shape(keys.anchors)[0]
    nowhere = tf.shape(searches[0].penalties, tf.int64)[0]  # a code beyond the others
    padded = [s._replace(penalties=tf.pad(s.penalties, [[0, 1], [0, 0]], constant_values=LOWEST)) for s in searches]

    def merge(state, scores, block):
        if block.num_known is None:
            return _merge(scores[0], scores[-1], codes, block.start, searches, state, block.least)
        block_codes = tf.slice(codes, [block.start], [block.width])
        is_known = tf.range(tf.cast(block.width, tf.int64)) < tf.cast(block.num_known, tf.int64)
        block_codes = tf.where(is_known, nowhere, block_codes)
        return _merge(scores[0], scores[-1], block_codes, block.start, padded, state, block.least)

    state = [
        (tf.fill([num_anchors, search.k], LOWEST), tf.zeros([num_anchors, search.k], tf.int64)) for search in searches
    ]
    spaces = [keys] if guard is None else [keys, guard]
    return score_blocks(spaces, codes.shape[0], lambda: tf.shape(codes)[0], merge, state)


def _merge(scores, guard_scores, codes, start, searches, state, least):
    """The state after this block, of `least` rows or more: per search the best values and rows so far, each [B, k]."""
    merged, start = [], tf.cast(start, tf.int64)
    for search, (best, rows) in zip(searches, state, strict=True):
        values = scores if search.sign > 0 else -scores
        few = None
        if search.common_code is not None and search.ceilings is None:
            few = FewPenalties(search.penalties, codes, search.common_code)
        else:
            # A sum rather than a `where`, exact with 0 and -inf: rows of a small table are copied faster than masks
            # are made.
            values += tf.gather(search.penalties, codes)
        if search.ceilings is not None:
            values = tf.where(guard_scores <= search.ceilings, values, LOWEST)
        values, row_of = _candidates(values, search.k, least, few)
        best, place = tf.math.top_k(tf.concat([best, values], axis=1), search.k)
        place = tf.cast(place, tf.int64)
        earlier = tf.gather(rows, tf.minimum(place, search.k - 1), batch_dims=1)
        rows = tf.where(place < search.k, earlier, start + row_of(tf.maximum(place - search.k, 0)))
        merged.append((best, rows))
    return merged


class FewPenalties(NamedTuple):
    """Penalties of a block in which nearly all rows have none: to add them where they are costs far less than a sum."""

    penalties: tf.Tensor
    codes: tf.Tensor
    common_code: tf.Tensor

    def on_maxima(self, maxima, values):
        """Maxima [W / GROUP, B] of groups of `values` [W, B], where those with a penalized row are taken anew."""
        # Without anchors, as on a replica without items, there is nothing to take anew, and no scatter into nothing.
        is_penalized = (self.codes != self.common_code) & (tf.shape(values)[1] > 0)
        groups = tf.unique(tf.where(is_penalized)[:, 0] // GROUP).y  # [n]
        rows = groups[:, None] * GROUP + tf.range(GROUP, dtype=tf.int64)
        penalized = tf.gather(values, rows) + tf.gather(self.penalties, tf.gather(self.codes, rows))  # [n, GROUP, B]
        return tf.tensor_scatter_nd_update(maxima, groups[:, None], tf.reduce_max(penalized, axis=1))

    def of(self, groups):
        """Penalties [B, n, GROUP] of the rows of groups [B, n]."""
        num_anchors = tf.shape(self.penalties, tf.int64)[1]
        first = tf.gather(tf.reshape(self.codes * num_anchors, [-1, GROUP]), groups)
        return tf.gather(tf.reshape(self.penalties, [-1]), first + tf.range(num_anchors)[:, None, None])


def _candidates(values, k, least, few=None):
    """Values [B, n] among which are the k best of `values` [W, B], in the order of rows, and which rows they are of.

    The latter as a function from places [B, k] among the values to rows of the block: only those of the best are asked
    for. `least` is W, or a number below it where W is not known while this is traced; None where nothing is.

    The k best lie in the k groups with the best maxima, the earlier group winning a tie: a row outside of these has k
    rows before it, one in each of them. Finding the maxima costs far less than `top_k` of all values, and the best of
    many groups are found in the same way.
    """
    width, num_anchors = values.shape[0], tf.shape(values, tf.int64)[1]
    if width is None:
        width = tf.shape(values)[0]
    if least is None or least < 2 * k * GROUP:
        if few is not None:
            values += tf.gather(few.penalties, few.codes)
        return tf.transpose(values), lambda place: place
    missing = -width % GROUP
    if not isinstance(missing, int) or missing:
        values = tf.pad(values, [[0, missing], [0, 0]], constant_values=LOWEST)
        few = few and few._replace(codes=tf.concat([few.codes, tf.zeros([missing], tf.int64)], axis=0))
    num_groups = (width + missing) // GROUP
    maxima = tf.reduce_max(tf.reshape(values, [num_groups, GROUP, -1]), axis=1)  # [W / GROUP, B]
    if few is not None:
        maxima = few.on_maxima(maxima, values)
    maxima, group_of = _candidates(maxima, k, -(-least // GROUP))
    best = tf.cast(tf.math.top_k(maxima, k, sorted=False).indices, tf.int64)
    groups = tf.sort(group_of(best), axis=1)  # [B, k]
    first = groups * (GROUP * num_anchors) + tf.range(num_anchors)[:, None]  # where each starts in the flat values
    flat = first[:, :, None] + tf.range(GROUP, dtype=tf.int64) * num_anchors
    values = tf.gather(tf.reshape(values, [-1]), flat)  # [B, k, GROUP]
    if few is not None:
        values += few.of(groups)

    def row_of(place):
        rows = tf.gather(groups, place // GROUP, batch_dims=1) * GROUP + place % GROUP
        return tf.minimum(rows, tf.cast(width - 1, tf.int64))  # beyond it is padding, which is never a pick

    return tf.reshape(values, [-1, k * GROUP]), row_of
