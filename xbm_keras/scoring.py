"""Frozen features, closed form and trained head side by side, each nested width by itself."""

from collections.abc import Sequence

import numpy as np

from xbm_keras.codes import decoded
from xbm_keras.data.rows import UnitRows
from xbm_keras.evaluation import embed, evaluate_retrieval
from xbm_keras.loading import Dataset
from xbm_keras.neighbor_evaluation import FrozenNeighbors
from xbm_keras.stages.head import Head

Scores = dict[str, dict[str, dict[str, float]]]
"""`{protocol: {embedding: {metric: value}}}`."""


def compare(
    dataset: Dataset,
    heads: dict[str, Head | None],
    positions: np.ndarray,
    with_neighbors: bool = False,
    codes: Sequence[str] = (),
) -> Scores:
    """Metrics of the items at these positions under each head.

    The protocols are `leave_one_out` and, for the test items of data that has them, `query_gallery`, where the data has
    labels; and `neighbors`, where it has none or they were asked for. A beginning of 64 dimensions of an embedding that
    is nested is called `<name>@64`, the int8 code of it `<name>_int8@64`.

    Args:
        dataset: the items.
        heads: what embeds them, by name; None for the frozen features themselves.
        positions: [n].
        with_neighbors: also hold the embeddings against the frozen features, by `FrozenNeighbors`.
        codes: in which "trained" is scored as well, see `xbm_keras.codes`.
    """
    rows = UnitRows(dataset.features, positions)
    frozen = FrozenNeighbors(rows) if with_neighbors or not dataset.has_labels else None
    scores: Scores = {}
    for name, head in heads.items():
        vectors = np.asarray(rows) if head is None else embed(head, rows)
        for width in [vectors.shape[1]] if head is None else head.widths:
            at = "" if width == vectors.shape[1] else f"@{width}"
            v = vectors[:, :width]
            versions = {name + at: v}
            if name == "trained":
                versions |= {f"{name}_{code}{at}": decoded(code, v) for code in codes}
            for full_name, each in versions.items():
                for protocol, metrics in _score(dataset, each, positions).items():
                    scores.setdefault(protocol, {})[full_name] = metrics
                if frozen is not None and head is not None:
                    scores.setdefault("neighbors", {})[full_name] = frozen.score(each)
    return scores


def _score(dataset: Dataset, vectors: np.ndarray, positions: np.ndarray) -> dict[str, dict[str, float]]:
    """Retrieval metrics `{protocol: {metric: value}}` of vectors [n, E], by labels."""
    if not dataset.has_labels:
        return {}
    labels, splits = dataset.labels[positions], dataset.splits
    results = {"leave_one_out": evaluate_retrieval(vectors, labels)}
    if positions is splits.test and splits.is_query is not None:
        q, g = splits.is_query, splits.is_gallery
        results["query_gallery"] = evaluate_retrieval(vectors[q], labels[q], vectors[g], labels[g])
    return results
