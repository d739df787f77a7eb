"""Queries that share a document belong together: a document is then in no two parts of the data.

Letters: Q queries, N documents, J pairs.
"""

import numpy as np
import scipy.sparse

from xbm_keras.data.errors import DataError


def components(query: np.ndarray, document: np.ndarray, num_queries: int, num_documents: int) -> np.ndarray:
    """The connected component of each query in the graph of queries and the documents that answer them.

    Args:
        query: [J] positions of queries, of pairs that are relevant.
        document: [J] positions of the documents that answer them.
        num_queries: Q.
        num_documents: N.

    Returns:
        [Q] int64, numbered from 0 in the order of their first queries. A query that nothing answers is one by itself.

    Example:
        >>> components(np.array([0, 1, 1, 3]), np.array([5, 5, 2, 2]), num_queries=4, num_documents=6).tolist()
        [0, 0, 1, 0]
    """
    size = num_queries + num_documents
    edges = np.ones(len(query), bool), (np.asarray(query), num_queries + np.asarray(document))
    _, labels = scipy.sparse.csgraph.connected_components(scipy.sparse.coo_matrix(edges, (size, size)), directed=False)
    _, first, labels = np.unique(labels[:num_queries], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[labels]


def hold_out(labels: np.ndarray, share: float, seed: int | tuple[int, ...] = 0) -> np.ndarray:
    """Whole components that hold a share of the queries, drawn at random.

    A component that would exceed the share is passed over, so that a giant one stays with the others; where the small
    ones do not reach the share, fewer queries are held out, and where all are too large, it is the smallest.

    Args:
        labels: [n] components of the queries, from `components`.
        share: of the queries, between 0 and 1.
        seed: of the draw.

    Returns:
        [n] bool, true for what is held out: at least one query, and never all.

    Raises:
        DataError: if all queries are in one component. Queries held out of it would be answered by documents that
            train, and a choice by them would favour what is learnt by heart.

    Example:
        >>> hold_out(np.array([0, 0, 0, 0, 0, 0, 1, 2]), share=0.25).astype(int).tolist()
        [0, 0, 0, 0, 0, 0, 1, 1]
    """
    sizes = np.bincount(labels)
    present = np.flatnonzero(sizes)
    if len(present) < 2:
        raise DataError(
            f"Received {len(labels)} queries that are connected by the documents that answer them, so that none can be "
            "held out without its documents; expected at least two groups that share none. Give a validation part of "
            "your own (qrels/validation.tsv), or more queries."
        )
    wanted, count = max(1, round(share * len(labels))), 0
    held: list[int] = []
    for component in np.random.default_rng(seed).permutation(present):
        if count + sizes[component] <= wanted and len(held) < len(present) - 1:
            held.append(component)
            count += sizes[component]
    return np.isin(labels, held or [present[np.argmin(sizes[present])]])
