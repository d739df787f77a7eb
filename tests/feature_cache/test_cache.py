"""The feature cache: each item passes the backbone once, and nothing stale is ever served."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import filelock
import keras
import numpy as np
import PIL.Image
import pytest

from tests.conftest import ROOT
from xbm_keras import atomic_files
from xbm_keras.cli import cache
from xbm_keras.config.yaml_files import check_config
from xbm_keras.data.arrays import ImageArray
from xbm_keras.data.sources import DataError, ImageFolder
from xbm_keras.data.views import augmented, turned
from xbm_keras.experiment.loading import load_dataset
from xbm_keras.feature_cache.cache import compute_features, fingerprint
from xbm_keras.feature_cache.digests import find_digests
from xbm_keras.stages.backbone.frozen import Backbone


def small_backbone(seed=0, image_size=(8, 8), units=5):
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [keras.Input((*image_size, 3)), keras.layers.Conv2D(units, 3), keras.layers.GlobalMaxPooling2D()],
        name="small",
    )
    return Backbone(network, image_size=image_size)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(11):
        path = tmp_path / f"photos/class{i % 3}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 255, (9, 7, 3), np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def compute(photos, tmp_path):
    def run(backbone=None, root=photos, **options):
        options = {"shard_rows": 4, "batch_size": 3, **options}
        return compute_features(
            ImageFolder(str(root)), backbone or small_backbone(), **{"cache_dir": str(tmp_path / "cache"), **options}
        )

    return run


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in pathlib.Path(folder).rglob("*") if p.is_file()}


def test_features_equal_the_backbone_and_are_computed_once(compute, photos):
    source, backbone = ImageFolder(str(photos)), small_backbone()
    first = compute()
    assert first.num_computed == len(source.items.keys) == 11
    for i in range(11):
        np.testing.assert_allclose(first.rows[i], backbone(source.load(i)[None])[0], rtol=1e-5, atol=1e-4)
    second = compute()
    assert second.num_computed == 0
    np.testing.assert_array_equal(first.rows, second.rows)


def test_rows_are_indexed_like_an_array(compute):
    rows = compute().rows
    whole = np.asarray(rows)
    assert rows.shape == whole.shape == (11, 5)
    np.testing.assert_array_equal(rows[np.array([9, 0, 5, 5])], whole[[9, 0, 5, 5]])
    np.testing.assert_array_equal(rows[2:7], whole[2:7])


def test_shards_are_plain_numpy_files(compute, tmp_path):
    compute(dtype="float16")
    shards = [np.load(p, mmap_mode="r") for p in sorted((tmp_path / "cache").glob("*/shard-*.npy"))]
    assert [s.shape for s in shards] == [(4, 5), (4, 5), (3, 5)]
    assert {s.dtype for s in shards} == {np.dtype(np.float16)}


def test_an_added_and_a_changed_picture_are_computed_alone(compute, photos):
    before = np.asarray(compute().rows)
    PIL.Image.new("RGB", (9, 9), "red").save(photos / "class0/99.png")
    added = compute()
    assert added.num_computed == 1
    PIL.Image.fromarray(np.random.default_rng(7).integers(0, 255, (9, 7, 3), np.uint8)).save(photos / "class0/00.png")
    changed = compute()
    assert changed.num_computed == 1
    assert (np.asarray(changed.rows)[0] != before[0]).any()


def test_a_moved_folder_is_still_a_hit(compute, photos):
    compute()
    assert compute(root=photos.rename(photos.with_name("renamed"))).num_computed == 0


@pytest.mark.parametrize(
    "other",
    [
        lambda: small_backbone(seed=1),
        lambda: small_backbone(image_size=(10, 8)),
        lambda: small_backbone(units=6),
        lambda: Backbone(small_backbone().network, "MobileNetV2", (8, 8)),
        lambda: Backbone(small_backbone().network, image_size=(8, 8), pooling="max"),
    ],
    ids=["weights", "image size", "architecture", "preprocessing", "pooling"],
)
def test_another_backbone_is_a_miss(compute, other):
    compute()
    assert compute(other()).num_computed == 11


def test_another_dtype_is_a_miss(compute):
    compute()
    assert compute(dtype="float16").num_computed == 11


def test_other_rules_of_decoding_are_a_miss_for_encoded_pictures_alone(compute, photos, tmp_path, monkeypatch):
    compute()
    monkeypatch.setattr(ImageFolder, "decoder", "pictures 1")
    assert compute().num_computed == 11
    assert augmented(ImageFolder(str(photos)), np.arange(3), 1).decoder == "pictures 1"
    assert fingerprint(small_backbone()) == fingerprint(small_backbone(), decoder=ImageArray.decoder)


def test_the_fingerprint_is_the_same_in_another_process_and_for_a_reloaded_network(tmp_path):
    backbone = small_backbone()
    backbone.network.save(tmp_path / "net.keras")
    keras.layers.Conv2D(3, 3)  # moves the counters behind automatic names
    again = Backbone.from_keras_file(str(tmp_path / "net.keras"))
    assert fingerprint(again) == fingerprint(backbone) == fingerprint(small_backbone())


def test_a_killed_run_goes_on_and_ends_byte_identical(compute, tmp_path, monkeypatch):
    (tmp_path / "photos/class1/05.png").write_bytes(b"no picture")
    compute()
    undisturbed = contents(tmp_path / "cache")
    (tmp_path / "cache").rename(tmp_path / "undisturbed")
    sync = atomic_files.sync

    for allowed in range(6):  # die before each of the files in turn, leaving half of it on the side

        def dying(path, calls=[allowed]):  # noqa: B006
            if path.is_file() and not calls[0]:
                path.with_name(f"{atomic_files.PREFIX}half.npy").write_bytes(b"half a file")
                raise KeyboardInterrupt
            calls[0] -= path.is_file()
            sync(path)

        monkeypatch.setattr(atomic_files, "sync", dying)
        with pytest.raises(KeyboardInterrupt):
            compute()
        monkeypatch.setattr(atomic_files, "sync", sync)
        assert compute().num_computed > 0
        assert contents(tmp_path / "cache") == undisturbed
        (tmp_path / "cache").rename(tmp_path / f"died after {allowed}")


def test_corrupt_pictures_are_skipped_and_named(compute, photos):
    (photos / "class1/01.png").write_bytes(b"")
    (photos / "class2/02.png").write_bytes((photos / "class2/02.png").read_bytes()[:50])
    result = compute()
    assert sorted(result.skipped) == ["class1/01.png", "class2/02.png"]
    assert result.skipped["class1/01.png"] == "an empty file"
    assert len(result.rows) == len(result.positions) == 9
    assert compute().skipped == result.skipped  # remembered, not read again
    with pytest.raises(DataError, match=r"2 item\(s\) of 11 .*class1/01\.png: an empty file.*cache\.on_error=skip"):
        compute(on_error="raise")


def test_only_corrupt_pictures_is_an_error(compute, photos):
    for path in photos.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"11 item\(s\) of 11"):
        compute()


def test_a_deleted_picture_is_gone_from_the_result(compute, photos):
    compute()
    (photos / "class1/01.png").unlink()
    assert len(compute().rows) == 10


def test_features_that_say_nothing_are_named(compute):
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalMaxPooling2D()])
    constant = keras.Sequential([network, keras.layers.Rescaling(0.0)])
    with pytest.raises(DataError, match="the backbone gave constant features"):
        compute(Backbone(constant, image_size=(8, 8)))
    broken = keras.Sequential([network, keras.layers.Rescaling(float("inf"))])
    with pytest.raises(DataError, match="the backbone gave NaN or infinite features"):
        compute(Backbone(broken, image_size=(8, 8)))


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


def test_a_cache_folder_that_cannot_be_made(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used"):
        compute_features(ImageFolder(str(photos)), small_backbone(), str(tmp_path / "file/cache"))


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
    command = [sys.executable, "-W", "error", "-m", "xbm_keras.cli", "cache", f"--dir={tmp_path}", "check"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "0 caches are whole" in done.stdout


class Moody(ImageFolder):
    """Pictures that cannot be hashed, or not be loaded, as long as they are in a list."""

    def __init__(self, root, error: OSError):
        super().__init__(root)
        self.error, self.no_digest, self.no_load = error, [], []
        self.num_hashed = 0

    def digest(self, position):
        self.num_hashed += 1
        if position in self.no_digest:
            raise self.error
        return super().digest(position)

    def load(self, position):
        if position in self.no_load:
            raise self.error
        return super().load(position)


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
    assert "4 item(s) could not be read this time" in caplog.text
    source.no_digest, source.no_load = [], []
    well = compute_features(source, backbone, str(cache), shard_rows=4)
    assert (well.num_computed, well.skipped) == (4, lasting)
    np.testing.assert_allclose(
        well.rows, compute_features(ImageFolder(str(photos)), backbone, str(tmp_path / "other")).rows, rtol=1e-5
    )
    assert compute_features(source, backbone, str(cache)).num_computed == 0


def test_items_the_disk_did_not_give_raise_where_that_is_asked_for(photos, tmp_path):
    source = Moody(str(photos), OSError(errno.EIO, "Input/output error"))
    source.no_load = [2]
    with pytest.raises(DataError, match=r"1 item\(s\) of 11.*class0/06\.png: Input/output error"):
        compute_features(source, small_backbone(), str(tmp_path / "cache"), on_error="raise")
    source.no_load = list(range(11))
    with pytest.raises(DataError, match=r"11 item\(s\) of 11.*Input/output error"):
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


def test_shards_need_no_descriptors(compute, photos):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 100
    expected = np.asarray(compute(shard_rows=1).rows)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 5, hard))
        rows = compute(shard_rows=1).rows
        np.testing.assert_array_equal(rows[::-1], expected[::-1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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


def test_too_few_items_that_could_be_read_are_counted(photos, tmp_path):
    for path in photos.glob("class1/*"):
        path.write_bytes(b"no picture")
    for i in range(8):
        copy = photos / f"class{3 + i // 2}/{i}.png"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(photos / "class0/00.png", copy)
    config = {
        "data": {"source": "image_folder", "root": str(photos), "split": {"num_train_classes": 6}},
        "backbone": {"kind": "glyph_net"},
        "cache": {"dir": str(tmp_path / "cache")},
    }
    with pytest.raises(DataError, match=r"6 training and 0 test.* 4 item.s. could not be used, such as class1/"):
        load_dataset(check_config(config, "x"), small_backbone())


def test_copies_of_a_listing_are_no_shards(compute, tmp_path):
    compute()
    listing = next((tmp_path / "cache").glob("*/shard-00001.json"))
    shutil.copy(listing, listing.with_name("shard-00001 (1).json"))
    assert compute().num_computed == 0


def test_a_cache_below_a_home_that_there_is_not(compute, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compute(cache_dir="~no_such_user/cache").num_computed == 11
    assert (tmp_path / "~no_such_user/cache").is_dir()


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


SLOW = """
import pathlib, sys, time
from tests.feature_cache.test_cache import small_backbone
from xbm_keras.data.sources import ImageFolder
from xbm_keras.feature_cache.cache import compute_features

