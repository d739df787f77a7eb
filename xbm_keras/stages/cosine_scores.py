"""Score matrix: cosine similarity of anchors and memory rows, in float32 under any dtype policy.

The one place that multiplies anchors with rows: all of them at once, the picked ones of each anchor, or block by block.

Letters: B anchors, M memory rows, K width of the keys, W rows of a block, T rows of an anchor, S of all anchors.
"""

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

MIN_BLOCK_ROWS = 4096
BLOCK_MULTIPLE = 64  # of which the rows of a block are one

Used = TypeVar("Used")
KeyBlock = Callable[[tf.Tensor, int], tf.Tensor]
"""From the first row and the number of rows W to their keys [W, K] float32."""
TakenKeys = Callable[[tf.Tensor], tf.Tensor]
"""From rows [n] to their keys [n, K] float32."""


class Keys(NamedTuple):
    """A space in which anchors and rows are compared: unit vectors, so that products are cosines."""

    anchors: tf.Tensor
    """[B, K] float32."""
    block: KeyBlock
    take: TakenKeys | None = None
    """Where rows can be had one by one."""


class BlockSize(NamedTuple):
    """How large a block may be on a kind of device, in numbers of float32."""

    keys: int
    scores: int


CPU = BlockSize(keys=1 << 23, scores=1 << 24)  # 32 MB of keys: smaller blocks are merged more often
GPU = BlockSize(keys=1 << 27, scores=1 << 26)  # 512 MB and 256 MB: few iterations, each of which keeps it busy


def cosine_scores(anchors: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Score matrix [B, M], float32.

    Args:
        anchors: [B, D], of unit length.
        rows: [M, D], of unit length, any float dtype.

    Example:
        >>> rows = tf.constant([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> cosine_scores(tf.constant([[0.0, 1.0]]), rows).numpy().tolist()
        [[0.0, 1.0, -1.0]]
    """
    return tf.matmul(tf.cast(anchors, tf.float32), tf.cast(rows, tf.float32), transpose_b=True)


def scores_of_picks(anchors: tf.Tensor, picked: tf.Tensor, shared: tf.Tensor | None = None) -> tf.Tensor:
    """Scores [B, T + S] of anchors [B, D], the rows picked for each, [B, T, D], and those picked for all, [S, D]."""
    scores = tf.einsum("bd,btd->bt", anchors, picked)
    return scores if shared is None else tf.concat([scores, cosine_scores(anchors, shared)], axis=1)


class Block(NamedTuple):
    """Rows that are scored together."""

    start: tf.Tensor
    """The first one."""
    width: tf.Tensor | int
    """W."""
    num_known: tf.Tensor | None
    """So many at its beginning were in the block before it; None where there is no other block."""
    least: int | None
    """W, or a number below it where W is not known while this is traced; None where nothing is."""


def score_blocks(
    spaces: Sequence[Keys], num_rows: int | None, count_rows: Callable[[], tf.Tensor], merge: Callable, state: Any
) -> Any:
    """One pass over the rows, which holds a few blocks of scores at a time, whatever M is.

    Args:
        spaces: in which the rows are scored; the blocks are of a size for the first one.
        num_rows: M; None where it is not known while this is traced: then all rows are a single block.
        count_rows: gives M in that case.
        merge: from the state, the scores [W, B] in each space and the `Block` to the next state.
        state: the first one.

    Returns:
        The state after the last block.
    """
    anchors = spaces[0].anchors
    width = num_rows and block_rows(anchors.shape[1] or 1, anchors.shape[0] or tf.shape(anchors)[0])
    least = width if isinstance(width, int) else MIN_BLOCK_ROWS  # rows of a block, known while this is traced
    if num_rows is None or num_rows <= least:
        start, rows = tf.constant(0), num_rows or count_rows()
        return merge(state, _scores(spaces, start, rows), Block(start, rows, None, num_rows))

    width = width if isinstance(width, int) else tf.minimum(width, num_rows)
    num_blocks = -(-num_rows // width)

    def step(i, state):
        start = tf.minimum(i * width, num_rows - width)  # the last block reaches back into the one before it
        return i + 1, merge(state, _scores(spaces, start, width), Block(start, width, i * width - start, least))

    # Two at a time: the next block is multiplied while this one is merged, which keeps all cores busy.
    return tf.while_loop(lambda i, _: i < num_blocks, step, (tf.constant(0), state), parallel_iterations=2)[1]


def map_blocks(keys: Keys, num_rows: int, use: Callable[[np.ndarray, int, int], Used]) -> list[Used]:
    """What `use` makes of each block of `score_blocks`, outside of graphs.

    Args:
        keys: in which the rows are scored.
        num_rows: M, at least 1.
        use: from the scores [W, B] float32 of a block, its first row, and how many rows at its beginning were in the
            block before it. It is called in several threads.
    """
    width = min(int(block_rows(keys.anchors.shape[1], keys.anchors.shape[0])), num_rows)

    def used(i: int) -> Used:
        start = min(i * width, num_rows - width)
        scores = np.asarray(_scores([keys], tf.constant(start), width)[0])  # unlike `numpy()` no copy
        return use(scores, start, i * width - start)

    # One block is multiplied, by all cores, while others are used, by one each; as few as keep all cores busy.
    with concurrent.futures.ThreadPoolExecutor(min(max(2, os.cpu_count() or 1), 4)) as pool:
        return list(pool.map(used, range(-(-num_rows // width))))


def _scores(spaces, start, width):
    # [W, B] rather than [B, W]: this product is the faster one, and maxima over groups of rows then run along the
    # anchors, which lie side by side.
    return [tf.matmul(tf.stop_gradient(each.block(start, width)), each.anchors, transpose_b=True) for each in spaces]


def block_rows(width: int, num_anchors: int | tf.Tensor) -> int | tf.Tensor:
    """Rows of a block: so many that merges are few and cheap, and so few that the device holds keys and scores easily.

    Args:
        width: K of the keys.
        num_anchors: B; a tensor where it is not known while this is traced: then so is the result.
    """
    size = GPU if tf.config.list_logical_devices("GPU") else CPU
    least, most = (min, max) if isinstance(num_anchors, int) else (tf.minimum, tf.maximum)
    num_rows = least(size.keys // width, size.scores // most(num_anchors, 1))
    return most(num_rows // BLOCK_MULTIPLE * BLOCK_MULTIPLE, MIN_BLOCK_ROWS)


@contextlib.contextmanager
def all_bits_of_float32() -> Iterator[None]:
    """Without TensorFloat-32, which on recent GPUs keeps 10 of the 23 bits of the inputs of a float32 product."""
    was_enabled = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(was_enabled)
