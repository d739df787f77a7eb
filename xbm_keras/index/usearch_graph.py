"""Approximate nearest neighbours by USearch (extra [ann]): an HNSW graph under cosine similarity."""

import importlib
import pathlib

import numpy as np


def build(vectors: np.ndarray, keys: np.ndarray):
    """A USearch index of vectors [N, E] under keys [N] int64. Raises ValueError where USearch is missing."""
    index = _usearch().Index(ndim=vectors.shape[1], metric="cos", dtype="f32")
    index.add(keys, vectors)
    return index


def load(path: pathlib.Path):
    """The index that a file holds, which may be changed. Raises ValueError where USearch is missing."""
    return _usearch().Index.restore(str(path))


def search(index, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys [Q, k] int64 and cosine similarities [Q, k] float32 of near items, best first."""
    found = index.search(queries, k)
    shape = (len(queries), -1)  # of one query USearch gives [k]
    return found.keys.astype(np.int64).reshape(shape), 1 - found.distances.astype(np.float32).reshape(shape)


def _usearch():
    try:
        return importlib.import_module("usearch.index")
    except ImportError as error:
        raise ValueError(
            f"Received an approximate index, and usearch cannot be imported ({error}); expected the extra [ann]. "
            'Install it with: pip install ".[ann]"'
        ) from error
