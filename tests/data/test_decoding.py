"""Pixels read from headers, against Pillow; and what a small file must not be able to ask for."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tests.export.test_saved_model import PICTURES, encoded
from xbm_keras.data.decoding import MAX_SCANS, count_pixels, decode_all


def pixels(data):
    return int(count_pixels(tf.constant(data)))


@pytest.mark.parametrize("data", PICTURES, ids=lambda data: PIL.Image.open(io.BytesIO(data)).format)
def test_pixels_are_those_that_pillow_sees(data):
    assert pixels(data) == np.prod(PIL.Image.open(io.BytesIO(data)).size)


@pytest.mark.parametrize("options", [{"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}])
def test_the_other_forms_of_webp(options):
    assert pixels(encoded(70, 300, "WEBP", **options)) == 70 * 300


def test_of_an_animation_the_first_frame_counts():
    frames = [PIL.Image.open(io.BytesIO(encoded(20, 30, seed=i))) for i in range(5)]
    for kind in ("GIF", "WEBP"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        assert pixels(file.getvalue()) == 20 * 30


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
    """A frame of one pixel on a canvas of 65,535 x 65,535."""
    data = bytearray(encoded(1, 1, "GIF", mode="P"))
    data[6:10] = struct.pack("<HH", 65_535, 65_535)
    return bytes(data)


def gif_frame_bomb():
    """A frame of 65,535 x 65,535 on a canvas of one pixel."""
    data = bytearray(encoded(1, 1, "GIF", mode="P"))
    start = data.index(b"\x2c", 13 + 3 * 2)
    data[start + 5 : start + 9] = struct.pack("<HH", 65_535, 65_535)
    return bytes(data)


def webp_frame_bomb():
    """An animation of a pixel whose canvas is 16,777,216 pixels wide and high."""
    file, frame = io.BytesIO(), PIL.Image.new("RGB", (1, 1))
    frame.save(file, "WEBP", save_all=True, append_images=[PIL.Image.new("RGB", (1, 1), "red")])
    data = bytearray(file.getvalue())
    data[24:30] = b"\xff" * 6
    return bytes(data)


def block_bomb(kind):
    """A hundred thousand empty blocks: each is a turn of a loop."""
    jpeg = encoded(8, 8, "JPEG")
    start, block = {
        "JPEG": (jpeg[:2], b"\xff\xfe\0\x02"),
        "PNG": (encoded(1, 1)[:33], b"\0\0\0\0teXt\0\0\0\0"),
        "GIF": (b"GIF89a\1\0\1\0\0\0\0", b"\x21\xfe\0"),
        "WEBP": (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\1\0\0\1\0\0", b"XXXX\0\0\0\0"),
    }[kind]
    return start + block * 100_000 + jpeg[2:]


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


BOMBS = {
    bomb.__name__: bomb() for bomb in (png_bomb, gif_bomb, gif_frame_bomb, webp_frame_bomb, scan_bomb, jpeg_bomb)
} | {f"{kind} blocks": block_bomb(kind) for kind in ("JPEG", "PNG", "GIF", "WEBP")}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_by_their_headers(bomb):
    def resize(image):
        raise_if_run = tf.debugging.Assert(False, ["decoded"])
        with tf.control_dependencies([raise_if_run]):
            return tf.zeros((2, 2, 3))

    data = BOMBS[bomb]
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
