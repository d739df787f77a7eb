"""How items differ from the nearest ones of other labels, which is what `local` and `nda` look at.

Letters: n items, E width, k neighbours of each.
"""

import concurrent.futures
import contextlib
import itertools
import os
from collections.abc import Iterator

import numpy as np
import threadpoolctl

TILE = 512  # rows, and columns: smaller products are slower, larger ones leave the cache
FIRST_ROWS = 512  # whose nearest bound what is looked at
BLAS = threadpoolctl.ThreadpoolController()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Of small matrices, which take several times as long where each product of them wakes all threads of BLAS."""
    with BLAS.limit(limits=1, user_api="blas"):  # of this call: one object would note the limit of another call
        yield


@one_thread()
def scatter_to_nearest(rows: np.ndarray, labels: np.ndarray, num_neighbors: int) -> np.ndarray:
    """Sum [E, E] of `d d'` over the differences `d` of unit rows [n, E] from the nearest ones of other labels."""
    nearest = nearest_of_others(rows, labels, num_neighbors)
    neighbor_sums = np.empty_like(rows)
    for start in range(0, len(rows), TILE):
        tile = slice(start, start + TILE)
        neighbor_sums[tile] = rows[nearest[tile]].sum(axis=1)
    times_chosen = np.bincount(nearest.ravel(), minlength=len(rows)).astype(np.float32)
    # The sum over pairs (i, j) of (z_i - z_j)(z_i - z_j)', multiplied out.
    crossed = rows.T @ neighbor_sums
    return ((num_neighbors + times_chosen[:, None]) * rows).T @ rows - crossed - crossed.T


def nearest_of_others(rows: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Positions [n, k] of the nearest of unit rows [n, E] that have another label, the nearest first.

    Half of all tiles of similarities are made: each tells what is near to its rows, and what to its columns. What is
    farther than the k-th nearest of the first rows is dropped, so that few of each row are sorted.
    """
    tiles = [slice(start, start + TILE) for start in range(0, len(rows), TILE)]

    def similarities(some: slice, others: slice) -> np.ndarray:
        found = rows[some] @ rows[others].T
        found[labels[some, None] == labels[others]] = -np.inf
        return found

    def least_of(tile: slice) -> np.ndarray:
        found = similarities(tile, slice(FIRST_ROWS))
        # Products of other shapes have other last digits; and where fewer than k are others, the same label is none.
        return np.maximum(np.partition(found, -k, axis=1)[:, -k] - 1e-5, -2.0)

    def kept(found: np.ndarray, least: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        is_near = found >= least
        if 3 * np.count_nonzero(is_near) > found.size and found.shape[axis] > k:  # as near, such as 0 of sparse rows
            first = np.take(np.argpartition(found, -k, axis), np.arange(-k, 0), axis)
            is_first = np.zeros_like(is_near)
            np.put_along_axis(is_first, first, True, axis)
            is_near &= is_first
        flat = np.flatnonzero(is_near)
        return *np.divmod(flat, found.shape[1]), found.ravel()[flat]

    def search(pair: tuple[slice, slice]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        some, others = pair
        found = similarities(some, others)
        row, column, values = kept(found, least[some, None], axis=1)
        sides = [(some.start + row, others.start + column, values)]
        if some != others:
            row, column, values = kept(found, least[others], axis=0)
            sides.append((others.start + column, some.start + row, values))
        return sides

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        least = np.concatenate(list(pool.map(least_of, tiles)))
        found = itertools.chain(*pool.map(search, itertools.combinations_with_replacement(tiles, 2)))
        which, near, values = (np.concatenate(each) for each in zip(*found, strict=True))
    order = np.argsort(which - values / 4)  # of each row the most similar first: in float64 no digit is lost
    first = np.searchsorted(which[order], np.arange(len(rows)))
    return near[order][first[:, None] + np.arange(k)]
