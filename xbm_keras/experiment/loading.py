"""From a config to the features of all items, and who of them does what: sources, cache, splits and views."""

import dataclasses
import logging

import numpy as np

from xbm_keras.config import schema
from xbm_keras.data import arrays, sources, tfds
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.duplicates import contents_of, find_duplicates
from xbm_keras.data.labels import Labels, counted
from xbm_keras.data.splits import (
    Splits,
    only_test,
    require_neighbors,
    require_pairs,
    split_items,
    with_neighborhoods_held_out,
)
from xbm_keras.data.unit_rows import ChosenRows, FeatureRows
from xbm_keras.data.views import QUARTERS, Chosen, augmented, turned
from xbm_keras.experiment.build import make_source
from xbm_keras.feature_cache.cache import ShardedRows, compute_features
from xbm_keras.stages.backbone.frozen import Backbone

log = logging.getLogger("xbm_keras")
TRIED_VIEWS = 3  # of each training picture, where views.number is auto
VALIDATION, VALIDATION_WITHOUT_LABELS = 0.25, 0.1  # of the training classes, or items, held out to choose the epoch
MAX_TRIED = 8192  # training pictures, of which a run may view each five times more without being asked


def load_dataset(
    config: schema.Config, backbone: Backbone | None, all_test: bool = False, is_training: bool = True
) -> Dataset:
    """Features, labels and splits of the items that a config names: see `dataset_of`."""
    return dataset_of(make_source(config, is_training), config, backbone, all_test, is_training)


def dataset_of(
    source: sources.Source | arrays.Vectors,
    config: schema.Config,
    backbone: Backbone | None,
    all_test: bool = False,
    is_training: bool = True,
) -> Dataset:
    """Features, labels and splits; the backbone sees each item once, ever.

    Args:
        source: the items.
        config: of the splits and the cache.
        backbone: the frozen network.
        all_test: whether all items are test items, instead of those that the config says.
        is_training: whether the items are to be trained on. Else they need no labels: where a split by class finds
            none, all items are test items.

    Raises:
        DataError: for data that cannot be used as they are.
    """
    num_items, num_unlabelled = len(source.items.keys), _num_unlabelled(source.items)
    if num_unlabelled == num_items and not is_training and config.data.split.by == "class" and not all_test:
        log.info("The data has no labels to split by: all %d items are taken.", num_items)
        all_test = True
    if not all_test:
        _tell_labels(config, source.items, is_training)
    chosen = np.arange(num_items) if all_test else usable(config, source.items)
    items = source.items.take(chosen)
    # Whatever can be wrong without a feature is told before the network runs, which may take hours.
    split_of(config, items, all_test, is_training)
    items.sample_ids()
    features: FeatureRows
    if isinstance(source, arrays.Vectors):
        features = source.features if len(chosen) == len(source.features) else ChosenRows(source.features, chosen)
        contents, skipped, num_computed = None, {}, 0
    elif backbone is None:
        raise ValueError("Received items that are no vectors, and no backbone; expected the network. Give one.")
    else:
        needed = source if len(chosen) == len(source.items.keys) else Chosen(source, chosen)
        cached = compute_features(needed, backbone, config.cache.dir, **config.cache.arguments())
        items, chosen, features = items.take(cached.positions), chosen[cached.positions], cached.rows
        # A place in the cache is of one content, but for TFDS, whose digests are of a place in its files.
        contents = (
            None
            if isinstance(source, tfds.TFDS)
            else (cached.rows.shard_of.astype(np.int64) << 32) + cached.rows.row_of
        )
        skipped, num_computed = cached.skipped, cached.num_computed
    try:
        splits = split_of(config, items, all_test, is_training)
    except sources.DataError as error:
        if not skipped:
            raise
        key, reason = next(iter(skipped.items()))
        raise sources.DataError(
            f"{error} {counted(len(skipped), 'item')} could not be used, such as {key} ({reason})."
        ) from error
    if is_training:
        splits = held_out(config, splits, features)
    labels = items.labels
    if labels is None or not labels.names:
        labels = Labels(np.zeros(len(items.keys), np.int64), [])
    duplicates = {}
    if is_training and not all_test:
        contents = contents_of(features) if contents is None else contents
        duplicates = find_duplicates(contents, labels.codes, splits, items.keys)
    return Dataset(
        features,
        labels.codes,
        labels.names,
        items.sample_ids(),
        items.keys,
        splits,
        skipped,
        num_computed,
        source,
        chosen,
        num_unlabelled=num_unlabelled,
        duplicates=duplicates,
    )


def usable(config: schema.Config, items: sources.Items) -> np.ndarray:
    """Positions of the items that take part: all, but those without a label where the loss needs one."""
    if config.is_without_labels or items.labels is None or not items.labels.is_labelled.any():
        return np.arange(len(items.keys))
    return np.flatnonzero(items.labels.is_labelled)


