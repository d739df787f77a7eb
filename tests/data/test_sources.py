"""Sources: folders, tables, arrays, vectors; and what is wrong with them."""

import errno
import io
import pathlib
import pickle

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
        sources.ImageTable(str(folder), "items.csv", labels="lable")
    (folder / "items.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="without items"):
        sources.ImageTable(str(folder), "items.csv")


def test_a_table_of_which_no_path_leads_to_a_picture(folder):
    (folder / "items.csv").write_text("path,label\nnope.jpg,1\npear/1.png,2\n")
    source = sources.ImageTable(str(folder), "items.csv")
    source.require_pictures()  # one may be missing
    (folder / "pear/1.png").unlink()
    with pytest.raises(DataError, match=r"none of whose 2 paths is .*, such as 'nope\.jpg'; .* Set data\.root"):
        source.require_pictures()


def test_a_missing_picture_is_unreadable(folder):
    (folder / "items.csv").write_text("path,label\nnope.jpg,1\n")
    source = sources.ImageTable(str(folder), "items.csv")
    assert source.stamp(0) is None
    for read in (source.digest, source.load):
        with pytest.raises(UnreadableItem, match="No such file") as error:
            read(0)
        assert not error.value.is_lasting


def test_a_corrupt_picture_stays_unreadable_and_a_failing_disk_does_not(folder, monkeypatch):
    (folder / "pear/1.png").write_bytes(b"no picture")
    source = sources.ImageFolder(str(folder))
    with pytest.raises(UnreadableItem) as error:
        source.load(0)
    assert error.value.is_lasting

    def failing(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pathlib.Path, "read_bytes", failing)
    with pytest.raises(UnreadableItem, match="Input/output error") as error:
        source.load(0)
    assert not error.value.is_lasting
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.is_lasting) == ("Input/output error", False)


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match="which is no folder"):
        sources.ImageFolder(str(tmp_path / "nope"))
    with pytest.raises(DataError, match="holds no pictures in folders"):
        sources.ImageFolder(str(tmp_path))
    for part in ("train", "Test"):
        (tmp_path / f"parts/{part}/cat").mkdir(parents=True)
        (tmp_path / f"parts/{part}/cat/a.png").write_bytes(encoded("PNG"))
    with pytest.raises(DataError, match=r"whose folders are Test and train: parts, .* data\.root=.*/train"):
        sources.ImageFolder(str(tmp_path / "parts")).require_classes()
