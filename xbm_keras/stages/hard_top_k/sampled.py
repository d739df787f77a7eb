"""Exact top-k of a large k on a CPU, outside of graphs: a sample of the rows tells which scores are worth a sort.

`streamed_top_k` finds the k best groups of rows in each block. With few picks that is hardly more than the product;
with 512 it is three times as much again.

Letters: B anchors, M memory rows, W rows of a block.
"""

import concurrent.futures
import functools
import itertools
import os

import numpy as np
import tensorflow as tf

from xbm_keras.stages.cosine_scores import Keys, cosine_scores, map_blocks
from xbm_keras.stages.hard_top_k.streamed import LOWEST, Search

MIN_K = 64  # with 32 picks to compare all scores takes as long as to find the best groups
SHARE, MOST_SAMPLED = 8, 4096  # an eighth of the rows are a sample, and so many at most
GROUPS = 8  # of a sample, to each rank that is looked for
FEW = 0.2  # of a sample, at most, above the bound: of 1,000 scores, to sort more takes as long as to sort all
PART = 2048  # rows that are compared at a time, with as many copies of the bounds: NumPy is slow on short rows
MOST = 4  # times as many candidates as were to be expected: many scores are equal, or some anchor is unlike the others


def is_quicker(k: int, num_rows: int) -> bool:
    """Whether `sampled_top_k` of so many rows pays."""
    size = sample_of(num_rows).size
    is_large = k >= MIN_K and rank_in_sample(k, size / max(num_rows, 1)) <= FEW * size
    return is_large and not tf.config.list_logical_devices("GPU")


def rank_in_sample(k: int, share: float) -> int:
    """Where, in a sample of this share of scores, one stands that is below the k best: all but surely."""
    expected = k * share
    return int(expected + 4 * np.sqrt(expected) + 4)


def sampled_top_k(keys: Keys, codes: tf.Tensor, search: Search) -> tuple[tf.Tensor, tf.Tensor] | None:
    """What `streamed_top_k` finds for a search of the highest scores; None where no sample tells."""
    num_rows, num_anchors = len(codes), len(keys.anchors)
    if keys.take is None or num_anchors == 0:
        return None
    sample = sample_of(num_rows)
    rank = rank_in_sample(search.k, len(sample) / num_rows)
    scores = cosine_scores(keys.take(sample), keys.anchors)
    bounds = bounds_of(scores + tf.gather(search.penalties, tf.gather(codes, sample)), rank)
    tiled = np.tile(bounds, (PART, 1))
    codes, may_be = codes.numpy(), search.penalties.numpy() == 0
    others = np.flatnonzero(codes != (-1 if search.common_code is None else search.common_code.numpy()))
    most = MOST * rank / len(sample) * num_rows
    num_found: list[int] = []

    def candidates(scores, first):
        """Of those that are high enough the anchors and the ranks."""
        is_high = scores >= tiled[: len(scores)]
        some = others[slice(*np.searchsorted(others, (first, first + len(scores))))]
        is_high[some - first] &= may_be[codes[some]]
        cells = np.flatnonzero(is_high)
        rows = cells // num_anchors
        anchors = (cells - rows * num_anchors).astype(np.min_scalar_type(num_anchors))  # 16 bits, which sort quickly
        return anchors, ranks(scores.ravel()[cells], rows + first)

    def candidates_of_block(scores: np.ndarray, start: int, num_known: int) -> list[tuple[np.ndarray, np.ndarray]]:
        if sum(num_found) > most * num_anchors:
            return []
        places = range(num_known, len(scores), PART)
        found = [candidates(scores[i : i + PART], start + i) for i in places]
        num_found.extend(len(anchors) for anchors, _ in found)
        return found

    def best_of(which: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Of these anchors, which follow each other; None where the sample did not tell."""
        mine = np.flatnonzero((anchors >= which[0]) & (anchors <= which[-1]))
        lists = anchors[mine]
        counts = np.bincount(lists, minlength=which[-1] + 1)[which]
        if (counts > most).any() or ((counts < search.k) & (bounds[which] > LOWEST)).any():
            return None
        return first_of_lists(ranked[mine[np.argsort(lists, kind="stable")]], counts, search.k)

    found = itertools.chain(*map_blocks(keys, num_rows, candidates_of_block))
    anchors, ranked = map(np.concatenate, zip(*found, strict=True))
    with concurrent.futures.ThreadPoolExecutor(num_threads := os.cpu_count() or 1) as pool:
        best = list(pool.map(best_of, np.array_split(np.arange(num_anchors), min(num_threads, num_anchors))))
    if any(each is None for each in best):
        return None
    values, rows = map(np.concatenate, zip(*best, strict=True))
    return tf.constant(values), tf.constant(rows)


def bounds_of(scores: tf.Tensor, rank: int) -> np.ndarray:
    """Of the scores [S, B] of a sample the one at the rank for each anchor, or one a little below it, [B].

    It is the one at the rank among the best of groups, so many that two of the first ranks seldom are in one.
    """
    size = max(1, len(scores) // (GROUPS * rank))
    groups = tf.reshape(scores[: len(scores) // size * size], [-1, size, scores.shape[1]])
    return tf.math.top_k(tf.transpose(tf.reduce_max(groups, axis=1)), rank).values[:, -1].numpy()


def ranks(values: np.ndarray, numbers: np.ndarray | int) -> np.ndarray:
    """An int64 for each value, float32 and not NaN, and number: less for a higher value, and of equal ones for a lower
    number, 0 to 2^32 - 1. To sort these is several times as quick as a stable sort of the values."""
    # From 0, either zero leaves the same one.
    return (_in_order((np.float32(0) - values).view(np.int32)).astype(np.int64) << 32) | numbers


def first_of_lists(ranked: np.ndarray, counts: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each list, best first.

    Args:
        ranked: [n], of `ranks`, list after list.
        counts: [B], how many each list has. One of fewer than k is filled up by -inf and 0.

    Returns:
        Values [B, k] float32 and numbers [B, k] int64.
    """
    lists = np.full((len(counts), max(k, counts.max(initial=0))), ranks(np.full(1, LOWEST, np.float32), 0))
    lists[np.arange(lists.shape[1]) < counts[:, None]] = ranked
    lists.sort(axis=1)
    best = lists[:, :k]
    return np.float32(0) - _in_order((best >> 32).astype(np.int32)).view(np.float32), best & 0xFFFFFFFF


def _in_order(bits):
    """From the bits of float32 numbers, as int32, to whole numbers that are ordered as they are, and back."""
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


@functools.lru_cache(64)
def sample_of(num_rows: int) -> np.ndarray:
    """Rows drawn at random, since those of one class may lie side by side, or each so many places apart."""
    size = min(num_rows // SHARE, MOST_SAMPLED)
    return np.sort(np.random.default_rng(0).permutation(num_rows)[:size])
