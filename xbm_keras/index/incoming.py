"""What is to enter an index: a folder of pictures, a table of texts, or vectors, with all that is known of the items.

Two columns of the items are for the index alone: `root` says which folder or file an item is of, and `sha256` what it
was when it was embedded, so that `sync` finds what is new, changed and gone.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
from typing import Protocol

import numpy as np
import pyarrow

from xbm_keras.data import listing
from xbm_keras.data.arrays import Features, Vectors
from xbm_keras.data.errors import DataError
from xbm_keras.data.labels import as_text, counted, encode, printable
from xbm_keras.data.sources import PictureFiles, Source
from xbm_keras.data.tables import Table, suffix_of
from xbm_keras.data.texts import TextTable, is_text
from xbm_keras.feature_cache.digests import find_digests
from xbm_keras.index.gallery import Gallery, strings
from xbm_keras.index.roots import id_of

log = logging.getLogger("xbm_keras")
OF_THE_INDEX = ("root", "sha256")


class Embedder(Protocol):
    """A model that gives items their vectors."""

    fingerprint: str
    """Of the exported model."""
    cache_dir: pathlib.Path
    """Where the hashes of files are kept."""

    def network(self, source: Source | Vectors) -> str | None:
        """What tells the frozen network from others, and its features in the cache; None where that is not known."""

    def embed(self, source: Source | Vectors, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Vectors [n, E], the positions [n] that have one, and of each other position why it has none."""


@dataclasses.dataclass(frozen=True)
class Incoming:
    """Items that are to enter an index."""

    source: Source | Vectors
    items: pyarrow.Table
    """Of the positions of the source, with `sha256`, null for what cannot be read, and `root`."""

    @property
    def ids(self) -> list[str]:
        """Of the items."""
        return self.items["id"].to_pylist()

    @property
    def digests(self) -> dict[str, str | None]:
        """Of each id the hash of what it is now; None for what cannot be read."""
        return dict(zip(self.ids, self.items["sha256"].to_pylist(), strict=True))


def kind_of(path: str) -> str:
    """What lies at a path: "pictures", "texts" or "vectors"."""
    suffix = suffix_of(pathlib.Path(path))
    if os.path.isdir(os.path.expanduser(path)) or not suffix:
        return "pictures"
    if suffix == ".parquet" and "text" not in Table(pathlib.Path(os.path.expanduser(path))).columns:
        return "vectors"
    return "vectors" if suffix in (".npy", ".npz") else "texts"


def source_of(path: str, kind: str) -> Source | Vectors:
    """The items at a path.

    Raises:
        DataError: where there are none.
    """
    if kind == "texts":
        return TextTable(path, labels=None)
    if kind == "vectors":
        return Features(path, labels=None)
    top = pathlib.Path(os.path.expanduser(path))
    if not top.is_dir():
        raise DataError(f"Received {path!r}, which is no folder; expected the folder of the pictures. Mend the path.")
    found = listing.list_pictures(top)
    found.require_pictures(f"{path!r}, which holds no pictures", "files")
    if found.ignored:
        log.warning("Left out in %s: %s.", path, listing.describe(found.ignored))
    names = [printable(each.split("/")[0]) if "/" in each else None for each in found.pictures]
    return PictureFiles(top, found.pictures, encode(names, f"{path}, whose folders"), {})


def incoming(source: Source | Vectors, embedder: Embedder, root: str) -> Incoming:
    """The items of a source under a root.

    A column `id` gives the ids, to the letter; else they are the source's own, below the root. A column `label` gives
    the labels of what has no other. All further columns are metadata, and so is a text, as `text`, where
    no column is called so.

    Raises:
        ValueError: for columns of names that are the index's own.
    """
    items = items_of(source, root)
    return Incoming(source, described(items, root, digests_of(source, embedder.cache_dir)))


def items_of(source: Source | Vectors, root: str, positions: np.ndarray | None = None) -> pyarrow.Table:
    """The items of a source, or those at some positions, as a table: see `incoming`."""
    found = source.items if positions is None else source.items.take(positions)
    columns = dict(found.columns)
    if (texts := getattr(source, "texts", None)) is not None:
        shown = [each if is_text(each) else None for each in texts]
        columns.setdefault("text", np.array(shown, object)[slice(None) if positions is None else positions])
    ids, labels = columns.pop("id", None), columns.pop("label", None)
    keys = [id_of(root, str(key)) for key in found.keys] if ids is None else [each or None for each in as_text(ids)]
    if found.labels is not None:
        names = ["" if name is None else printable(str(name)) for name in found.labels]
    else:
        names = [""] * len(keys) if labels is None else as_text(labels).tolist()
    if taken := sorted(set(columns) & set(OF_THE_INDEX)):
        raise ValueError(
            f"Received items with the column {', '.join(taken)}, which is the index's own; expected other names. "
            "Rename it."
        )
    table = {"id": strings(keys), "label": strings(names)}
    return pyarrow.table(table | {name: _column(column) for name, column in columns.items()})


