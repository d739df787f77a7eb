"""Shards of the feature cache: `shard-00000.npy` holds rows, `shard-00000.json` says which item each of them is."""

import functools
import json
import pathlib
import re

import numpy as np
import pyarrow as pa

from xbm_keras.atomic_files import write_whole, writing_whole
from xbm_keras.data.errors import DataError

MAX_OPEN = 16_384  # maps of files at a time; Linux lets a process have 65,530


class Shards:
    """The arrays [n, D] of a cache folder by their numbers, mapped into memory when they are asked for.

    A map holds no file descriptor, of which a process may have few.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._open = functools.lru_cache(MAX_OPEN)(lambda number: _open(path_of(folder, number)))

    def __getitem__(self, number: int) -> np.ndarray:
        return self._open(int(number))

    def __reduce__(self):
        """Another process maps the files itself."""
        return Shards, (self.folder,)


class ShardedRows:
    """Rows of many memory-mapped shards as one array [n, D] that is read when it is indexed.

    Args:
        shards: by number, such as `Shards`.
        shard_of: [n] in which shard each row is.
        row_of: [n] and where in it.
    """

    def __init__(self, shards, shard_of: np.ndarray, row_of: np.ndarray):
        self.shards = shards
        self.shard_of = shard_of
        self.row_of = row_of

    @functools.cached_property
    def _form(self) -> tuple[int, np.dtype]:
        """D and dtype, of the first row: all shards of a folder are of one network."""
        first = self.shards[self.shard_of[0]]
        return first.shape[1], first.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """[n, D]."""
        return len(self.row_of), self._form[0]

    @property
    def dtype(self) -> np.dtype:
        """Of the rows."""
        return self._form[1]

    def __len__(self):
        return len(self.row_of)

    def take(self, index) -> "ShardedRows":
        """Some of the rows, still unread."""
        some = ShardedRows(self.shards, self.shard_of[index], self.row_of[index])
        some.__dict__["_form"] = self._form  # there may be none of them
        return some

    @staticmethod
    def concatenate(parts: list["ShardedRows"]) -> "ShardedRows":
        """One after the other; of one cache folder, so that shards have the same numbers in all parts."""
        return ShardedRows(
            parts[0].shards,
            np.concatenate([part.shard_of for part in parts]),
            np.concatenate([part.row_of for part in parts]),
        )

    def __getitem__(self, index) -> np.ndarray:
        shard_of, row_of = self.shard_of[index], self.row_of[index]
        if np.ndim(row_of) == 0:
            return np.array(self.shards[shard_of][row_of])
        result = np.empty((len(row_of), self.shape[1]), self.dtype)
        for shard in np.unique(shard_of):
            here = shard_of == shard
            result[here] = self.shards[shard][row_of[here]]
        return result

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype, copy=False)


def path_of(folder: pathlib.Path, number: int) -> pathlib.Path:
    """The file of a shard's rows."""
    return folder / f"shard-{number:05d}.npy"


def number_of(path: pathlib.Path) -> int:
    """Of a shard's file."""
    return int(path.stem.split("-")[1])


def listings(folder: pathlib.Path) -> list[pathlib.Path]:
    """The listings of the shards that are whole, by number."""
    paths = folder.glob("shard-*.json")  # copies that other programs make, "shard-00001 (1).json", are none
    return sorted((path for path in paths if re.fullmatch(r"shard-\d+", path.stem, re.ASCII)), key=number_of)


def read_listing(path: pathlib.Path) -> list[dict]:
    """The entries of a shard. Raises DataError where they are damaged."""
    try:
        entries = json.loads(path.read_text("utf-8"))
        if not (isinstance(entries, list) and all(map(_is_entry, entries))):
            raise ValueError("no list of items and their hashes")
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    return entries


def _is_entry(entry) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and isinstance(entry.get("error", ""), str)


def write_shard(folder: pathlib.Path, number: int, rows: list[np.ndarray], dtype: str, entries: list[dict]) -> None:
    """Write the rows, each [D], and then the listing, with which the shard counts."""
    path = path_of(folder, number)
    with writing_whole(path) as side:
        np.save(side, np.array(rows, dtype) if rows else np.empty((0, 0), dtype))
    write_whole(path.with_suffix(".json"), json.dumps(entries, indent=0))


def find_places(folder: pathlib.Path) -> dict[str, tuple[int, int] | str]:
    """For each known content hash the shard and row of its features, or why it can have none.

    A problem that is not noted as lasting, as no version of the package did before this one, is none: it may have been
    the disk's.
    """
    places: dict[str, tuple[int, int] | str] = {}
    for path in listings(folder):
        row = 0
        for entry in read_listing(path):
            if "error" not in entry:
                places[entry["sha256"]] = (number_of(path), row)
                row += 1
            elif entry.get("is_lasting"):
                places[entry["sha256"]] = entry["error"]
    return places


def _open(path: pathlib.Path) -> np.ndarray:
    """The array [n, D] of an `.npy` file, mapped. Raises DataError where it is not what is listed beside it."""
    num_rows = sum("error" not in entry for entry in read_listing(path.with_suffix(".json")))
    try:
        with_descriptor = np.lib.format.open_memmap(path, mode="r")  # checks size
        if with_descriptor.ndim != 2 or with_descriptor.dtype.kind != "f" or len(with_descriptor) != num_rows:
            raise ValueError(
                f"{with_descriptor.dtype} {list(with_descriptor.shape)}, where {num_rows} rows of floats are listed"
            )
    except (FileNotFoundError, ValueError) as error:
        raise _damaged(path, error) from error
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer()  # stays mapped when the file is closed
    return np.ndarray(with_descriptor.shape, with_descriptor.dtype, content, with_descriptor.offset)


def _damaged(path: pathlib.Path, error: Exception) -> DataError:
    return DataError(
        f"Received {path}, a damaged part of the feature cache ({error}). Find all such by "
        f"xbm-keras cache --dir={path.parent.parent} check, and delete that cache, which is then computed anew."
    )
