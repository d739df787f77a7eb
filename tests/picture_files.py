"""Pictures of every kind, and by Pillow and numpy what a viewer shows of each."""

import io
import struct
import zlib

import numpy as np
import PIL.Image

HEIGHT, WIDTH = 10, 21
ORIENTATIONS = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: lambda x: np.rot90(x, 1),
}


def noise(channels=3, height=HEIGHT, width=WIDTH, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encode(picture, kind, **options):
    if isinstance(picture, np.ndarray):
        picture = PIL.Image.fromarray(picture.squeeze())
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def over_white(rgba):
    """RGBA [H, W, 4] as seen on white, rounded to the nearest."""
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return np.floor(rgba[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def exif(orientation, order="<"):
    """EXIF data with another tag before the orientation and one behind it."""
    tags = [
        (0x010F, 2, 4, b"abc\0"),
        (0x0112, 3, 1, struct.pack(order + "HH", orientation, 0)),
        (0x0213, 3, 1, b"\1\0\1\0"),
    ]
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    entries = b"".join(struct.pack(order + "HHI", *tag[:3]) + tag[3] for tag in tags)
    return b"Exif\0\0" + start + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def png(rows, width, depth, color_type, palette=b"", transparent=b""):
    """A PNG from its packed rows, without any filter."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), palette and chunk(b"PLTE", palette), transparent and chunk(b"tRNS", transparent)]
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(p for p in parts if p) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def turned():
    """Name to file and what it shows, for all orientations of all formats that have them."""
    picture = noise()
    formats = {
        "png": lambda e: encode(picture, "PNG", exif=e),
        "jpeg": lambda e: encode(picture, "JPEG", quality=95, exif=e),
        "progressive jpeg": lambda e: encode(picture, "JPEG", progressive=True, exif=e),
        "grey jpeg": lambda e: encode(picture[..., 0], "JPEG", exif=e),
        "webp": lambda e: encode(picture, "WEBP", lossless=True, exif=e),
        "tiff": lambda e: encode(picture, "TIFF", exif=e[6:]),
    }
    return {
        f"{name} {orientation} {order}": (make(exif(orientation, order)), turn, make)
        for name, make in formats.items()
        for orientation, turn in ORIENTATIONS.items()
        for order in "<>"
    }


def exact():
    """Name to file and the pixels that it shows, of files without loss."""
    rgb, rgba = noise(), noise(4)
    rgba[0, :2, 3] = 0, 255
    grey = noise(1)
    palette_colors = noise(3, 1, 16, seed=5)[0]
    indices = np.random.default_rng(1).integers(0, 16, (HEIGHT, WIDTH), np.uint8)
    indexed = PIL.Image.fromarray(indices).convert("P")
    indexed.putpalette(palette_colors.tobytes())
    seen = palette_colors[indices]
    alphas = np.arange(16, dtype=np.uint8) * 17
    deep = np.random.default_rng(2).integers(0, 65536, (HEIGHT, WIDTH, 4), np.uint16)
    high = (deep >> 8).astype(np.uint8)
    is_third = indices[..., None] == 3

    def as_rgb(grey):
        return np.repeat(np.asarray(grey).reshape(HEIGHT, WIDTH, 1), 3, axis=2)

    def deep_rows(channels):
        return [row.astype(">u2").tobytes() for row in deep[..., :channels].reshape(HEIGHT, -1)]

    files = {
        "png rgb": (encode(rgb, "PNG"), rgb),
        "png grey": (encode(grey, "PNG"), as_rgb(grey)),
        "png rgba": (encode(rgba, "PNG"), over_white(rgba)),
        "png palette": (encode(indexed, "PNG"), seen),
        "png one transparent colour": (encode(indexed, "PNG", transparency=3), np.where(is_third, 255, seen)),
        "png half transparent colours": (
            encode(indexed, "PNG", transparency=alphas.tobytes()),
            over_white(np.concatenate([seen, alphas[indices][..., None]], axis=2)),
        ),
        "png transparent key": (
            encode(rgb, "PNG", transparency=tuple(rgb[2, 3].tolist())),
            np.where((rgb == rgb[2, 3]).all(axis=2, keepdims=True), 255, rgb),
        ),
        "png grey of 16 bits": (png(deep_rows(1), WIDTH, 16, 0), as_rgb(high[..., 0])),
        "png rgb of 16 bits": (png(deep_rows(3), WIDTH, 16, 2), high[..., :3]),
        "png rgba of 16 bits": (png(deep_rows(4), WIDTH, 16, 6), over_white(high)),
        "gif": (encode(indexed, "GIF"), seen),
        "gif transparent": (encode(indexed, "GIF", transparency=3), np.where(is_third, 255, seen)),
        "gif interlaced": (encode(indexed, "GIF", interlace=1), seen),
        "bmp": (encode(rgb, "BMP"), rgb),
        "bmp palette": (encode(indexed, "BMP"), seen),
        "bmp grey": (encode(grey, "BMP"), as_rgb(grey)),
        "bmp of 32 bits": (encode(rgba, "BMP"), rgba[..., :3]),
        "webp": (encode(rgb, "WEBP", lossless=True), rgb),
        "webp rgba": (encode(rgba, "WEBP", lossless=True, exact=True), over_white(rgba)),
    }
    for depth in (1, 2, 4):
        levels = np.random.default_rng(depth).integers(0, 2**depth, (HEIGHT, WIDTH), np.uint8)
        scaled = as_rgb(levels * (255 // (2**depth - 1)))
        rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, -depth:]).tobytes() for row in levels]
        is_first = (levels == 1)[..., None]
        files[f"png grey of {depth} bits"] = (png(rows, WIDTH, depth, 0), scaled)
        files[f"png grey of {depth} bits, one transparent"] = (
            png(rows, WIDTH, depth, 0, transparent=b"\0\1"),
            np.where(is_first, 255, scaled),
        )
        files[f"png palette of {depth} bits"] = (
            png(rows, WIDTH, depth, 3, palette=palette_colors[: 2**depth].tobytes()),
            palette_colors[levels],
        )
    for kind in ("GIF", "WEBP", "PNG"):
        others = [PIL.Image.fromarray(noise(seed=i)).quantize(16) for i in (8, 9)]
        first = indexed.convert("RGB") if kind == "WEBP" else indexed
        options = {"save_all": True, "append_images": others} | ({"lossless": True} if kind == "WEBP" else {})
        files[f"{kind.lower()} animated"] = (encode(first, kind, **options), seen)
    options = {"save_all": True, "append_images": [PIL.Image.fromarray(noise(4, seed=3))]}
    files["webp animated rgba"] = (
        encode(rgba, "WEBP", lossless=True, exact=True, **options),
        over_white(rgba),
    )
    return files


def by_pillow_alone():
    """The same, of formats that TensorFlow does not decode."""
    rgb, rgba, grey = noise(), noise(4), noise(1)
    deep = np.random.default_rng(2).integers(0, 65536, (HEIGHT, WIDTH), np.uint16)

    def as_rgb(grey):
        return np.repeat(np.asarray(grey).reshape(HEIGHT, WIDTH, 1), 3, axis=2)

    bits = PIL.Image.fromarray(grey.squeeze() > 127)
    return {
        "tiff": (encode(rgb, "TIFF"), rgb),
        "tiff rgba": (encode(rgba, "TIFF"), over_white(rgba)),
        "tiff grey of 16 bits": (encode(deep, "TIFF"), as_rgb((deep >> 8).astype(np.uint8))),
        "tiff pages": (encode(rgb, "TIFF", save_all=True, append_images=[PIL.Image.fromarray(grey.squeeze())]), rgb),
        "tiff of one bit": (encode(bits, "TIFF"), as_rgb(np.asarray(bits) * np.uint8(255))),
        "ppm": (encode(rgb, "PPM"), rgb),
        "pgm of 16 bits": (encode(deep, "PPM"), as_rgb((deep >> 8).astype(np.uint8))),
        "jpeg 2000": (encode(rgb, "JPEG2000"), rgb),
        "qoi rgba": (encode(rgba, "QOI"), over_white(rgba)),
        "bmp of one bit": (encode(bits, "BMP"), as_rgb(np.asarray(bits) * np.uint8(255))),
    }
