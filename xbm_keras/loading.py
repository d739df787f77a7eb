"""From a config to the features of all items, and who of them does what."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from xbm_keras import data_schema, schema
from xbm_keras.config import ConfigError
from xbm_keras.data import arrays, glyphs, sources, texts, tfds
from xbm_keras.data.splits import Splits, only_test, split_items, with_neighborhoods_held_out
from xbm_keras.data.views import QUARTERS, augmented, turned
from xbm_keras.feature_cache import ShardedRows, compute_features
from xbm_keras.stages.backbone import Backbone
from xbm_keras.stages.hub_backbone import HubBackbone

log = logging.getLogger("xbm_keras")
TRIED_VIEWS = 3  # of each training picture, where cache.views is auto
MAX_TRIED = 8192  # training pictures, of which a run may view each five times more without being asked
GLYPH_NET = pathlib.Path(__file__).parent / "weights" / "glyph_net.keras"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Features of all usable items, and who does what."""

    features: np.ndarray
    """[N + V, D], as the backbone or the user gave them; may be read from disk when indexed. First all N items, then
    views of training items."""
    labels: np.ndarray
    """[N + V] int64, positions in `label_names`; all 0 where the data has no labels. Turned pictures have others."""
    label_names: list
    sample_ids: np.ndarray
    """[N + V] int64."""
    keys: np.ndarray
    """[N] str."""
    splits: Splits
    """Positions below N."""
    skipped: dict[str, str]
    """Key of each item left out, and why."""
    num_computed: int
    """Items and views that were read for the backbone in this run; the rest was cached."""
    source: sources.Source | arrays.Features
    """Where the items are, to show some of them."""
    source_positions: np.ndarray
    """[N] their positions there."""
    view_rows: np.ndarray = dataclasses.field(default_factory=lambda: np.arange(0))
    """[v] rows of the views that train beside their items."""
    view_origins: np.ndarray = dataclasses.field(default_factory=lambda: np.arange(0))
    """[v] positions of these items."""

    @property
    def has_labels(self) -> bool:
        """Whether the items have labels."""
        return bool(self.label_names)

    def names_of(self, positions: np.ndarray) -> np.ndarray:
        """Labels of these items as text, empty where the data has none."""
        if not self.has_labels:
            return np.full(len(positions), "")
        return np.array(self.label_names).astype(str)[self.labels[positions]]

    def with_views(self, positions: np.ndarray) -> np.ndarray:
        """Positions of these items, and rows of all their views."""
        return np.concatenate([positions, self.view_rows[np.isin(self.view_origins, positions)]])

    @property
    def is_turned(self) -> np.ndarray:
        """[v] which of these views are turned pictures: they are in classes of their own."""
        return self.labels[self.view_rows] != self.labels[self.view_origins]

    def keeping_views(self, augmented: bool, turned: bool) -> "Dataset":
        """The same, where only views of these kinds train."""
        kept = np.where(self.is_turned, turned, augmented)
        return dataclasses.replace(self, view_rows=self.view_rows[kept], view_origins=self.view_origins[kept])

    def preview(self, positions: np.ndarray, prepare: Callable) -> list | None:
        """`prepare(item)` of the pictures, uint8 [H, W, 3], or texts at these positions; None where items are vectors.

        Raises UnreadableItem for one that can no longer be read.
        """
        if isinstance(self.source, arrays.Features):
            return None
        unique, places = np.unique(self.source_positions[positions], return_inverse=True)
        shown = list(self.source.read(unique.tolist(), prepare))
        for each in shown:
            if isinstance(each, sources.UnreadableItem):
                raise each
        return [shown[place] for place in places]


def make_backbone(config: schema.Config) -> Backbone | None:
    """The frozen network; None where the data are vectors."""
    c = config.backbone
    if isinstance(c, data_schema.NoBackbone):
        return None
    if isinstance(c, data_schema.GlyphNet):
        return Backbone.from_keras_file(str(GLYPH_NET))
    size = (c.image_size[0], c.image_size[1]) if c.image_size else None
    with blaming_config():
        if isinstance(c, data_schema.KerasHub):
            backbone = HubBackbone.from_preset(c.preset, c.max_length, c.pooling, size)
            if backbone.modality != config.data.modality:
                raise ValueError(
                    f"Received data.source {config.data.source!r} with the preset {c.preset!r}, a network of "
                    f"{backbone.modality}s; expected data of its kind. Change data.source or backbone.preset."
                )
            return backbone
        if isinstance(c, data_schema.Application):
            return Backbone.from_application(c.name, c.weights, size, c.pooling, c.layers)
        if isinstance(c, data_schema.KerasFile):
            return Backbone.from_keras_file(c.path, c.preprocessing, size, c.pooling, c.layers)
        return Backbone.from_saved_model(c.path, c.endpoint, c.preprocessing, size, c.pooling)


