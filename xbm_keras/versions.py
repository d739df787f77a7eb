"""Versions in TF Serving's layout, `folder/<number>/`: written whole or not at all, the highest number counts."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

from xbm_keras.atomic_files import sync


def versions(folder: pathlib.Path) -> list[pathlib.Path]:
    """The oldest first."""
    return [folder / str(number) for number in _numbers(folder)]


def latest_version(folder: pathlib.Path) -> pathlib.Path:
    """The newest version. Raises ValueError where there is none."""
    found = versions(folder)
    if not found:
        raise ValueError(f"Received {str(folder)!r}, which holds no version; expected a folder such as {folder}/1.")
    return found[-1]


def delete_older(folder: pathlib.Path, num_kept: int) -> None:
    """Delete all but the newest versions."""
    for version in versions(folder)[:-num_kept]:
        shutil.rmtree(version)


@contextlib.contextmanager
def new_version(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder to fill, which becomes the next version when the block ends without an error.

    Until then it has a name that no server takes for a version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = (_numbers(folder) or [0])[-1] + 1
    side = folder / f"{number}.tmp"
    shutil.rmtree(side, ignore_errors=True)  # of a process that was killed
    side.mkdir()
    try:
        yield side
        for path in (*side.rglob("*"), side):
            sync(path)
        side.rename(folder / str(number))
        sync(folder)
    finally:
        shutil.rmtree(side, ignore_errors=True)


def _numbers(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())
