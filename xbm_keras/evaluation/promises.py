"""What a search is to keep, such as "overlap@10 >= 0.95", and whether it surely does.

Letters: N gallery items, Q queries, D feature width, P relevant documents of a query at most.
"""

import abc
import dataclasses
import re

import numpy as np

from xbm_keras.evaluation.exact_search import find_nearest, without_own
from xbm_keras.evaluation.graded_metrics import found_at_k, mrr_at_k, ndcg_at_k
from xbm_keras.evaluation.intervals import lower_bound
from xbm_keras.evaluation.metrics import map_at_r, neighbor_overlap, r_precision, recall_at_k

MAX_QUERIES = 2000
FORM = re.compile(r"\s*(?:(overlap|recall|ndcg|mrr)@(\d+)|(map_at_r|r_precision))\s*(>=|>)\s*([0-9.]+)\s*")
OF_PAIRS = {"ndcg": ndcg_at_k, "mrr": mrr_at_k, "recall": found_at_k}


@dataclasses.dataclass(frozen=True)
class Promise:
    """A metric that is to be at least so high.

    Example:
        >>> [str(each) for each in parse_promises("overlap@10 >= 0.95 and map_at_r > 0.6")]
        ['overlap@10 >= 0.95', 'map_at_r > 0.6']
    """

    metric: str
    """"overlap", "recall", "map_at_r", "r_precision", and of pairs "ndcg" and "mrr"."""
    k: int
    """Hits that count; 0 for the metrics that count as many as a class has."""
    least: float
    is_strict: bool
    """Whether the value itself is not enough."""

    @property
    def name(self) -> str:
        """Such as "overlap@10"."""
        return f"{self.metric}@{self.k}" if self.k else self.metric

    def __str__(self) -> str:
        return f"{self.name} {'>' if self.is_strict else '>='} {self.least:g}"

    def is_kept_by(self, value: float) -> bool:
        """Whether a value is high enough."""
        return value > self.least or (value == self.least and not self.is_strict)


def parse_promises(text: str) -> tuple[Promise, ...]:
    """Promises joined by "and". Raises ValueError for what is none."""
    promises = []
    for part in text.split(" and "):
        found = FORM.fullmatch(part)
        if found is None or not 0 < float(found[5]) <= 1 or found[2] == "0":
            raise ValueError(
                f"Received the target {part.strip()!r}; expected overlap@K, recall@K, map_at_r, r_precision, or of "
                "queries and documents ndcg@K or mrr@K, >= or >, and a number above 0 and up to 1. Write it as "
                '"overlap@10 >= 0.95".'
            )
        promises.append(Promise(found[1] or found[3], int(found[2] or 0), float(found[5]), found[4] == ">"))
    return tuple(promises)


class Trial(abc.ABC):
    """Queries that search a gallery, and what is promised of that. Made as `PromisedItems` or `PromisedPairs`.

    Args:
        promises: what will be measured.
        queries: [Q, D], the frozen features.
        gallery: [N, D].
        own: [Q] positions of queries that stand in the gallery, where they find themselves; None where none does.
        num_relevant: the most answers that a query has, for the metrics that count so many.
    """

    def __init__(
        self,
        promises: tuple[Promise, ...],
        queries: np.ndarray,
        gallery: np.ndarray,
        own: np.ndarray | None = None,
        num_relevant: int = 0,
    ):
        self.promises, self.queries, self.gallery, self.own = promises, queries, gallery, own
        is_among = own is not None
        wanted = max(each.k or num_relevant for each in promises)
        self.num_found = min(wanted, len(gallery) - is_among) + is_among
        """Hits of a query that are measured, with itself where it is there."""
        overlaps = [each.k for each in promises if each.metric == "overlap"]
        self._nearest = find_nearest(queries, gallery, max(overlaps), own) if overlaps else np.zeros((0, 0), np.int64)
        self._units: np.ndarray | None = None

    def values(self, found: np.ndarray) -> list[np.ndarray]:
        """Of hits [Q, num_found], positions in the gallery, best first: a value [Q] for each promise."""
        if self.own is not None:
            found = without_own(found, self.own)
        return [
            neighbor_overlap(found, self._nearest, each.k) if each.metric == "overlap" else self._values_of(each, found)
            for each in self.promises
        ]

    @abc.abstractmethod
    def _values_of(self, promise: Promise, found: np.ndarray) -> np.ndarray:
        """What a promise of answers comes to, [Q], by hits without the query itself."""

    def bounds(self, values: list[np.ndarray]) -> list[float]:
        """For each promise what the mean surely is, with 95 % confidence: over classes, where all queries have one."""
        return [lower_bound(each, self._units) for each in values]


