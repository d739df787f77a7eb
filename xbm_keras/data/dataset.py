"""Features of all items, and who of them does what."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from xbm_keras.data import arrays, sources
from xbm_keras.data.duplicates import Duplicates
from xbm_keras.data.splits import Splits
from xbm_keras.data.unit_rows import FeatureRows


class TriedParts(NamedTuple):
    """Which parts of a network make the features, where a run chose them."""

    chosen: tuple[str, ...]
    scores: dict[str, float]
    """MAP@R of held-out classes by the parts that were tried, such as "class + patches"; the narrowest come first."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Features of all usable items, and who does what."""

    features: FeatureRows
    """[N + V, D], as the backbone or the user gave them; may be read from disk when indexed. First all N items, then
    views of training items."""
    labels: np.ndarray
    """[N + V] int64, positions in `label_names`; -1 for an item without a label; all 0 where the data has no labels.
    Turned pictures have others."""
    label_names: list
    sample_ids: np.ndarray
    """[N + V] int64, each another: a view is an item like the others, and a positive of those of its class."""
    keys: np.ndarray
    """[N] str."""
    splits: Splits
    """Positions below N."""
    skipped: dict[str, str]
    """Key of each item left out, and why."""
    num_computed: int
    """Items and views that were read for the backbone in this run; the rest was cached."""
    source: sources.Source | arrays.Vectors
    """Where the items are, to show some of them."""
    source_positions: np.ndarray
    """[N] their positions there."""
    view_rows: np.ndarray = dataclasses.field(default_factory=lambda: np.arange(0))
    """[v] rows of the views that train beside their items."""
    view_origins: np.ndarray = dataclasses.field(default_factory=lambda: np.arange(0))
    """[v] positions of these items."""
    num_unlabelled: int = 0
    """Items of the source without a label. They are left out where the loss needs one."""
    duplicates: dict[str, Duplicates] = dataclasses.field(default_factory=dict)
    """Items of the same content, of which some are in the wrong place; all are kept."""
    parts: TriedParts | None = None
    """None where nothing was left to choose."""

    @property
    def has_labels(self) -> bool:
        """Whether the items have labels."""
        return bool(self.label_names)

    def names_of(self, positions: np.ndarray) -> np.ndarray:
        """Labels of these items as text, empty where an item has none."""
        if not self.has_labels:
            return np.full(len(positions), "")
        return np.array([*map(str, self.label_names), ""])[self.labels[positions]]  # -1 is the last one

    def labelled(self, positions: np.ndarray) -> np.ndarray:
        """Those of these positions whose items have a label; none where the data has no labels."""
        return positions[self.labels[positions] >= 0] if self.has_labels else positions[:0]

    def with_labelled_test(self) -> "Dataset":
        """The same, where only items with a label test."""
        splits = self.splits
        is_labelled = np.isin(splits.test, self.labelled(splits.test))
        is_query, is_gallery = (
            None if role is None else role[is_labelled] for role in (splits.is_query, splits.is_gallery)
        )
        test = splits.test[is_labelled]
        return dataclasses.replace(
            self, splits=dataclasses.replace(splits, test=test, is_query=is_query, is_gallery=is_gallery)
        )

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
        if isinstance(self.source, arrays.Vectors):
            return None
        unique, places = np.unique(self.source_positions[positions], return_inverse=True)
        shown = list(self.source.read(unique.tolist(), prepare))
        for each in shown:
            if isinstance(each, sources.UnreadableItem):
                raise each
        return [shown[place] for place in places]
