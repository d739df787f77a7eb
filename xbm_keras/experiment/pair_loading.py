"""From a config to the features of all queries and documents, and which queries train, choose and test."""

import dataclasses
import logging

import numpy as np

from xbm_keras.config import schema
from xbm_keras.data.errors import DataError
from xbm_keras.data.pair_dataset import PairDataset, only_test_pairs, split_pairs
from xbm_keras.data.pairs import Pairs
from xbm_keras.data.splits import Splits
from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.feature_cache.cache import compute_features
from xbm_keras.stages.backbone.frozen import Backbone

log = logging.getLogger("xbm_keras")
CHECKED_ROWS = 8192  # at a time
VALIDATION_SHARE = 0.15  # of the queries that do not test
ENOUGH_QUERIES, MAX_FOLDS = 400, 4  # to choose by; how many times, where one holds out fewer


def load_pairs(config: schema.Config, backbone: Backbone | None, only_test: bool = False) -> list[PairDataset]:
    """Features of the queries and documents that a config names, and splits: see `folds_of`."""
    return folds_of(config.data.make(), config, backbone, only_test)


def folds_of(
    pairs: Pairs, config: schema.Config, backbone: Backbone | None, only_test: bool = False
) -> list[PairDataset]:
    """Features of queries and documents, and splits; the network sees each text once, ever.

    Args:
        pairs: queries, documents, and which answers which.
        config: of splits, the cache and `training.folds`.
        backbone: the frozen network; None where the data hold vectors.
        only_test: whether all queries are to test.

    Returns:
        The data, each time with other queries held out for validation: `training.folds` times, of which "auto" makes
        four where those of one time are few.

    Raises:
        DataError: for data that cannot be used as they are.
    """
    split = config.data.split

    def split_of(pairs: Pairs, fold: int = 0) -> Splits:
        if only_test:
            return only_test_pairs(pairs)
        return split_pairs(pairs, split.test, VALIDATION_SHARE, split.seed, fold)

    split_of(pairs)  # what is wrong is told before the network runs
    skipped: dict[str, str] = {}
    num_computed, features = 0, []
    for name in ("queries", "documents"):
        side = getattr(pairs, name)
        if backbone is None:
            if side.features is None:
                raise DataError(
                    f"Received {name} without vectors in {config.data.path} and backbone.kind 'none'; expected "
                    "features.npz, or queries.npy and documents.npy. Add them, or give a network of texts: "
                    "backbone.kind=keras_hub."
                )
            features.append(side.features)
            continue
        if side.texts is None:
            raise DataError(
                f"Received {name} without texts in {config.data.path} and a network of texts; expected "
                "corpus.jsonl and queries.jsonl. Add them, or use the vectors: backbone.kind=none."
            )
        source = side.source(getattr(config.data, "query_prefix" if name == "queries" else "document_prefix"))
        cached = compute_features(source, backbone, config.cache.dir, title=name, **config.cache.arguments())
        skipped |= {f"{name} {key}": reason for key, reason in cached.skipped.items()}
        num_computed += cached.num_computed
        everything = [np.arange(len(each.ids)) for each in (pairs.queries, pairs.documents)]
        everything[name == "documents"] = cached.positions
        pairs = pairs.keeping(*everything)
        features.append(cached.rows)
    _check(features)
    first = PairDataset(pairs, features[0], features[1], split_of(pairs), skipped, num_computed)
    folds, number = [first], config.training.folds
    if number == "auto":
        number = 1 if len(first.splits.validation) >= ENOUGH_QUERIES else MAX_FOLDS
    for fold in range(1, number if config.training.refit else 1):
        splits = split_of(pairs, fold=fold)
        if np.array_equal(splits.validation, first.splits.validation):  # a part of the data's own
            break
        folds.append(dataclasses.replace(first, splits=splits))
    return folds


def _check(features: list[FeatureRows]) -> None:
    """Raises DataError for vectors that cannot be compared."""
    widths = [rows.shape[1] for rows in features]
    if widths[0] != widths[1]:
        raise DataError(
            f"Received queries of {widths[0]} dimensions and documents of {widths[1]}; expected one width, of vectors "
            "that are compared by their cosine. Embed both with one network, or with the two of one model."
        )
    for name, rows in zip(("queries", "documents"), features, strict=True):
        for start in range(0, len(rows), CHECKED_ROWS):
            is_bad = ~np.isfinite(np.asarray(rows[start : start + CHECKED_ROWS], np.float32)).all(axis=1)
            if is_bad.any():
                raise DataError(
                    f"Received NaN or infinite numbers in {is_bad.sum()} of the {name}, such as row "
                    f"{start + is_bad.argmax()}; expected finite vectors. Remove or repair these rows."
                )
