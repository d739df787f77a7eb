"""Where items come from: what a source is, and the two that read pictures from files.

A source lists its items, each with a key that never changes, and reads one item at a time. Adding a source means adding
a class with these members; nothing else knows which one it talks to.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from xbm_keras.data.errors import DataError, UnreadableItem
from xbm_keras.data.labels import Labels, counted, encode, printable
from xbm_keras.data.listing import list_pictures
from xbm_keras.data.pictures import DECODER, decode_picture
from xbm_keras.data.tables import Table

PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}  # of data, as folders are called
READERS = 8  # threads that read and decode; the backbone computes meanwhile


@dataclasses.dataclass(frozen=True)
class Items:
    """The items of a source, in its own order."""

    keys: np.ndarray
    """[N] str, unique and stable: relative path, or row number. All can be written as UTF-8."""
    labels: Labels | None
    """Of N items; None where the data has none. An array of names is taken for what `encode` makes of it."""
    columns: dict[str, np.ndarray]
    """Further columns [N], such as the split."""

    def __post_init__(self):
        if len(self.keys) == 0:
            raise DataError("Received a source without items; expected at least one.")
        if self.labels is not None and not isinstance(self.labels, Labels):
            object.__setattr__(self, "labels", encode(self.labels, "items whose label"))

    def take(self, positions: np.ndarray) -> "Items":
        """Some of the items."""
        return Items(
            self.keys[positions],
            None if self.labels is None else self.labels.take(positions),
            {name: values[positions] for name, values in self.columns.items()},
        )

    def sample_ids(self) -> np.ndarray:
        """[N] int64: the first 63 bits of SHA-256 of the keys. Raises DataError where two keys have one id."""
        ids = np.array(
            [int.from_bytes(hashlib.sha256(str(key).encode()).digest()[:8]) >> 1 for key in self.keys], np.int64
        )
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) < len(ids):
            twice = self.keys[ids == unique[counts.argmax()]]
            raise DataError(
                f"Received {str(twice[0])!r} and {str(twice[1])!r}, which have the same sample id; list each item once."
            )
        return ids


class Source(Protocol):
    """Items that a backbone turns into features."""

    items: Items
    decoder: str
    """Version of the rules that turn the items' bytes into pictures; empty where they are no encoded pictures."""

    def stamp(self, position: int) -> tuple[int, int] | None:
        """Size and modification time where they tell that an item did not change; else None."""

    def digest(self, position: int) -> str:
        """Hash of the item's content. Raises UnreadableItem."""

    def read(self, positions: Sequence[int], prepare: Callable) -> Iterator:
        """Items at increasing positions, in this order: `prepare(item)`, or an `UnreadableItem` in its place.

        An item is what the backbone takes: a picture as uint8 [H, W, 3], or a text.
        """


class RandomAccess:
    """A source that reads its items by threads, a little ahead of their use."""

    modality = "image"  # what an item is; or "text"
    decoder = ""

    def load(self, position: int) -> np.ndarray | str:
        """One item. Raises UnreadableItem."""
        raise TypeError(f"{type(self).__name__} must define load(position).")

    def read(self, positions, prepare):
        """Items in order; see `Source`."""
        return map_in_threads(lambda position: prepare(self.load(position)), positions)


