"""Versions in TF Serving's layout, `folder/<number>/`: written whole or not at all, the highest number counts."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator


def latest_version(folder: pathlib.Path) -> pathlib.Path:
    """The newest version. Raises ValueError where there is none."""
    numbers = _numbers(folder)
    if not numbers:
        raise ValueError(f"Received {str(folder)!r}, which holds no version; expected a folder such as {folder}/1.")
    return folder / str(numbers[-1])


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
        side.rename(folder / str(number))
    finally:
        shutil.rmtree(side, ignore_errors=True)


def _numbers(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())
