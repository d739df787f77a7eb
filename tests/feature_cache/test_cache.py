"""The feature cache: each item passes the backbone once, and nothing stale is ever served."""

import os
import shutil

import keras
import numpy as np
import PIL.Image
import pytest

from tests.feature_cache.small import small_backbone
from xbm_keras.config.yaml_files import check_config
from xbm_keras.data.arrays import ImageArray
from xbm_keras.data.sources import DataError, ImageFolder
from xbm_keras.data.views import augmented, turned
from xbm_keras.experiment.loading import load_dataset
from xbm_keras.feature_cache.cache import compute_features, fingerprint
from xbm_keras.feature_cache.digests import find_digests
from xbm_keras.stages.backbone.frozen import Backbone


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


def test_a_deleted_picture_is_gone_from_the_result(compute, photos):
    compute()
    (photos / "class1/01.png").unlink()
    assert len(compute().rows) == 10


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
    again = Backbone.from_file(str(tmp_path / "net.keras"))
    assert fingerprint(again) == fingerprint(backbone) == fingerprint(small_backbone())


def test_features_that_say_nothing_are_named(compute):
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalMaxPooling2D()])
    constant = keras.Sequential([network, keras.layers.Rescaling(0.0)])
    with pytest.raises(DataError, match="the backbone gave constant features"):
        compute(Backbone(constant, image_size=(8, 8)))
    broken = keras.Sequential([network, keras.layers.Rescaling(float("inf"))])
    with pytest.raises(DataError, match="the backbone gave NaN or infinite features"):
        compute(Backbone(broken, image_size=(8, 8)))


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
    with pytest.raises(DataError, match=r"6 training and 0 test.* 4 items could not be used, such as class1/"):
        load_dataset(check_config(config, "x"), small_backbone())


def test_a_cache_folder_that_cannot_be_made(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used"):
        compute_features(ImageFolder(str(photos)), small_backbone(), str(tmp_path / "file/cache"))


def test_a_cache_below_a_home_that_there_is_not(compute, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compute(cache_dir="~no_such_user/cache").num_computed == 11
    assert (tmp_path / "~no_such_user/cache").is_dir()


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
