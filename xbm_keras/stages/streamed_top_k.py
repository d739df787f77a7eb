"""Exact top-k of a score matrix that is never held whole: blocks of memory rows are scored, reduced and merged.

Letters: B anchors, M memory rows, K width of the keys, W rows of a block.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

BLOCK_ELEMENTS = 1 << 22  # of the keys of a block; 16 MB in float32
MIN_BLOCK_ROWS = 4096
GROUP = 8  # rows of a group of the prefilter
LOWEST = -float("inf")

KeyBlock = Callable[[tf.Tensor, int], tf.Tensor]
"""From the first row and the number of rows W to their keys [W, K] float32."""


class Keys(NamedTuple):
    """A space in which anchors and rows are compared: unit vectors, so that products are cosines."""

    anchors: tf.Tensor
    """[B, K] float32."""
    block: KeyBlock


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
        codes: [M] int32, the row of `penalties` that applies to each memory row.
        searches: what is sought.
        guard: the space of the guard scores, if it is another.

    Returns:
        For each search values `sign * score` [B, k] float32 and rows [B, k] int32; where fewer than k candidates were
        to be had, -inf and some row.
    """
    num_rows = codes.shape[0]  # None for a batch of unknown size in the role of the memory: then a single block
    width = num_rows if num_rows is None else min(num_rows, block_rows(keys.anchors.shape[1] or 1))
    num_anchors = tf.shape(keys.anchors)[0]
    state = [
        (tf.fill([num_anchors, search.k], LOWEST), tf.zeros([num_anchors, search.k], tf.int32)) for search in searches
    ]
    if num_rows is None or num_rows == width:
        blocks = _scores(keys, guard, tf.constant(0), width or tf.shape(codes)[0])
        return _merge(*blocks, codes, tf.constant(0), searches, state)

    num_blocks = -(-num_rows // width)
    nowhere = tf.shape(searches[0].penalties)[0]  # a code beyond the others

    def step(i, state):
        start = tf.minimum(i * width, num_rows - width)  # the last block reaches back into the one before it
        block_codes = tf.slice(codes, [start], [width])
        block_codes = tf.where(start + tf.range(width) < i * width, nowhere, block_codes)
        return i + 1, _merge(*_scores(keys, guard, start, width), block_codes, start, padded, state)

    padded = [s._replace(penalties=tf.pad(s.penalties, [[0, 1], [0, 0]], constant_values=LOWEST)) for s in searches]
    # Two at a time: the next block is multiplied while this one is merged, which keeps all cores busy.
    return tf.while_loop(lambda i, _: i < num_blocks, step, (tf.constant(0), state), parallel_iterations=2)[1]


def block_rows(width: int) -> int:
    """Rows of a block of keys of this width: few enough for the cache, enough to make the merge cheap."""
    return max(BLOCK_ELEMENTS // width // GROUP**2 * GROUP**2, MIN_BLOCK_ROWS)


def _scores(keys, guard, start, width):
    """Scores and guard scores of a block of rows, [W, B]."""
    # [W, B] rather than [B, W]: this product is the faster one, and maxima over groups of rows then run along the
    # anchors, which lie side by side.
    scores, *guard_scores = (
        tf.matmul(tf.stop_gradient(each.block(start, width)), each.anchors, transpose_b=True)
        for each in (keys, guard)
        if each is not None
    )
    return scores, *(guard_scores or [scores])


def _merge(scores, guard_scores, codes, start, searches, state):
    """The state after this block: per search the best values and rows so far, each [B, k]."""
    merged = []
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
        values, candidates = _candidates(values, search.k, few)
        best, place = tf.math.top_k(tf.concat([best, values], axis=1), search.k)
        rows = tf.gather(tf.concat([rows, start + candidates], axis=1), place, batch_dims=1)
        merged.append((best, rows))
    return merged


class FewPenalties(NamedTuple):
    """Penalties of a block in which nearly all rows have none: to add them where they are costs far less than a sum."""

    penalties: tf.Tensor
    codes: tf.Tensor
    common_code: tf.Tensor

    def on_maxima(self, maxima, values):
        """Maxima [W / GROUP, B] of groups of `values` [W, B], where those with a penalized row are taken anew."""
        groups = tf.unique(tf.where(self.codes != self.common_code)[:, 0] // GROUP).y  # [n]
        rows = groups[:, None] * GROUP + tf.range(GROUP, dtype=tf.int64)
        penalized = tf.gather(values, rows) + tf.gather(self.penalties, tf.gather(self.codes, rows))  # [n, GROUP, B]
        return tf.tensor_scatter_nd_update(maxima, groups[:, None], tf.reduce_max(penalized, axis=1))

    def of(self, rows):
        """Penalties [B, n] of rows [B, n]."""
        num_anchors = tf.shape(self.penalties)[1]
        flat = tf.gather(self.codes, rows) * num_anchors + tf.range(num_anchors)[:, None]
        return tf.gather(tf.reshape(self.penalties, [-1]), flat)


def _candidates(values, k, few=None):
    """Values [B, n] and rows [B, n] of a block among which are the k best of `values` [W, B], in the order of rows.

    The k best lie in the k groups with the best maxima, the earlier group winning a tie: a row outside of these has k
    rows before it, one in each of them. Finding the maxima costs far less than `top_k` of all values, and the best of
    many groups are found in the same way.
    """
    width, num_anchors = values.shape[0], tf.shape(values)[1]
    if width is None or width < 2 * k * GROUP:
        if few is not None:
            values += tf.gather(few.penalties, few.codes)
        in_rows = tf.transpose(values)
        return in_rows, tf.broadcast_to(tf.range(tf.shape(in_rows)[1]), tf.shape(in_rows))
    missing = -width % GROUP
    if missing:
        values = tf.pad(values, [[0, missing], [0, 0]], constant_values=LOWEST)
        few = few and few._replace(codes=tf.pad(few.codes, [[0, missing]]))
    maxima = tf.reduce_max(tf.reshape(values, [(width + missing) // GROUP, GROUP, -1]), axis=1)  # [W / GROUP, B]
    if few is not None:
        maxima = few.on_maxima(maxima, values)
    maxima, groups = _candidates(maxima, k)
    best = tf.math.top_k(maxima, k, sorted=False).indices
    groups = tf.sort(tf.gather(groups, best, batch_dims=1), axis=1)  # [B, k]
    rows = tf.reshape(groups[:, :, None] * GROUP + tf.range(GROUP), [-1, k * GROUP])
    flat = rows * num_anchors + tf.range(num_anchors)[:, None]
    values = tf.gather(tf.reshape(values, [-1]), flat)
    if few is not None:
        values += few.of(rows)
    return values, tf.minimum(rows, width - 1)
