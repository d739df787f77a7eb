"""Damaged caches and pictures, a disk that is full or does not answer, and the tool that looks after caches."""

import errno
import json
import os
import shutil

import filelock
import numpy as np
import pytest

from tests.feature_cache.small import Moody, small_backbone
from tests.fresh_processes import run_python
from xbm_keras import atomic_files
from xbm_keras.cli import cache
from xbm_keras.data.sources import DataError, ImageFolder
from xbm_keras.feature_cache.cache import compute_features


def test_corrupt_pictures_are_skipped_and_named(compute, photos):
    (photos / "class1/01.png").write_bytes(b"")
    (photos / "class2/02.png").write_bytes((photos / "class2/02.png").read_bytes()[:50])
    result = compute()
    assert sorted(result.skipped) == ["class1/01.png", "class2/02.png"]
    assert result.skipped["class1/01.png"] == "an empty file"
    assert len(result.rows) == len(result.positions) == 9
    assert compute().skipped == result.skipped  # remembered, not read again


def test_only_corrupt_pictures_is_an_error(compute, photos):
    for path in photos.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"11 items of 11"):
        compute()


def test_a_full_disk_is_told_and_loses_nothing(compute, tmp_path, monkeypatch):
    sync, calls = atomic_files.sync, []

    def full(path):
        calls.append(path)
        if len(calls) > 8:  # four files, and their folders
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    monkeypatch.setattr(atomic_files, "sync", full)
    with pytest.raises(DataError, match=r"is full; free some space.*by cache\.dir"):
        compute()
    monkeypatch.setattr(atomic_files, "sync", sync)
    assert not list(tmp_path.rglob(f"{atomic_files.PREFIX}*"))
    assert compute().num_computed == 7  # the first shard of four was kept


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOENT, errno.EMFILE, errno.ENOSPC])
def test_what_the_disk_did_not_give_is_told_and_tried_again(photos, tmp_path, caplog, number):
    (photos / "class0/03.png").write_bytes(b"no picture")
    source, backbone, cache = Moody(str(photos), OSError(number, os.strerror(number))), small_backbone(), tmp_path / "c"
    source.no_digest, source.no_load = [0, 5], [2, 7]
    keys = source.items.keys
    sick = compute_features(source, backbone, str(cache), shard_rows=4)
    lasting = {"class0/03.png": "no picture of a known format"}
    assert sick.skipped == {**lasting, **dict.fromkeys(keys[[0, 2, 5, 7]], os.strerror(number))}
    assert sick.positions.tolist() == [3, 4, 6, 8, 9, 10]
    such = f"{keys[0]} ({os.strerror(number)})"
    assert f"4 items could not be read this time, such as {such}; the next run tries again" in caplog.text
    source.no_digest = []
    caplog.clear()
    compute_features(source, backbone, str(cache), shard_rows=4)
    such = f"{keys[2]} ({os.strerror(number)})"
    assert f"2 items could not be read this time, such as {such}; the next run tries again" in caplog.text
    source.no_load = []
    well = compute_features(source, backbone, str(cache), shard_rows=4)
    assert (well.num_computed, well.skipped) == (2, lasting)
    np.testing.assert_allclose(
        well.rows, compute_features(ImageFolder(str(photos)), backbone, str(tmp_path / "other")).rows, rtol=1e-5
    )
    assert compute_features(source, backbone, str(cache)).num_computed == 0


def test_a_disk_that_gives_nothing_is_an_error(photos, tmp_path):
    source = Moody(str(photos), OSError(errno.EIO, "Input/output error"))
    source.no_load = list(range(11))
    with pytest.raises(DataError, match=r"11 items of 11.*Input/output error"):
        compute_features(source, small_backbone(1), str(tmp_path / "cache"))
    source.no_load = []
    assert compute_features(source, small_backbone(1), str(tmp_path / "cache")).num_computed == 11


def test_problems_that_older_versions_kept_are_looked_at_once_more(compute, photos, tmp_path):
    (photos / "class0/03.png").write_bytes(b"no picture")
    compute()
    for listing in (tmp_path / "cache").glob("*/shard-*.json"):
        entries = json.loads(listing.read_text())
        for entry in entries:
            entry.pop("is_lasting", None)
        listing.write_text(json.dumps(entries))
    assert compute().num_computed == 1
    again = compute()
    assert (again.num_computed, again.skipped) == (0, {"class0/03.png": "no picture of a known format"})


