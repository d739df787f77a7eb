"""Backbone outputs on disk, computed once per item, used by every run, trial and evaluation.

A folder per backbone (architecture, weights, preprocessing, image size, dtype, picture decoder), and in it shards:
`shard-00000.npy` holds rows, `shard-00000.json` says which item each row is, by a hash of its content, or why an item
has none. So a moved or renamed picture is found again, and an added or changed one is computed alone. A shard counts
once its `.json` stands; both are written to the side, synced and renamed, so a killed run leaves whole shards, and goes
on after them. An item that could not be read for a reason that may pass, such as one of the disk, is not noted: the
next run tries it.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Literal

import filelock
import numpy as np
import tensorflow as tf

from xbm_keras import progress
from xbm_keras.arguments import Natural, Positive
from xbm_keras.atomic_files import remove_leftovers, write_whole
from xbm_keras.data.labels import counted
from xbm_keras.data.sources import DataError, Source, UnreadableItem
from xbm_keras.feature_cache import ray_extraction
from xbm_keras.feature_cache.digests import find_digests
from xbm_keras.feature_cache.extraction import compute_batches, default_batch_size
from xbm_keras.feature_cache.shards import (
    ShardedRows,
    Shards,
    find_places,
    listings,
    number_of,
    path_of,
    read_listing,
    write_shard,
)
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.stages.backbone.pyramid import output_positions

log = logging.getLogger("xbm_keras")


@dataclasses.dataclass(frozen=True)
class CachedFeatures:
    """Features of the items that could be read."""

    rows: ShardedRows
    """[n, D], in the order of `positions`; indexed like an array, read from disk when indexed."""
    positions: np.ndarray
    """[n] positions of these items in the source."""
    skipped: dict[str, str]
    """Key of each other item, and why it has no features."""
    num_computed: int
    """Items that were read for the backbone in this call; the rest was cached."""


def compute_features(
    source: Source,
    backbone: Backbone,
    cache_dir: str,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: Positive | None = None,
    shard_rows: int = 1024,
    ray_workers: Natural = 0,
    title: str = "features",
) -> CachedFeatures:
    """Features of all items of a source, from the cache where they are known.

    Memory does not grow with the number of items: one shard is held at a time. Processes that want the same folder wait
    for each other.

    Args:
        source: the items.
        backbone: the frozen network.
        cache_dir: the folder that holds all caches; made where it does not exist.
        dtype: of the rows on disk.
        batch_size: items per call of the network; by default 16 on a CPU, where more was measured slower, else 128.
        shard_rows: items per shard.
        ray_workers: at most so many workers of the Ray cluster at RAY_ADDRESS (without one: on this machine) read and
            compute, each of which holds the network and uses all cores that its machine has free, or a GPU, and this
            process writes; 0: this process does all. One cache for both.
        title: of the progress bar.

    Raises:
        DataError: where no item has features, where the disk is full, where Ray is missing or its workers fail.
    """
    identify = functools.partial(fingerprint, dtype=dtype, decoder=source.decoder)
    folder = pathlib.Path(os.path.expanduser(cache_dir)) / identify(backbone)[:16]
    with _told_of_disk(cache_dir):
        folder.mkdir(parents=True, exist_ok=True)
        digests, reasons = find_digests(source, folder.parent)
        to_retry = [i for i, reason in reasons.items() if not reason.is_lasting]
        with _alone_in(folder, backbone, dtype) as places:
            missing = {digest: i for i, digest in reversed(list(enumerate(digests))) if digest and digest not in places}
            wanted = sorted(missing.values())
            if wanted:
                if ray_workers:
                    compute = ray_extraction.engine(source, backbone, batch_size, ray_workers, identify)
                else:
                    size = batch_size or default_batch_size(bool(tf.config.list_physical_devices("GPU")))
                    compute = functools.partial(
                        compute_batches, source, backbone.as_function(), backbone.prepare, batch_size=size
                    )
                to_retry += _extract(source, digests, wanted, folder, dtype, shard_rows, compute, title, places)

    keys = source.items.keys
    found = {i: places[digest] for i, digest in enumerate(digests) if digest is not None}
    kept = {i: place for i, place in found.items() if not isinstance(place, str)}
    skipped = {str(keys[i]): str(reason) for i, reason in (reasons | found).items() if i not in kept}
    if to_retry:
        count, key = counted(len(to_retry), "item"), str(keys[to_retry[0]])
        told = "%s could not be read this time, such as %s (%s); the next run tries again."
        log.warning(told, count, key, skipped[key])
    if skipped and not kept:
        shown = "; ".join(f"{key}: {reason}" for key, reason in list(skipped.items())[:8])
        raise DataError(
            f"Received {counted(len(skipped), 'item')} of {len(keys)} without usable features: {shown}. Repair or "
            "remove them."
        )
    shard_of, row_of = np.array(list(kept.values())).T
    return CachedFeatures(ShardedRows(Shards(folder), shard_of, row_of), np.array(list(kept)), skipped, len(wanted))


def keep_columns(
    rows: ShardedRows, columns: np.ndarray, backbone: Backbone, cache_dir: str, dtype: str, decoder: str
) -> ShardedRows:
    """Some columns of cached features, written to the cache of the network that gives these alone, as if it had run.

    So each run, index and evaluation by that network finds them there.

    Args:
        rows: [n, D], of one cache folder.
        columns: [d] which.
        backbone: whose features they are, each row but for its length.
        cache_dir: the folder of all caches.
        dtype: of the rows on disk.
        decoder: of the source of the items.

    Returns:
        [n, d], the same items in the same order.

    Raises:
        DataError: where the disk is full.
    """
    whole = rows.shards.folder
    folder = whole.parent / fingerprint(backbone, dtype, decoder)[:16]
    shard_of, row_of = np.empty_like(rows.shard_of), np.empty_like(rows.row_of)
    with _told_of_disk(cache_dir):
        folder.mkdir(exist_ok=True)
        with _alone_in(folder, backbone, dtype) as places:
            number = _next_number(folder)
            for shard in np.unique(rows.shard_of):
                here = rows.shard_of == shard
                listing = read_listing(path_of(whole, shard).with_suffix(".json"))
                entries = [entry for entry in listing if "error" not in entry]
                wanted = np.unique(rows.row_of[here])
                new = [row for row in wanted if not isinstance(places.get(entries[row]["sha256"]), tuple)]
                if new:
                    taken = rows.shards[shard][new][:, columns]
                    write_shard(folder, number, list(taken), dtype, [entries[row] for row in new])
                    places |= {entries[row]["sha256"]: (number, place) for place, row in enumerate(new)}
                    number += 1
                found = np.array([places[entries[row]["sha256"]] for row in wanted], np.int64)
                shard_of[here], row_of[here] = found[np.searchsorted(wanted, rows.row_of[here])].T
    return ShardedRows(Shards(folder), shard_of, row_of)


@contextlib.contextmanager
def _told_of_disk(cache_dir: str) -> Iterator[None]:
    """Errors of the disk as a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = "is full; free some space" if error.errno == errno.ENOSPC else f"cannot be used: {error}"
        raise DataError(
            f"Received cache.dir {cache_dir!r}, which {reason}, or give another folder by cache.dir. Finished shards "
            "are kept, and the same command goes on after them."
        ) from error


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path, backbone: Backbone, dtype: str) -> Iterator[dict]:
    """While no other process writes to the folder of a backbone: what is known of each content, see `find_places`."""
    with filelock.FileLock(folder / "lock"):
        remove_leftovers(folder)
        _describe(folder, backbone, dtype)
        yield find_places(folder)


