"""`xbm-keras cache`: list, check and delete caches of features, and of their neighbours."""

import datetime
import json
import os
import pathlib
import shutil
import sys

import filelock
import numpy as np
import rich.box
import rich.console
import rich.table

from xbm_keras.atomic_files import PREFIX
from xbm_keras.cli import parsers
from xbm_keras.data.errors import DataError
from xbm_keras.feature_cache.kept_blocks import DESCRIPTION, blocks_of, read_block
from xbm_keras.feature_cache.shards import Shards, listings, number_of, read_listing

DESCRIPTIONS = ("backbone.json", DESCRIPTION)  # of features, and of neighbours


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 1 where `check` found something wrong."""
    options = parsers.cache().parse_args(arguments)
    top = pathlib.Path(os.path.expanduser(options.dir))
    folders = sorted(path.parent for name in DESCRIPTIONS for path in top.glob(f"*/{name}"))
    if options.command == "list":
        show(folders)
        return 0
    if options.command == "check":
        problems = [problem for folder in folders for problem in damage(folder)]
        print("\n".join(problems) or f"{len(folders)} caches are whole.")
        return 1 if problems else 0
    unknown = set(options.id) - {folder.name for folder in folders} - {"all"}
    if unknown:
        print(f"Received {', '.join(sorted(unknown))}, which `list` does not show in {top}.", file=sys.stderr)
        return 2
    is_free = [remove(folder) for folder in folders if folder.name in options.id or "all" in options.id]
    return 0 if all(is_free) else 2


def remove(folder: pathlib.Path) -> bool:
    """Remove a cache that no process is at work in; whether there was none."""
    try:
        with filelock.FileLock(folder / "lock", timeout=0):
            for name in DESCRIPTIONS:  # with it goes what `list` and `check` know it by
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=os.name == "nt")  # where an open lock cannot be removed
    except filelock.Timeout:
        print(f"Received {folder.name}, in which a process is at work; wait for its end.", file=sys.stderr)
        return False
    print(f"Deleted {folder}")
    return True


def show(folders: list[pathlib.Path]) -> None:
    """A table, one line per cache."""
    table = rich.table.Table(box=rich.box.SIMPLE)
    for column in ("id", "network", "preprocessing", "image size", "dtype", "items", "MB", "last written"):
        table.add_column(column, justify="right" if column in ("items", "MB") else "left")
    for folder in folders:
        try:
            (file,) = (path for name in DESCRIPTIONS if (path := folder / name).exists())
            about = dict(json.loads(file.read_text("utf-8")))
            items = f"{about.get('items') or sum(map(len, map(read_listing, listings(folder)))):,}"
        except (ValueError, TypeError):  # what is damaged can be deleted by its id
            about, items = {}, "damaged"
        # Not what a process at work there is about to rename.
        files = [path.stat() for path in folder.iterdir() if not path.name.startswith(PREFIX)]
        written = datetime.datetime.fromtimestamp(max(file.st_mtime for file in files))
        size = "x".join(map(str, about.get("image_size") or ())) or "-"
        megabytes = sum(file.st_size for file in files) / 1e6
        table.add_row(
            folder.name, about.get("network") or about.get("what", "-"), about.get("preprocessing") or "-", size,
            about.get("dtype", "-"), items, f"{megabytes:,.1f}", f"{written:%Y-%m-%d %H:%M}",
        )  # fmt: skip
    console = rich.console.Console()
    rich.console.Console(width=None if console.is_terminal else 140).print(table)


def damage(folder: pathlib.Path) -> list[str]:
    """What is wrong with the shards or blocks of a cache, a line each."""
    problems, shards = [], Shards(folder)
    for listing in listings(folder):
        shard = listing.with_suffix(".npy")
        try:
            if not np.isfinite(shards[number_of(listing)]).all():
                problems.append(f"{shard}: values that are not finite; delete {folder.name}")
        except (OSError, DataError) as error:
            problems.append(f"{shard}: cannot be read ({error.__cause__ or error}); delete {folder.name}")
    bad = [block for block in blocks_of(folder) if read_block(block) is None]
    return problems + [f"{block}: cannot be read; the next run that needs it computes it anew" for block in bad]