class PromisedItems(Trial):
    """Items, some of which query all others.

    Args:
        features: [N, D], the frozen ones.
        labels: [N] of integers, or None; items of a negative one have none.
        promises: what will be measured.
        num_asking: the first so many items query; by default all do.

    Raises:
        ValueError: for a promise of classes where there are none, one of pairs, or too few items.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray | None,
        promises: tuple[Promise, ...],
        num_asking: int | None = None,
    ):
        _refuse(promises, ("ndcg", "mrr"), "items", "overlap@K, recall@K, map_at_r or r_precision")
        self._labels = np.full(len(features), -1) if labels is None else labels
        of_classes = [str(each) for each in promises if each.metric != "overlap"]
        queries, counts = np.arange(num_asking or len(features)), np.zeros(0, np.int64)
        if labels is not None:
            counts = np.bincount(np.maximum(labels, 0)[labels >= 0], minlength=max(1, int(labels.max()) + 1))
        if of_classes:
            asking = np.full(len(queries), -1) if labels is None else labels[queries]
            queries = queries[asking >= 0]
            queries = queries[counts[asking[asking >= 0]] > 1]
        if len(queries) < 2:
            raise ValueError(
                f"Received the target {' and '.join(map(str, promises))} with {len(features)} items, of which "
                f"{len(queries)} can be asked for it; expected two or more. Ask for overlap@10, which needs no labels."
            )
        own = some_queries(queries)
        self._num_relevant = counts[labels[own]] - 1 if of_classes and labels is not None else np.zeros(1, int)
        super().__init__(promises, features[own], features, own, int(self._num_relevant.max()))
        self._units = None if labels is None or (labels[own] < 0).any() else labels[own]

    def _values_of(self, promise: Promise, found: np.ndarray) -> np.ndarray:
        hits = self._labels[found] == self._labels[self.own][:, None]
        if promise.metric == "recall":
            return recall_at_k(hits, promise.k)
        return {"map_at_r": map_at_r, "r_precision": r_precision}[promise.metric](hits, self._num_relevant)


class PromisedPairs(Trial):
    """Queries that search documents, some of which answer them.

    Args:
        queries: [Q, D], the frozen features.
        documents: [N, D].
        relevant: [Q, P] positions of the documents that answer, and -1.
        grades: [Q, P], above 0 where `relevant` names a document.
        promises: what will be measured.

    Raises:
        ValueError: for a promise of classes, or fewer than two queries.
    """

    def __init__(
        self,
        queries: np.ndarray,
        documents: np.ndarray,
        relevant: np.ndarray,
        grades: np.ndarray,
        promises: tuple[Promise, ...],
    ):
        _refuse(promises, ("map_at_r", "r_precision"), "queries and documents", "ndcg@K, mrr@K, recall@K or overlap@K")
        if len(queries) < 2:
            raise ValueError(
                f"Received the target {' and '.join(map(str, promises))} with {len(queries)} queries; expected two or "
                "more. Give the data more judged queries."
            )
        super().__init__(promises, queries, documents)
        self._relevant, self._grades = relevant, grades

    def _values_of(self, promise: Promise, found: np.ndarray) -> np.ndarray:
        is_at = self._relevant[:, :, None] == found[:, None, :]  # [Q, P, num_found]
        ranks = np.where(is_at.any(axis=2), 1 + is_at.argmax(axis=2), 0)
        return OF_PAIRS[promise.metric](ranks, self._grades, promise.k)


def some_queries(positions: np.ndarray) -> np.ndarray:
    """At most `MAX_QUERIES` of some positions, drawn at random."""
    return np.sort(np.random.default_rng(0).permutation(positions)[:MAX_QUERIES])


def _refuse(promises: tuple[Promise, ...], metrics: tuple[str, ...], what: str, expected: str) -> None:
    """Raises ValueError for a promise of these metrics, which are not those of such data."""
    if wrong := [str(each) for each in promises if each.metric in metrics]:
        raise ValueError(f"Received the target {wrong[0]} for a run on {what}; expected {expected}. Ask for one.")