def _tell_labels(config: schema.Config, items: sources.Items, is_training: bool) -> None:
    """Say what the labels there are, or lack, mean. Raises DataError where the loss needs some, and there are none."""
    num_items, num_unlabelled = len(items.keys), _num_unlabelled(items)
    if is_training and config.is_without_labels:
        if num_unlabelled < num_items:
            log.info(
                "Training uses no labels: those of %d items serve the evaluation alone.", num_items - num_unlabelled
            )
        elif items.columns:
            log.info("The data has no labels to evaluate by; it has the columns %s.", ", ".join(items.columns))
    if is_training and not config.is_without_labels and num_unlabelled == num_items:
        raise sources.DataError(
            f"Received data without labels; expected one per item, which the loss {config.loss.name!r} needs. Name "
            "what holds them, by --set data.labels=COLUMN, or --set data.labels=labels.csv:COLUMN of a table beside "
            "them; or train without labels: --set loss.name=similarity_alignment."
        )
    if len(usable(config, items)) < num_items:
        log.warning("%d of %d items have no label and are left out.", num_unlabelled, num_items)


def _num_unlabelled(items: sources.Items) -> int:
    return len(items.keys) if items.labels is None else int((~items.labels.is_labelled).sum())


def split_of(config: schema.Config, items: sources.Items, all_test: bool = False, is_training: bool = True) -> Splits:
    """Who does what. Raises DataError where that leaves nothing to train on, to choose by or to test."""
    split = config.data.split
    if all_test:
        return only_test(items, split.query_column, split.query_values, split.gallery_values)
    fraction = VALIDATION_WITHOUT_LABELS if config.is_without_labels else VALIDATION
    splits = split_items(items, **split.model_dump(), validation_fraction=fraction)
    if is_training and not config.is_without_labels and items.labels is not None:
        require_pairs(items.labels.codes, splits)
    if is_training and config.is_without_labels:
        require_neighbors(splits)
    return splits


def held_out(config: schema.Config, splits: Splits, features: FeatureRows) -> Splits:
    """The same, but what validates of items without labels are whole neighbourhoods, which their vectors alone tell."""
    if not (config.is_without_labels and config.data.split.by == "item" and len(splits.validation)):
        return splits
    return with_neighborhoods_held_out(splits, features, config.data.split.seed)


def may_view(config: schema.Config) -> bool:
    """Whether training pictures are viewed more than once, or may be."""
    c, is_tried = config.views, not config.is_without_labels
    is_augmented = is_tried if c.number == "auto" else c.number > 1
    is_turned = is_tried if c.turned_classes == "auto" else c.turned_classes
    return config.data.modality == "image" and (is_augmented or is_turned)


def with_training_views(config: schema.Config, dataset: Dataset, backbone: Backbone | None) -> Dataset:
    """The same data, and behind the items those views of training pictures that the config asks for, or is to try.

    It says which are tried, or not tried, without being asked for. A view that the backbone has no features for is left
    out.
    """
    c, splits = config.views, dataset.splits
    train = np.union1d(splits.train, splits.validation)
    may_be_tried = config.data.modality == "image" and not config.is_without_labels
    is_tried = may_be_tried and len(train) <= MAX_TRIED
    num_views = (TRIED_VIEWS if is_tried else 1) if c.number == "auto" else c.number
    has_turned = is_tried if c.turned_classes == "auto" else c.turned_classes
    source, positions, features = dataset.source, dataset.source_positions[train], dataset.features
    if (
        isinstance(source, arrays.Vectors) or backbone is None or not isinstance(features, ShardedRows)
    ):  # vectors have no views
        return dataset
    views = [(augmented(source, positions, number, c.flip), 0) for number in range(1, num_views)]
    views += [(turned(source, positions, quarters), quarters) for quarters in QUARTERS if has_turned]
    if may_be_tried and "auto" in (c.number, c.turned_classes):
        told = f"more than {MAX_TRIED:,} are viewed where views.number and views.turned_classes say so alone"
        if is_tried:
            told = f"{counted(len(views), 'more pass')} of the network over them; views.number=1 and "
            told += "views.turned_classes=false spare these"
        log.info("Views of %s: %s.", counted(len(train), "training picture"), told)
    if not views:
        return dataset
    rows, labels, keys, origins = [features], [dataset.labels], [dataset.keys], []
    num_computed = dataset.num_computed
    for view, quarters in views:
        cached = compute_features(
            view, backbone, config.cache.dir, title=f"features, {view.name}", **config.cache.arguments()
        )
        items = train[cached.positions]
        rows.append(cached.rows)
        labels.append(dataset.labels[items] + quarters * len(dataset.label_names))
        keys.append(np.array([f"{key}, {view.name}" for key in dataset.keys[items]]))
        origins.append(items)
        num_computed += cached.num_computed
    view_origins = np.concatenate(origins)
    return dataclasses.replace(
        dataset,
        features=ShardedRows.concatenate(rows),
        labels=np.concatenate(labels),
        sample_ids=sources.Items(np.concatenate(keys), None, {}).sample_ids(),
        num_computed=num_computed,
        view_rows=len(dataset.keys) + np.arange(len(view_origins)),
        view_origins=view_origins,
    )