class Slow(ImageFolder):
    def load(self, position):
        time.sleep(0.05)
        return super().load(position)

photos, cache = sys.argv[1:]
compute_features(Slow(photos), small_backbone(), cache, shard_rows=16, batch_size=4)
"""


def start(photos, cache):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SLOW, str(photos), str(cache)], env=environment)


@pytest.fixture
def many_photos(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "many/a").mkdir(parents=True)
    for i in range(160):
        PIL.Image.fromarray(rng.integers(0, 255, (9, 7, 3), np.uint8)).save(tmp_path / f"many/a/{i:03d}.png")
    return tmp_path / "many"


def test_kill_9_and_two_processes_at_once_end_byte_identical(many_photos, tmp_path):
    undisturbed, killed, shared = (tmp_path / name for name in ("undisturbed", "killed", "shared"))
    victim = start(many_photos, killed)
    while not list(killed.glob("*/shard-00002.json")):
        assert victim.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    victim.kill()  # SIGKILL
    victim.wait()
    done = len(list(killed.glob("*/shard-*.json")))
    assert 3 <= done < 10
    processes = [start(many_photos, folder) for folder in (undisturbed, killed, shared, shared)]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    assert contents(killed) == contents(undisturbed) == contents(shared)
    assert len(list(undisturbed.glob("*/shard-*.npy"))) == 10


KILLED_WHILE_HASHING = """
import os, signal, sys
from tests.feature_cache.test_cache import small_backbone
from xbm_keras.feature_cache import digests as item_digests
from xbm_keras.data.sources import ImageFolder
from xbm_keras.feature_cache.cache import compute_features

