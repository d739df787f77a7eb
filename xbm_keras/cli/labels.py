"""`xbm-keras index label`: labels that the nearest items of an index suggest."""

import argparse
import logging
import pathlib

import numpy as np
import pandas as pd

from xbm_keras.atomic_files import write_whole
from xbm_keras.cli import queries
from xbm_keras.data.labels import counted
from xbm_keras.evaluation.neighbor_labels import NeighborLabels
from xbm_keras.evaluation.thresholds import read_thresholds
from xbm_keras.index.exported_model import exported_by
from xbm_keras.index.opened_index import OpenedIndex

log = logging.getLogger("xbm_keras")


def label(options: argparse.Namespace) -> None:
    """Write the suggestions, and say what they are worth on the items that have labels."""
    opened = OpenedIndex.newest(pathlib.Path(options.index))
    gallery = opened.gallery
    labelled = gallery.labels != ""
    ids, vectors = _asked(options, opened, ~labelled)
    known, names = gallery.vectors[labelled], gallery.ids[labelled]
    thresholds, model = opened.thresholds, options.model and exported_by(options.model)
    if thresholds is None and model and opened.is_measured_by(model):
        thresholds = read_thresholds(model)
    min_similarity = None if thresholds is None else thresholds.threshold_for(options.precision)
    if thresholds is not None and min_similarity is None:
        log.warning("%s", thresholds.told(options.precision))
        min_similarity = np.inf
    suggest = NeighborLabels(known, gallery.labels[labelled], options.precision, min_similarity)
    checked, found = suggest.check(), suggest(vectors)
    table = {
        "id": ids, "suggestion": found.label, "confidence": found.confidence.round(4), "nearest": names[found.nearest],
        "similarity": found.similarity.round(6),
    }  # fmt: skip
    write_whole(options.output, pd.DataFrame(table).to_csv(index=False))
    log.info(
        "Of %s with a label, each left out in turn, %.1f %% would get the right one; at --precision=%g %.1f %% get "
        "one, and %.1f %% of these are right.",
        counted(checked.num_items, "item"),
        100 * checked.accuracy,
        options.precision,
        100 * checked.coverage,
        100 * checked.precision,
    )
    log.info("%s: %d of %s get a label", options.output, (found.label != "").sum(), counted(len(ids), "item"))


def _asked(options: argparse.Namespace, opened: OpenedIndex, is_unlabelled: np.ndarray) -> tuple[list, np.ndarray]:
    """Names and vectors of what is asked for."""
    if not queries.are_given(options):
        if not is_unlabelled.any():
            raise ValueError(
                f"Received --index {options.index}, all of whose {len(is_unlabelled):,} items have labels; expected "
                "some without, or what else to label. Give pictures or --features, and --model."
            )
        return opened.gallery.ids[is_unlabelled].tolist(), opened.gallery.vectors[is_unlabelled]
    asked = queries.read_queries(options, opened)
    has_one = np.array([error is None for error in asked.errors])
    for name, error in zip(asked.names, asked.errors, strict=True):
        if error is not None:
            log.warning("Left out %s: %s.", name, error)
    return np.array(asked.names)[has_one].tolist(), opened.form.cut(asked.vectors[has_one])
