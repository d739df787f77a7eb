"""Metrics of rankings by graded relevance, one value per query, from the ranks of the relevant documents alone.

Letters: Q queries, P relevant documents of a query at most. `ranks` [Q, P] are whole numbers, 1 for the first document
of a ranking; 0 fills up where a query has fewer than P relevant documents, or where one was not found. `grades` [Q, P]
are above 0 for relevant documents; 0 fills up. A query without a relevant document has no value: it is to be left out.
"""

import numpy as np


def ndcg_at_k(ranks: np.ndarray, grades: np.ndarray, k: int = 10) -> np.ndarray:
    """Normalised discounted cumulative gain of the first k, in 0..1, float64 [Q].

    `sum of gain / log2(rank + 1)`, divided by the same of the best ranking there is. The gain is the grade itself, as
    in trec_eval and BEIR.

    Raises:
        ValueError: for a query without a relevant document, for k below 1, or shapes that do not fit.

    Example:
        >>> ndcg_at_k(np.array([[2, 1]]), np.array([[1.0, 3.0]])).round(4)  # the better one comes first
        array([1.])

    Reference:
        Järvelin and Kekäläinen, "Cumulated Gain-based Evaluation of IR Techniques", TOIS 20(4), 2002.
    """
    ranks, grades = _checked(ranks, grades, k)
    is_found = (ranks > 0) & (ranks <= k)
    gain = np.where(is_found, grades / np.log2(np.maximum(ranks, 1) + 1), 0.0).sum(axis=1)
    best = -np.sort(-grades, axis=1)[:, :k]
    return gain / (best / np.log2(np.arange(best.shape[1]) + 2)).sum(axis=1)


def mrr_at_k(ranks: np.ndarray, grades: np.ndarray, k: int = 10) -> np.ndarray:
    """Reciprocal rank of the first relevant document, 0 where none is among the first k, float64 [Q]."""
    ranks, grades = _checked(ranks, grades, k)
    first = _found(ranks, grades).min(axis=1)
    return np.where(first <= k, 1.0 / first, 0.0)


def found_at_k(ranks: np.ndarray, grades: np.ndarray, k: int) -> np.ndarray:
    """Share of a query's relevant documents that are among the first k, float64 [Q]: Recall@k of information retrieval.

    `metrics.recall_at_k`, that of metric learning, asks for any of them.
    """
    ranks, grades = _checked(ranks, grades, k)
    return (_found(ranks, grades) <= k).sum(axis=1) / (grades > 0).sum(axis=1)


def hit_rate_at_k(ranks: np.ndarray, grades: np.ndarray, k: int) -> np.ndarray:
    """Whether any relevant document is among the first k, 0 or 1, float64 [Q]."""
    ranks, grades = _checked(ranks, grades, k)
    return (_found(ranks, grades) <= k).any(axis=1).astype(np.float64)


def average_precision(ranks: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Mean, over a query's relevant documents, of the precision at each one's rank; one not found counts 0, [Q].

    Its mean over queries is MAP. Grades do not matter, but that they are above 0.
    """
    ranks, grades = _checked(ranks, grades, 1)
    in_order = np.sort(_found(ranks, grades), axis=1)
    precision = np.arange(1, in_order.shape[1] + 1) / in_order
    return precision.sum(axis=1) / (grades > 0).sum(axis=1)


def _found(ranks, grades):
    """Ranks [Q, P] float64; infinite where there is none."""
    return np.where((ranks > 0) & (grades > 0), ranks, np.inf)


def _checked(ranks, grades, k):
    ranks, grades = np.asarray(ranks), np.asarray(grades, np.float64)
    if ranks.ndim != 2 or ranks.shape != grades.shape or k < 1:
        raise ValueError(
            f"Received ranks {ranks.shape}, grades {grades.shape} and k={k}; expected both [Q, P], and k of 1 or more."
        )
    is_without = ~(grades > 0).any(axis=1)
    if is_without.any():
        raise ValueError(
            f"Received {is_without.sum()} queries without a relevant document, such as number {is_without.argmax()}; "
            "expected one for each query. Leave such queries out, and count them."
        )
    return ranks, grades
