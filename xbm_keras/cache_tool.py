"""`python -m xbm_keras.feature_cache`: list, check and delete feature caches."""

import argparse
import datetime
import json
import pathlib
import shutil
import sys

import numpy as np
import rich.box
import rich.console
import rich.table


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 1 where `check` found something wrong."""
    parser = argparse.ArgumentParser(prog="python -m xbm_keras.feature_cache", description="Feature caches on disk.")
    parser.add_argument("--dir", default="~/.cache/xbm_keras", help="the folder of the caches (cache.dir)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what is there")
    commands.add_parser("check", help="read every shard, and say which is damaged")
    delete = commands.add_parser("delete", help="remove caches")
    delete.add_argument("id", nargs="+", help="as `list` shows it, or 'all'")
    options = parser.parse_args(arguments)
    top = pathlib.Path(options.dir).expanduser()
    folders = sorted(path.parent for path in top.glob("*/backbone.json"))
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
    for folder in folders:
        if folder.name in options.id or "all" in options.id:
            shutil.rmtree(folder)
            print(f"Deleted {folder}")
    return 0


def show(folders: list[pathlib.Path]) -> None:
    """A table, one line per cache."""
    table = rich.table.Table(box=rich.box.SIMPLE)
    for column in ("id", "network", "preprocessing", "image size", "dtype", "items", "MB", "last written"):
        table.add_column(column, justify="right" if column in ("items", "MB") else "left")
    for folder in folders:
        about = json.loads((folder / "backbone.json").read_text())
        items = sum(len(json.loads(path.read_text())) for path in folder.glob("shard-*.json"))
        files = [path.stat() for path in folder.iterdir()]
        written = datetime.datetime.fromtimestamp(max(file.st_mtime for file in files))
        size = "x".join(map(str, about["image_size"] or ())) or "-"
        megabytes = sum(file.st_size for file in files) / 1e6
        table.add_row(
            folder.name, about["network"], about["preprocessing"] or "-", size, about["dtype"], f"{items:,}",
            f"{megabytes:,.1f}", f"{written:%Y-%m-%d %H:%M}",
        )  # fmt: skip
    console = rich.console.Console()
    rich.console.Console(width=None if console.is_terminal else 140).print(table)


def damage(folder: pathlib.Path) -> list[str]:
    """What is wrong with the shards of a cache, a line each."""
    problems = []
    for listing in sorted(folder.glob("shard-*.json")):
        shard = listing.with_suffix(".npy")
        try:
            expected = sum("error" not in entry for entry in json.loads(listing.read_text()))
            rows = np.load(shard, mmap_mode="r", allow_pickle=False)
            if len(rows) != expected:
                problems.append(f"{shard}: {len(rows)} rows, but {expected} listed; delete {folder.name}")
            elif not np.isfinite(rows).all():
                problems.append(f"{shard}: values that are not finite; delete {folder.name}")
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{shard}: cannot be read ({error}); delete {folder.name}")
    return problems
