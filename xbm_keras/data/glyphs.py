"""Pictures of characters, drawn from the fonts that ship with matplotlib: data that is there wherever pip installs.

A class is a character, an item one font's drawing of it, a little turned, moved and noisy. So there are thousands of
classes with a dozen items each, as in product search, and nothing to download.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import unicodedata
from typing import Annotated

import matplotlib
import matplotlib.ft2font
import numpy as np
import PIL
import PIL.features
import scipy.sparse.csgraph
from annotated_types import Ge, Le
from PIL import Image, ImageDraw, ImageFont

from xbm_keras.arguments import Positive, Share, checked
from xbm_keras.atomic_files import DAY, remove_leftovers, write_whole
from xbm_keras.data.labels import encode
from xbm_keras.data.sources import Items, RandomAccess

# The fonts of text. Those of Computer Modern number their characters as TeX does, not as Unicode does, and the other
# STIX files hold parts of large symbols.
STYLES = {
    "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
    "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
}
FONTS = tuple(family + style for family, styles in STYLES.items() for style in styles)
SERIF = ("DejaVuSerif", "STIXGeneral")
PRETRAINING_SCRIPTS = ("LATIN", "CYRILLIC")
SIZE = 48  # pixels of a picture's sides
SAME = 0.05  # distance below which two drawings of unit length are one; a dot more or less makes at least 0.06


@dataclasses.dataclass(frozen=True)
class Character:
    """A class: what looks alike is one character."""

    codes: tuple[int, ...]
    """Unicode numbers, increasing."""
    fonts: dict[str, int]
    """Font, and the number that it draws the character by."""

    @property
    def name(self) -> str:
        """Such as "U+03A9 Ω"; of look-alikes the first."""
        return f"U+{self.codes[0]:04X} {chr(self.codes[0])}"

    @property
    def is_for_pretraining(self) -> bool:
        """Whether one of the look-alikes is Latin or Cyrillic, which the shipped network has seen."""
        names = [unicodedata.name(chr(code)).split() for code in self.codes]
        return any(script in name for name in names for script in PRETRAINING_SCRIPTS)


class Glyphs(RandomAccess):
    """Drawings of the characters that several of matplotlib's fonts have, [48, 48, 3], black on white.

    The column `role` says "gallery" for sans-serif fonts and "query" for fonts with serifs; `font` names the font.

    Latin and Cyrillic characters, and all that look like one, are left to `pretraining`: the network that ships with
    the package was trained on them, and on no other. Pictures depend on the arguments and on the versions of
    matplotlib (the fonts) and Pillow (the drawing) alone.

    Args:
        min_fonts: a character must be in so many of the 16 fonts.
        max_classes: at most so many characters, spread evenly over Unicode; None for all.
        drawings: items for each character and font.
        rotation: degrees; each item is turned by at most so much, to either side.
        noise: standard deviation of the noise on each pixel, where black to white is 1.
        pretraining: the characters that the shipped network was trained on instead of those that it was not.
        cache_dir: where `find_characters` may keep what it found.

    Raises:
        ValueError: for a number out of bounds, such as more fonts than there are.
    """

    @checked
    def __init__(
        self,
        min_fonts: Annotated[int, Ge(2), Le(len(FONTS))] = 8,
        max_classes: Positive | None = None,
        drawings: Positive = 1,
        rotation: Annotated[float, Ge(0), Le(180)] = 10.0,
        noise: Share = 0.1,
        pretraining: bool = False,
        cache_dir: str | None = None,
    ):
        self.remake = functools.partial(
            Glyphs, min_fonts, max_classes, drawings, rotation, noise, pretraining, cache_dir
        )
        chosen = [c for c in find_characters(min_fonts, cache_dir) if c.is_for_pretraining == pretraining]
        if max_classes is not None and max_classes < len(chosen):
            chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, max_classes).astype(int)]
        self.rotation, self.noise = rotation, noise
        rows = [(c.name, font, code, n) for c in chosen for font, code in c.fonts.items() for n in range(drawings)]
        names, fonts, codes, _ = map(np.array, zip(*rows, strict=True))
        self.fonts, self.codes = fonts, codes
        roles = np.where(np.char.startswith(fonts, SERIF[0]) | np.char.startswith(fonts, SERIF[1]), "query", "gallery")
        keys = np.array([f"U+{code:04X}/{font}/{n}" for _, font, code, n in rows])
        self.items = Items(keys, encode(names, "characters whose name"), {"font": fonts, "role": roles})

    def __reduce__(self):
        """A worker draws by itself."""
        return self.remake, ()

    def stamp(self, position):
        """None: hashing is cheap."""
        return None

    def digest(self, position):
        """Hash of all that decides a picture, which need not be drawn for it."""
        about = (*versions(), self.items.keys[position], float(self.rotation), float(self.noise))
        return hashlib.sha256(repr(tuple(map(str, about))).encode()).hexdigest()

    def load(self, position):
        """The picture as RGB, uint8 [48, 48, 3]."""
        seed = hashlib.sha256(self.items.keys[position].encode()).digest()
        rng = np.random.default_rng(int.from_bytes(seed[:8]))
        degrees, scale, shift = rng.uniform(-1, 1) * self.rotation, rng.uniform(0.85, 1.1), rng.uniform(-1.5, 1.5, 2)
        ink = _moved(draw(self.fonts[position], int(self.codes[position]), 2 * SIZE), degrees, scale, shift)
        contrast, noise = rng.uniform(0.6, 1), self.noise * 255 * rng.standard_normal((SIZE, SIZE), np.float32)
        grey = np.clip(255 - contrast * np.asarray(ink, np.float32) + noise, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)


@functools.cache
def find_characters(min_fonts: int, cache_dir: str | None = None) -> tuple[Character, ...]:
    """The characters that so many fonts have, look-alikes joined, in the order of Unicode.

    Left out is what has no shape of its own: spaces, controls, private use, marks that combine with a letter before
    them, and characters for which a font has but an empty drawing or its sign for "missing".

    Two characters are one where any font draws them the same: Latin A, Greek Alpha and Cyrillic A; or the hyphen and
    the minus, which a monospaced font does not tell apart.

    Args:
        min_fonts: a character must be in so many of the 16 fonts.
        cache_dir: a folder in which the answer, which takes 40,000 drawings, is kept; None draws.
    """
    name = hashlib.sha256(repr((*versions(), min_fonts)).encode()).hexdigest()[:16]
    path = cache_dir and pathlib.Path(os.path.expanduser(cache_dir)) / "glyphs" / f"{name}.json"
    if path and path.is_file():
        return tuple(Character(tuple(codes), fonts) for codes, fonts in json.loads(path.read_text()))
    found = _compare(min_fonts)
    if path:
        with contextlib.suppress(OSError):  # the feature cache, in the same folder, says what is wrong with it
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent, older_than=DAY)
            write_whole(path, json.dumps([[character.codes, character.fonts] for character in found]))
    return found


def _compare(min_fonts: int) -> tuple[Character, ...]:
    """Draw every character in every font, and join those whose drawings are the same."""
    coverage = {font: _codes(font) for font in FONTS}
    counts = np.bincount(np.concatenate([list(codes) for codes in coverage.values()]))
    codes = [int(code) for code in np.flatnonzero(counts >= min_fonts) if _has_shape(chr(code))]
    same = scipy.sparse.coo_array((len(codes), len(codes)), dtype=bool)
    fonts: dict[int, set[str]] = {code: set() for code in codes}
    for font in FONTS:
        here = np.array([i for i, code in enumerate(codes) if code in coverage[font]])
        if not len(here):
            continue
        drawn = np.stack([np.asarray(draw(font, codes[i], 2 * SIZE).reduce(4), np.float32).ravel() for i in here])
        length = np.linalg.norm(drawn, axis=1)
        here, drawn = here[length > 0], drawn[length > 0] / length[length > 0, None]
        for i in here:
            fonts[codes[i]].add(font)
        a, b = here[np.array(np.nonzero(drawn @ drawn.T > 1 - SAME**2 / 2))]  # |x - y|^2 = 2 - 2 x.y of unit vectors
        same = same + scipy.sparse.coo_array((np.ones(len(a), bool), (a, b)), same.shape)
    _, groups = scipy.sparse.csgraph.connected_components(same, directed=False)
    members: dict[int, list[int]] = {}
    for code, group in zip(codes, groups, strict=True):
        if len(fonts[code]) >= min_fonts:
            members.setdefault(group, []).append(code)
    return tuple(
        Character(tuple(group), {font: code for font in FONTS for code in reversed(group) if font in fonts[code]})
        for group in members.values()
    )


def draw(font: str, code: int, size: int) -> Image.Image:
    """A character's ink in the middle of a square of `size` pixels, 8-bit grey, the baseline at 72 % of the height."""
    picture = Image.new("L", (size, size))
    loaded = _load(font, round(size * 0.64))
    ImageDraw.Draw(picture).text((size / 2, round(size * 0.72)), chr(code), 255, loaded, anchor="ms")
    return picture


