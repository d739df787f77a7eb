"""Files and folders that are there whole or not at all: a crash, of the machine too, leaves the old one or the new one.

All that the package writes as a whole goes through here. Each writer has a temporary file of its own, so that processes
which write the same file at once end with one of theirs, whole. Folders are versions in TF Serving's layout,
`folder/<number>/`, of which the highest number counts.
"""

import contextlib
import errno
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Iterator

PREFIX = ".tmp-"  # of files that are not whole yet; a longer name might not fit beside that of the file
DAY = 86_400.0  # seconds; longer than any file takes to be written


@contextlib.contextmanager
def writing_whole(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A path to write to, beside `path` and of the same suffix; the file gets its name when the block ends.

    Where the block ends with an error, `path` stays as it was, and what was written is removed. A link is followed,
    and what is no regular file, such as /dev/stdout, is written to as it is.

    Raises:
        OSError: where the file cannot be written.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    target = pathlib.Path(os.path.realpath(path)) if path.is_symlink() else path
    side = target.with_name(f"{PREFIX}{secrets.token_hex(8)}{target.suffix}")
    try:
        yield side
        sync(side)
        side.replace(target)
        sync(target.parent)
    except OSError as error:
        if error.errno is None and str(error).endswith(" written"):  # NumPy, of a disk that took a part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        side.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file; text as UTF-8, lines ending as they do. Raises OSError where it cannot be written."""
    with writing_whole(path) as side:
        side.write_bytes(content.encode() if isinstance(content, str) else content)


def link_or_copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Another name for a file that never changes; a copy where the disk knows no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove_leftovers(folder: pathlib.Path, older_than: float = 0.0) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Args:
        folder: of the files. Without `older_than` no other process may be writing into it: hold its lock.
        older_than: seconds since the last write to such a file.
    """
    for path in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # the writer, or another process here, was faster
            if path.is_file() and time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


def sync(path: pathlib.Path) -> None:
    """Wait until the disk holds a file or a folder's list of names. Windows does so for files alone."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
def writing_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder to fill, beside `path`, which gets its name when the block ends without an error.

    Until then it has a name that no server takes for a version.

    Raises:
        OSError: where it cannot be written, or `path` is there by then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(side, ignore_errors=True)  # of a process that was killed
    side.mkdir()
    try:
        yield side
        for each in (*side.rglob("*"), side):
            sync(each)
        side.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(side, ignore_errors=True)


@contextlib.contextmanager
def new_version(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder to fill, which becomes the next version when the block ends without an error."""
    number = (_numbers(folder) or [0])[-1] + 1
    with writing_folder(folder / str(number)) as side:
        yield side


def _numbers(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())
