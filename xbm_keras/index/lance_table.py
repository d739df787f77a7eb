"""Nearest neighbours and conditions by LanceDB (extra [stores]): a table of vectors and columns, on the disk."""

import datetime
import os
import pathlib
import re
import shutil
from typing import Any

import numpy as np
import pyarrow

from xbm_keras.atomic_files import link_or_copy
from xbm_keras.geometry import unit_rows
from xbm_keras.index.extras import import_library
from xbm_keras.index.gallery import Gallery, joined
from xbm_keras.index.where import Condition, ConditionError, without_nan

TABLE, KEY, VECTOR = "items", "__key", "__vector"
LISTS = 4.0  # times the square root of the number of items, as of FAISS
POINTS_PER_LIST = 39
LISTS_READ = 64
MIN_LISTED = 1000  # of fewer items all are read
MAX_UNLISTED = 0.1  # of the items; up to so many new ones are all read, since to list them writes all lists anew
UNUSED = datetime.timedelta(seconds=1)  # of files that the newest state does not need
SOURCE = re.compile(r", /\S+\.rs:\d+.*", re.DOTALL)  # where in its own code an error arose
BLOCK = 10_000  # keys of one condition, and rows that are written at a time


class LanceTable:
    """An engine (see `xbm_keras.index.approximate`) that keeps the items' columns, and filters by itself.

    It reads from the disk what a search needs. Its files never change: what comes and goes writes new ones beside those
    of the version before, which `save` links. Until then nothing that changed is found.

    Args:
        folder: of the database; None where there is none yet.
    """

    file = "approximate.lancedb"

    def __init__(self, folder: pathlib.Path | None = None):
        os.environ.setdefault("LANCEDB_LOG", "error")  # it warns of each list without an item
        self._lancedb = import_library("lancedb", "stores")
        self._table: Any = None if folder is None else self._lancedb.connect(folder).open_table(TABLE)
        self._folder = folder
        self._coming: list[pyarrow.Table] = []
        self._gone: list[int] = []

    @classmethod
    def build(cls, gallery: Gallery, keys: np.ndarray) -> "LanceTable":
        """A table of these items under keys [N] int64."""
        made = cls()
        made.add(gallery, keys)
        return made

    @classmethod
    def load(cls, path: pathlib.Path) -> "LanceTable":
        """The table that a folder holds."""
        return cls(path)

    def save(self, path: pathlib.Path) -> None:
        """Write it, with all that changed, into a new folder, which is the one to search from then on."""
        schema = joined([each.schema.empty_table() for each in (self._table, *self._coming) if each is not None]).schema
        here = {} if self._table is None else dict(zip(self._table.schema.names, self._table.schema.types, strict=True))
        database = self._lancedb.connect(path)
        if self._folder is not None and all(here.get(field.name, field.type) == field.type for field in schema):
            linked = lambda *names: link_or_copy(*map(pathlib.Path, names))  # noqa: E731
            shutil.copytree(self._folder, path, copy_function=linked, dirs_exist_ok=True)
            self._table = database.open_table(TABLE)
            for start in range(0, len(self._gone), BLOCK):
                self._table.delete(f"{KEY} in ({', '.join(map(str, self._gone[start : start + BLOCK]))})")
            if added := [field for field in schema if field.name not in here]:
                self._table.add_columns(added)
            for items in self._coming:
                self._table.add(items)
        else:  # the first one, or columns of other types
            former = [] if self._table is None else [self._table.to_arrow()]
            kept = [each.filter(pyarrow.array(~np.isin(each[KEY], self._gone))) for each in former]
            items = joined([*kept, *self._coming])
            self._table = database.create_table(TABLE, items.to_batches(BLOCK), schema=items.schema)
        self._folder, self._coming, self._gone = path, [], []
        if indexes := self._table.list_indices():
            if self._table.index_stats(indexes[0].name).num_unindexed_rows > MAX_UNLISTED * len(self):
                self._table.optimize(cleanup_older_than=UNUSED)
        elif len(self) >= MIN_LISTED:
            lists = max(1, min(int(LISTS * len(self) ** 0.5), len(self) // POINTS_PER_LIST))
            made = self._lancedb.index.IvfFlat("cosine", num_partitions=lists, sample_rate=POINTS_PER_LIST)
            self._table.create_index(VECTOR, config=made)

    def __len__(self) -> int:
        num_rows = 0 if self._table is None else self._table.count_rows()
        return num_rows - len(self._gone) + sum(map(len, self._coming))

    def add(self, gallery: Gallery, keys: np.ndarray) -> None:
        """Take in items under new keys [n]."""
        flat = pyarrow.array(np.ascontiguousarray(gallery.vectors, np.float32).ravel())
        vectors = pyarrow.FixedSizeListArray.from_arrays(flat, gallery.vectors.shape[1])
        columns = {name: _plain(gallery.items[name]) for name in gallery.items.column_names}
        columns = {name: column for name, column in columns.items() if not pyarrow.types.is_null(column.type)}
        if refused := [name for name in columns if "." in name or name in (KEY, VECTOR)]:
            raise ValueError(
                f"Received the column {refused[0]!r} for a table of LanceDB; expected a name without a dot, other than "
                f"{KEY} and {VECTOR}. Rename it, or build the index with --approximate faiss."
            )
        self._coming.append(pyarrow.table({**columns, KEY: pyarrow.array(keys, pyarrow.int64()), VECTOR: vectors}))

    def remove(self, keys: np.ndarray) -> None:
        """Take out keys [n]."""
        self._gone += keys.tolist()

    def search(self, queries: np.ndarray, k: int, among: Condition | None) -> tuple[np.ndarray, np.ndarray]:
        """Keys and cosine similarities [Q, k]; the fewer items are to be found, the more lists are read."""
        keys, similarities = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        asked = self._table.search(list(unit_rows(queries)), vector_column_name=VECTOR).distance_type("cosine")
        asked = asked.limit(k).select([KEY, "_distance"])
        try:
            num_wanted = len(self) if among is None else self._table.count_rows(among.sql)
            if among is not None:
                asked = asked.where(among.sql, prefilter=True)
            num_read = int(np.ceil(LISTS_READ * len(self) / max(1, num_wanted)))
            found = asked.nprobes(num_read).to_arrow().combine_chunks()
        except (ValueError, RuntimeError) as error:
            reason = SOURCE.sub("", str(error))
            if among is None or isinstance(error, RuntimeError):  # of its files
                raise ValueError(
                    f"Received a table of LanceDB that cannot be searched: {reason}; expected its files as they were "
                    "written. Build the index anew."
                ) from error
            raise ConditionError(
                f"Received a condition that LanceDB refuses: {reason}; expected one that it can tell. Write another "
                "one, or leave out --approximate, which searches exactly."
            ) from error
        is_one = "query_index" not in found.column_names
        rows = np.zeros(len(found), np.int64) if is_one else found["query_index"].to_numpy()
        order = np.lexsort((found["_distance"].to_numpy(), rows))
        rows = rows[order]
        places = np.arange(len(rows)) - np.searchsorted(rows, rows)
        keys[rows, places] = found[KEY].to_numpy()[order]
        similarities[rows, places] = 1 - found["_distance"].to_numpy()[order]
        return keys, similarities


def _plain(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """A column as LanceDB compares it: no numbered texts, times of a zone as those of UTC, NaN as missing."""
    if pyarrow.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    if pyarrow.types.is_timestamp(column.type) and column.type.tz:
        return column.cast(pyarrow.timestamp(column.type.unit, "UTC"))
    return without_nan(column)
