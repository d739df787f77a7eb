"""Approximate nearest neighbours by USearch (extra [ann]): an HNSW graph under cosine similarity."""

import importlib
import pathlib

import numpy as np

from xbm_keras.data.sources import Items
from xbm_keras.index.gallery import Gallery


def build_of(gallery: Gallery):
    """A USearch index of a gallery. Raises ValueError where USearch is missing."""
    index = _usearch().Index(ndim=gallery.vectors.shape[1], metric="cos", dtype="f32")
    index.add(_keys(gallery), gallery.vectors)
    return index


def load(path: pathlib.Path):
    """The index that a file holds, which may be changed. Raises ValueError where USearch is missing."""
    return _usearch().Index.restore(str(path))


def change(index, gallery: Gallery, is_gone: np.ndarray, more: Gallery | None) -> None:
    """Take items out of the index of a gallery, by a mask [N], and more in."""
    index.remove(_keys(gallery)[is_gone])
    if more is not None:
        index.add(_keys(more), more.vectors)


def search_gallery(gallery: Gallery, index, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a gallery, int64, and cosine similarities, both [Q, min(k, N)]: of near items, most of them the nearest.

    Args:
        gallery: the items.
        index: of them.
        queries: [Q, E].
        k: answers of each.
    """
    keys = _keys(gallery)
    order = np.argsort(keys)
    found = index.search(queries, min(k, len(keys)))
    shape = (len(queries), -1)  # of one query USearch gives [k]
    rows = order[np.searchsorted(keys, found.keys.astype(np.int64).reshape(shape), sorter=order)]
    return rows, 1 - found.distances.astype(np.float32).reshape(shape)


def _keys(gallery: Gallery) -> np.ndarray:
    """A number for each item that stays when others come and go: [N] int64, as sample ids are."""
    return Items(gallery.ids, None, {}).sample_ids() if len(gallery.ids) else np.empty(0, np.int64)


def _usearch():
    try:
        return importlib.import_module("usearch.index")
    except ImportError as error:
        raise ValueError(
            f"Received an approximate index, and usearch cannot be imported ({error}); expected the extra [ann]. "
            'Install it with: pip install ".[ann]"'
        ) from error
