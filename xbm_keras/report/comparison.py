"""What a report shows of an embedding: its rankings, its similarities, its classes, its map.

Letters: N items, Q queries, K ranks, E width of any embedding, the frozen features included.
"""

import dataclasses

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from xbm_keras.evaluation.exact_search import (
    CHUNK,
    MEMORY_MB,
    block_width,
    search_blocks,
    to_blocks,
    without_own,
)
from xbm_keras.evaluation.metrics import map_at_r
from xbm_keras.geometry import unit_rows
from xbm_keras.progress import track

MAX_QUERIES = 2_000
MAX_PAIRS = 20_000
MAX_MAP_ITEMS = 1_000


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Who queries whom."""

    queries: np.ndarray
    """[Q] positions of items that have a match in the gallery."""
    gallery: np.ndarray | None
    """[G] positions; None where each item queries all others."""
    num_relevant: np.ndarray
    """[Q], R of each query."""
    num_all: int
    """Queries there are; more than Q where they were sampled."""


@dataclasses.dataclass(frozen=True)
class Rankings:
    """What the queries of a protocol find in one embedding."""

    nearest: np.ndarray
    """[Q, K] positions of items, best first."""
    hits: np.ndarray
    """[Q, K] bool: of the query's class."""
    map_at_r: np.ndarray
    """[Q]."""


def make_protocol(
    labels: np.ndarray, is_query: np.ndarray | None = None, is_gallery: np.ndarray | None = None, seed: int = 0
) -> Protocol:
    """The queries of a report: at most `MAX_QUERIES`, drawn evenly from those with a match.

    Args:
        labels: [N] integers from 0.
        is_query: [N] bool; None is leave-one-out.
        is_gallery: [N] bool.
        seed: of the draw.
    """
    everyone = np.arange(len(labels))
    queries = everyone if is_query is None else everyone[is_query]
    gallery = None if is_gallery is None else everyone[is_gallery]
    sizes = np.bincount(labels if gallery is None else labels[gallery], minlength=labels.max() + 1)
    relevant = sizes[labels[queries]] - (gallery is None)
    queries, relevant = queries[relevant > 0], relevant[relevant > 0]
    num_all = len(queries)
    if num_all > MAX_QUERIES:
        drawn = np.sort(np.random.default_rng(seed).choice(num_all, MAX_QUERIES, replace=False))
        queries, relevant = queries[drawn], relevant[drawn]
    return Protocol(queries, gallery, relevant, num_all)


def rank(vectors: np.ndarray, labels: np.ndarray, protocol: Protocol, shown: int) -> Rankings:
    """Rankings of the queries in an embedding [N, E], the first `shown` kept."""
    is_leave_one_out = protocol.gallery is None
    members = np.arange(len(vectors)) if protocol.gallery is None else protocol.gallery
    blocks = to_blocks(vectors if is_leave_one_out else vectors[members], width=block_width(MEMORY_MB))
    num_others = len(members) - is_leave_one_out
    shown = min(shown, num_others)
    order = np.argsort(protocol.num_relevant, kind="stable")  # long lists together
    nearest = np.empty((len(order), shown), np.int64)
    hits = np.empty((len(order), shown), bool)
    scores = np.empty(len(order))
    for start in track(range(0, len(order), CHUNK), "report: rankings", len(order)):
        rows = order[start : start + CHUNK]
        queries, relevant = protocol.queries[rows], protocol.num_relevant[rows]
        k = min(max(shown, relevant.max()), num_others)
        found = search_blocks(vectors[queries], blocks, len(members), k + is_leave_one_out)
        found = members[without_own(found, queries) if is_leave_one_out else found]
        is_hit = labels[found] == labels[queries][:, None]
        nearest[rows], hits[rows], scores[rows] = found[:, :shown], is_hit[:, :shown], map_at_r(is_hit, relevant)
    return Rankings(nearest, hits, scores)


def gains_and_losses(before: Rankings, after: Rankings, classes: np.ndarray, count: int) -> tuple[list, list]:
    """Rows of the queries that gained most and that lost most, at most one per class.

    Measured by right answers among the items shown, then by MAP@R: what a reader can see comes first.

    Args:
        before: of one embedding.
        after: of the other.
        classes: [Q] of the queries.
        count: of either, at most.
    """
    seen = after.hits.mean(axis=1) - before.hits.mean(axis=1)
    change = after.map_at_r - before.map_at_r
    order = np.lexsort((change, seen))
    return (
        _one_per_class(order[::-1], classes, (seen > 0) | ((seen == 0) & (change > 0)), count),
        _one_per_class(order, classes, (seen < 0) | ((seen == 0) & (change < 0)), count),
    )


def _one_per_class(order: np.ndarray, classes: np.ndarray, is_wanted: np.ndarray, count: int) -> list[int]:
    order = order[is_wanted[order]]
    _, first = np.unique(classes[order], return_index=True)
    return order[np.sort(first)[:count]].tolist()


def draw_pairs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different items of the same class [P, 2] and of different classes [P', 2], at most `MAX_PAIRS` each.

    An item's partner is drawn evenly from its class, so that large classes count by their items, not by their pairs.
    """
    rng = np.random.default_rng(0)
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    partnered = np.flatnonzero(sizes[labels] > 1)
    first = rng.choice(partnered, min(MAX_PAIRS, 4 * len(partnered))) if len(partnered) else partnered
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - starts[labels[order]]
    size = sizes[labels[first]]
    other = (place[first] + rng.integers(1, np.maximum(size, 2))) % size
    same = np.stack([first, order[starts[labels[first]] + other]], axis=1)
    any_two = rng.integers(0, len(labels), (2 * MAX_PAIRS, 2))
    different = any_two[labels[any_two[:, 0]] != labels[any_two[:, 1]]][:MAX_PAIRS]
    return same, different


def order_rate(same: np.ndarray, different: np.ndarray) -> float:
    """How often a pair of one class is more similar than a pair of two: the area under the ROC curve, 0.5 is chance."""
    ordered = np.sort(different)
    below = np.searchsorted(ordered, same, "left") + np.searchsorted(ordered, same, "right")
    return float(below.mean() / (2 * len(ordered)))


def to_plane(vectors: np.ndarray, like: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """The first two principal components [N, 2] of vectors [N, E] of unit length, and their share of the variance.

    Args:
        vectors: scaled to unit length first.
        like: [N, 2], another map of the same items; this one is turned and mirrored to lie as that one does.
    """
    centred = unit_rows(vectors).astype(np.float64)
    centred -= centred.mean(axis=0)
    plane, total = np.zeros((len(vectors), 2)), float((centred**2).sum())
    if min(centred.shape) > 2 and total:
        left, sizes, _ = scipy.sparse.linalg.svds(centred, k=2, v0=np.ones(min(centred.shape)))
        plane = left[:, ::-1] * sizes[::-1]
    elif total:
        plane[:, : centred.shape[1]] = centred[:, :2]  # nothing to project
    if like is not None:
        plane = plane @ scipy.linalg.orthogonal_procrustes(plane, like)[0]
    return plane, float((plane**2).sum() / total) if total else 1.0
