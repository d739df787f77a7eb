"""Encoded pictures inside a graph: what training reads and an exported model serves, by the same operations.

Pictures are RGB as a viewer shows them: turned as EXIF says, over white where they are transparent, the first frame of
an animation, the high byte of 16 bits. What TensorFlow decodes is decoded here alone, also in training, so that both
sides see the same pixels and refuse the same files; those that it does not know are left to
`xbm_keras.data.pictures`.

Nothing here is left to AutoGraph; see `xbm_keras.data.containers`.
"""

from collections.abc import Callable

import tensorflow as tf

from xbm_keras.data import containers

MAX_PIXELS = 12 << 20  # 12.6 megapixels, a telephone's 4032 x 3024 and some; about 200 MB while one is decoded
MAX_SCANS = 30  # of a progressive JPEG, where encoders write about ten: each costs a pass over all pixels
PARALLEL = 4  # pictures decoded at a time, each of which may have the most pixels


@tf.autograph.experimental.do_not_convert
def decode_all(data: tf.Tensor, resize: Callable, max_pixels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Those of the strings that are pictures, and their positions.

    A string that is no picture of a format known here, that is damaged, or whose header tells of more pixels than
    allowed is left out; the header is read before anything is decoded.

    Args:
        data: [N] strings.
        resize: from a picture uint8 [H, W, 3] to one of a fixed size, float32 [h, w, 3].
        max_pixels: per string.

    Returns:
        Positions [n] int64, increasing, and pictures [n, h, w, 3] float32, with n at most N.
    """

    def read(position, encoded):
        return position, *_read_header(encoded)

    def decode(position, pixels, *header):
        return position, resize(_decode(*header))

    pictures = tf.data.Dataset.from_tensor_slices(data).enumerate()
    pictures = pictures.map(read, num_parallel_calls=PARALLEL).ignore_errors()
    pictures = pictures.filter(lambda position, pixels, *header: (pixels > 0) & (pixels <= max_pixels))
    pictures = pictures.map(decode, num_parallel_calls=PARALLEL).ignore_errors()
    # A batch needs a last element, also where all are bad.
    blank = tf.data.Dataset.from_tensors(
        tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), pictures.element_spec)
    )
    size = tf.size(data, tf.int64) + 1
    positions, images = pictures.concatenate(blank).batch(size).get_single_element()
    return positions[:-1], images[:-1]


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def count_pixels(encoded):
    """Pixels that decoding would give, from the headers alone, int64; -1 for what is no picture of a known format.

    An error where the data end before the header does, and for a JPEG whose header is damaged.
    """
    return _read_header(encoded)[0]


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)], autograph=False)
def decode_one(encoded, max_pixels):
    """A picture, where its header tells of no more pixels than allowed.

    Args:
        encoded: a string.
        max_pixels: int64.

    Returns:
        Pixels that the header tells of, int64, -1 for what is no picture of a known format; and the picture, uint8
        [H, W, 3], or [0, 0, 3] where there are too many pixels or none.

    Raises:
        tf.errors.OpError: where it is damaged.
    """
    pixels, *header = _read_header(encoded)
    is_allowed = (pixels > 0) & (pixels <= max_pixels)
    return pixels, tf.cond(is_allowed, lambda: _decode(*header), lambda: tf.zeros([0, 0, 3], tf.uint8))


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _read_header(encoded):
    """Pixels, and what `_decode` takes."""
    start = tf.strings.substr(encoded, 0, 16)
    nothing = tf.constant(-1, tf.int64)
    whole = tf.zeros([2, 2], tf.int64)

    def jpeg():
        scans, exif = containers.read_jpeg(encoded)
        shape = tf.io.extract_jpeg_shape(encoded, tf.int64)
        pixels = tf.where(scans <= MAX_SCANS, tf.reduce_prod(shape[:2]), containers.NOT_A_PICTURE)
        return pixels, b"JPEG", encoded, whole, exif

    def png():
        pixels, has_alpha, exif = containers.read_png(encoded)
        return pixels, tf.where(has_alpha, b"PNG with alpha", b"PNG"), encoded, whole, exif

    def gif():
        pixels, still, around = containers.read_gif(encoded)
        return pixels, b"GIF", still, around, nothing

    def bmp():
        return containers.read_bmp(encoded), b"BMP", encoded, whole, nothing

    def webp():
        pixels, exif, still, around = containers.read_webp(encoded)
        return pixels, b"WebP", still, around, exif

    def other():
        return nothing, b"", encoded, whole, nothing

    head = tf.pad(tf.io.decode_raw(start, tf.uint8), [[0, 16]])[:16]
    readers = {
        b"\xff\xd8\xff": jpeg, b"\x89PNG\r\n\x1a\n": png, b"GIF8": gif, b"BM": bmp, b"RIFF....WEBP": webp,
    }  # fmt: skip
    fits = tf.stack([_fits(head, signature) for signature in readers])
    branch = tf.where(tf.reduce_any(fits), tf.argmax(tf.cast(fits, tf.int32), output_type=tf.int32), len(readers))
    pixels, kind, still, around, exif = tf.switch_case(branch, [*readers.values(), other])
    return pixels, kind, still, around, containers.read_orientation(encoded, exif)


def _fits(head, signature):
    """Whether the first octets are these; a dot stands for any."""
    places = [i for i, octet in enumerate(signature) if octet != ord(".")]
    return tf.reduce_all(tf.gather(head, places) == [signature[i] for i in places])


@tf.function(
    input_signature=[
        tf.TensorSpec([], tf.string),
        tf.TensorSpec([], tf.string),
        tf.TensorSpec([2, 2], tf.int64),
        tf.TensorSpec([], tf.int64),
    ],
    autograph=False,
)
def _decode(kind, still, around, orientation):
    """A picture, uint8 [H, W, 3].

    Args:
        kind: of the file.
        still: the first frame of an animation, else the file.
        around: pixels of the canvas before and behind the frame, vertically and horizontally.
        orientation: EXIF's.
    """
    decoders = {
        b"JPEG": lambda: tf.io.decode_jpeg(still, channels=3),
        b"PNG": lambda: tf.io.decode_png(still, channels=3),
        b"PNG with alpha": lambda: over_white(tf.io.decode_png(still, channels=4)),
        b"GIF": lambda: tf.io.decode_gif(still)[0],
        b"BMP": lambda: _decode_bmp(still),
        b"WebP": lambda: over_white(tf.io.decode_image(still, channels=0, expand_animations=False)),
    }
    branch = tf.argmax(tf.cast(tf.constant(list(decoders)) == kind, tf.int32), output_type=tf.int32)
    picture = tf.switch_case(branch, list(decoders.values()))
    margins = tf.concat([around, [[0, 0]]], axis=0)

    def widened(frame):
        return tf.pad(frame, margins, constant_values=255)

    picture = _changed_if(tf.reduce_any(around > 0), widened, picture)
    return tf.ensure_shape(_turn_upright(picture, orientation), [None, None, 3])


def _decode_bmp(encoded):
    """A BMP, uint8 [H, W, 3]."""
    picture = tf.io.decode_bmp(encoded, channels=3)
    has_palette = tf.strings.substr(encoded, 28, 1) == b"\x08"

    def of_palette(places):
        return tf.gather(containers.bmp_palette(encoded), tf.cast(places[..., 0], tf.int32))

    return _changed_if(has_palette, of_palette, picture)


def over_white(picture):
    """A picture, uint8 [H, W, 3 or 4], seen on a white page, uint8 [H, W, 3]."""
    colors, alpha = picture[..., :3], picture[..., 3:]

    def blended(colors):
        above, share = tf.cast(colors, tf.uint16), tf.cast(alpha, tf.uint16)
        return tf.cast((above * share + 255 * (255 - share) + 127) // 255, tf.uint8)  # at most 65,152 above

    return _changed_if(tf.reduce_any(alpha < 255), blended, colors)  # nothing is below where there is no alpha


def _turn_upright(picture, orientation):
    """A picture, uint8 [H, W, 3], turned and mirrored as EXIF's orientation says."""

    def is_one_of(*values):
        return tf.reduce_any(orientation == tf.constant(values, tf.int64))

    picture = _changed_if(orientation >= 5, lambda pixels: tf.transpose(pixels, [1, 0, 2]), picture)
    picture = _changed_if(is_one_of(2, 3, 6, 7), lambda pixels: tf.reverse(pixels, [1]), picture)
    return _changed_if(is_one_of(3, 4, 7, 8), lambda pixels: tf.reverse(pixels, [0]), picture)


def _changed_if(condition, change, picture):
    return tf.cond(condition, lambda: change(picture), lambda: picture)