@contextlib.contextmanager
def blaming_config() -> Iterator[None]:
    """What a stage refuses here, the config asked for."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def make_source(config: schema.Config) -> sources.Source | arrays.Features:
    """The items."""
    c = config.data
    if isinstance(c, data_schema.ImageFolder):
        return sources.ImageFolder(c.root)
    if isinstance(c, data_schema.ImageTable):
        return sources.ImageTable(c.root, c.table, c.path_column, c.label_column)
    if isinstance(c, data_schema.ImageArray):
        return arrays.ImageArray(c.path, c.images, c.labels, c.label_names, c.invert, c.test_path)
    if isinstance(c, data_schema.TFDS):
        return tfds.TFDS(c.name, c.data_dir, c.image_key, c.label_key, c.text_key, c.allow_community)
    if isinstance(c, data_schema.Text):
        return texts.TextTable(c.path, c.text_column, c.label_column)
    if isinstance(c, data_schema.Glyphs):
        return glyphs.Glyphs(c.min_fonts, c.max_classes, c.drawings, c.rotation, c.noise, cache_dir=config.cache.dir)
    return arrays.Features(c.path, c.features, c.labels)


def load_dataset(
    config: schema.Config, backbone: Backbone | None, all_test: bool = False, is_training: bool = True
) -> Dataset:
    """Features, labels and splits; the backbone sees each item once, ever.

    Args:
        config: of the data and the cache.
        backbone: the frozen network.
        all_test: whether all items are test items, instead of those that the config says.
        is_training: whether the items are to be trained on. Else they need no labels: where a split by class finds
            none, all items are test items.

    Raises:
        DataError: for data that cannot be used as they are.
    """
    source = make_source(config)
    items = source.items
    needs_labels = is_training and not config.is_without_labels
    if items.labels is None and not is_training and config.data.split.by == "class" and not all_test:
        log.info("The data has no labels to split by: all %d items are taken.", len(items.keys))
        all_test = True
    if items.labels is None and needs_labels:
        raise sources.DataError(
            f"Received data without labels; expected one per item, which the loss {config.loss.name!r} needs. Set the "
            "column that holds them; or train without labels: --set loss.name=similarity_alignment."
        )
    if isinstance(source, arrays.Features):
        features, positions, skipped, num_computed = source.features, np.arange(len(items.keys)), {}, 0
    else:
        cached = compute_features(source, backbone, config.cache.dir, **_options(config.cache))
        features, positions, skipped, num_computed = cached.rows, cached.positions, cached.skipped, cached.num_computed
    kept = sources.Items(
        items.keys[positions],
        None if items.labels is None else np.asarray(items.labels)[positions],
        {name: values[positions] for name, values in items.columns.items()},
    )
    if kept.labels is None:
        names, codes = np.empty(0), np.zeros(len(kept.keys), np.int64)
    else:
        names, codes = np.unique(kept.labels, return_inverse=True)
    split = config.data.split
    splits = only_test(kept, split.query_column) if all_test else split_items(kept, **split.model_dump())
    if is_training and config.is_without_labels and split.by == "item" and not all_test:
        splits = with_neighborhoods_held_out(splits, features, split.seed, split.validation_fold)
    if needs_labels and not all_test:
        _require_pairs(codes, splits)
    codes, sample_ids = codes.astype(np.int64), kept.sample_ids()
    return Dataset(
        features, codes, names.tolist(), sample_ids, kept.keys, splits, skipped, num_computed, source, positions
    )


def with_training_views(config: schema.Config, dataset: Dataset, backbone: Backbone | None) -> Dataset:
    """The same data, and behind the items those views of training pictures that the config asks for, or is to try.

    A view that the backbone has no features for is left out.
    """
    c, splits = config.cache, dataset.splits
    train = np.union1d(splits.train, splits.validation)
    is_tried = config.data.modality == "image" and not config.is_without_labels and len(train) <= MAX_TRIED
    num_views = (TRIED_VIEWS if is_tried else 1) if c.views == "auto" else c.views
    has_turned = is_tried if c.turned_classes == "auto" else c.turned_classes
    given = dataset.source, dataset.source_positions[train]
    views = [(augmented(*given, number, c.flip), 0) for number in range(1, num_views)]
    views += [(turned(*given, quarters), quarters) for quarters in QUARTERS if has_turned]
    if not views:
        return dataset
    rows, labels, sample_ids, origins = [dataset.features], [dataset.labels], [dataset.sample_ids], []
    num_computed = dataset.num_computed
    for view, quarters in views:
        cached = compute_features(view, backbone, c.dir, title=f"features, {view.name}", **_options(c))
        items = train[cached.positions]
        ids = dataset.sample_ids[items]
        if c.views_as_positives and not quarters:
            keys = np.char.add(dataset.keys[items].astype(str), f" {view.name}")
            ids = sources.Items(keys, None, {}).sample_ids()
        rows.append(cached.rows)
        labels.append(dataset.labels[items] + quarters * len(dataset.label_names))
        sample_ids.append(ids)
        origins.append(items)
        num_computed += cached.num_computed
    view_origins = np.concatenate(origins)
    return dataclasses.replace(
        dataset,
        features=ShardedRows.concatenate(rows),
        labels=np.concatenate(labels),
        sample_ids=np.concatenate(sample_ids),
        num_computed=num_computed,
        view_rows=len(dataset.keys) + np.arange(len(view_origins)),
        view_origins=view_origins,
    )


def _require_pairs(codes: np.ndarray, splits: Splits) -> None:
    """Raises DataError where no two items of a part share a class: nothing could be trained or scored there."""
    for name in ("train", "validation", "test"):
        counts = np.bincount(codes[getattr(splits, name)])
        if len(counts) and counts.max() < 2:
            raise sources.DataError(
                f"Received {counts.sum()} {name} items that are each alone in their class; expected classes that at "
                "least two items share. Check that the labels are classes, not ids of items."
            )


def _options(c: data_schema.Cache) -> dict:
    return c.model_dump(include={"dtype", "batch_size", "shard_rows", "on_error", "engine", "ray_workers"})
