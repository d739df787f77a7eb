"""Approximate nearest neighbours by USearch (extra [ann]): an HNSW graph under cosine similarity."""

import pathlib

import numpy as np

from xbm_keras.index.extras import import_library
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.where import Condition, ConditionError

ALONE = 2048  # first items of a graph, taken in by one thread: by several, which do not see each other's, some get lost


class USearchGraph:
    """An engine (see `xbm_keras.index.approximate`) that answers fastest, and knows no filter."""

    file = "approximate.usearch"

    def __init__(self, index):
        self._index = index

    @classmethod
    def build(cls, gallery: Gallery, keys: np.ndarray) -> "USearchGraph":
        """A graph of vectors [N, E] of items under keys [N] int64."""
        index = import_library("usearch.index", "ann").Index(ndim=gallery.vectors.shape[1], metric="cos", dtype="f32")
        graph = cls(index)
        graph.add(gallery, keys)
        return graph

    @classmethod
    def load(cls, path: pathlib.Path) -> "USearchGraph":
        """The graph that a file holds."""
        return cls(import_library("usearch.index", "ann").Index.restore(str(path)))

    def save(self, path: pathlib.Path) -> None:
        """Write it."""
        self._index.save(str(path))

    def __len__(self) -> int:
        return len(self._index)

    def add(self, gallery: Gallery, keys: np.ndarray) -> None:
        """Take in items under new keys [n]."""
        num_alone = min(len(keys), max(0, ALONE - len(self)))
        for part, threads in ((slice(num_alone), 1), (slice(num_alone, None), 0)):  # 0 is one for each core
            if len(keys[part]):
                self._index.add(keys[part], gallery.vectors[part], threads=threads)

    def remove(self, keys: np.ndarray) -> None:
        """Take out keys [n]."""
        self._index.remove(keys)

    def search(self, queries: np.ndarray, k: int, among: Condition | None) -> tuple[np.ndarray, np.ndarray]:
        """Keys and cosine similarities [Q, k]."""
        if among is not None:
            raise ConditionError(
                "Received a condition for approximate search by USearch, which has no filter; expected exact search, "
                "or another library. Leave out --approximate, or build the index with --approximate "
                "faiss or lancedb."
            )
        found = self._index.search(queries, k)
        shape = (len(queries), -1)  # of one query USearch gives [k]
        similarities = 1 - found.distances.astype(np.float32).reshape(shape)
        return found.keys.astype(np.int64).reshape(shape), similarities
