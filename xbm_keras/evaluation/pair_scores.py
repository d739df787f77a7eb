"""Scores of heads on queries and the documents that answer them: side by side, and after each epoch of `fit`."""

from collections.abc import Sequence

import keras
import numpy as np

from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.evaluation.pairs import evaluate_pairs
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.evaluation.retrieval import embed
from xbm_keras.stages.head.fc_layer import Head

UNSEEN = "pairs_unseen_documents"
PairScores = dict[str, dict[str, dict[str, float | list[float]]]]
"""`{protocol: {embedding: {metric: value}}}`, and beside each metric `<metric>_interval`: [low, high]."""


def compare_pairs(
    queries: FeatureRows,
    documents: FeatureRows,
    relevant: np.ndarray,
    grades: np.ndarray,
    heads: dict[str, Head | None],
    is_unseen: np.ndarray | None = None,
    codes: Sequence[str] = (),
) -> PairScores:
    """Metrics of queries over a whole corpus under each head, each nested width by itself.

    The protocols are `pairs`, of all queries, and `pairs_unseen_documents`, of those whose documents no training query
    had: what is learnt by heart shows in the first alone. The intervals are of 95 %, by bootstrap over the queries; and
    `ndcg_at_10_above_frozen` and its interval are of the differences from the frozen features, query by query.

    Args:
        queries: [q, D].
        documents: [N, D].
        relevant: [q, P] positions of the documents that answer, and -1.
        grades: [q, P].
        heads: what embeds both, by name; None for the frozen features themselves, which come first.
        is_unseen: [q] bool; None for the first protocol alone.
        codes: in which "trained" is scored as well, see `xbm_keras.evaluation.quantization`; of the documents alone.
    """
    masks = {"pairs": np.ones(len(relevant), bool)}
    if is_unseen is not None and is_unseen.any():
        masks[UNSEEN] = is_unseen
    scores: PairScores = {protocol: {} for protocol in masks}
    frozen = None
    for name, head in heads.items():
        pair = [_embedded(head, rows, of_rows) for rows, of_rows in ((queries, False), (documents, True))]
        for width in [pair[0].shape[1]] if head is None else head.widths:
            at = "" if width == pair[0].shape[1] else f"@{width}"
            q, d = (each[:, :width] for each in pair)
            versions = {name + at: d} | {
                f"{name}_{code}{at}": CODES[code].rounded(d) for code in codes if name == "trained"
            }
            for full_name, each in versions.items():
                found = evaluate_pairs(q, each, relevant, grades)
                frozen = found if frozen is None and head is None else frozen
                for protocol, mask in masks.items():
                    scores[protocol][full_name] = _means(found, frozen if head is not None else None, mask)
    return scores


def _embedded(head: Head | None, rows: FeatureRows, of_rows: bool) -> np.ndarray:
    return np.asarray(rows[:]) if head is None else embed(head, rows, of_rows=of_rows)


def _means(found: dict, frozen: dict | None, mask: np.ndarray) -> dict[str, float | list[float]]:
    """Means over the queries of a mask, and intervals."""
    means: dict[str, float | list[float]] = {}
    for metric, values in found.items():
        means[metric] = float(values[mask].mean())
        means[f"{metric}_interval"] = list(bootstrap_interval(values[mask]))
    if frozen is not None:
        above = (found["ndcg_at_10"] - frozen["ndcg_at_10"])[mask]
        means["ndcg_at_10_above_frozen"] = float(above.mean())
        means["ndcg_at_10_above_frozen_interval"] = list(bootstrap_interval(above))
    return means


class PairEvaluation(keras.callbacks.Callback):
    """Writes `val_ndcg_at_10`, `val_mrr_at_10` and so on into the logs of `XBMModel.fit` after each epoch.

    As `RetrievalEvaluation` does for classes: of a head with nested widths they are the means over the widths, and
    `baseline` holds those of the head that training starts from.

    Args:
        queries: [q, D] features of the validation queries.
        documents: [N, D] features of the whole corpus.
        relevant: [q, P] positions of the documents that answer, and -1.
        grades: [q, P]; by default all are 1.
        prefix: of the names in the logs.

    Example:
        >>> evaluation = PairEvaluation(queries, documents, relevant)
        >>> model.fit(x, y, callbacks=[evaluation])
    """

    def __init__(
        self,
        queries: FeatureRows,
        documents: FeatureRows,
        relevant: np.ndarray,
        grades: np.ndarray | None = None,
        prefix: str = "val_",
    ):
        super().__init__()
        self.queries, self.documents = queries, documents
        self.relevant, self.grades = relevant, grades
        self.prefix = prefix
        self.baseline: dict[str, float] = {}
        self.of_queries: np.ndarray | None = None
        """[q], nDCG@10 of each query by the head that was scored last, the mean over its widths."""

    def on_train_begin(self, logs=None):
        """Score the head as it is."""
        self.baseline = self._scores()

    def on_epoch_end(self, epoch, logs=None):
        """Score the epoch's head, in place in `logs`."""
        if logs is not None:
            logs.update(self._scores())

    def _scores(self) -> dict[str, float]:
        head = self.model.head
        queries, documents = embed(head, self.queries), embed(head, self.documents, of_rows=True)
        scores = [evaluate_pairs(queries[:, :w], documents[:, :w], self.relevant, self.grades) for w in head.widths]
        self.of_queries = np.mean([each["ndcg_at_10"] for each in scores], axis=0)
        return {self.prefix + name: float(np.mean([each[name] for each in scores])) for name in scores[0]}
