"""What stands around the pixels in a picture's file, read inside a graph: sizes, frames, EXIF. Nothing is decoded.

The layouts: JPEG ITU-T T.81 annex B, PNG and its chunk eXIf (third edition), GIF89a, BMP (BITMAPINFOHEADER), WebP
(RFC 9649), EXIF 3.0 section 4.6. Offsets and numbers are int64. A file of more blocks than `MAX_BLOCKS` is refused:
each is a turn of a loop, and a small file can hold a million empty ones.

Loops and branches are written as such operations, not left to AutoGraph, which takes two seconds to convert them in
each process that reads a picture.
"""

import tensorflow as tf

NOT_A_PICTURE = -1
MAX_BLOCKS = 10_000
TOO_MANY = 1 << 62  # more pixels than anyone allows
STRING = tf.TensorSpec([], tf.string)


@tf.function(input_signature=[STRING], autograph=False)
def read_jpeg(encoded):
    """How often the picture is drawn, and where the EXIF data begin, or -1; what lies behind the end does not count."""
    octets = tf.pad(tf.io.decode_raw(encoded, tf.uint8), [[0, 4]])
    places = tf.where(octets[:-4] == 0xFF)[:, 0]
    kinds = tf.gather(octets, places + 1)
    # In a scan FF is followed by 00 or by a restart, between segments it may be repeated: none of these is a marker.
    is_marker = (kinds > 0x01) & (kinds < 0xFF) & ((kinds < 0xD0) | (kinds > 0xD7))
    # A last one, of no kind, stands where the data end.
    places = tf.concat([tf.boolean_mask(places, is_marker), [tf.size(octets, tf.int64) - 4]], axis=0)
    kinds = tf.pad(tf.boolean_mask(kinds, is_marker), [[0, 1]])
    last = tf.size(places, tf.int64) - 1

    def next_segment(at, scans, exif, blocks, goes_on):
        i = tf.minimum(tf.searchsorted(places, [at], out_type=tf.int64)[0], last)
        place, kind = places[i], kinds[i]
        begins = (kind == 0xE1) & (exif < 0) & (scans == 0) & _has_exif(encoded, place + 4)
        scans += tf.cast(kind == 0xDA, tf.int64)
        at = place + 2 + big_endian(octets[place + 2 : place + 4])
        goes_on = (kind != 0) & (kind != 0xD9)
        return at, scans, tf.where(begins, place + 4, exif), blocks + tf.cast(kind != 0, tf.int32), goes_on

    start = tf.constant(2, tf.int64), tf.constant(0, tf.int64), tf.constant(-1, tf.int64), 0, True

    def is_left(at, scans, exif, blocks, goes_on):
        return goes_on & (blocks < MAX_BLOCKS)

    _, scans, exif, blocks, _ = tf.while_loop(is_left, next_segment, start)
    return tf.where(blocks == MAX_BLOCKS, TOO_MANY, scans), exif


def _has_exif(encoded, place):
    """Whether EXIF data begin here, else XMP or other ones; not where the file ends before."""
    rest = tf.strings.substr(encoded, tf.minimum(place, tf.cast(tf.strings.length(encoded), tf.int64)), 6)
    return rest == b"Exif\0\0"


@tf.function(input_signature=[STRING], autograph=False)
def read_png(encoded):
    """Pixels, whether some may be transparent, and where the EXIF data begin, or -1."""
    size = tf.cast(tf.strings.length(encoded), tf.int64)
    head = _octets(encoded, 16, 10)
    pixels = big_endian(head[:4]) * big_endian(head[4:8])

    def next_chunk(at, exif, has_alpha, blocks, kind):
        kind = tf.strings.substr(encoded, at + 4, 4)
        exif = tf.where((kind == b"eXIf") & (exif < 0), at + 8, exif)
        return at + 12 + big_endian(_octets(encoded, at, 4)), exif, has_alpha | (kind == b"tRNS"), blocks + 1, kind

    def is_left(at, exif, has_alpha, blocks, kind):
        return (at + 8 <= size) & (kind != b"IEND") & (blocks < MAX_BLOCKS)

    has_alpha = (head[9] == 4) | (head[9] == 6)
    start = tf.constant(8, tf.int64), tf.constant(-1, tf.int64), has_alpha, 0, b""
    _, exif, has_alpha, blocks, _ = tf.while_loop(is_left, next_chunk, start)
    return tf.where(blocks == MAX_BLOCKS, TOO_MANY, pixels), has_alpha, exif


