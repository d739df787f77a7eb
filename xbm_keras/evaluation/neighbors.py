"""How well an embedding keeps what the frozen features say: metrics that need no labels, and the callback.

Letters: N items, E embedding width, D feature width.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.stats

from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.evaluation.exact_search import find_nearest, pair_similarities
from xbm_keras.evaluation.metrics import neighbor_overlap
from xbm_keras.evaluation.retrieval import HeadEvaluation, embed

MAX_QUERIES = 10_000
NUM_PAIRS = 50_000


class FrozenNeighbors:
    """The neighbours and similarities of items in the space of the frozen features, to hold embeddings against.

    Args:
        features: [N, D], N at least 3.
        ks: of the overlap; cut to the N - 1 other items.
        max_queries: items whose neighbours are compared, drawn evenly where there are more; sought among all N.
        num_pairs: random pairs of different items whose similarities are compared.

    Raises:
        ValueError: for fewer than 3 items.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(500, 64))
        >>> FrozenNeighbors(x).score(x[:, :32])  # the first half of the components
        {'neighbor_overlap_at_1': 0.248, 'neighbor_overlap_at_10': 0.3196, 'similarity_rank_correlation': 0.69...}
    """

    def __init__(
        self,
        features: npt.ArrayLike,
        ks: Sequence[int] = (1, 10),
        max_queries: int = MAX_QUERIES,
        num_pairs: int = NUM_PAIRS,
    ):
        features = np.asarray(features)
        num_items = len(features)
        if num_items < 3:
            raise ValueError(f"Received {num_items} items; expected at least 3, or there are no neighbours to compare.")
        self.num_items = num_items
        self.ks = tuple(ks)
        rng = np.random.default_rng(0)
        self.queries = np.sort(rng.permutation(num_items)[:max_queries])
        first = rng.integers(num_items, size=num_pairs)
        second = (first + rng.integers(1, num_items, size=num_pairs)) % num_items
        self.pairs = first, second
        self.nearest = find_nearest(features[self.queries], features, max(self.ks), self.queries)
        self.similarities = pair_similarities(features, *self.pairs)

    def score(self, vectors: np.ndarray, stored: np.ndarray | None = None) -> dict[str, float]:
        """Metrics of vectors [N, E] of the same items, which query them as stored [N, E], by default as they are.

        Returns:
            `neighbor_overlap_at_<k>`: the mean share of the k nearest items by frozen features that are among the k
            nearest by the vectors, and `similarity_rank_correlation`: Spearman's, over random pairs of items.

        Raises:
            ValueError: for another number of items.
        """
        return self.score_each(vectors, stored)[0]

    def score_each(
        self, vectors: np.ndarray, stored: np.ndarray | None = None
    ) -> tuple[dict[str, float], dict[int, np.ndarray]]:
        """As `score`; and by k the overlap of each of the `queries`, [n]."""
        if len(vectors) != self.num_items:
            raise ValueError(f"Received {len(vectors)} vectors; expected {self.num_items}, one for each item.")
        stored = vectors if stored is None else stored
        found = find_nearest(vectors[self.queries], stored, max(self.ks), self.queries)
        kept = {k: neighbor_overlap(found, self.nearest, k) for k in self.ks}
        metrics = {f"neighbor_overlap_at_{k}": values.mean() for k, values in kept.items()}
        correlation = scipy.stats.spearmanr(
            pair_similarities(vectors, *self.pairs, stored), self.similarities
        ).statistic
        metrics["similarity_rank_correlation"] = correlation
        return {name: float(value) for name, value in metrics.items()}, kept

    def mean_score(self, vectors: np.ndarray, widths: Sequence[int]) -> dict[str, float]:
        """The mean of the metrics over the beginnings of these widths of vectors [N, E]."""
        return self.mean_score_each(vectors, widths)[0]

    def mean_score_each(
        self, vectors: np.ndarray, widths: Sequence[int]
    ) -> tuple[dict[str, float], dict[int, np.ndarray]]:
        """As `mean_score`; and by k the mean overlap of each of the `queries`, [n]."""
        scores, kept = zip(*(self.score_each(vectors[:, :width]) for width in widths), strict=True)
        means = {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}
        return means, {k: np.mean([each[k] for each in kept], axis=0) for k in self.ks}


class NeighborEvaluation(HeadEvaluation):
    """Writes `val_neighbor_overlap_at_10` and so on into the logs of `XBMModel.fit` after each epoch.

    They are means over the nested widths of the head.

    Args:
        features: [N, D] features of the held-out items.

    Raises:
        ValueError: for fewer than 3 items.
    """

    def __init__(self, features: FeatureRows):
        super().__init__("val_")
        self.features = features
        self.frozen = FrozenNeighbors(features[:], ks=(10, 100))

    def scores(self) -> dict[str, float]:
        """How much of the frozen features' neighbours and similarities the head keeps."""
        head = self.model.head
        metrics, kept = self.frozen.mean_score_each(embed(head, self.features), head.widths)
        self.of_queries = kept[10]
        return metrics
