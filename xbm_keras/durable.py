"""Files that are there whole or not at all: a crash, also of the machine, leaves the old one or the new one."""

import os
import pathlib


def write_whole(path: pathlib.Path, text: str) -> None:
    """Write a text file, UTF-8."""
    side = path.with_name(path.name + ".tmp")
    side.write_text(text, "utf-8")
    replace(side, path)


def replace(side: pathlib.Path, path: pathlib.Path) -> None:
    """Give a file that was written beside it the name `path`."""
    sync(side)
    side.replace(path)
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Wait until the disk holds a file or a folder's list of names. Windows does so for files alone."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
