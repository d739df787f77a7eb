"""How well an embedding keeps what the frozen features say: metrics that need no labels, and the callback.

Letters: N items, E embedding width, D feature width.
"""

from collections.abc import Sequence

import keras
import numpy as np
import numpy.typing as npt
import scipy.stats

from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.evaluation.exact_search import (
    CHUNK,
    MEMORY_MB,
    block_width,
    search_blocks,
    to_blocks,
    without_own,
)
from xbm_keras.evaluation.metrics import neighbor_overlap
from xbm_keras.evaluation.retrieval import embed
from xbm_keras.geometry import unit_rows
from xbm_keras.progress import track

MAX_QUERIES = 10_000
NUM_PAIRS = 50_000


class FrozenNeighbors:
    """The neighbours and similarities of items in the space of the frozen features, to hold embeddings against.

    Args:
        features: [N, D], N at least 3.
        ks: of the overlap; cut to the N - 1 other items.
        max_queries: items whose neighbours are compared, drawn evenly where there are more; sought among all N.
        num_pairs: random pairs of different items whose similarities are compared.
        seed: of queries and pairs.

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
        seed: int = 0,
    ):
        features = np.asarray(features)
        num_items = len(features)
        if num_items < 3:
            raise ValueError(f"Received {num_items} items; expected at least 3, or there are no neighbours to compare.")
        self.num_items = num_items
        self.ks = tuple(ks)
        rng = np.random.default_rng(seed)
        self.queries = np.sort(rng.permutation(num_items)[:max_queries])
        first = rng.integers(num_items, size=num_pairs)
        second = (first + rng.integers(1, num_items, size=num_pairs)) % num_items
        self.pairs = first, second
        self.nearest = self._nearest(features)
        self.similarities = self._similarities(features)

    def score(self, vectors: np.ndarray) -> dict[str, float]:
        """Metrics of vectors [N, E] of the same items.

        Returns:
            `neighbor_overlap_at_<k>`: the mean share of the k nearest items by frozen features that are among the k
            nearest by the vectors, and `similarity_rank_correlation`: Spearman's, over random pairs of items.

        Raises:
            ValueError: for another number of items.
        """
        if len(vectors) != self.num_items:
            raise ValueError(f"Received {len(vectors)} vectors; expected {self.num_items}, one for each item.")
        found = self._nearest(vectors)
        metrics = {f"neighbor_overlap_at_{k}": neighbor_overlap(found, self.nearest, k).mean() for k in self.ks}
        correlation = scipy.stats.spearmanr(self._similarities(vectors), self.similarities).statistic
        return {name: float(value) for name, value in metrics.items()} | {
            "similarity_rank_correlation": float(correlation)
        }

    def mean_score(self, vectors: np.ndarray, widths: Sequence[int]) -> dict[str, float]:
        """The mean of the metrics over the beginnings of these widths of vectors [N, E]."""
        scores = [self.score(vectors[:, :width]) for width in widths]
        return {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}

    def _nearest(self, vectors: np.ndarray) -> np.ndarray:
        """Positions [Q, max k] of the nearest other items of the queries."""
        k = min(max(self.ks), len(vectors) - 1)
        blocks = to_blocks(vectors, width=block_width(MEMORY_MB))
        found = np.empty((len(self.queries), k), np.int64)
        for start in track(range(0, len(self.queries), CHUNK), "neighbours", len(self.queries)):
            chosen = self.queries[start : start + CHUNK]
            found[start : start + CHUNK] = without_own(
                search_blocks(vectors[chosen], blocks, len(vectors), k + 1), chosen
            )
        return found

    def _similarities(self, vectors: np.ndarray) -> np.ndarray:
        rows = unit_rows(vectors)
        return np.concatenate(
            [
                np.einsum("pe,pe->p", rows[self.pairs[0][part]], rows[self.pairs[1][part]])
                for part in np.array_split(np.arange(len(self.pairs[0])), 16)
            ]
        )


class NeighborEvaluation(keras.callbacks.Callback):
    """Writes `val_neighbor_overlap_at_10` and so on into the logs of `XBMModel.fit` after each epoch.

    They are means over the nested widths of the head. The scores of the head that training starts from are in
    `baseline`.

    Args:
        features: [N, D] features of the held-out items.
        prefix: of the names in the logs.

    Raises:
        ValueError: for fewer than 3 items.
    """

    def __init__(self, features: FeatureRows, prefix: str = "val_"):
        super().__init__()
        self.features = features
        self.frozen = FrozenNeighbors(features[:], ks=(10, 100))
        self.prefix = prefix
        self.baseline: dict[str, float] = {}

    def on_train_begin(self, logs=None):
        """Score the head as it is."""
        self.baseline = self._scores()

    def on_epoch_end(self, epoch, logs=None):
        """Score the epoch's head, in place in `logs`."""
        if logs is not None:
            logs.update(self._scores())

    def _scores(self) -> dict[str, float]:
        scores = self.frozen.mean_score(embed(self.model.head, self.features), self.model.head.widths)
        return {self.prefix + name: value for name, value in scores.items()}