@functools.cache
def versions() -> tuple[str, ...]:
    """What decides the drawings: the fonts and this file, as a hash, and the libraries that draw."""
    files = [pathlib.Path(__file__), *map(_path, FONTS)]
    read = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return read, PIL.__version__, PIL.features.version("freetype2") or "", np.__version__


def _moved(ink: Image.Image, degrees: float, scale: float, shift: np.ndarray) -> Image.Image:
    """At `SIZE`, turned about its middle, scaled, and moved by so many pixels."""
    zoom = ink.width / SIZE / scale
    cos, sin = zoom * np.cos(np.radians(degrees)), zoom * np.sin(np.radians(degrees))
    x, y = SIZE / 2 + shift  # where the middle of the ink goes
    inverse = (cos, sin, ink.width / 2 - cos * x - sin * y, -sin, cos, ink.width / 2 + sin * x - cos * y)
    return ink.transform((SIZE, SIZE), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)


def _has_shape(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNPS" and "COMBINING" not in unicodedata.name(character, "COMBINING")


def _path(font: str) -> pathlib.Path:
    return pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")


@functools.cache
def _load(font: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_path(font), size, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _codes(font: str) -> frozenset[int]:
    """What a font has a glyph for; number 0 is its sign for a missing one."""
    charmap = matplotlib.ft2font.FT2Font(str(_path(font))).get_charmap()
    return frozenset(code for code, glyph in charmap.items() if glyph)
