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
    if not -1 <= min_score <= 1:
        raise ValueError(f"Received min_score={min_score!r}; expected a cosine similarity, in -1..1.")
    labels = np.asarray(labels)
    found, scores = nearest(np.asarray(features), k=NEIGHBOURS)
    own = np.arange(len(labels))[:, None]
    is_pair = (scores >= min_score) & (labels[found] != labels[own])
    first, second = np.minimum(found, own)[is_pair], np.maximum(found, own)[is_pair]
    pairs, place = np.unique(np.stack([first, second], axis=1), axis=0, return_index=True)
    score = scores[is_pair][place]
    order = np.argsort(-score, kind="stable")
    return NearDuplicates(pairs[order, 0], pairs[order, 1], score[order])
