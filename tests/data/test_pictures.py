"""Pictures of every kind are read as a viewer shows them, and as an exported model reads them."""

import functools
import io
import os
import struct
import subprocess

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tests import picture_files
from tests.picture_files import HEIGHT, WIDTH, encode, exif, noise
from xbm_keras.data import pictures
from xbm_keras.data.decoding import MAX_PIXELS, decode_all
from xbm_keras.data.errors import UnreadableItem
from xbm_keras.data.pictures import decode_picture

EXACT, BY_PILLOW, TURNED = picture_files.exact(), picture_files.by_pillow_alone(), picture_files.turned()


@functools.cache
def server(max_pixels):
    """What an exported model sees of [1] strings, on a canvas of one size, and the picture's size in the last row."""

    def place(image):
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        size = tf.cast(tf.stack([height, width, 0]), tf.float32)
        shown = tf.pad(tf.cast(image, tf.float32), [[0, 127 - height], [0, 128 - width], [0, 0]])
        return tf.ensure_shape(tf.concat([shown, tf.tile(size[None, None], [1, 128, 1])], axis=0), [128, 128, 3])

    strings = tf.TensorSpec([None], tf.string)
    return tf.function(lambda data: decode_all(data, place, max_pixels), input_signature=[strings])


def in_graph(data, max_pixels=MAX_PIXELS):
    """What an exported model sees, or None where it refuses."""
    positions, images = server(max_pixels)(tf.constant([data]))
    if not len(positions):
        return None
    height, width, _ = images[0, -1, 0].numpy().astype(int)
    return images[0, :height, :width].numpy()


def test_pictures_without_loss():
    for name, (data, seen) in EXACT.items():
        np.testing.assert_array_equal(decode_picture(data), seen, name)
        np.testing.assert_array_equal(in_graph(data), seen, name)


def test_formats_that_tensorflow_does_not_know():
    for name, (data, seen) in BY_PILLOW.items():
        np.testing.assert_array_equal(decode_picture(data), seen, name)
        assert in_graph(data) is None, name


def test_exif_says_which_way_is_up():
    for name, (data, turn, make) in TURNED.items():
        seen = turn(decode_picture(make(exif(1))))
        assert seen.shape == ((WIDTH, HEIGHT, 3) if name.split()[-2] in "5678" else (HEIGHT, WIDTH, 3)), name
        np.testing.assert_array_equal(decode_picture(data), seen, name)
        if "tiff" not in name:
            np.testing.assert_array_equal(in_graph(data), seen, name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_turn_and_does_not_harm(kind):
    seen, good = decode_picture(encode(noise(), kind)), exif(6)
    assert decode_picture(encode(noise(), kind, exif=good)).shape == (WIDTH, HEIGHT, 3)
    for data in (
        b"", b"Exif\0\0", b"Exif\0\0II*\0", exif(0), exif(9), good[:24], good[:30], b"Exif\0\0XX" + good[8:],
        good[:10] + b"\xff\xff\xff\xff" + good[14:], good[:14] + b"\xff\xff" + good[16:22],
    ):  # fmt: skip
        np.testing.assert_array_equal(decode_picture(encode(noise(), kind, exif=data)), seen, repr(data))


def test_exif_of_a_thumbnail_or_behind_the_end_does_not_count():
    plain, other = encode(noise(), "JPEG"), encode(noise(seed=1), "JPEG", exif=exif(6))
    comment = b"\xff\xfe" + struct.pack(">H", len(other) + 2) + other
    for data in (plain[:2] + comment + plain[2:], plain + other):
        np.testing.assert_array_equal(decode_picture(data), decode_picture(plain))


def test_a_jpeg_with_megabytes_behind_its_end_is_read_by_all():
    """A motion photo: behind the picture lies a film, here with a thousand markers of scans."""
    plain = encode(noise(), "JPEG")
    film = np.random.default_rng(0).bytes(3_000_000) + b"\xff\xda" * 1000
    np.testing.assert_array_equal(decode_picture(plain + film), decode_picture(plain))
    np.testing.assert_array_equal(in_graph(plain + film), decode_picture(plain))


def test_markers_inside_a_segment_do_not_count():
    plain = encode(noise(), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 60_002) + b"\xff\xda" * 15_000 + b"\xff\xd9" * 15_000
    data = plain[:2] + b"\xff" * 7 + comment[1:] + plain[2:]  # markers may be filled up by FF
    np.testing.assert_array_equal(in_graph(data), decode_picture(plain))


@pytest.mark.parametrize("kind", ["CMYK", "L", "RGB"])
def test_colour_spaces_of_jpeg(kind):
    """As Pillow sees them, but for the rounding of another transform."""
    smooth = PIL.Image.fromarray(noise(3, 3, 4)).resize((40, 30), PIL.Image.Resampling.BICUBIC)
    data = encode(smooth.convert(kind), "JPEG", quality=95)
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode_picture(data) - expected).max() <= 10
    assert np.abs(decode_picture(data) - expected).mean() < 2
    np.testing.assert_array_equal(in_graph(data), decode_picture(data))


