"""Approximate search by a library: which there are, and what finds the items of a gallery by one.

Letters: Q queries, N items, E embedding width, k answers.
"""

import pathlib
from typing import Protocol

import numpy as np
import pyarrow

from xbm_keras.data.labels import as_objects
from xbm_keras.data.sources import Items
from xbm_keras.index.faiss_lists import FaissLists
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.lance_table import LanceTable
from xbm_keras.index.usearch_graph import USearchGraph
from xbm_keras.index.where import Condition


class Engine(Protocol):
    """Items under keys, int64, by a library that finds most of those whose vectors [N, E] are nearest."""

    file: str
    """Its name in a version of an index, of a file or a folder."""

    @classmethod
    def build(cls, gallery: Gallery, keys: np.ndarray) -> "Engine":
        """One of these items. Raises ValueError where the library is missing."""

    @classmethod
    def load(cls, path: pathlib.Path) -> "Engine":
        """The one that a path holds, which may be changed. Raises ValueError where the library is missing."""

    def save(self, path: pathlib.Path) -> None:
        """Write it, where there is nothing yet. What changed before may be found from then on only."""

    def __len__(self) -> int: ...

    def add(self, gallery: Gallery, keys: np.ndarray) -> None:
        """Take in items under new keys [n]."""

    def remove(self, keys: np.ndarray) -> None:
        """Take out the vectors of keys [n], all of which are there."""

    def search(self, queries: np.ndarray, k: int, among: Condition | None) -> tuple[np.ndarray, np.ndarray]:
        """Keys and cosine similarities [Q, k] of near items, best first; the key is -1 where too few are found.

        Args:
            queries: [Q, E], one at least.
            k: 1 to N.
            among: where only some items are to be found. Raises ConditionError where the library has no filter.
        """


ENGINES: dict[str, type[Engine]] = {"usearch": USearchGraph, "faiss": FaissLists, "lancedb": LanceTable}


class ApproximateSearch:
    """An engine, and the items that it finds.

    Args:
        items: N rows.
        engine: of their vectors, under `keys_of` their ids.
    """

    def __init__(self, items: pyarrow.Table, engine: Engine):
        self.engine = engine
        self._items = items
        self._keys = keys_of(as_objects(items["id"].to_pylist()))
        self._order = np.argsort(self._keys)

    def find(self, queries: np.ndarray, k: int, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the items, int64, and cosine similarities, both [Q, min(k, N)]; row -1 where too few are found.

        Args:
            queries: [Q, E].
            k: answers of each.
            where: a condition, where only some items are to be found: see `meets`.

        Raises:
            ConditionError: for a condition that cannot be read, or an engine that has no filter.
        """
        k, among = min(k, len(self._keys)), Condition(self._items, self._keys, where) if where else None
        if not k or not len(queries):  # which libraries refuse
            return np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float32)
        found, similarities = self.engine.search(queries, k, among)
        places = np.searchsorted(self._keys, found, sorter=self._order).clip(max=len(self._keys) - 1)
        return np.where(found < 0, -1, self._order[places]), similarities


def keys_of(ids: np.ndarray) -> np.ndarray:
    """A number for each of some ids [N] that stays when other items come and go: int64, as sample ids are."""
    return Items(ids, None, {}).sample_ids() if len(ids) else np.empty(0, np.int64)


def load_engine(version: pathlib.Path) -> Engine | None:
    """The engine that a version of an index holds; None where it has none."""
    return next((each.load(version / each.file) for each in ENGINES.values() if (version / each.file).exists()), None)
