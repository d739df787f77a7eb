"""The pictures below a folder, and what else lies there."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable

from xbm_keras.data.errors import DataError
from xbm_keras.data.labels import printable
from xbm_keras.data.pictures import PICTURE_SUFFIXES

# What systems put beside pictures, in lower case; so is all that begins with a dot.
OF_SYSTEMS = frozenset(
    ("@eadir", "#recycle", "@recycle", "$recycle.bin", "__macosx", "desktop.ini", "lost+found", "thumbs.db")
) | {"system volume information"}


@dataclasses.dataclass(frozen=True)
class Listing:
    """What lies below a folder."""

    pictures: list[str]
    """Paths relative to the folder, sorted."""
    ignored: dict[str, int]
    """How many files were left out, by suffix; and of other kinds, see `list_pictures`."""
    without_pictures: list[str]
    """Folders directly below it that hold no picture: of classes, those that are lost."""

    def require_pictures(self, received: str, expected: str) -> None:
        """Raises DataError where there are none; it says what was received, what is there and what was expected."""
        if not self.pictures:
            there = describe(self.ignored, self.without_pictures)
            raise DataError(
                f"Received {received}; {there and f'it has {there}; '}expected {expected} that end in "
                f"{', '.join(PICTURE_SUFFIXES)}."
            )


def list_pictures(top: pathlib.Path, only_in_folders: bool = False) -> Listing:
    """List a folder and those below it.

    Links are followed; a folder that is reached again by a link, or in a circle, is read once, where it really lies if
    that is below the top. Hidden files and folders, and those of systems such as `__MACOSX`, are left out. Left out and
    counted under their lower-case suffix are files that are no pictures which this installation reads, and under
    `"hidden"`, `"broken link"`, `"linked again"`, `"unreadable folder"` and `"in no class folder"` what the words say.

    Args:
        top: the folder.
        only_in_folders: whether pictures directly in it do not count, since no folder says their class.
    """
    ignored: collections.Counter = collections.Counter()
    pictures, links, folders = [], [], []
    visited = {os.path.realpath(top)}

    def read(folder: str, is_linked: bool) -> None:
        pending = [folder]
        while pending:
            relative = pending.pop()
            entries = _entries(os.path.join(top, relative), ignored)
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = f"{relative}/{entry.name}" if relative else entry.name
                if entry.name.startswith(".") or entry.name.lower() in OF_SYSTEMS:
                    ignored["hidden"] += 1
                elif _is_folder(entry):
                    if not relative:
                        folders.append(entry.name)
                    real = os.path.realpath(entry.path)
                    if entry.is_symlink():
                        links.append(path)
                    elif is_linked and real in visited:
                        ignored["linked again"] += 1
                    else:
                        visited.add(real)
                        pending.append(path)
                elif not os.path.isfile(entry.path):
                    ignored["broken link" if entry.is_symlink() else "no file"] += 1
                elif (suffix := os.path.splitext(entry.name)[1].lower()) not in PICTURE_SUFFIXES:
                    ignored[suffix or "no suffix"] += 1
                elif only_in_folders and not relative:
                    ignored["in no class folder"] += 1
                else:
                    pictures.append(path)

    read("", is_linked=False)  # all that really lies here, before any link
    while links:
        links.sort()
        link = links.pop(0)
        real = os.path.realpath(os.path.join(top, link))
        if real in visited:
            ignored["linked again"] += 1
        else:
            visited.add(real)
            read(link, is_linked=True)
    pictures.sort()
    used = {path.split("/")[0] for path in pictures if "/" in path}
    return Listing(pictures, dict(sorted(ignored.items())), sorted(set(folders) - used))


def _entries(folder: str, ignored: collections.Counter) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # no permission, or gone meanwhile
        ignored["unreadable folder"] += 1
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def describe(ignored: dict[str, int], without_pictures: Iterable[str] = ()) -> str:
    """Both for people: "12 .heic, 1 .txt; no picture in the folder(s) pears"; empty where there is nothing to say."""
    counts = ", ".join(f"{count} {what}" for what, count in ignored.items())
    names = ", ".join(without_pictures)
    return printable("; ".join(filter(None, (counts, names and f"no picture in {names}"))))
