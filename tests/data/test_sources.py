"""Sources: folders, tables, arrays, vectors; and what is wrong with them."""

import io

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from xbm_keras.data import sources
from xbm_keras.data.sources import DataError, UnreadableItem, decode_picture


def encoded(format, mode="RGB", size=(20, 10), **options):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name in ("red apple/1.jpg", "red apple/deep/2.JPG", "pear/1.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded("PNG" if name.endswith("png") else "JPEG"))
    (tmp_path / "stray.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "pear/notes.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "L"),
        ("PNG", "LA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("PNG", "I;16"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("WEBP", "RGB"),
    ],
)
def test_every_format_becomes_rgb(format, mode):
    picture = decode_picture(encoded(format, "L" if mode == "I;16" else mode))
    assert picture.shape == (10, 20, 3)
    assert picture.dtype == np.uint8


def test_an_animation_gives_its_first_frame():
    frames = [PIL.Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert decode_picture(file.getvalue())[0, 0].tolist() == [255, 0, 0]


def test_exact_formats_keep_their_pixels():
    pixels = np.random.default_rng(0).integers(0, 255, (10, 20, 3), np.uint8)
    np.testing.assert_array_equal(decode_picture(encoded("PNG")), pixels)
    np.testing.assert_array_equal(decode_picture(encoded("BMP")), pixels)


@pytest.mark.parametrize("data", [b"", b"text", encoded("JPEG")[:200], encoded("PNG")[:60]])
def test_what_is_no_picture(data):
    with pytest.raises(UnreadableItem):
        decode_picture(data)


def test_image_folder(folder):
    source = sources.ImageFolder(str(folder))
    assert source.items.keys.tolist() == ["pear/1.png", "red apple/1.jpg", "red apple/deep/2.JPG"]
    assert source.items.labels.tolist() == ["pear", "red apple", "red apple"]
    assert source.load(1).shape == (10, 20, 3)
    assert source.digest(1) == source.digest(2) != source.digest(0)


def test_sample_ids_come_from_relative_paths(folder, tmp_path_factory):
    before = sources.ImageFolder(str(folder)).items.sample_ids()
    assert before.dtype == np.int64
    assert (before >= 0).all()
    moved = tmp_path_factory.mktemp("elsewhere") / "photos"
    folder.rename(moved)
    np.testing.assert_array_equal(sources.ImageFolder(str(moved)).items.sample_ids(), before)


def test_same_sample_id_is_refused():
    with pytest.raises(DataError, match="'a' and 'a', which have the same sample id"):
        sources.Items(np.array(["a", "b", "a"]), None, {}).sample_ids()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_image_table(folder, suffix):
    table = pd.DataFrame({"file": ["pear/1.png", "red apple/1.jpg"], "kind": ["NA", "null"], "part": ["train", "test"]})
    path = folder / f"items{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    source = sources.ImageTable(str(folder), path.name, "file", "kind")
    assert source.items.labels.tolist() == ["NA", "null"]  # names, not missing values
    assert source.items.columns["part"].tolist() == ["train", "test"]
    assert source.load(0).shape == (10, 20, 3)


def test_image_table_errors(folder):
    with pytest.raises(DataError, match="no file"):
        sources.ImageTable(str(folder), "items.csv")
    (folder / "items.csv").write_text("path,label\na.jpg,1\na.jpg,2\n")
    with pytest.raises(DataError, match=r"'a\.jpg' twice"):
        sources.ImageTable(str(folder), "items.csv")
    with pytest.raises(DataError, match=r"column 'lable', which items\.csv does not have; did you mean 'label'"):
        sources.ImageTable(str(folder), "items.csv", label_column="lable")
    (folder / "items.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="without items"):
        sources.ImageTable(str(folder), "items.csv")


def test_a_missing_picture_is_unreadable(folder):
    (folder / "items.csv").write_text("path,label\nnope.jpg,1\n")
    source = sources.ImageTable(str(folder), "items.csv")
    assert source.stamp(0) is None
    with pytest.raises(UnreadableItem, match="No such file"):
        source.digest(0)


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match="which is no folder"):
        sources.ImageFolder(str(tmp_path / "nope"))
    with pytest.raises(DataError, match="holds no pictures in folders"):
        sources.ImageFolder(str(tmp_path))


def test_image_array(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (4, 6, 5), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, label=[3, 3, 5, 2**40], part=["train"] * 4)
    source = sources.ImageArray(str(tmp_path / "x.npz"))
    assert source.items.labels.tolist() == [3, 3, 5, 2**40]
    assert source.items.columns["part"].tolist() == ["train"] * 4
    np.testing.assert_array_equal(source.load(1), np.stack([images[1]] * 3, axis=-1))
    np.save(tmp_path / "y.npy", np.stack([images] * 3, axis=-1))
    np.save(tmp_path / "l.npy", np.arange(4))
    source = sources.ImageArray(str(tmp_path / "y.npy"), labels=str(tmp_path / "l.npy"))
    np.testing.assert_array_equal(source.load(2)[..., 1], images[2])
    np.savez(tmp_path / "z.npz", images=images.astype(np.float32))
    with pytest.raises(DataError, match=r"dtype float32"):
        sources.ImageArray(str(tmp_path / "z.npz"))


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_features(tmp_path, suffix):
    f = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npz":
        np.savez(path, features=f, label=list("aabbc"))
    elif suffix == ".npy":
        np.save(path, f)
    else:
        pd.DataFrame({"features": list(f.astype(np.float32)), "label": list("aabbc")}).to_parquet(path)
    source = sources.Features(str(path))
    np.testing.assert_array_equal(source.features, f)
    if suffix == ".npy":
        assert isinstance(source.features, np.memmap)
        assert source.items.labels is None
    else:
        assert source.items.labels.tolist() == list("aabbc")


def test_features_errors(tmp_path):
    path = str(tmp_path / "x.npz")
    with pytest.raises(DataError, match="which is no file"):
        sources.Features(path)
    np.savez(path, feature=np.ones((2, 2)), label=[1, 2])
    with pytest.raises(DataError, match="did you mean 'feature'"):
        sources.Features(path)
    np.savez(path, features=np.arange(4), label=[1, 2])
    with pytest.raises(DataError, match=r"shape \(4,\) and dtype int64"):
        sources.Features(path)
    np.savez(path, features=[[1.0, 2], [np.nan, 1], [0, 0], [np.inf, 3]])
    with pytest.raises(DataError, match="3 feature vectors that are NaN, infinite or all zero: 1, 2, 3;"):
        sources.Features(path)
    np.savez(path, features=np.array([[1.0], ["x"]], object))  # would need pickle, which runs code
    with pytest.raises(DataError, match="cannot be read"):
        sources.Features(path)
    np.save(tmp_path / "l.npy", np.arange(3))
    np.savez(path, features=np.ones((2, 2)))
    with pytest.raises(DataError, match=r"labels of shape \(3,\) for 2 items"):
        sources.Features(path, labels=str(tmp_path / "l.npy"))