def _next_number(folder: pathlib.Path) -> int:
    return 1 + max(map(number_of, listings(folder)), default=-1)


def fingerprint(backbone: Backbone, dtype: str = "float32", decoder: str = "") -> str:
    """Hash of all that decides a feature, except the item.

    Architecture, weights, preprocessing, image size, dtype, and of encoded pictures the version of their decoder.
    """
    about = [
        _plain(backbone.network.get_config()),
        backbone.preprocessing,
        backbone.image_size,
        backbone.pooling,
        dtype,
        *output_positions(backbone.network),
        *([decoder] if decoder else []),
    ]
    result = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    if backbone.is_saved_model:
        top = pathlib.Path(backbone.network.filepath)
        for path in sorted(p for p in top.rglob("*") if p.is_file() and p.name != "fingerprint.pb"):
            result.update(path.relative_to(top).as_posix().encode())
            result.update(path.read_bytes())
    else:
        for weight in backbone.network.weights:
            value = np.ascontiguousarray(weight.value.numpy())
            result.update(repr((value.shape, str(value.dtype))).encode())
            result.update(value.tobytes())
    return result.hexdigest()


def _plain(config):
    """A layer's config without the names that Keras counts up in each process, and without file paths."""
    if isinstance(config, dict):
        left_out = (
            "name",
            "inbound_nodes",
            "input_layers",
            "output_layers",
            "build_config",
            "registered_name",
            "filepath",
        )
        return {key: _plain(value) for key, value in config.items() if key not in left_out}
    if isinstance(config, list | tuple):
        return [_plain(value) for value in config]
    return config


def _extract(source, digests, wanted, folder, dtype, shard_rows, compute, title, places) -> list[int]:
    """Compute the wanted items shard by shard, and note their places, or why they have none.

    Returns those that may yet have one. These are not written down: the next run tries them again.
    """
    number = _next_number(folder)
    shards = [wanted[start : start + shard_rows] for start in range(0, len(wanted), shard_rows)]
    to_retry = []
    with progress.bar(title, len(wanted)) as bar, contextlib.closing(compute(shards)) as batches:
        outcomes = _counted(batches, bar.advance)
        for shard in shards:
            entries: list[dict] = []
            rows: list[np.ndarray] = []
            for i, outcome in zip(shard, outcomes, strict=False):  # the outcomes go on with the next shard
                entry = {"sha256": digests[i], "key": str(source.items.keys[i])}
                if not isinstance(outcome, UnreadableItem):
                    places[digests[i]] = number, len(rows)
                    rows.append(outcome)
                else:
                    places[digests[i]] = str(outcome)
                    entry |= {"error": str(outcome), "is_lasting": True}
                    if not outcome.is_lasting:
                        to_retry.append(i)
                        continue
                entries.append(entry)
            if entries:
                write_shard(folder, number, rows, dtype, entries)
                number += 1
    return to_retry


def _counted(batches: Iterator[list], advance: Callable[[int], None]) -> Iterator:
    for batch in batches:
        advance(len(batch))
        yield from batch


def _describe(folder: pathlib.Path, backbone: Backbone, dtype: str) -> None:
    """Say in the folder what it holds, for people and for `list`."""
    about = {
        "network": backbone.network.name,
        "preprocessing": backbone.preprocessing,
        "image_size": backbone.image_size,
        "pooling": backbone.pooling,
        "outputs": getattr(backbone.network, "output_names", None),
        "dtype": dtype,
    }
    if not (folder / "backbone.json").is_file():
        write_whole(folder / "backbone.json", json.dumps(about, indent=1))