class Deadly(ImageFolder):
    def digest(self, position):
        if position == 150:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().digest(position)

item_digests.SECONDS_BETWEEN_WRITES, item_digests.MAX_SHARE = 0, 1e9
compute_features(Deadly(sys.argv[1]), small_backbone(), sys.argv[2])
"""


def test_a_killed_hashing_pass_goes_on(many_photos, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED_WHILE_HASHING, str(many_photos), str(tmp_path / "cache")]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    source = Moody(str(many_photos), OSError())
    compute_features(source, small_backbone(), str(tmp_path / "cache"))
    assert 10 <= source.num_hashed <= 160 - 80  # of 64 that were ahead of their use nothing is known


def test_an_interrupted_hashing_pass_goes_on(photos, tmp_path):
    source = Moody(str(photos), KeyboardInterrupt())
    source.no_digest = [8]
    with pytest.raises(KeyboardInterrupt):
        compute_features(source, small_backbone(), str(tmp_path / "cache"))
    source.no_digest, source.num_hashed = [], 0
    compute_features(source, small_backbone(), str(tmp_path / "cache"))
    assert source.num_hashed == 3


@pytest.mark.parametrize("kind", ["files", "array"])
def test_items_are_hashed_once_for_all_runs_and_views(photos, tmp_path, monkeypatch, kind):
    pixels = np.random.default_rng(0).integers(0, 255, (11, 8, 9, 3), np.uint8)
    np.save(tmp_path / "pictures.npy", pixels)
    cache, hashed = str(tmp_path / "cache"), []

    def make(**options):
        source = ImageFolder(str(photos)) if kind == "files" else ImageArray(str(tmp_path / "pictures.npy"), **options)
        digest = source.digest
        source.digest = lambda position: hashed.append(position) or digest(position)
        return source

    for _ in range(2):
        source = make()
        compute_features(source, small_backbone(), cache)
        views = turned(source, np.arange(1, 9), 1), turned(source, np.arange(11), 2), augmented(source, np.arange(5), 1)
        for view in views:
            found = compute_features(view, small_backbone(), cache)
            assert len(found.rows) == len(view.positions)
    assert sorted(hashed) == list(range(11))
    if kind == "array":
        inverted = compute_features(make(invert=True), small_backbone(), cache)
        assert inverted.num_computed == 11
        assert len(hashed) == 22
        pixels[4] += 1
        np.save(tmp_path / "pictures.npy", pixels)
        assert compute_features(make(), small_backbone(), cache).num_computed == 1


def test_a_view_has_the_digest_that_it_says(photos, tmp_path):
    view = turned(ImageFolder(str(photos)), np.array([2, 7]), 1)
    assert find_digests(view, tmp_path) == ([view.digest(0), view.digest(1)], {})
    assert find_digests(view, tmp_path, [1]) == ([view.digest(1)], {})


SHARED = """
import pathlib, sys, time
from tests.feature_cache.test_cache import small_backbone
from xbm_keras.data.sources import ImageFolder
from xbm_keras.feature_cache.cache import compute_features

