"""Exact top-k of a score matrix that is never held whole: blocks of memory rows are scored, reduced and merged.

Letters: B anchors, M memory rows, K width of the keys, W rows of a block.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

MIN_BLOCK_ROWS = 4096
GROUP = 8  # rows of a group of the prefilter
LOWEST = -float("inf")

KeyBlock = Callable[[tf.Tensor, int], tf.Tensor]
"""From the first row and the number of rows W to their keys [W, K] float32."""


class BlockSize(NamedTuple):
    """How large a block may be on a kind of device, in numbers of float32."""

    keys: int
    scores: int


CPU = BlockSize(keys=1 << 22, scores=1 << 24)  # 16 MB of keys stay in the cache while a batch is multiplied with them
GPU = BlockSize(keys=1 << 27, scores=1 << 26)  # 512 MB and 256 MB: few iterations, each of which keeps it busy


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
        codes: [M] int64, the row of `penalties` that applies to each memory row.
        searches: what is sought.
        guard: the space of the guard scores, if it is another.

    Returns:
        For each search values `sign * score` [B, k] float32 and rows [B, k] int64; where fewer than k candidates were
        to be had, -inf and some row.
    """
    # Whatever is as large as the memory or the picks is int64: TensorFlow keeps int32 numbers in host memory, so that
    # arithmetic with them would be a copy from a GPU and one back.
    num_rows = codes.shape[0]  # None for a batch of unknown size in the role of the memory: then a single block
    num_anchors = tf.shape(keys.anchors)[0]
    width = num_rows and block_rows(keys.anchors.shape[1] or 1, keys.anchors.shape[0] or num_anchors)
    state = [
        (tf.fill([num_anchors, search.k], LOWEST), tf.zeros([num_anchors, search.k], tf.int64)) for search in searches
    ]
    if num_rows is None or num_rows <= (width if isinstance(width, int) else MIN_BLOCK_ROWS):
        blocks = _scores(keys, guard, tf.constant(0), num_rows or tf.shape(codes)[0])
        return _merge(*blocks, codes, tf.constant(0), searches, state, num_rows)

    least = width if isinstance(width, int) else MIN_BLOCK_ROWS  # rows of a block at least, known while this is traced
    width = width if isinstance(width, int) else tf.minimum(width, num_rows)
    num_blocks = -(-num_rows // width)
    nowhere = tf.shape(searches[0].penalties, tf.int64)[0]  # a code beyond the others

    def step(i, state):
        start = tf.minimum(i * width, num_rows - width)  # the last block reaches back into the one before it
        block_codes = tf.slice(codes, [start], [width])
        is_known = tf.range(tf.cast(width, tf.int64)) < tf.cast(i * width - start, tf.int64)
        block_codes = tf.where(is_known, nowhere, block_codes)
        return i + 1, _merge(*_scores(keys, guard, start, width), block_codes, start, padded, state, least)

    padded = [s._replace(penalties=tf.pad(s.penalties, [[0, 1], [0, 0]], constant_values=LOWEST)) for s in searches]
    # Two at a time: the next block is multiplied while this one is merged, which keeps all cores busy.
    return tf.while_loop(lambda i, _: i < num_blocks, step, (tf.constant(0), state), parallel_iterations=2)[1]


def block_rows(width: int, num_anchors: int | tf.Tensor) -> int | tf.Tensor:
    """Rows of a block: so many that merges are few and cheap, and so few that the device holds keys and scores easily.

    Args:
        width: K of the keys.
        num_anchors: B; a tensor where it is not known while this is traced: then so is the result.
    """
    size = GPU if tf.config.list_logical_devices("GPU") else CPU
    if isinstance(num_anchors, int):
        in_scores = size.scores // max(num_anchors, 1)
        return max(min(size.keys // width, in_scores) // GROUP**2 * GROUP**2, MIN_BLOCK_ROWS)
    in_scores = size.scores // tf.maximum(num_anchors, 1)
    return tf.maximum(tf.minimum(size.keys // width, in_scores) // GROUP**2 * GROUP**2, MIN_BLOCK_ROWS)


def _scores(keys, guard, start, width) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores and guard scores of a block of rows, [W, B]."""
    # [W, B] rather than [B, W]: this product is the faster one, and maxima over groups of rows then run along the
    # anchors, which lie side by side.
    scores, *guard_scores = (
        tf.matmul(tf.stop_gradient(each.block(start, width)), each.anchors, transpose_b=True)
        for each in (keys, guard)
        if each is not None
    )
    return scores, guard_scores[0] if guard_scores else scores


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
