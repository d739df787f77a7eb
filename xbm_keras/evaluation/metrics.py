"""Retrieval metrics of ranked lists, one value per query.

Definitions of "A Metric Learning Reality Check" (Musgrave et al., arXiv 2003.08505, section 3.2). Letters: Q queries, K
ranks, and R, the number of gallery items that have a query's label. No metric here needs more than the first R ranks,
so K may be the whole gallery or less, as long as it reaches the largest R. A query with R = 0 has no R-Precision and no
MAP@R, and its Recall@K says nothing: such queries are to be left out.
"""

import numpy as np


def recall_at_k(hits: np.ndarray, k: int) -> np.ndarray:
    """Whether any of the first k items is relevant, 0 or 1, float64 [Q].

    Args:
        hits: [Q, K] bool, relevance of each query's items, best first.
        k: 1 or more. Where the gallery is smaller, so that K < k, all of it counts.

    Raises:
        ValueError: for hits that are not [Q, K] bool, or k below 1.
    """
    hits = _checked(hits)
    if k < 1:
        raise ValueError(f"Received k={k}; expected 1 or more. Recall@1 asks for the nearest item alone.")
    return np.any(hits[:, :k], axis=1).astype(np.float64)


def r_precision(hits: np.ndarray, num_relevant: np.ndarray) -> np.ndarray:
    """Share of relevant items among the first R, float64 [Q].

    Args:
        hits: [Q, K] bool, relevance of each query's items, best first; K at least the largest R.
        num_relevant: [Q] int, R of each query, 1 or more.

    Raises:
        ValueError: for an R of 0, an R above K, or shapes that do not fit.
    """
    return _within_r(hits, num_relevant).sum(axis=1) / np.asarray(num_relevant)


def map_at_r(hits: np.ndarray, num_relevant: np.ndarray) -> np.ndarray:
    """Mean average precision at R, float64 [Q].

    `1 / R * sum over i = 1..R of (precision at i if item i is relevant, else 0)`. Of lists with the same R-Precision
    the one with its hits in front scores higher; 1 means that the first R are all relevant.

    Args:
        hits: [Q, K] bool, relevance of each query's items, best first; K at least the largest R.
        num_relevant: [Q] int, R of each query, 1 or more.

    Raises:
        ValueError: for an R of 0, an R above K, or shapes that do not fit.

    Example:
        >>> map_at_r(np.array([[True, False, True, True]]), np.array([3]))  # (1/1 + 0 + 2/3) / 3
        array([0.55555556])
    """
    relevant = _within_r(hits, num_relevant)
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)  # [Q, K]
    return np.where(relevant, precision, 0.0).sum(axis=1) / np.asarray(num_relevant)


def neighbor_overlap(found: np.ndarray, expected: np.ndarray, k: int) -> np.ndarray:
    """Share of the first k expected items that are among the first k found, in any order, float64 [Q].

    Args:
        found: [Q, K] positions of items, best first, each at most once in a row.
        expected: [Q, K'] the same by another ranking.
        k: 1 or more; cut to K and K'.

    Raises:
        ValueError: for a k below 1, or rankings of different queries.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    if k < 1 or found.ndim != 2 or expected.ndim != 2 or len(found) != len(expected):
        raise ValueError(
            f"Received k={k} with rankings of shapes {found.shape} and {expected.shape}; expected k of 1 or more, and "
            "[Q, K] for the same queries."
        )
    k = min(k, found.shape[1], expected.shape[1])
    rows = np.arange(len(found))[:, None] * (max(found.max(), expected.max()) + 1)  # no number is in two rows
    return np.isin(expected[:, :k] + rows, found[:, :k] + rows).mean(axis=1)


def _checked(hits: np.ndarray) -> np.ndarray:
    hits = np.asarray(hits)
    if hits.ndim != 2 or hits.dtype != bool:
        raise ValueError(
            f"Received hits of shape {hits.shape} and dtype {hits.dtype}; expected [Q, K] bool. Compare the labels of "
            "the ranked items with those of the queries."
        )
    return hits


def _within_r(hits: np.ndarray, num_relevant: np.ndarray) -> np.ndarray:
    """Hits [Q, K] among the first R of each query."""
    hits, num_relevant = _checked(hits), np.asarray(num_relevant)
    if num_relevant.shape != hits.shape[:1]:
        raise ValueError(
            f"Received num_relevant of shape {num_relevant.shape} with hits of shape {hits.shape}; expected one number "
            f"per query, {hits.shape[:1]}."
        )
    if num_relevant.size and (num_relevant.min() < 1 or num_relevant.max() > hits.shape[1]):
        raise ValueError(
            f"Received num_relevant from {num_relevant.min()} to {num_relevant.max()} with lists of {hits.shape[1]} "
            f"items; expected 1 to {hits.shape[1]}. Leave out queries without a match, and rank at least R items."
        )
    return hits & (np.arange(hits.shape[1]) < num_relevant[:, None])
