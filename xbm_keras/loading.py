"""From a config to the features of all items, and who of them does what."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from xbm_keras import data_schema, schema
from xbm_keras.config import ConfigError
from xbm_keras.data import arrays, glyphs, sources, texts, tfds
from xbm_keras.data.splits import Splits, only_test, split_items, with_neighborhoods_held_out
from xbm_keras.data.views import View
from xbm_keras.feature_cache import CachedFeatures, ShardedRows, compute_features
from xbm_keras.stages.backbone import Backbone
from xbm_keras.stages.hub_backbone import HubBackbone

GLYPH_NET = pathlib.Path(__file__).parent / "weights" / "glyph_net.keras"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Features of all usable items, and who does what."""

    features: np.ndarray
    """[V * N, D], as the backbone or the user gave them; may be read from disk when indexed. First all N items, then
    all their augmented views, one view after the other."""
    labels: np.ndarray
    """[V * N] int64, positions in `label_names`; all 0 where the data has no labels."""
    label_names: list
    sample_ids: np.ndarray
    """[V * N] int64."""
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
        """Positions of these items and of all their views."""
        offsets = np.arange(0, len(self.labels), len(self.keys))
        return (offsets[:, None] + positions).ravel()

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
            layers = ("last" if config.is_without_labels else "pyramid") if c.layers == "auto" else c.layers
            return Backbone.from_application(c.name, c.weights, size, c.pooling, layers)
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
        return tfds.TFDS(c.name, c.data_dir, c.image_key, c.label_key, c.text_key)
    if isinstance(c, data_schema.Text):
        return texts.TextTable(c.path, c.text_column, c.label_column)
    if isinstance(c, data_schema.Glyphs):
        return glyphs.Glyphs(c.min_fonts, c.max_classes, c.drawings, c.rotation, c.noise, cache_dir=config.cache.dir)
    return arrays.Features(c.path, c.features, c.labels)


def load_dataset(config: schema.Config, backbone: Backbone | None, all_test: bool = False) -> Dataset:
    """Features, labels and splits; the backbone sees each item once, ever.

    Args:
        config: of the data and the cache.
        backbone: the frozen network.
        all_test: whether all items are test items, instead of those that the config says.

    Raises:
        DataError: for data that cannot be used as they are.
    """
    source = make_source(config)
    items = source.items
    if items.labels is None and not config.is_without_labels:
        raise sources.DataError(
            f"Received data without labels; expected one per item, which the loss {config.loss.name!r} needs. Set the "
            "column that holds them; or train without labels: --set loss.name=similarity_alignment."
        )
    if isinstance(source, arrays.Features):
        features, positions, skipped, num_computed, num_views = source.features, np.arange(len(items.keys)), {}, 0, 1
    else:
        cached = _compute_features(config, source, backbone)
        features, positions, num_views = cached.rows, cached.positions, config.cache.views
        skipped, num_computed = cached.skipped, cached.num_computed
    kept = sources.Items(
        items.keys[positions],
        None if items.labels is None else np.asarray(items.labels)[positions],
        {name: values[positions] for name, values in items.columns.items()},
    )
    if kept.labels is None:
        names, codes = np.empty(0), np.zeros(len(kept.keys), np.int64)
    else:
        names, codes = np.unique(kept.labels, return_inverse=True)
    sample_ids = np.tile(kept.sample_ids(), num_views)
    if config.cache.views_as_positives:
        views = [np.char.add(kept.keys.astype(str), f" view {v}" if v else "") for v in range(num_views)]
        sample_ids = sources.Items(np.concatenate(views), None, {}).sample_ids()
    split = config.data.split
    splits = only_test(kept, split.query_column) if all_test else split_items(kept, **split.model_dump())
    if config.is_without_labels and split.by == "item" and not all_test:
        splits = with_neighborhoods_held_out(splits, features, split.seed, split.validation_fold)
    if not config.is_without_labels and not all_test:
        _require_pairs(codes, splits)
    labels = np.tile(codes.astype(np.int64), num_views)
    return Dataset(
        features, labels, names.tolist(), sample_ids, kept.keys, splits, skipped, num_computed, source, positions
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


def _compute_features(config: schema.Config, source: sources.Source, backbone: Backbone) -> CachedFeatures:
    """Features of all items and, behind them, of their augmented views."""
    c = config.cache
    options = c.model_dump(include={"dtype", "batch_size", "shard_rows", "on_error", "engine", "ray_workers"})
    views = [source, *(View(source, number, c.flip) for number in range(1, c.views))]
    cached = [compute_features(view, backbone, c.dir, **options) for view in views]
    positions = functools.reduce(np.intersect1d, [each.positions for each in cached])
    rows = [each.rows.take(np.searchsorted(each.positions, positions)) for each in cached]
    return CachedFeatures(
        ShardedRows.concatenate(rows),
        positions,
        {key: reason for each in cached for key, reason in each.skipped.items()},
        sum(each.num_computed for each in cached),
    )
