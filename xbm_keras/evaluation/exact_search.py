"""Exact nearest neighbours under cosine similarity, in blocks, the same however the work is divided.

Letters: Q queries, N gallery items, E embedding width.
"""

import numpy as np
import tensorflow as tf

from xbm_keras.geometry import unit_rows
from xbm_keras.progress import track
from xbm_keras.stages.cosine_scores import all_bits_of_float32
from xbm_keras.stages.hard_top_k.sampled import FEW, first_of_lists, rank_in_sample, ranks, sample_of

# Queries per product, to which the last ones are padded. Not any number will do: kernels sum the odd rows at the end of
# a matrix, and some inside of larger ones, in another order, so that copies of an item would differ in the last bit.
CHUNK = 96
MIN_BLOCK = 512  # gallery items per product, at least, for the same reason
GROUP = 32  # gallery items per group of the prefilter
PAIRS = 4096  # whose similarities are computed at a time
MEMORY_MB = 64  # with twice as much the scores of a chunk leave the cache


def nearest(queries: np.ndarray, gallery: np.ndarray | None = None, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Positions and cosine similarities of the k nearest gallery items of each query, best first.

    Without a gallery each item queries all the others; it is left out by position, so its copies stay. Items of equal
    score rank by position in the gallery, the first one first.

    Args:
        queries: [Q, E], of any length.
        gallery: [N, E].
        k: at least 1; cut to the number of items there are.

    Returns:
        Positions [Q, k] int64 and similarities [Q, k] float32.

    Example:
        >>> nearest(np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]]), k=1)[0].tolist()
        [[1], [0], [1]]
    """
    own = np.arange(len(queries)) if gallery is None else None
    gallery = queries if gallery is None else gallery
    positions = find_nearest(queries, gallery, k, own)
    places = np.repeat(np.arange(len(queries)), positions.shape[1])
    similarities = pair_similarities(queries, places, positions.ravel(), gallery).reshape(positions.shape)
    return positions, similarities


def pair_similarities(
    vectors: np.ndarray, first: np.ndarray, second: np.ndarray, others: np.ndarray | None = None
) -> np.ndarray:
    """Cosine similarities [P] float32 of vectors [Q, E] at the positions `first` [P] and those at `second` [P].

    The latter are of the same vectors, or of others [N, E].
    """
    others = vectors if others is None else others
    similarities = np.empty(len(first), np.float32)
    for start in range(0, len(first), PAIRS):
        rows = slice(start, start + PAIRS)
        pair = unit_rows(vectors[first[rows]]), unit_rows(others[second[rows]])
        similarities[rows] = np.einsum("pe,pe->p", *pair)
    return similarities


def find_nearest(queries: np.ndarray, gallery: np.ndarray, k: int, own: np.ndarray | None = None) -> np.ndarray:
    """The positions of `nearest` alone, [Q, k] int64; queries that stand in the gallery say where, `own` [Q]."""
    is_among = own is not None
    k = min(k, len(gallery) - is_among)
    blocks = to_blocks(gallery, width=block_width(MEMORY_MB))
    positions = np.empty((len(queries), k), np.int64)
    for start in track(range(0, len(queries), CHUNK), "neighbours", len(queries)):
        rows = slice(start, start + CHUNK)
        found = search_blocks(queries[rows], blocks, len(gallery), k + is_among)
        positions[rows] = found if own is None else without_own(found, own[rows])
    return positions


def block_width(memory_mb: float) -> int:
    """Gallery items per block: float32 scores of two chunks of queries, about four arrays of them."""
    return int(memory_mb * (1 << 20) / (CHUNK * 32))


def to_blocks(gallery: np.ndarray, width: int) -> tf.Tensor:
    """The gallery [N, E] as unit columns in blocks, [blocks, E, width], of at most about this width, zeros at the end.

    In this layout neither a block nor its product with the queries needs a copy.
    """
    num_blocks = -(-len(gallery) // max(width, MIN_BLOCK))
    width = max(-(-len(gallery) // (num_blocks * GROUP)) * GROUP, MIN_BLOCK)
    num_blocks = -(-len(gallery) // width)  # fewer, where rounding up made blocks that hold it all before the last one
    blocks = np.zeros((num_blocks, gallery.shape[1], width), np.float32)
    for i in range(num_blocks):
        rows = gallery[i * width : (i + 1) * width]
        blocks[i, :, : len(rows)] = unit_rows(rows).T
    return tf.constant(blocks)


def search_blocks(queries: np.ndarray, blocks: tf.Tensor, num_rows: int, k: int) -> np.ndarray:
    """Positions [Q, k] of the nearest gallery rows of at most `CHUNK` queries [Q, E], best first."""
    padded = np.pad(unit_rows(queries), [(0, CHUNK - len(queries)), (0, 0)])
    with all_bits_of_float32():
        num_blocks, _, width = blocks.shape
        if num_blocks == 1 and not _has_enough_groups(k, width):
            scores = np.asarray(tf.matmul(padded, tf.reshape(blocks, blocks.shape[1:])))  # [Q, width], no copy
            found = first_columns(scores[: len(queries), :num_rows], k)
            if found is not None:
                return found
        return _nearest(padded, blocks, num_rows, k).numpy()[: len(queries)]


def first_columns(scores: np.ndarray, k: int) -> np.ndarray | None:
    """Columns [Q, k] of the highest scores [Q, N], best first and ties by position; None where more tie with the last.

    NumPy tells the k best of a row apart in one pass, in a third of the time that `top_k` takes. No score is NaN.
    """
    num_beyond = scores.shape[1] - k
    if num_beyond == 0:
        return np.argsort(-scores, axis=1, kind="stable")
    found = _first_of_few(scores, k)
    if found is not None:
        return found
    best = np.argpartition(scores, num_beyond - 1, axis=1)[:, num_beyond - 1 :]  # [Q, 1 + k], first the best beyond
    columns = np.sort(best[:, 1:], axis=1)
    values = np.take_along_axis(scores, columns, axis=1)
    if (np.take_along_axis(scores, best[:, :1], axis=1)[:, 0] == values.min(axis=1)).any():
        return None
    return np.take_along_axis(columns, np.argsort(-values, axis=1, kind="stable"), axis=1)


def _first_of_few(scores: np.ndarray, k: int) -> np.ndarray | None:
    """The same by those scores alone that a sample tells to be high; None where k are no small part, or ties are many.

    What is below a score of the sample that all but surely is below the k best is dropped; the few that are left are
    sorted.
    """
    num_rows, width = scores.shape
    sample = sample_of(width)
    rank = rank_in_sample(k, len(sample) / width)
    if num_rows == 0 or rank > FEW * len(sample):
        return None
    is_left = scores >= np.partition(scores[:, sample], -rank, axis=1)[:, -rank, None]
    left = np.flatnonzero(is_left)
    counts = np.diff(np.searchsorted(left, np.arange(num_rows + 1) * width))
    if counts.min() < k or 2 * counts.max() > width:
        return None
    return first_of_lists(ranks(scores.ravel()[left], left % width), counts, k)[1]


def _has_enough_groups(k, width):
    """Whether the k best groups are so few of all that `top_k` of their maxima pays; integers or tensors."""
    return 3 * k * GROUP <= width


@tf.function(
    input_signature=[
        tf.TensorSpec([CHUNK, None], tf.float32),
        tf.TensorSpec([None, None, None], tf.float32),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([], tf.int32),
    ]
)
def _nearest(queries, blocks, num_rows, k):
    """Positions [Q, k] of the nearest of the `num_rows` columns in the blocks [.., E, width]; ties by position.

    `top_k` puts the earlier of two equal scores first, so candidates are kept in the order of their positions: the best
    of earlier blocks before those of this one.
    """
    width = tf.shape(blocks)[2]
    best = tf.fill([CHUNK, k], -float("inf"))
    positions = tf.zeros([CHUNK, k], tf.int64)  # which a GPU counts with; int32 numbers it leaves to the host
    for i in tf.range(tf.shape(blocks)[0]):
        tf.autograph.experimental.set_loop_options(
            shape_invariants=[(best, tf.TensorShape([CHUNK, None])), (positions, tf.TensorShape([CHUNK, None]))]
        )
        scores = tf.matmul(queries, blocks[i])  # [Q, width]
        filled = num_rows - i * width
        if filled < width:
            scores = tf.pad(scores[:, :filled], [[0, 0], [0, width - filled]], constant_values=-float("inf"))
        if _has_enough_groups(k, width):
            scores, columns = _best_groups(scores, k)
        else:
            columns = tf.broadcast_to(tf.range(tf.cast(width, tf.int64)), tf.shape(scores))
        best, place = tf.math.top_k(tf.concat([best, scores], axis=1), k)
        found = tf.concat([positions, tf.cast(i * width, tf.int64) + columns], axis=1)
        positions = tf.gather(found, place, batch_dims=1)
    return positions


def _best_groups(scores, k):
    """Scores and columns [Q, k * GROUP] among which are the k best of `scores` [Q, width], in the order of columns.

    The k best lie in the k groups with the best maxima, the earlier group winning a tie: an item outside of these has k
    items before it, one in each of them. Finding the maxima costs far less than `top_k` of all scores.
    """
    groups = tf.reshape(scores, [CHUNK, -1, GROUP])
    chosen = tf.math.top_k(tf.reduce_max(groups, axis=2), k, sorted=False).indices
    chosen = tf.sort(tf.cast(chosen, tf.int64), axis=1)  # [Q, k]
    columns = chosen[:, :, None] * GROUP + tf.range(GROUP, dtype=tf.int64)
    shape = [CHUNK, k * GROUP]
    return tf.reshape(tf.gather(groups, chosen, batch_dims=1), shape), tf.reshape(columns, shape)


def without_own(nearest: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Lists [Q, k] from [Q, k + 1]: without the query's own position [Q], or without the end where it is not there."""
    is_own = nearest == own[:, None]
    is_own[:, -1] |= ~is_own.any(axis=1)
    return nearest[~is_own].reshape(len(nearest), -1)
