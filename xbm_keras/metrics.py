"""Retrieval metrics of ranked lists, one value per query.

Definitions of "A Metric Learning Reality Check" (Musgrave et al., arXiv 2003.08505, section 3.2). Letters: Q queries, K
ranks, and R, the number of gallery items that have a query's label.
"""

import numpy as np


def recall_at_k(hits: np.ndarray, k: int) -> np.ndarray:
    """Whether any of the first k items is relevant, float64 [Q].

    Args:
        hits: [Q, K] bool, relevance of each query's items, best first. With K < k all of them count.
        k: 1 or more.
    """
    if k < 1:
        raise ValueError(f"Received k={k}; expected 1 or more.")
    return hits[:, :k].any(axis=1).astype(np.float64)


def r_precision(hits: np.ndarray, num_relevant: np.ndarray) -> np.ndarray:
    """Share of relevant items among the first R, float64 [Q].

    Args:
        hits: [Q, K] bool, with K at least the largest R.
        num_relevant: [Q] int, R of each query, 1 or more.
    """
    return (_within_r(hits, num_relevant)).sum(axis=1) / num_relevant


def map_at_r(hits: np.ndarray, num_relevant: np.ndarray) -> np.ndarray:
    """Mean average precision at R, float64 [Q]: `1 / R * sum over i <= R of (precision at i if item i is relevant)`.

    Args:
        hits: [Q, K] bool, with K at least the largest R.
        num_relevant: [Q] int, R of each query, 1 or more.
    """
    relevant = _within_r(hits, num_relevant)
    ranks = np.arange(1, hits.shape[1] + 1)
    return (relevant * np.cumsum(relevant, axis=1) / ranks).sum(axis=1) / num_relevant


def _within_r(hits: np.ndarray, num_relevant: np.ndarray) -> np.ndarray:
    """Hits among the first R of each query."""
    num_relevant = np.asarray(num_relevant)
    if num_relevant.size and (num_relevant.min() < 1 or num_relevant.max() > hits.shape[1]):
        raise ValueError(
            f"Received num_relevant between {num_relevant.min()} and {num_relevant.max()} with lists of "
            f"{hits.shape[1]}; expected 1 or more, and lists that are as long. Leave out queries without a match."
        )
    return hits & (np.arange(hits.shape[1]) < num_relevant[:, None])
