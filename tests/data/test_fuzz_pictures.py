"""Damaged files of ten formats: none ends a run or a server, and both agree on what is a picture."""

import numpy as np
import pytest
import tensorflow as tf

from tests.export.test_saved_model import image_model
from tests.picture_files import encode, exif, noise
from xbm_keras.data import pictures
from xbm_keras.data.decoding import count_pixels
from xbm_keras.data.errors import UnreadableItem
from xbm_keras.data.sources import ImageFolder
from xbm_keras.export.saved_model import export_encoder

MAX_PIXELS = 1 << 21  # so that damaged headers do not ask for seconds each
BATCH = 250


def whole_files():
    rgb, rgba, grey = noise(height=40, width=50), noise(4, 30, 20), noise(1, 20, 30)
    return {
        "jpg": [
            encode(rgb, "JPEG", exif=exif(6, ">")), encode(rgb, "JPEG", progressive=True), encode(grey, "JPEG"),
            encode(rgb, "JPEG") + b"\xff\xda" * 99,
        ],
        "png": [encode(rgb, "PNG", exif=exif(5)), encode(rgba, "PNG"), encode(grey.squeeze() > 99, "PNG")],
        "gif": [encode(grey, "GIF", transparency=3), encode(grey, "GIF", interlace=1)],
        "bmp": [encode(rgb, "BMP"), encode(grey, "BMP"), encode(grey.squeeze() > 99, "BMP")],
        "webp": [encode(rgb, "WEBP", exif=exif(3)), encode(rgba, "WEBP"), encode(rgba, "WEBP", lossless=True)],
        "tiff": [encode(rgb, "TIFF", compression=c) for c in ("raw", "tiff_lzw", "jpeg")] + [encode(rgba, "TIFF")],
        "avif": [encode(rgb, "AVIF"), encode(rgba, "AVIF")],
        "jp2": [encode(rgb, "JPEG2000"), encode(grey, "JPEG2000")],
        "ppm": [encode(rgb, "PPM"), encode(grey, "PPM")],
        "qoi": [encode(rgb, "QOI"), encode(rgba, "QOI")],
    }  # fmt: skip


def mutated(data, rng):
    """A file that was cut, scribbled over, mostly where its header is, or put together of its own parts."""
    octets, kind = bytearray(data), rng.integers(5)
    if kind == 0:
        return data[: rng.integers(len(data))]
    if kind == 1:
        start, end = sorted(rng.integers(len(data), size=2))
        return data[:end] + data[start:]
    places = rng.integers(len(data) if kind == 2 else min(len(data), 200), size=rng.integers(1, 9))
    for place in places:
        octets[place] = rng.choice([0, 1, 127, 128, 254, 255, rng.integers(256)])
    return bytes(octets)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    model = image_model()
    version = export_encoder(model, tmp_path_factory.mktemp("export"), max_pixels=MAX_PIXELS)
    return model, tf.saved_model.load(str(version))


def check(served, folder, number, monkeypatch):
    """So many damaged files through a source's reading and `serve_bytes`."""
    monkeypatch.setattr(pictures, "TRAINING_PIXELS", MAX_PIXELS)
    files, rng = whole_files(), np.random.default_rng(0)
    names = list(files)
    (model, loaded), num_read = served, 0
    (folder / "all").mkdir()
    for start in range(0, number, BATCH):
        damaged = {}
        for i in range(start, start + BATCH):
            kind = names[i % len(names)]
            name = f"all/{i % BATCH:05d}.{kind}"
            damaged[name] = mutated(files[kind][rng.integers(len(files[kind]))], rng)
            (folder / name).write_bytes(damaged[name])
        source = ImageFolder(str(folder))
        assert source.items.keys.tolist() == list(damaged)
        read = list(source.read(range(BATCH), model.backbone.prepare))
        valid = loaded.signatures["serve_bytes"](bytes=tf.constant(list(damaged.values())))["valid"].numpy()
        for name, item, is_valid in zip(damaged, read, valid, strict=True):
            is_read = not isinstance(item, UnreadableItem)
            num_read += is_read
            if is_read and not is_valid:  # what TensorFlow does not know, and nothing else
                assert int(count_pixels(tf.constant(damaged[name]))) == -1, (start, name)
            assert is_read or not is_valid, (start, name, str(item))
    assert number / 10 < num_read < number


def test_some_damaged_files(served, tmp_path, monkeypatch):
    check(served, tmp_path, 500, monkeypatch)


@pytest.mark.slow
@pytest.mark.fuzz
def test_twenty_thousand_damaged_files(served, tmp_path, monkeypatch):
    check(served, tmp_path, 20_000, monkeypatch)
