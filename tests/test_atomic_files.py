"""Files that are there whole or not at all, whoever else writes them."""

import errno
import importlib
import os
import stat
import sys
import time

import numpy as np
import pytest

from tests.fresh_processes import run_fresh
from xbm_keras.atomic_files import PREFIX, remove_leftovers, write_whole, writing_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with writing_whole(path) as side:
        side.write_text("half of")
        assert (path.read_text(), side.suffix, side.parent) == ("old", ".json", tmp_path)
        side.write_text("ne\r\nw ä")
    assert path.read_bytes() == "ne\r\nw ä".encode()
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ValueError("content")])
def test_an_error_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.npy"
    write_whole(path, b"old")

    def write():
        with writing_whole(path) as side:
            side.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.npy"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_disk_that_takes_a_part_of_an_array_is_full(tmp_path):
    limits = importlib.import_module("resource")
    former = limits.getrlimit(limits.RLIMIT_FSIZE)

    def save():
        with writing_whole(tmp_path / "a.npy") as side:
            np.save(side, np.zeros(50_000))

    limits.setrlimit(limits.RLIMIT_FSIZE, (100_000, former[1]))
    try:
        with pytest.raises(OSError, match=r"No space left on device.*a\.npy") as raised:
            save()
    finally:
        limits.setrlimit(limits.RLIMIT_FSIZE, former)
    assert raised.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.json"
    with writing_whole(path) as first, writing_whole(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # whose block ends last
    assert names(tmp_path) == ["a.json"]


def test_a_long_name_a_link_and_the_usual_rights(tmp_path):
    long = tmp_path / ("n" * 250 + ".json")
    write_whole(long, "x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "elsewhere/real.json")
    for content in ("one", "two"):  # the first time there is nothing behind the link
        write_whole(tmp_path / "link.json", content)
        assert (tmp_path / "link.json").is_symlink()
        assert (tmp_path / "elsewhere/real.json").read_text() == content
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(os.stat(long).st_mode) == stat.S_IMODE(os.stat(plain).st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="a device that POSIX systems have")
def test_what_is_no_regular_file_is_written_to_as_it_is():
    code = "from xbm_keras.atomic_files import write_whole; write_whole('/dev/stdout', 'scores')"
    assert run_fresh(code) == "scores"


class OddError(OSError):
    """As libraries raise it: without a number, and perhaps a text."""


@pytest.mark.parametrize("arguments", [(), (7,), ("no such block",)])
def test_what_went_wrong_is_told_as_it_was(tmp_path, arguments):
    with pytest.raises(OddError) as raised, writing_whole(tmp_path / "a.npy"):
        raise OddError(*arguments)
    assert raised.value.args == arguments


def test_numpys_word_for_a_full_disk_is_the_systems(tmp_path):
    with pytest.raises(OSError, match="No space left") as raised, writing_whole(tmp_path / "a.npy"):
        raise OSError("8192 requested and 4096 written")
    assert raised.value.errno == errno.ENOSPC


def test_a_folder_in_the_way_is_an_error(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match=r"a\.json"):
        write_whole(tmp_path / "a.json", "x")
    assert names(tmp_path) == ["a.json"]


def test_leftovers_of_killed_processes_go(tmp_path):
    for name in (f"{PREFIX}0a.npy", f"{PREFIX}0b", "a.npy", ".lock"):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / f"{PREFIX}0a.npy", (time.time() - 100,) * 2)
    remove_leftovers(tmp_path, older_than=50)
    assert names(tmp_path) == [".lock", f"{PREFIX}0b", "a.npy"]
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "nowhere")
    assert names(tmp_path) == [".lock", "a.npy"]