photos, cache, me, other, rounds = sys.argv[1:]
cache = pathlib.Path(cache)
backbones = [small_backbone(seed) for seed in (0, 1)]
for backbone in backbones:
    compute_features(ImageFolder(photos), backbone, cache / f"warm{me}")
for number in range(int(rounds)):
    (cache / f"{me}-{number}").touch()
    while not (cache / f"{other}-{number}").exists():
        time.sleep(0.0005)
    for backbone in backbones[:: 1 if int(me) else -1]:
        result = compute_features(ImageFolder(photos), backbone, cache / f"round{number}", shard_rows=4)
        assert len(result.rows) == len(ImageFolder(photos).items.keys)
"""


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_two_processes_share_a_cold_cache(photos, tmp_path, rounds):
    (tmp_path / "shared").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SHARED, str(photos), str(tmp_path / "shared")]
    processes = []
    for me, other in ("01", "10"):
        with (tmp_path / f"{me}.txt").open("w") as errors:
            processes.append(subprocess.Popen([*command, me, other, str(rounds)], env=environment, stderr=errors))
    while any(process.poll() is None for process in processes) and not any(process.poll() for process in processes):
        time.sleep(0.05)
    failed = [number for number, process in enumerate(processes) if process.returncode]
    for process in processes:  # one that waits for the other in vain
        process.kill()
        process.wait()
    assert not failed, (tmp_path / f"{failed[0]}.txt").read_text()
    assert contents(tmp_path / "shared/round0") == contents(tmp_path / f"shared/round{rounds - 1}")
    assert not list(tmp_path.rglob(f"{atomic_files.PREFIX}*"))
