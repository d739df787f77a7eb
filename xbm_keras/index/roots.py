"""Which folder an item of an index came from: its id is the path below that folder, its root, under the root's name.

The folder that an index is built from has no name, and its ids are paths alone; each further one has. An index knows
its roots by the hash of their place, so that it tells no paths to whom it is given.
"""

import hashlib
import os
import pathlib

from xbm_keras.data.labels import printable


def place_of(folder: str | os.PathLike) -> str:
    """What tells a folder from others, whichever way it is written and linked to."""
    return hashlib.sha256(os.fsencode(os.path.realpath(os.path.expanduser(folder)))).hexdigest()[:16]


def choose_root(folder: str, name: str | None, roots: dict[str, str]) -> str:
    """The name of a folder's root.

    Args:
        folder: of pictures.
        name: that the user gave it, "" for none; None for the one that the index knows it by, else the folder's own.
        roots: name to place of the index's folders.

    Raises:
        ValueError: for a name that is no part of a path, or that the index knows another folder by.
    """
    place = place_of(folder)
    if name is None:
        known = [each for each, other in roots.items() if other == place]
        name = known[0] if known else pathlib.Path(os.path.abspath(os.path.expanduser(folder))).name
        if not name and not known:
            raise ValueError(f"Received --pictures {folder!r}, a folder without a name; give it one by --root.")
        if roots.get(name, place) != place:
            raise ValueError(
                f"Received --pictures {folder!r}, and the index knows another folder by the name {name!r}; expected "
                "one folder for each. Give this one another name by --root; or, if it is that folder, moved, "
                f"--root={name}."
            )
    if name in (".", "..") or any(sign in name for sign in "/\\\0"):
        raise ValueError(f"Received --root {name!r}; expected a name without slashes, or '' for none.")
    return name


def id_of(root: str, path: str) -> str:
    """The id of the picture at a path below a root, as text that can be written as UTF-8."""
    return printable(f"{root}/{path}" if root else path)


def named_folder(text: str) -> tuple[str, pathlib.Path]:
    """Root and folder of "root=folder", or of a folder alone, whose root has no name.

    Raises ValueError where there is no such folder.
    """
    root, sign, folder = text.partition("=")
    is_folder = pathlib.Path(text).is_dir() or not sign or "/" in root
    root, folder = ("", text) if is_folder else (root, folder)
    if not pathlib.Path(folder).is_dir():
        raise ValueError(f"Received --pictures {text}, which is no folder; expected that of pictures. Mend the path.")
    return root, pathlib.Path(folder)


def picture_of(item: str, folders: dict[str, pathlib.Path]) -> pathlib.Path | None:
    """The file of an item, in the folder of its root and nowhere else; folders by the names of their roots."""
    for root, folder in folders.items():
        prefix = f"{root}/" if root else ""
        path = folder / item.removeprefix(prefix)
        if item.startswith(prefix) and path.resolve().is_relative_to(folder.resolve()) and path.is_file():
            return path
    return None
