"""What a search is to keep, such as "overlap@10 >= 0.95", and whether it surely does.

Letters: N items, Q queries, D feature width.
"""

import dataclasses
import re

import numpy as np

from xbm_keras.evaluation.exact_search import find_nearest
from xbm_keras.evaluation.intervals import lower_bound
from xbm_keras.evaluation.metrics import map_at_r, neighbor_overlap, r_precision, recall_at_k

MAX_QUERIES = 2000
FORM = re.compile(r"\s*(?:(overlap|recall)@(\d+)|(map_at_r|r_precision))\s*(>=|>)\s*([0-9.]+)\s*")


@dataclasses.dataclass(frozen=True)
class Promise:
    """A metric that is to be at least so high.

    Example:
        >>> [str(each) for each in parse_promises("overlap@10 >= 0.95 and map_at_r > 0.6")]
        ['overlap@10 >= 0.95', 'map_at_r > 0.6']
    """

    metric: str
    """"overlap", "recall", "map_at_r" or "r_precision"."""
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
            hint = " That of pairs, ndcg@10, is not measured here." if "ndcg" in part else ""
            raise ValueError(
                f"Received the target {part.strip()!r}; expected overlap@K, recall@K, map_at_r or r_precision, >= or "
                f'>, and a number above 0 and up to 1, such as "overlap@10 >= 0.95".{hint}'
            )
        promises.append(Promise(found[1] or found[3], int(found[2] or 0), float(found[5]), found[4] == ">"))
    return tuple(promises)


class PromisedItems:
    """Items, some of which query all others, and what these are to find.

    Args:
        features: [N, D], the frozen ones.
        labels: [N] of integers, or None; items of a negative one have none.
        promises: what will be measured.
        num_asking: the first so many items query; by default all do.
        seed: of the queries that are drawn where there are more than `MAX_QUERIES`.

    Raises:
        ValueError: for a promise of classes where there are none, or too few items.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray | None,
        promises: tuple[Promise, ...],
        num_asking: int | None = None,
        seed: int = 0,
    ):
        self.promises = promises
        self.labels = np.full(len(features), -1) if labels is None else labels
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
        self.queries = np.sort(np.random.default_rng(seed).permutation(queries)[:MAX_QUERIES])
        self.units = None if labels is None or (labels[self.queries] < 0).any() else labels[self.queries]
        self.num_relevant = counts[labels[self.queries]] - 1 if of_classes and labels is not None else np.zeros(1, int)
        most = max(each.k or int(self.num_relevant.max()) for each in promises)
        self.num_found = min(most, len(features) - 1)
        """Hits that a query needs."""
        overlaps = [each.k for each in promises if each.metric == "overlap"]
        self.nearest = np.zeros((0, 0), np.int64)
        if overlaps:
            self.nearest = find_nearest(features[self.queries], features, max(overlaps), self.queries)

    def values(self, found: np.ndarray) -> list[np.ndarray]:
        """Of hits [Q, num_found], positions of items, best first, without the query: a value [Q] for each promise."""
        values = []
        for promise in self.promises:
            if promise.metric == "overlap":
                values.append(neighbor_overlap(found, self.nearest, promise.k))
                continue
            hits = self.labels[found] == self.labels[self.queries][:, None]
            if promise.metric == "recall":
                values.append(recall_at_k(hits, promise.k))
            else:
                values.append(
                    {"map_at_r": map_at_r, "r_precision": r_precision}[promise.metric](hits, self.num_relevant)
                )
        return values

    def bounds(self, values: list[np.ndarray]) -> list[float]:
        """For each promise what the mean surely is, with 95 % confidence: over classes, where all queries have one."""
        return [lower_bound(each, self.units) for each in values]