def test_a_damaged_shard_is_named(compute, tmp_path, capsys):
    compute()
    shard = next((tmp_path / "cache").glob("*/shard-00001.npy"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"shard-00001\.npy, a damaged part.*xbm-keras cache --dir=\S+/cache check"):
        np.asarray(compute().rows)
    row = np.zeros((1, 4), np.float32)
    for rows in (row, row[0], np.full((9, 4), "a"), None):
        shard.unlink()
        if rows is not None:
            np.save(shard, rows)
        with pytest.raises(DataError, match=r"shard-00001\.npy, a damaged part"):
            np.asarray(compute().rows)
    for content in (b"", b"PK\3\4" + whole):  # by NumPy neither is a ValueError
        shard.write_bytes(content)
        with pytest.raises(DataError, match=r"shard-00001\.npy, a damaged part"):
            np.asarray(compute().rows)
    tool = [f"--dir={tmp_path / 'cache'}"]
    assert cache.main([*tool, "check"]) == 1
    shard.write_bytes(whole)
    for content in ("[", "[" * 100_000, "null", "3", "[1]", '["x"]', "[{}]", '[{"sha256": 1}]'):
        shard.with_suffix(".json").write_text(content)
        with pytest.raises(DataError, match=r"shard-00001\.json, a damaged part"):
            compute()
        assert cache.main([*tool, "check"]) == 1
    assert cache.main([*tool, "list"]) == 0
    assert "damaged" in capsys.readouterr().out


def test_copies_of_a_listing_are_no_shards(compute, tmp_path):
    compute()
    listing = next((tmp_path / "cache").glob("*/shard-00001.json"))
    shutil.copy(listing, listing.with_name("shard-00001 (1).json"))
    assert compute().num_computed == 0


def test_a_damaged_file_of_hashes_is_written_anew(compute, tmp_path):
    compute()
    (file,) = (tmp_path / "cache/hashes").glob("*.json")
    whole = file.read_text()
    size, time, digest = json.loads(whole)["class0/00.png"]
    entries = (5, None, {}, [size, time], [size, time, None], [size, time, [digest]])
    for content in (
        "",
        "[]",
        "[" * 100_000,
        '{"class0/00.png": [1',
        *(json.dumps({**json.loads(whole), "class0/00.png": entry}) for entry in entries),
    ):
        file.write_text(content)
        assert compute().num_computed == 0
        assert file.read_text() == whole


def test_the_tool_lists_checks_and_deletes(compute, tmp_path, capsys):
    compute()
    compute(dtype="float16")
    tool = [f"--dir={tmp_path / 'cache'}"]
    assert cache.main([*tool, "list"]) == 0
    shown = capsys.readouterr().out
    ids = sorted(p.parent.name for p in (tmp_path / "cache").glob("*/backbone.json"))
    assert len(ids) == 2
    assert all(name in shown for name in (*ids, "small", "float16", "8x8", "11"))
    assert cache.main([*tool, "check"]) == 0

    shard = next((tmp_path / "cache" / ids[0]).glob("shard-00001.npy"))
    shard.write_bytes(shard.read_bytes()[:-8])
    assert cache.main([*tool, "check"]) == 1
    out = capsys.readouterr().out
    assert "cannot be read" in out
    assert f"delete {ids[0]}" in out

    assert cache.main([*tool, "delete", "nope"]) == 2
    assert cache.main([*tool, "delete", ids[0]]) == 0
    assert [p.parent.name for p in (tmp_path / "cache").glob("*/backbone.json")] == [ids[1]]


def test_the_tool_leaves_alone_what_is_at_work(compute, tmp_path, capsys):
    compute()
    (folder,) = (path.parent for path in (tmp_path / "cache").glob("*/backbone.json"))
    (folder / f"{atomic_files.PREFIX}0.npy").symlink_to("gone")  # as a file that was renamed meanwhile
    tool = [f"--dir={tmp_path / 'cache'}"]
    assert cache.main([*tool, "list"]) == 0
    with filelock.FileLock(folder / "lock"):
        assert cache.main([*tool, "delete", "all"]) == 2
    assert "a process is at work" in capsys.readouterr().err
    assert compute().num_computed == 0
    assert cache.main([*tool, "delete", "all"]) == 0
    assert compute().num_computed == 11


def test_the_tool_runs_as_a_module(tmp_path):
    done = run_python(["-m", "xbm_keras.cli", "cache", f"--dir={tmp_path}", "check"])
    assert (done.returncode, done.stdout) == (0, "0 caches are whole.\n")
    assert "Warning" not in done.stderr  # TensorFlow may greet there
