"""Encoded pictures, as every source and every tool of this package reads them."""

import contextlib
import io

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageOps
import tensorflow as tf

from xbm_keras.data import decoding
from xbm_keras.data.containers import NOT_A_PICTURE
from xbm_keras.data.errors import UnreadableItem

with contextlib.suppress(ImportError):  # the extra [heif]
    import pillow_heif

    pillow_heif.register_heif_opener()

TRAINING_PIXELS = 1 << 27  # 134 megapixels, more than cameras of large format give
# A part of the key of cached features. Count it up wherever the pixels of any picture change.
DECODER = "pictures 2"
# What Pillow decodes where TensorFlow does not. A list, since others start programs (EPS), hold no photographs, or
# take any bytes for theirs.
BY_PILLOW = ("AVIF", "BMP", "DIB", "HEIF", "JPEG2000", "PPM", "QOI", "TIFF")
BY_TENSORFLOW = ("BMP", "GIF", "JPEG", "MPO", "PNG", "WEBP")
_MODULES = {"AVIF": "avif", "JPEG2000": "jpg_2000"}  # of Pillow, which may be built without them


def _suffixes() -> tuple[str, ...]:
    """Of the files that this installation reads, in lower case with the dot."""
    PIL.Image.init()
    suffixes = PIL.Image.registered_extensions().items()
    known = {suffix.lower() for suffix, name in suffixes if name in BY_TENSORFLOW or name in formats_of_pillow()}
    return tuple(sorted(known))


def formats_of_pillow() -> tuple[str, ...]:
    """Those that Pillow decodes here."""
    there = [name for name in BY_PILLOW if name in PIL.Image.OPEN]
    return tuple(name for name in there if name not in _MODULES or PIL.features.check(_MODULES[name]))


PICTURE_SUFFIXES = _suffixes()


def decode_picture(data: bytes, max_pixels: int | None = None) -> np.ndarray:
    """An encoded picture as uint8 [H, W, 3], as a viewer shows it.

    Turned as EXIF says, over white where it is transparent; of an animation the first frame, of 16 bits the high byte.
    TensorFlow decodes what it can (JPEG, PNG, GIF, WebP, most BMP), by the operations of an exported model: the pixels
    are the same, and what is damaged there is damaged here. Pillow decodes the rest (TIFF, AVIF, JPEG 2000, PPM, QOI;
    HEIC with the extra [heif]).

    Raises:
        UnreadableItem: where neither can, or there are more than `max_pixels`, by default `TRAINING_PIXELS`.
    """
    max_pixels = TRAINING_PIXELS if max_pixels is None else max_pixels
    try:
        pixels, picture = decoding.decode_one(tf.constant(data), tf.constant(max_pixels, tf.int64))
    except tf.errors.ResourceExhaustedError as error:
        raise UnreadableItem("a picture for which memory does not suffice", is_lasting=False) from error
    except (tf.errors.OpError, UnicodeDecodeError) as error:  # its message may quote the file's bytes, as if UTF-8
        raise UnreadableItem("a corrupt picture" if data else "an empty file") from error
    if pixels == NOT_A_PICTURE:
        return _by_pillow(data, max_pixels)
    if pixels > max_pixels:
        raise _too_large(int(pixels), max_pixels)
    if not pixels:
        raise UnreadableItem("a corrupt picture: no pixels")
    return picture.numpy()


def count_pixels(data: bytes) -> int:
    """Pixels that decoding would give, from the headers alone; 0 for what is no picture."""
    try:
        pixels = int(decoding.count_pixels(tf.constant(data)))
        if pixels == NOT_A_PICTURE:
            with PIL.Image.open(io.BytesIO(data), formats=formats_of_pillow()) as opened:
                pixels = opened.width * opened.height
    except Exception:  # damaged headers raise what they like
        return 0
    return max(pixels, 0)


def _by_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        with PIL.Image.open(io.BytesIO(data), formats=formats_of_pillow()) as opened:
            if opened.width * opened.height > max_pixels:
                raise _too_large(opened.width * opened.height, max_pixels)
            opened.load()
            return _as_seen(_upright(opened))
    except UnreadableItem:
        raise
    except PIL.UnidentifiedImageError as error:  # its text holds an address of this process
        raise _unknown(data) from error
    except MemoryError as error:
        raise UnreadableItem("a picture for which memory does not suffice", is_lasting=False) from error
    except Exception as error:  # decoders raise what they like, and no picture may end a run
        raise UnreadableItem(f"a corrupt picture: {type(error).__name__}: {error}") from error


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Turned as EXIF says; as it is where the EXIF data are damaged."""
    try:
        return PIL.ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF data raise what they like, and the pixels are whole
        return picture


def _too_large(pixels: int, max_pixels: int) -> UnreadableItem:
    return UnreadableItem(f"a picture of {pixels:,} pixels, more than {max_pixels:,}; scale it down")


def _unknown(data: bytes) -> UnreadableItem:
    if not data:
        return UnreadableItem("an empty file")
    if data[4:8] == b"ftyp":
        return UnreadableItem(
            f"a picture of kind {data[8:12].decode('ascii', 'replace')!r}, for which no decoder is installed; HEIC "
            "needs the extra [heif], AVIF a newer Pillow",
            is_lasting=False,
        )
    return UnreadableItem("no picture of a known format")


def _as_seen(picture: PIL.Image.Image) -> np.ndarray:
    """uint8 [H, W, 3]. Raises ValueError for pixels whose range nothing tells."""
    if picture.mode == "F":
        raise ValueError("pixels of floats")
    if picture.mode.startswith("I"):  # 16 bits, also where Pillow holds them in 32
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65_535:
            raise ValueError("pixels beyond 16 bits")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if picture.has_transparency_data:
        return decoding.over_white(tf.constant(np.asarray(picture.convert("RGBA")))).numpy()
    return np.asarray(picture.convert("RGB"))
