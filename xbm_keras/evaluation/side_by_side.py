"""Frozen features, closed form and trained head side by side, each nested width by itself."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from xbm_keras.data.dataset import Dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.evaluation.neighbors import FrozenNeighbors
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.evaluation.retrieval import embed, score_queries
from xbm_keras.evaluation.wording import AVERAGED
from xbm_keras.stages.head.fc_layer import Head

log = logging.getLogger("xbm_keras")
Scores = dict[str, dict[str, dict[str, Any]]]
"""`{protocol: {embedding: {metric: value}}}`; an interval is a list of its two ends."""


def compare(
    dataset: Dataset,
    heads: dict[str, Head | None],
    positions: np.ndarray,
    with_neighbors: bool = False,
    codes: Sequence[str] = (),
    averaged: np.ndarray | None = None,
) -> Scores:
    """Metrics of the items at these positions under each head.

    The protocols are `leave_one_out` and, for the test items of data that has them, `query_gallery`, each where a query
    with a label has an item of its class to find; and `neighbors`, where neither is there or it was asked for. A
    beginning of 64 dimensions of an embedding that is nested is called `<name>@64`, the int8 code of it
    `<name>_int8@64`. Beside the MAP@R stands its `map_at_r_interval`, of 95 % by bootstrap over the classes; of
    "trained" also how much it is above the frozen features and above the closed form, `map_at_r_above_frozen` and so
    on, with intervals of the differences, query by query. Of `neighbors` it is how much more "trained" keeps than the
    closed form, the mean over their widths: `neighbor_overlap_at_10_above_closed_form`, by bootstrap over the items.

    Args:
        dataset: the items.
        heads: what embeds them, by name; None for the frozen features themselves.
        positions: [n].
        with_neighbors: also hold the embeddings against the frozen features, by `FrozenNeighbors`.
        codes: in which the gallery is scored as well under "trained", see `xbm_keras.evaluation.quantization`.
        averaged: [n, E] embeddings of the head "trained", each averaged over views of its item. They are scored as
            queries and gallery, "trained_averaged", and as queries alone, "trained_averaged_queries"; with what each is
            above "trained", where items have labels.
    """
    rows = UnitRows(dataset.features, positions)
    protocols = _protocols(dataset, positions)
    frozen = FrozenNeighbors(rows) if with_neighbors or not protocols else None
    scores: Scores = {}
    full: dict[str, dict[str, np.ndarray]] = {}
    kept: dict[str, list[np.ndarray]] = {}
    for name, head in heads.items():
        vectors = np.asarray(rows) if head is None else embed(head, rows)
        for width in [vectors.shape[1]] if head is None else head.widths:
            at = "" if width == vectors.shape[1] else f"@{width}"
            v = vectors[:, :width]
            versions = {name + at: (v, v)}
            if name == "trained":
                versions |= {f"{name}_{code}{at}": (v, CODES[code].rounded(v)) for code in codes}
            if name == "trained" and averaged is not None:
                both, queries = (f"{each}{at}" for each in AVERAGED)
                versions |= {both: (a := averaged[:, :width], a), queries: (a, v)}
            for full_name, (asked, stored) in versions.items():
                for protocol, (metrics, found) in _score(asked, stored, dataset.labels[positions], protocols).items():
                    scores.setdefault(protocol, {})[full_name] = metrics
                    if full_name in (*heads, *AVERAGED):
                        full.setdefault(protocol, {})[full_name] = found
                if frozen is not None and head is not None and asked is v:
                    scores.setdefault("neighbors", {})[full_name], each = frozen.score_each(v, stored)
                    if stored is v:
                        kept.setdefault(name, []).append(each[10])
    for protocol, of_heads in full.items():
        for name in [name for name in of_heads if name != "trained" and "trained" in of_heads]:
            one, other = (name, "trained") if name in AVERAGED else ("trained", name)
            values, classes = of_heads[one][0] - of_heads[other][0], of_heads[other][1]
            scores[protocol][one] |= _above("map_at_r", other, values, classes)
    if "trained" in kept and "closed_form" in kept:
        more = np.mean(kept["trained"], axis=0) - np.mean(kept["closed_form"], axis=0)
        scores["neighbors"]["trained"] |= _above("neighbor_overlap_at_10", "closed_form", more)
    return scores


def _above(metric: str, other: str, values: np.ndarray, units: np.ndarray | None = None) -> dict[str, Any]:
    """The mean of differences from another embedding, query by query, and its interval."""
    name, interval = f"{metric}_above_{other}", bootstrap_interval(values, units)
    return {name: float(values.mean()), f"{name}_interval": list(interval)}


Roles = tuple[np.ndarray, np.ndarray | None]
"""Which items are queries, and which the gallery, both [n] bool; None where each queries all other queries."""


def _protocols(dataset: Dataset, positions: np.ndarray) -> dict[str, Roles]:
    """Those in which a query has something to find; the others are told."""
    if not dataset.has_labels:
        return {}
    labels, splits = dataset.labels[positions], dataset.splits
    protocols: dict[str, Roles] = {}
    has_label = labels >= 0
    if np.bincount(labels[has_label]).max(initial=0) > 1:
        protocols["leave_one_out"] = has_label, None
    else:
        log.warning("No two of %d items share a class, so that retrieval by class is not scored.", len(labels))
    if positions is splits.test and splits.is_query is not None and splits.is_gallery is not None:
        q, g = splits.is_query & has_label, splits.is_gallery & has_label
        if np.isin(labels[q], labels[g]).any():
            protocols["query_gallery"] = q, g
        else:
            log.warning("No query has an item of its class in the gallery, so that query/gallery is not scored.")
    return protocols


def _score(
    vectors: np.ndarray, stored: np.ndarray, labels: np.ndarray, protocols: dict[str, Roles]
) -> dict[str, tuple[dict, np.ndarray]]:
    """Of queries [n, E] among the same items as stored [n, E], with labels [n], by protocol.

    Metrics, and MAP@R and class of each query, [2, queries].
    """
    results = {}
    for name, (q, g) in protocols.items():
        gallery: dict = {"stored": stored[q]} if g is None else {"gallery": stored[g], "gallery_labels": labels[g]}
        order, found = score_queries(vectors[q], labels[q], **gallery)
        classes = labels[q][order]
        metrics: dict = {metric: float(values.mean()) for metric, values in found.items()}
        metrics["map_at_r_interval"] = list(bootstrap_interval(found["map_at_r"], classes))
        results[name] = metrics, np.stack([found["map_at_r"], classes])
    return results
