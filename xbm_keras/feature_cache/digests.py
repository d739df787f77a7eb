"""Content hashes of items. Those of files are kept by size and modification time, so that each is read for it once.

A file for each root of a source, `hashes/<hash of the root>.json`: key of an item to its size, time and hash.
"""

import hashlib
import json
import pathlib
import time

import filelock

from xbm_keras import progress
from xbm_keras.atomic_files import remove_leftovers, write_whole
from xbm_keras.data.sources import Source, UnreadableItem, map_in_threads
from xbm_keras.data.views import View

SECONDS_BETWEEN_WRITES = 30.0  # so much of the hashing a killed process loses
MAX_SHARE = 0.05  # of the time; where many items make writing slow, it is done less often


def find_digests(
    source: Source, cache_dir: pathlib.Path, positions=None
) -> tuple[list[str | None], dict[int, UnreadableItem]]:
    """Content hash of each item, None where it has none, and by its place in that list why.

    Unchanged size and time spare the reading. A view's hashes come from those of the plain pictures.

    Args:
        source: the items.
        cache_dir: the folder of all caches.
        positions: of the items; None for all.

    Raises:
        OSError: where the hashes cannot be kept.
    """
    if isinstance(source, View):
        chosen = source.positions if positions is None else source.positions[positions]
        plain, reasons_of_plain = find_digests(source.source, cache_dir, chosen)
        return [each and source.digest_of(each) for each in plain], reasons_of_plain
    positions = range(len(source.items.keys)) if positions is None else [int(i) for i in positions]
    path = _file(source, cache_dir)
    known = _read(path)

    def digest(position: int) -> list:
        stamp, old = source.stamp(position), known.get(str(source.items.keys[position]), [])
        if stamp and old[:2] == list(stamp):
            return old
        return [*(stamp or (None, None)), source.digest(position)]

    digests: list[str | None] = []
    reasons: dict[int, UnreadableItem] = {}
    fresh: dict[str, list] = {}
    due = time.monotonic() + SECONDS_BETWEEN_WRITES
    with progress.bar("looking for changes", len(positions)) as bar:
        try:
            for position, found in zip(positions, map_in_threads(digest, positions), strict=True):
                if isinstance(found, UnreadableItem):
                    reasons[len(digests)] = found
                    digests.append(None)
                else:
                    digests.append(found[2])
                    key = str(source.items.keys[position])
                    if found[0] is not None and known.get(key) is not found:
                        fresh[key] = found
                bar.advance()
                if fresh and time.monotonic() > due:
                    began = time.monotonic()
                    _add(path, fresh)
                    fresh = {}
                    took = time.monotonic() - began
                    due = time.monotonic() + max(SECONDS_BETWEEN_WRITES, took / MAX_SHARE)
        finally:  # Ctrl-C loses nothing
            if fresh:
                _add(path, fresh)
    return digests, reasons


def _file(source: Source, cache_dir: pathlib.Path) -> pathlib.Path:
    root = str(pathlib.Path(getattr(source, "root", "")).resolve())
    return cache_dir / "hashes" / f"{hashlib.sha256(root.encode(errors='surrogateescape')).hexdigest()[:16]}.json"


def _read(path: pathlib.Path) -> dict[str, list]:
    """What is known; nothing where the file is missing, or of what in it is damaged: it is but computed again."""
    try:
        known = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return {key: entry for key, entry in known.items() if _is_entry(entry)} if isinstance(known, dict) else {}


def _is_entry(entry) -> bool:
    """Whether it is a size, a time and a hash."""
    return isinstance(entry, list) and [type(each) for each in entry] == [int, int, str]


def _add(path: pathlib.Path, fresh: dict[str, list]) -> None:
    """Add hashes to what this and other processes wrote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.parent / "lock"):
        remove_leftovers(path.parent)
        write_whole(path, json.dumps({**_read(path), **fresh}, sort_keys=True))
