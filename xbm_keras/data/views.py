"""Augmented views of pictures, which the feature cache keeps like further items."""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from xbm_keras.data.sources import Source


class View:
    """A source whose pictures are cropped, mirrored and lit differently, each always in the same way.

    Args:
        source: the plain pictures.
        number: 1 or more; each number is another view.
        flip: whether a view may be mirrored left to right. Not for letters, or where left and right differ.
    """

    def __init__(self, source: Source, number: int, flip: bool = True):
        self.source = source
        self.name = f"view {number}{'' if flip else ', not mirrored'}"
        self.number = number
        self.flip = flip
        self.items = source.items
        self.root = f"{getattr(source, 'root', '')} {self.name}"  # its digests are not those of the plain pictures

    def stamp(self, position: int) -> tuple[int, int] | None:
        """Of the plain picture."""
        return self.source.stamp(position)

    def digest(self, position: int) -> str:
        """Hash of the plain picture's digest and the view."""
        return hashlib.sha256(f"{self.source.digest(position)} {self.name}".encode()).hexdigest()

    def read(self, positions: Sequence[int], prepare: Callable) -> Iterator:
        """Views of the pictures at these positions."""
        return self.source.read(positions, lambda picture: prepare(augment(picture, self.number, self.flip)))


def augment(picture: np.ndarray, number: int, flip: bool = True) -> np.ndarray:
    """A random crop of half to all of a picture [H, W, 3] uint8, maybe mirrored, with other brightness and contrast.

    The randomness is a function of the pixels and the number.
    """
    rng = np.random.default_rng([number, zlib.crc32(picture.tobytes())])
    height, width = picture.shape[:2]
    area, aspect = rng.uniform(0.5, 1.0), np.exp(rng.uniform(-0.25, 0.25))
    h = int(np.clip(round(height * np.sqrt(area * aspect)), 1, height))
    w = int(np.clip(round(width * np.sqrt(area / aspect)), 1, width))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    crop = picture[top : top + h, left : left + w].astype(np.float32)
    if flip and rng.random() < 0.5:
        crop = crop[:, ::-1]
    contrast, brightness = rng.uniform(0.8, 1.25), rng.uniform(-25, 25)
    mean = crop.mean()
    return np.clip((crop - mean) * contrast + mean + brightness, 0, 255).astype(np.uint8)
