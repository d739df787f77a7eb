"""Which parts of a network's features a run takes: all come from one pass, and held-out classes choose among them.

Letter C: held-out classes, fold after fold.
"""

import dataclasses
import logging

import numpy as np

from xbm_keras.config import schema
from xbm_keras.data.arrays import Vectors
from xbm_keras.data.dataset import Dataset, TriedParts
from xbm_keras.data.unit_rows import ChosenColumns
from xbm_keras.experiment.build import key_of_parts, sized
from xbm_keras.experiment.chosen_head import PARAMETERS, ChosenHead
from xbm_keras.experiment.held_out import HeldOutFolds, are_near_best, some_classes
from xbm_keras.feature_cache.cache import keep_columns
from xbm_keras.feature_cache.shards import ShardedRows
from xbm_keras.progress import track
from xbm_keras.stages.backbone.choices import Choice
from xbm_keras.stages.backbone.frozen import Backbone

log = logging.getLogger("xbm_keras")
STARTS = ("pca", "whiten", "lda")  # the quicker ones of those that a head may start from
SHRINKAGES = (0.3, 0.9)
MAX_ITEMS = 16_384  # training items that choose, in whole classes: the time grows with the square of the width


def choose_parts(
    config: schema.Config, dataset: Dataset, backbone: Backbone | None
) -> tuple[schema.Config, Dataset, Backbone | None]:
    """Config, data and network as they are with those parts alone by which held-out classes are told apart best.

    Each choice is scored by a few closed forms, as the head is chosen later: MAP@R of the held-out training classes
    under the best of them. Of the choices that lack at most one standard error, over these classes, of their difference
    from the best, it is the narrowest. Views play no part in it.

    Args:
        config: of the run.
        dataset: its data, with features of all parts.
        backbone: that gives all parts; of another, or without labels, all stays as it is.

    Raises:
        ConfigError: for a head of more dimensions than any choice has.
    """
    choices = () if backbone is None or config.is_without_labels else backbone.choices
    if not choices or not isinstance(dataset.features, ShardedRows) or isinstance(dataset.source, Vectors):
        return config, dataset, backbone
    dim = config.head.embedding_dim
    fitting = [each for each in choices if dim == "auto" or config.head.start == "random" or len(each.columns) >= dim]
    scored = _some_items(dataset)
    tried = track(range(len(fitting)), "choosing parts of the network", len(fitting), "choices")
    found = np.stack([_by_class(config.head, fitting[i], scored) for i in tried], axis=1)  # [C, choices]
    choice = fitting[int(np.argmax(are_near_best(found)))]
    scores = {" + ".join(each.parts): float(score) for each, score in zip(fitting, found.mean(axis=0), strict=True)}
    told = ", ".join(f"{score:.3f} {parts}" for parts, score in scores.items())
    log.info("MAP@R of held-out classes by parts of the network: %s. Taken: %s.", told, " + ".join(choice.parts))
    narrow = choice.make()
    where = config.cache.dir, config.cache.dtype, dataset.source.decoder
    features = keep_columns(dataset.features, choice.columns, narrow, *where)
    if key := key_of_parts(config):
        taken = config.backbone.model_copy(update={key: list(choice.parts)})
        config = config.model_copy(update={"backbone": taken})
    dataset = dataclasses.replace(dataset, features=features, parts=TriedParts(choice.parts, scores))
    return sized(config, len(choice.columns)), dataset, narrow


def _some_items(dataset: Dataset) -> Dataset:
    """The data without views, and of many training items those of some classes alone, of each fold its share."""
    dataset, splits = dataset.keeping_views(False, False), dataset.splits
    num_items = len(splits.train) + len(splits.validation)
    if num_items <= MAX_ITEMS:
        return dataset
    in_folds = np.concatenate([splits.validation, *splits.folds])
    units = (splits.validation, *splits.folds, np.setdiff1d(splits.train, in_folds))
    some = [some_classes(each, dataset.labels, MAX_ITEMS * len(each) // num_items) for each in units if len(each)]
    chosen = np.unique(np.concatenate(some))
    of_all = (splits.train, splits.validation, *splits.folds)
    train, validation, *folds = (each[np.isin(each, chosen)] for each in of_all)
    return dataclasses.replace(
        dataset, splits=dataclasses.replace(splits, train=train, validation=validation, folds=tuple(folds))
    )


def _by_class(head: schema.HeadConfig, choice: Choice, dataset: Dataset) -> np.ndarray:
    """MAP@R of each held-out class [C] under the best of the closed forms of these parts."""
    features = ChosenColumns(dataset.features, choice.columns)
    folds = HeldOutFolds(dataclasses.replace(dataset, features=features))
    forms = _forms(head, len(choice.columns))
    folds.find(forms)
    return folds.by_class(max(forms, key=folds.score))


def _forms(given: schema.HeadConfig, width: int) -> list[ChosenHead]:
    """Those that are tried for features of a width: the start and the shrinkage that the config gives, or a few."""
    starts = STARTS if given.start in ("auto", "random") else (given.start,)
    if given.start == "random":  # which may be wider than the features
        given = schema.HeadConfig()
    fixed = given.for_features(width).model_dump(include=set(schema.HeadConfig.model_fields))
    return [
        ChosenHead(**{**fixed, "start": start, "shrinkage": shrinkage})
        for start in starts
        for shrinkage in (
            SHRINKAGES if given.shrinkage == "auto" and "shrinkage" in PARAMETERS.get(start, ()) else (given.shrinkage,)
        )
    ]