@tf.function(input_signature=[STRING], autograph=False)
def read_bmp(encoded):
    """Pixels, of those that are not compressed and have 8, 24 or 32 bits; -1 of others."""
    head = _octets(encoded, 0, 54)
    height = little_endian(head[22:26])  # negative, in two's complement, where rows go from the top
    pixels = little_endian(head[18:22]) * tf.minimum(height, (1 << 32) - height)
    bits, compression = little_endian(head[28:30]), little_endian(head[30:34])
    is_known = (little_endian(head[14:18]) >= 40) & (compression == 0) & ((bits == 8) | (bits == 24) | (bits == 32))
    return tf.where(is_known, pixels, NOT_A_PICTURE)


@tf.function(input_signature=[STRING], autograph=False)
def bmp_palette(encoded):
    """The 256 colours [256, 3] uint8 of a BMP of 8 bits, black where it has fewer."""
    head = _octets(encoded, 0, 54)
    num_colors = little_endian(head[46:50])
    num_colors = tf.where((num_colors > 0) & (num_colors < 256), num_colors, 256)
    table = _octets(encoded, 14 + little_endian(head[14:18]), 4 * num_colors)
    blue_green_red = tf.reshape(table[: tf.size(table) // 4 * 4], [-1, 4])[:, :3]
    colors = tf.reverse(blue_green_red, [1])
    return tf.cast(tf.pad(colors, [[0, 256 - tf.shape(colors)[0]], [0, 0]]), tf.uint8)


@tf.function(input_signature=[STRING], autograph=False)
def read_gif(encoded):
    """Pixels of the canvas, the first frame as a GIF of its own, and what is around it on the canvas; -1 without one.

    Transparent pixels of the frame are white: their entry in the colour table is.
    """
    octets = tf.pad(tf.io.decode_raw(encoded, tf.uint8), [[0, 1024]])  # zeros end the loops
    flags = octets[10]

    def next_extension(at, transparent, blocks):
        is_control = (octets[at + 1] == 0xF9) & (octets[at + 2] == 4)
        color = tf.where(octets[at + 3] % 2 == 1, tf.cast(octets[at + 6], tf.int64), -1)
        at, count = _skip_gif_blocks(octets, at + 2)
        return at, tf.where(is_control, color, transparent), blocks + 1 + count

    start = 13 + _color_table(flags), tf.constant(-1, tf.int64), 0

    def is_left(at, transparent, blocks):
        return (octets[at] == 0x21) & (blocks < MAX_BLOCKS)

    at, transparent, blocks = tf.while_loop(is_left, next_extension, start)

    def first_frame():
        frame, canvas = tf.cast(octets[at + 1 : at + 9], tf.int64), tf.cast(octets[6:10], tf.int64)
        left, top = little_endian(frame[:2]), little_endian(frame[2:4])
        width, height = little_endian(frame[4:6]), little_endian(frame[6:8])
        right = tf.maximum(little_endian(canvas[:2]) - left - width, 0)
        bottom = tf.maximum(little_endian(canvas[2:]) - top - height, 0)
        around = tf.stack([[top, bottom], [left, right]])
        own_flags = octets[at + 9]
        has_own = own_flags >= 0x80
        table_at, table_flags = tf.where(has_own, at + 10, 13), tf.where(has_own, own_flags, flags)
        start = at + 10 + _color_table(own_flags)  # 0 where it has none
        end, count = _skip_gif_blocks(octets, start + 1)
        colors = tf.reshape(octets[table_at : table_at + _color_table(table_flags)], [-1, 3])
        is_transparent = tf.range(tf.shape(colors, tf.int64)[0]) == transparent
        colors = tf.where(is_transparent[:, None], tf.constant(255, tf.uint8), colors)
        size = octets[at + 5 : at + 9]
        new_flags = 0x80 | (own_flags & 0x40) | (table_flags & 7)
        zeros = tf.zeros([4], tf.uint8)
        parts = [size, zeros[:3], [tf.constant(0x2C, tf.uint8)], zeros, size, [new_flags], tf.reshape(colors, [-1])]
        data = tf.strings.substr(encoded, start, tf.minimum(end, tf.strings.length(encoded)) - start)
        still = tf.strings.join([b"GIF89a", _string(tf.concat(parts, axis=0)), data, b";"])
        pixels = (left + width + right) * (top + height + bottom)
        return pixels, tf.where(count < MAX_BLOCKS, still, b""), around

    def nothing():
        return tf.constant(NOT_A_PICTURE, tf.int64), tf.constant(b""), tf.zeros([2, 2], tf.int64)

    return tf.cond((octets[at] == 0x2C) & (blocks < MAX_BLOCKS), first_frame, nothing)


def _color_table(flags):
    """Octets of the colour table that these flags tell of."""
    flags = tf.cast(flags, tf.int32)
    return tf.where(flags >= 0x80, 3 * tf.bitwise.left_shift(2, flags % 8), 0)


@tf.function(input_signature=[tf.TensorSpec([None], tf.uint8), tf.TensorSpec([], tf.int32)], autograph=False)
def _skip_gif_blocks(octets, at):
    """The place behind a chain of blocks, each of which begins with its size, and how many steps it took."""

    def skip(at, steps):
        # Encoders fill nearly all blocks: skip up to 256 full ones in a step, and then one of any size.
        full = tf.cast(octets[at : at + 256 * 256 : 256] == 255, tf.int32)
        at += 256 * tf.reduce_sum(tf.math.cumprod(full))
        at = tf.minimum(at, tf.size(octets) - 1)
        at += tf.where(octets[at] == 0, 0, tf.cast(octets[at], tf.int32) + 1)
        return tf.minimum(at, tf.size(octets) - 1), steps + 1

    def is_left(at, steps):
        return (octets[at] != 0) & (steps < MAX_BLOCKS)

    at, steps = tf.while_loop(is_left, skip, (at, 0))
    return at + 1, steps


@tf.function(input_signature=[STRING], autograph=False)
def read_webp(encoded):
    """Pixels of the canvas, the EXIF data's beginning or -1, the first frame as a WebP, and what is around it."""
    head, kind = _octets(encoded, 0, 30), tf.strings.substr(encoded, 12, 4)
    is_extended, size = kind == b"VP8X", tf.cast(tf.strings.length(encoded), tf.int64)

    def next_chunk(at, exif, frame, blocks):
        chunk = tf.strings.substr(encoded, at, 4)
        exif = tf.where((chunk == b"EXIF") & (exif < 0), at + 8, exif)
        frame = tf.where((chunk == b"ANMF") & (frame < 0), at + 8, frame)
        length = little_endian(_octets(encoded, at + 4, 4))
        return at + 8 + length + length % 2, exif, frame, blocks + 1

    nowhere = tf.constant(-1, tf.int64)

    def is_left(at, exif, frame, blocks):
        return is_extended & (at + 8 <= size) & (blocks < MAX_BLOCKS)

    start = tf.constant(30, tf.int64), nowhere, nowhere, 0
    _, exif, frame, blocks = tf.while_loop(is_left, next_chunk, start)
    bits = little_endian(head[21:25])  # of a lossless one
    of_kind = [
        [little_endian(head[24:27]) + 1, little_endian(head[27:30]) + 1],
        [bits % (1 << 14) + 1, bits // (1 << 14) % (1 << 14) + 1],
        [little_endian(head[26:28]) % (1 << 14), little_endian(head[28:30]) % (1 << 14)],
    ]
    width, height = tf.unstack(tf.stack(of_kind)[tf.where(is_extended, 0, tf.where(kind == b"VP8L", 1, 2))])
    still, around = tf.cond(
        frame >= 0,
        lambda: _webp_frame(encoded, frame, width, height),
        lambda: (encoded, tf.zeros([2, 2], tf.int64)),
    )
    return tf.where(blocks == MAX_BLOCKS, TOO_MANY, width * height), exif, still, around


def _webp_frame(encoded, frame, width, height):
    """The frame that is described at this offset as a WebP of its own, and what is around it on the canvas."""
    head, length = _octets(encoded, frame, 16), little_endian(_octets(encoded, frame - 4, 4)) - 16
    left, top = 2 * little_endian(head[:3]), 2 * little_endian(head[3:6])
    right = tf.maximum(width - left - little_endian(head[6:9]) - 1, 0)
    bottom = tf.maximum(height - top - little_endian(head[9:12]) - 1, 0)
    data = tf.strings.substr(encoded, frame + 16, length)
    extension = tf.strings.join([b"VP8X\x0a\0\0\0\x10\0\0\0", tf.strings.substr(encoded, frame + 6, 6)])
    extension = tf.where(tf.strings.substr(data, 0, 4) == b"ALPH", extension, b"")
    size = tf.cast(4 + tf.strings.length(extension) + tf.strings.length(data), tf.int64)
    sizes = tf.cast(size // 256 ** tf.range(4, dtype=tf.int64) % 256, tf.uint8)
    still = tf.strings.join([b"RIFF", _string(sizes), b"WEBP", extension, data])
    return still, tf.stack([[top, bottom], [left, right]])


@tf.function(input_signature=[STRING, tf.TensorSpec([], tf.int64)], autograph=False)
def read_orientation(encoded, exif):
    """EXIF's orientation 1..8; 1 where there is none, or the data are damaged.

    Args:
        encoded: the file.
        exif: where its EXIF data begin, negative for nowhere.
    """
    block = tf.strings.substr(encoded, tf.maximum(exif, 0), tf.where(exif < 0, tf.constant(0, tf.int64), 1 << 16))
    block = tf.strings.substr(block, tf.where(tf.strings.substr(block, 0, 6) == b"Exif\0\0", 6, 0), 1 << 16)
    start = tf.strings.substr(block, 0, 4)
    is_big, is_little = start == b"MM\0*", start == b"II*\0"
    octets = tf.cast(tf.io.decode_raw(block, tf.uint8), tf.int64)
    directory = _number(octets[4:8], is_big)
    entries = octets[directory + 2 : directory + 2 + 12 * _number(octets[directory : directory + 2], is_big)]
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12])
    # The tag 0x0112, of type SHORT.
    wanted = tf.where(is_big, [1, 0x12, 0, 3], [0x12, 1, 3, 0])
    found = tf.boolean_mask(entries, tf.reduce_all(entries[:, :4] == tf.cast(wanted, tf.int64), axis=1))
    orientation = _number(tf.pad(found, [[0, 1], [0, 0]])[0, 8:10], is_big)  # 0 where none is found
    is_told = (is_big | is_little) & (orientation >= 1) & (orientation <= 8)
    return tf.where(is_told, orientation, 1)


def _number(octets, is_big):
    return tf.where(is_big, big_endian(octets), little_endian(octets))


def big_endian(octets):
    """The number that octets write, the highest one first."""
    return little_endian(tf.reverse(octets, [0]))


def little_endian(octets):
    """The number that octets write, the lowest one first."""
    return tf.reduce_sum(tf.cast(octets, tf.int64) * 256 ** tf.range(tf.size(octets, tf.int64)))


def _octets(encoded, at, count):
    """Octets of a string [at most `count`] int64; an error where it ends before them all."""
    return tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, at, count), tf.uint8), tf.int64)


def _string(octets):
    """A string of octets [n] uint8."""
    single = tf.constant([bytes([i]) for i in range(256)])
    return tf.strings.reduce_join(tf.gather(single, tf.cast(octets, tf.int32)))
