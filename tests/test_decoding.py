"""Pixels read from headers, against Pillow; and what a small file must not be able to ask for."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tests.test_export import PICTURES, encoded
from xbm_keras.decoding import MAX_SCANS, count_pixels, decode_all


def pixels(data):
    return int(count_pixels(tf.constant(data)))


@pytest.mark.parametrize("data", PICTURES, ids=lambda data: PIL.Image.open(io.BytesIO(data)).format)
def test_pixels_are_those_that_pillow_sees(data):
    assert pixels(data) == np.prod(PIL.Image.open(io.BytesIO(data)).size)


@pytest.mark.parametrize("options", [{"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}])
def test_the_other_forms_of_webp(options):
    assert pixels(encoded(70, 300, "WEBP", **options)) == 70 * 300


def test_frames_of_a_gif_count_together():
    frames = [PIL.Image.open(io.BytesIO(encoded(20, 30, seed=i))) for i in range(5)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert pixels(file.getvalue()) == 5 * 20 * 30


def test_a_bmp_from_the_top():
    data = bytearray(encoded(5, 9, "BMP"))
    data[22:26] = struct.pack("<i", -5)
    assert pixels(bytes(data)) == 45


def test_what_is_no_picture():
    assert pixels(b"") == pixels(b"no picture") == pixels(b"RIFF____WAVEfmt ") == -1


def png_bomb():
    """60,000 x 60,000 black pixels in a few kB."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def gif_bomb():
    """Two frames of one pixel row and one pixel column, whose common canvas is 65,535 x 65,535."""
    data = bytearray(encoded(1, 1, "GIF", mode="P"))
    start = data.index(b"\x2c", 13 + 3 * 2)
    frame = data[start : data.rindex(b"\x3b")]
    wide, tall = bytearray(frame), bytearray(frame)
    wide[5:9] = struct.pack("<HH", 65_535, 1)
    tall[5:9] = struct.pack("<HH", 1, 65_535)
    return bytes(data[:start] + wide + tall + b"\x3b")


def scan_bomb():
    """A progressive JPEG whose last scan is there a hundred times: each costs a pass over all pixels."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 100 + data[-2:]


def jpeg_bomb():
    """A header of 65,500 x 65,500 pixels."""
    data = bytearray(encoded(8, 8, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


@pytest.mark.parametrize("bomb", [png_bomb, gif_bomb, scan_bomb, jpeg_bomb], ids=lambda bomb: bomb.__name__)
def test_bombs_are_refused_by_their_headers(bomb):
    def resize(image):
        raise_if_run = tf.debugging.Assert(False, ["decoded"])
        with tf.control_dependencies([raise_if_run]):
            return tf.zeros((2, 2, 3))

    data = bomb()
    assert pixels(data) == -1 or pixels(data) > 1 << 30
    positions, images = decode_all(tf.constant([data]), resize, 1 << 25)
    assert positions.shape == (0,)
    assert images.shape == (0, 2, 2, 3)


def test_ordinary_progressive_jpegs_have_few_scans():
    assert encoded(40, 40, "JPEG", progressive=True).count(b"\xff\xda") < MAX_SCANS


def test_order_and_positions_are_kept():
    data = [b"x", *PICTURES, b"", PICTURES[0]]
    positions, images = decode_all(tf.constant(data), lambda image: tf.image.resize(image, (4, 4)), 1 << 25)
    assert positions.numpy().tolist() == [*range(1, 1 + len(PICTURES)), len(data) - 1]
    np.testing.assert_array_equal(images[0], images[-1])
