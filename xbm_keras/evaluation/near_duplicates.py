"""Items that are nearly the same and bear different labels: label noise, or classes that features cannot tell apart."""

from typing import NamedTuple

import numpy as np

from xbm_keras.evaluation.exact_search import nearest

NEIGHBOURS = 32  # of each item that are looked at


class NearDuplicates(NamedTuple):
    """Pairs of items, the most similar first."""

    first: np.ndarray
    """[n] positions, the lower one of each pair."""
    second: np.ndarray
    """[n] positions."""
    score: np.ndarray
    """[n] float32, cosine similarities."""


def near_duplicates(features: np.ndarray, labels: np.ndarray, min_score: float = 0.98) -> NearDuplicates:
    """Pairs of different labels and a cosine similarity of `min_score` or more.

    Exact but for items with more than 32 neighbours of this similarity, whose farther ones are left out.

    Args:
        features: [N, D], of any length.
        labels: [N].
        min_score: -1..1.

    Raises:
        ValueError: for a score outside -1..1.

    Example:
        >>> pairs = near_duplicates(np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]), np.array([0, 1, 1]))
        >>> pairs.first.tolist(), pairs.second.tolist()
        ([0], [1])
    """
    labels = np.asarray(labels)
    found, scores = nearest(np.asarray(features), k=NEIGHBOURS)
    return pairs_among(found, scores, labels[found] != labels[:, None], min_score)


def pairs_among(found: np.ndarray, scores: np.ndarray, is_meant: np.ndarray, min_score: float) -> NearDuplicates:
    """Each pair once, of the nearest items [N, k] of all items, their similarities, and which of them are meant.

    Raises ValueError for a score outside -1..1.
    """
    if not -1 <= min_score <= 1:
        raise ValueError(f"Received min_score={min_score!r}; expected a cosine similarity, in -1..1.")
    own = np.arange(len(found))[:, None]
    is_pair = (scores >= min_score) & is_meant
    first, second = np.minimum(found, own)[is_pair], np.maximum(found, own)[is_pair]
    pairs, place = np.unique(np.stack([first, second], axis=1), axis=0, return_index=True)
    score = scores[is_pair][place]
    order = np.argsort(-score, kind="stable")
    return NearDuplicates(pairs[order, 0], pairs[order, 1], score[order])