def described(items: pyarrow.Table, root: str, digests: list[str | None] | None) -> pyarrow.Table:
    """The items with the columns of the index."""
    items = items.append_column("root", strings([root] * len(items)))
    return items if digests is None else items.append_column("sha256", strings(digests))


def digests_of(source: Source | Vectors, cache_dir: pathlib.Path, positions=None) -> list[str | None]:
    """Hash of each item's content; None for what cannot be read."""
    if not isinstance(source, Vectors):
        return find_digests(source, cache_dir, positions)[0]
    rows = range(len(source.features)) if positions is None else positions
    return [hashlib.sha256(np.asarray(source.features[i], np.float32).tobytes()).hexdigest() for i in rows]


def embedded(coming: Incoming, embedder: Embedder, positions: np.ndarray | None = None) -> tuple[Gallery, int]:
    """The items at these positions, by default all, that have vectors; and how many have none, each of which is told.

    Raises:
        DataError: where none has one.
    """
    chosen = np.arange(len(coming.items)) if positions is None else positions
    vectors, kept, reasons = embedder.embed(coming.source, chosen)
    for position, reason in sorted(reasons.items()):
        log.warning("Left out %s: %s.", coming.source.items.keys[position], reason)
    if not len(kept) and len(chosen) == len(coming.items):
        raise DataError(
            f"Received {counted(len(chosen), 'item')}, none of which can be embedded; expected at least one. Mend them."
        )
    return Gallery(vectors, coming.items.take(kept)), len(reasons)


def with_metadata(items: pyarrow.Table, path: str) -> pyarrow.Table:
    """The items with the columns of a table that has a row for each `id`; null where it has none.

    Raises:
        DataError: where the table cannot be read, has no such column, or an id twice.
    """
    table = Table(pathlib.Path(os.path.expanduser(path)), path)
    rows = {each: i for i, each in enumerate(table.texts("id"))}
    if len(rows) < len(table):
        raise DataError(f"Received {path}, which has an id twice; expected a row for each item. Remove the others.")
    places = [rows.get(each) for each in items["id"].to_pylist()]
    if unused := len(rows) - sum(place is not None for place in places):
        log.warning("%s: %s of no item here.", path, counted(unused, "row"))
    for name, column in table.others("id", *OF_THE_INDEX).items():
        found = pyarrow.chunked_array([_column(column)]).take(pyarrow.array(places, pyarrow.int64()))
        items = items.drop_columns([name]) if name in items.column_names and name != "label" else items
        if name == "label":
            items = items.set_column(1, "label", strings(as_text(np.array(found.to_pylist(), object))))
        else:
            items = items.append_column(name, found)
    return items


def _column(values: np.ndarray) -> pyarrow.Array:
    """A column of the type of its values; as text where they are of several."""
    try:
        found = pyarrow.array(values.tolist())
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        found = strings([None if value is None else str(value) for value in values.tolist()])
    return found


@dataclasses.dataclass(frozen=True)
class Changes:
    """What differs between an index and the items of a root now."""

    wanted: np.ndarray
    """[n] positions of items to embed: those that are new or changed, and those that could not be read."""
    known: set[str]
    """Ids that are in the index."""
    gone: list[str]
    """Ids of the root that are no longer there."""


def changes(items: pyarrow.Table, now: dict[str, str | None], root: str) -> Changes:
    """What is new, changed and gone, by the hashes of the items' contents.

    Args:
        items: of the index.
        now: id to hash of the items of the root, in their order.
        root: its name.

    Raises:
        ValueError: where an item of another root has the id of one of these.
    """
    roots, digests = (items[n].to_pylist() if n in items.column_names else [None] * len(items) for n in OF_THE_INDEX)
    ids = items["id"].to_pylist()
    old = dict(zip(ids, digests, strict=True))
    # An index of an earlier release does not say what is of which root; there the ids do.
    own = {
        each
        for each, of in zip(ids, roots, strict=True)
        if of == root or (of is None and (not root or each.startswith(f"{root}/")))
    }
    if others := [each for each in now if each in old and each not in own]:
        known = dict(zip(ids, roots, strict=True))[others[0]] or ""
        raise ValueError(
            f"Received {counted(len(others), 'item')} whose ids are of another root in the index, such as "
            f"{others[0]!r} of {known!r}; expected ids of their own. If it is the same folder or file, moved, say "
            f"--root={known!r}."
        )
    wanted = [i for i, (each, digest) in enumerate(now.items()) if digest is None or old.get(each) != digest]
    return Changes(np.array(wanted, np.int64), set(ids), [each for each in ids if each in own and each not in now])