def test_a_frame_of_a_gif_lies_on_a_white_canvas():
    pixels = np.random.default_rng(1).integers(0, 16, (4, 5), np.uint8)
    picture = PIL.Image.fromarray(pixels).convert("P")
    picture.putpalette(noise(3, 1, 16)[0].tobytes())
    data = bytearray(encode(picture, "GIF", transparency=3))
    frame = data.index(b"\x2c", 13 + 48)
    data[6:10] = struct.pack("<HH", 12, 9)
    data[frame + 1 : frame + 5] = struct.pack("<HH", 3, 2)
    seen = np.full((9, 12, 3), 255, np.uint8)
    seen[2:6, 3:8] = np.where(pixels[..., None] == 3, 255, np.asarray(picture.convert("RGB")))
    np.testing.assert_array_equal(decode_picture(bytes(data)), seen)


def test_a_frame_of_a_webp_lies_on_a_white_canvas():
    rgba = noise(4, 4, 6)
    data = encode(
        rgba, "WEBP", lossless=True, exact=True, save_all=True, append_images=[PIL.Image.fromarray(noise(4, 4, 6, 1))]
    )
    frame = data.index(b"ANMF")
    data = bytearray(data)
    data[frame + 8 : frame + 14] = b"\2\0\0\1\0\0"  # 4 from the left, 2 from the top
    data[24:30] = b"\x0f\0\0\x09\0\0"  # a canvas of 16 x 10
    seen = np.full((10, 16, 3), 255, np.uint8)
    seen[2:6, 4:10] = picture_files.over_white(rgba)
    np.testing.assert_array_equal(decode_picture(bytes(data)), seen)


def test_long_animations_are_read_for_their_first_frame():
    frames = [PIL.Image.fromarray(noise(3, 100, 120, i)).quantize(64) for i in range(60)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    seen = np.asarray(frames[0].convert("RGB"))
    np.testing.assert_array_equal(decode_picture(data), seen)
    np.testing.assert_array_equal(in_graph(data, 20_000), seen)


def test_nothing_starts_a_program(monkeypatch):
    """Pillow opens EPS by Ghostscript, whatever the file is called."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"

    def refuse(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    for data in (program, b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, len(program), 0, 0, 0, 0) + bytes(2) + program):
        with pytest.raises(UnreadableItem, match="no picture of a known format"):
            decode_picture(data)


@pytest.mark.parametrize(
    "error",
    [struct.error("s"), SyntaxError("s"), OverflowError("s"), RuntimeError("s"), KeyError("s"), UserWarning("s")],
)
def test_whatever_a_decoder_raises_is_an_unreadable_item(monkeypatch, error):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(PIL.Image, "open", failing)
    with pytest.raises(UnreadableItem, match=f"a corrupt picture: {type(error).__name__}") as caught:
        decode_picture(BY_PILLOW["tiff"][0])
    assert caught.value.is_lasting


def test_files_that_end_in_their_header():
    for data, _ in EXACT.values():
        beginnings = [data[:size] for size in (*range(1, 34), 60)]
        for each in beginnings:
            with pytest.raises(UnreadableItem):
                decode_picture(each)
        positions, _ = server(MAX_PIXELS)(tf.constant(beginnings))
        assert not len(positions)


def test_what_may_be_read_another_day_is_not_unreadable_for_ever(monkeypatch):
    with pytest.raises(UnreadableItem, match=r"kind 'heix', for which no decoder is installed; .*\[heif\]") as caught:
        decode_picture(b"\0\0\0\x18ftypheix\0\0\0\0mif1heic")
    assert not caught.value.is_lasting

    def failing(*_, **__):
        raise MemoryError

    monkeypatch.setattr(PIL.Image, "open", failing)
    with pytest.raises(UnreadableItem, match="memory") as caught:
        decode_picture(BY_PILLOW["tiff"][0])
    assert not caught.value.is_lasting


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(kind):
    data = encode(noise(3, 30, 40), kind)
    assert decode_picture(data).shape == (30, 40, 3)
    assert pictures.count_pixels(data) == 1200
    with pytest.raises(UnreadableItem, match="a picture of 1,200 pixels, more than 1,199"):
        decode_picture(data, max_pixels=1199)


def test_what_can_be_read_is_known_by_its_suffix():
    suffixes = set(pictures.PICTURE_SUFFIXES)
    assert suffixes >= {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
    assert not suffixes & {".eps", ".ps", ".pdf", ".txt", ".h5", ".mpg", ".wmf"}
