"""Encoded pictures inside a graph: strings from anywhere to pictures of one size, bad ones left out, memory bounded."""

from collections.abc import Callable

import tensorflow as tf

MAX_PIXELS = 12 << 20  # 12.6 megapixels, a telephone's 4032 x 3024 and some; about 200 MB while one is decoded
MAX_SCANS = 30  # of a progressive JPEG, where encoders write about ten: each costs a pass over all pixels
PARALLEL = 4  # pictures decoded at a time, each of which may have the most pixels
NOT_A_PICTURE = -1


def decode_all(data: tf.Tensor, resize: Callable, max_pixels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Those of the strings that are pictures, and their positions.

    A string that is no JPEG, PNG, GIF, BMP or WebP, that is damaged, or whose header tells of more pixels than allowed
    is left out; the header is read before anything is decoded. Of an animation the first frame counts, but the pixels
    of all frames, since the decoder unpacks them all.

    Args:
        data: [N] strings.
        resize: from a picture uint8 [H, W, 3] to one of a fixed size, float32 [h, w, 3].
        max_pixels: per string.

    Returns:
        Positions [n] int64, increasing, and pictures [n, h, w, 3] float32, with n at most N.
    """

    def decode(position, encoded):
        return position, resize(tf.io.decode_image(encoded, channels=3, expand_animations=False))

    pictures = tf.data.Dataset.from_tensor_slices(data).enumerate()
    pictures = pictures.map(lambda position, encoded: (position, encoded, count_pixels(encoded)))
    pictures = pictures.filter(lambda position, encoded, pixels: (pixels > 0) & (pixels <= max_pixels))
    pictures = pictures.map(lambda position, encoded, _: decode(position, encoded), num_parallel_calls=PARALLEL)
    pictures = pictures.ignore_errors()
    # A batch needs a last element, also where all are bad.
    blank = tf.data.Dataset.from_tensors(tf.nest.map_structure(_zeros, pictures.element_spec))
    size = tf.size(data, tf.int64) + 1
    positions, images = pictures.concatenate(blank).batch(size).get_single_element()
    return positions[:-1], images[:-1]


def _zeros(spec: tf.TensorSpec) -> tf.Tensor:
    return tf.zeros(spec.shape, spec.dtype)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def count_pixels(encoded):
    """Pixels that decoding would give, from the headers alone, int64; of animations the sum over all frames.

    -1 for what is no picture of a known format. An error where the data end before the header does, and for a JPEG
    whose header is damaged.
    """
    start = tf.strings.substr(encoded, 0, 12)
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, 32), tf.uint8), tf.int64)
    pixels = tf.constant(NOT_A_PICTURE, tf.int64)
    if tf.strings.substr(start, 0, 3) == b"\xff\xd8\xff":
        if _count_scans(encoded) <= MAX_SCANS:
            pixels = tf.reduce_prod(tf.io.extract_jpeg_shape(encoded, tf.int64)[:2])
    elif tf.strings.substr(start, 0, 8) == b"\x89PNG\r\n\x1a\n":
        pixels = _big_endian(head[16:20]) * _big_endian(head[20:24])
    elif tf.strings.substr(start, 0, 4) == b"GIF8":
        pixels = _count_gif_pixels(encoded)
    elif tf.strings.substr(start, 0, 2) == b"BM":
        height = _little_endian(head[22:26])  # negative, in two's complement, where rows go from the top
        pixels = _little_endian(head[18:22]) * tf.minimum(height, (1 << 32) - height)
    elif tf.strings.substr(start, 0, 4) == b"RIFF" and tf.strings.substr(encoded, 8, 4) == b"WEBP":
        pixels = _count_webp_pixels(tf.strings.substr(encoded, 12, 4), head)
    return pixels


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def _count_scans(encoded):
    """How often a JPEG's picture is drawn: a small file with thousands of scans would take minutes to decode."""
    octets = tf.io.decode_raw(encoded, tf.uint8)
    return tf.math.count_nonzero((octets[:-1] == 0xFF) & (octets[1:] == 0xDA))  # FF in scans is followed by 00


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def _count_gif_pixels(encoded):
    """Sum over the frames, or the canvas that holds them all where that is more."""
    octets = tf.pad(tf.io.decode_raw(encoded, tf.uint8), [[0, 1024]])  # zeros end both loops
    at = 13 + _color_table(octets[10])
    pixels, width, height = tf.constant(0, tf.int64), tf.constant(0, tf.int64), tf.constant(0, tf.int64)
    while (octets[at] == 0x21) | (octets[at] == 0x2C):
        if octets[at] == 0x2C:
            frame = tf.cast(octets[at : at + 10], tf.int64)
            frame_width, frame_height = _little_endian(frame[5:7]), _little_endian(frame[7:9])
            pixels += frame_width * frame_height
            width, height = tf.maximum(width, frame_width), tf.maximum(height, frame_height)
            at += 11 + _color_table(octets[at + 9])
        else:
            at += 2
        while octets[at] != 0:
            at += tf.cast(octets[at], tf.int32) + 1
        at += 1
    return tf.maximum(pixels, width * height)


def _color_table(flags):
    """Octets of the colour table that these flags tell of."""
    flags = tf.cast(flags, tf.int32)
    return tf.where(flags >= 0x80, 3 * tf.bitwise.left_shift(2, flags % 8), 0)


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([None], tf.int64)])
def _count_webp_pixels(kind, head):
    """Of an animation the canvas, which no frame may exceed."""
    if kind == b"VP8X":
        pixels = (_little_endian(head[24:27]) + 1) * (_little_endian(head[27:30]) + 1)
    elif kind == b"VP8L":
        sizes = _little_endian(head[21:25])
        pixels = (sizes % (1 << 14) + 1) * (sizes // (1 << 14) % (1 << 14) + 1)
    else:
        pixels = (_little_endian(head[26:28]) % (1 << 14)) * (_little_endian(head[28:30]) % (1 << 14))
    return pixels


def _big_endian(octets):
    return _little_endian(tf.reverse(octets, [0]))


def _little_endian(octets):
    """The number that octets, int64, write."""
    return tf.reduce_sum(octets * 256 ** tf.range(tf.size(octets, tf.int64)))
