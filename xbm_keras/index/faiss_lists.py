"""Approximate nearest neighbours by FAISS (extra [ann]): lists about k-means centres, the nearest of which are read.

Lists, and no graph of FAISS, since items come and go: its HNSW removes nothing.
"""

import pathlib

import numpy as np

from xbm_keras.geometry import unit_rows
from xbm_keras.index.extras import import_library
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.where import Condition

LISTS = 4.0  # times the square root of the number of items, as FAISS's guide has it
POINTS_PER_LIST = 39  # with fewer k-means has too little to learn from; more only make it slower
LISTS_READ = 64


class FaissLists:
    """An engine (see `xbm_keras.index.approximate`) that filters."""

    file = "approximate.faiss"

    def __init__(self, index):
        self._index = index

    @classmethod
    def build(cls, gallery: Gallery, keys: np.ndarray) -> "FaissLists":
        """Lists of vectors [N, E] of items under keys [N] int64."""
        faiss = import_library("faiss", "ann")
        vectors = gallery.vectors
        num_lists = max(1, min(int(LISTS * len(vectors) ** 0.5), len(vectors) // POINTS_PER_LIST))
        width = vectors.shape[1]
        index = faiss.index_factory(width, f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = POINTS_PER_LIST
        index.train(vectors if len(vectors) else np.zeros((1, width), np.float32))
        index.add_with_ids(vectors, keys)
        return cls(index)

    @classmethod
    def load(cls, path: pathlib.Path) -> "FaissLists":
        """The lists that a file holds."""
        return cls(import_library("faiss", "ann").read_index(str(path)))

    def save(self, path: pathlib.Path) -> None:
        """Write them."""
        import_library("faiss", "ann").write_index(self._index, str(path))

    def __len__(self) -> int:
        return self._index.ntotal

    def add(self, gallery: Gallery, keys: np.ndarray) -> None:
        """Take in items under new keys [n]."""
        self._index.add_with_ids(gallery.vectors, keys)

    def remove(self, keys: np.ndarray) -> None:
        """Take out keys [n]."""
        self._index.remove_ids(keys)

    def search(self, queries: np.ndarray, k: int, among: Condition | None) -> tuple[np.ndarray, np.ndarray]:
        """Keys and cosine similarities [Q, k]; the fewer items are to be found, the more lists are read."""
        faiss = import_library("faiss", "ann")
        num_wanted = len(self) if among is None else len(among.keys)
        num_read = min(self._index.nlist, int(np.ceil(LISTS_READ * len(self) / max(1, num_wanted))))
        chosen = None if among is None else faiss.IDSelectorBatch(among.keys)
        options = faiss.SearchParametersIVF(nprobe=num_read, sel=chosen)
        similarities, keys = self._index.search(unit_rows(queries), k, params=options)
        return keys, similarities
