"""What a search can find: vectors, and a table of the items that they are of.

Letters: N items, E embedding width.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.feather

from xbm_keras.data.labels import as_objects, counted

Strings: TypeAlias = Sequence[str | None] | np.ndarray | pyarrow.Array | pyarrow.ChunkedArray


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Items that can be found. Their ids are unique."""

    vectors: np.ndarray
    """[N, E] float32 of unit length."""
    items: pyarrow.Table
    """N rows: `id` and `label`, strings, the label empty where there is none; then metadata, which may be missing."""

    def __post_init__(self):
        items = _checked(self.items)
        object.__setattr__(self, "items", items)
        if self.vectors.ndim != 2 or len(items) != len(self.vectors):
            raise ValueError(
                f"Received vectors of shape {self.vectors.shape} with {counted(len(items), 'row')} of items; expected "
                "[N, E] with N rows. Give each vector its item."
            )
        if len(items) and len(found := pyarrow.compute.value_counts(items["id"])) < len(items):
            twice = found[int(np.argmax(found.field("counts").to_numpy()))]
            raise ValueError(
                f"Received the id {twice['values'].as_py()!r:.80} {twice['counts']} times; expected it once. Give each "
                "item an id of its own."
            )

    @staticmethod
    def of(vectors: np.ndarray, ids: Strings, labels: Strings | None = None, **metadata) -> "Gallery":
        """A gallery of arrays or lists [N]; by default no item has a label."""
        labels = [""] * len(ids) if labels is None else labels
        columns = {"id": strings(ids), "label": strings(labels)}
        return Gallery(vectors, pyarrow.table(columns | {name: pyarrow.array(each) for name, each in metadata.items()}))

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """[N] objects, str."""
        return as_objects(self.items["id"].to_pylist())

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """[N] objects, str."""
        return as_objects(self.items["label"].to_pylist())

    def holds(self, ids: Strings) -> np.ndarray:
        """[n] bool: which of these ids are of its items."""
        return is_in(strings(ids), self.items["id"])

    def take(self, kept: np.ndarray) -> "Gallery":
        """Some of the items, by a mask [N]."""
        return Gallery(self.vectors[kept], self.items.filter(pyarrow.array(kept)))


def strings(values: Strings) -> pyarrow.Array:
    """An Arrow array of text, from a list, a NumPy array of text, or one of Arrow."""
    if isinstance(values, pyarrow.Array | pyarrow.ChunkedArray):
        return values.cast(pyarrow.string())
    return pyarrow.array(values.tolist() if isinstance(values, np.ndarray) else list(values), pyarrow.string())


def is_in(values, among) -> np.ndarray:
    """[n] bool: which of some Arrow strings are among others."""
    return pyarrow.compute.is_in(values, value_set=among).to_numpy(zero_copy_only=False)


def joined(tables: Sequence[pyarrow.Table]) -> pyarrow.Table:
    """One table below the other: a column that one does not have is null there.

    Raises:
        ValueError: where a column is of another kind, such as text and numbers.
    """
    try:
        return pyarrow.concat_tables(tables, promote_options="permissive")
    except (pyarrow.ArrowTypeError, pyarrow.ArrowInvalid) as error:
        kinds = ["; ".join(f"{field.name}: {field.type}" for field in table.schema) for table in tables]
        raise ValueError(
            f"Received items with the columns {' and '.join(dict.fromkeys(kinds))} ({error}); expected each column of "
            "one type. Give it the type that the index has."
        ) from error


def write_items(path: pathlib.Path, items: pyarrow.Table) -> None:
    """Write items as an Arrow file, which is read without a copy."""
    pyarrow.feather.write_feather(items, str(path), compression="uncompressed")


def read_items(path: pathlib.Path) -> pyarrow.Table:
    """Items from an Arrow file, or from JSON, as earlier releases wrote them."""
    if path.suffix == ".json":
        found = json.loads(path.read_text("utf-8"))
        return pyarrow.table({"id": strings(found["ids"]), "label": strings(found["labels"])})
    return pyarrow.feather.read_table(str(path))


def _checked(items: pyarrow.Table) -> pyarrow.Table:
    """The items in their form: text for ids and labels, which come first, and no label as empty text."""
    names = items.column_names
    if not {"id", "label"} <= set(names) or len(set(names)) < len(names) or "similarity" in names:
        raise ValueError(
            f"Received items with the columns {', '.join(names)}; expected 'id' and 'label', and each name once, but "
            "'similarity', which is that of a hit. Rename the others."
        )
    items = items.select(["id", "label", *(name for name in names if name not in ("id", "label"))])
    ids, labels = (strings(items[name]) for name in ("id", "label"))
    if ids.null_count:
        raise ValueError(f"Received {counted(ids.null_count, 'item')} without an id; expected one for each.")
    return items.set_column(0, "id", ids).set_column(1, "label", labels.fill_null(""))