def map_in_threads(function: Callable, inputs: Iterable) -> Iterator:
    """Results in the order of the inputs, computed a little ahead of their use; an UnreadableItem is a result.

    So is an OSError, as an UnreadableItem that need not last.
    """

    def one(x):
        try:
            return function(x)
        except UnreadableItem as error:
            return UnreadableItem(str(error), error.is_lasting)  # its traceback would hold the item's bytes
        except OSError as error:
            return UnreadableItem(error.strerror or str(error), is_lasting=False)

    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        pending: collections.deque = collections.deque()
        for i, x in enumerate(inputs):
            pending.append(pool.submit(one, x))
            if i == 0:  # alone, since TensorFlow would optimize the decoder's graph once for each thread that waits
                concurrent.futures.wait(pending)
            if len(pending) > 8 * READERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class PictureFiles(RandomAccess):
    """Pictures in files below a root.

    Args:
        root: the folder.
        paths: of the files, relative to it, or absolute.
        labels: of the items; None for none.
        columns: further ones.
    """

    decoder = DECODER

    def __init__(self, root: pathlib.Path, paths: list[str], labels: Labels | None, columns: dict[str, np.ndarray]):
        self.root, self.paths = root, paths
        self.items = Items(np.array([printable(path) for path in paths]), labels, columns)

    def stamp(self, position):
        """Of the file; None where there is none."""
        try:
            status = os.stat(self.root / self.paths[position])
        except (OSError, ValueError):
            return None
        return status.st_size, status.st_mtime_ns

    def digest(self, position):
        """Hash of the file's bytes. Raises UnreadableItem."""
        return hashlib.sha256(self._bytes(position)).hexdigest()

    def load(self, position):
        """The picture, uint8 [H, W, 3]. Raises UnreadableItem."""
        return decode_picture(self._bytes(position))

    def _bytes(self, position) -> bytes:
        try:
            return (self.root / self.paths[position]).read_bytes()
        except OSError as error:
            raise UnreadableItem(error.strerror or str(error), is_lasting=False) from error
        except ValueError as error:  # a zero byte, or half a surrogate pair
            raise UnreadableItem(f"no path of a file: {error}", is_lasting=False) from error


class ImageFolder(PictureFiles):
    """Pictures, one folder per class: `root/<class>/**/*.jpg` and the like; see `list_pictures`.

    `ignored` counts what lies beside them by suffix, `without_pictures` names the folders that make no class.

    Args:
        root: the folder; `root/<class>/<picture>`.

    Raises:
        DataError: if there is no such folder, or no picture in a folder below it.
    """

    def __init__(self, root: str):
        top = _existing_folder(root)
        found = list_pictures(top, only_in_folders=True)
        self.ignored, self.without_pictures = found.ignored, found.without_pictures
        expected = f"{root}/<class>/<picture> with pictures"
        found.require_pictures(f"data.root {root!r}, which holds no pictures in folders", expected)
        names = [path.split("/")[0] for path in found.pictures]
        super().__init__(top, found.pictures, encode(names, f"{root}, whose folders"), {})

    def require_classes(self) -> None:
        """Raises DataError where the folders are called as parts of data are, such as train and test."""
        parts, root = {path.split("/")[0] for path in self.paths}, self.root
        if len(parts) > 1 and {part.lower() for part in parts} <= PARTS:
            raise DataError(
                f"Received data.root {str(root)!r}, whose folders are {' and '.join(sorted(parts))}: parts, and no "
                f"classes; expected {root}/<class>/<picture>. Give a folder of classes, such as "
                f"data.root={root}/train, or list the pictures of all parts in a table: --config image_table."
            )


class ImageTable(PictureFiles):
    """Pictures listed in a CSV, Parquet or JSONL table, whose other columns may give the split.

    Cells of a CSV are text, to the letter.

    Args:
        root: the folder of the pictures.
        table: relative to `root`, or absolute.
        images: name of the column of their paths, relative to `root`, or absolute.
        labels: name of the column; None for no labels. An item whose cell is empty (or null) has none.

    Raises:
        DataError: if the folder, the table or a column does not exist, or a path is missing or listed twice.
    """

    def __init__(self, root: str, table: str, images: str = "path", labels: str | None = "label"):
        top = _existing_folder(root)
        rows = Table(top / table, table)
        paths = rows.texts(images)
        found = None if labels is None else rows.labels(labels)
        twice = [path for path, count in collections.Counter(paths).items() if count > 1]
        if twice:
            raise DataError(f"Received {table}, which lists {twice[0]!r} twice; list each picture once.")
        super().__init__(top, paths, found, rows.others(None))
        self.table, self.column = table, images

    def require_pictures(self) -> None:
        """Raises DataError where none of the paths is a file; single ones that are none are skipped, and told later."""
        if not any((self.root / path).is_file() for path in self.paths):
            raise DataError(
                f"Received {self.table}, none of whose {counted(len(self.paths), 'path')} is a file below data.root "
                f"{str(self.root)!r}, such as {self.paths[0]!r}; expected paths relative to that folder, or absolute. "
                f"Set data.root, or mend the column {self.column!r}."
            )


def _existing_folder(root: str) -> pathlib.Path:
    top = pathlib.Path(os.path.expanduser(root))
    if not top.is_dir():
        raise DataError(f"Received data.root {root!r}, which is no folder; expected the folder of the pictures.")
    return top
