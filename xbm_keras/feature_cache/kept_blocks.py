"""Kept blocks: what is computed block by block, on disk beside the features, so that a killed process goes on after it.

A folder per digest of all that decides the blocks, `<digest>/`: `blocks.json` says what they are, `block-000000.npy`
and so on are those that are finished.
"""

import contextlib
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence

import filelock
import numpy as np

from xbm_keras.atomic_files import remove_leftovers, write_whole, writing_whole

log = logging.getLogger("xbm_keras")
DESCRIPTION = "blocks.json"


def kept_blocks(
    folder: pathlib.Path, about: dict, starts: Sequence[int], compute: Callable[[int], np.ndarray]
) -> Iterator[np.ndarray]:
    """The blocks that begin at these rows: those that are on disk from there, the others computed, and put there.

    Another process that wants the same waits for this one. What cannot be written, or is damaged, is but computed.

    Args:
        folder: of these blocks alone; made where it does not exist.
        about: what they are, for people and for `xbm-keras cache`.
        starts: the first row of each.
        compute: from a start to the block, [n, k] int32.
    """
    with contextlib.ExitStack() as stack:
        is_writable = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(folder / "lock"))
            remove_leftovers(folder)
            write_whole(folder / DESCRIPTION, json.dumps(about, indent=1))
        except OSError as error:
            is_writable = _warn(folder, error)
        for start in starts:
            path = path_of(folder, start)
            block = read_block(path)
            if block is None:
                block = compute(start)
                if is_writable:
                    try:
                        with writing_whole(path) as side:
                            np.save(side, block)
                    except OSError as error:
                        is_writable = _warn(folder, error)
            yield block


def path_of(folder: pathlib.Path, start: int) -> pathlib.Path:
    """The file of a block."""
    return folder / f"block-{start:09d}.npy"


def blocks_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of all blocks."""
    return sorted(folder.glob("block-*.npy"))


def read_block(path: pathlib.Path) -> np.ndarray | None:
    """A finished block; None where there is none, or it is damaged."""
    try:
        block = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return block if block.ndim == 2 and block.dtype == np.int32 else None


def _warn(folder: pathlib.Path, error: OSError) -> bool:
    """That nothing more can be kept: False."""
    log.warning("%s cannot be written (%s): what is computed now is computed again by the next run.", folder, error)
    return False
