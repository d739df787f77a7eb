"""Some items of a source, and views of them that the feature cache keeps like further items.

Augmented and turned ones train; mirrored and central ones are embedded beside the picture, and averaged with it.
"""

import functools
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import tensorflow as tf

from xbm_keras.data.sources import Source

QUARTERS = (1, 2, 3)
Average: TypeAlias = Literal["flip", "crops"]
"""Views whose embeddings are averaged with that of the picture: mirrored, or its centre twice."""


class Chosen:
    """Some items of a source.

    Args:
        source: all items.
        positions: of those that are wanted, increasing.
    """

    def __init__(self, source: Source, positions: np.ndarray):
        self.source, self.positions = source, positions
        self.items = source.items.take(positions)
        self.root, self.decoder = getattr(source, "root", ""), source.decoder

    def stamp(self, position: int) -> tuple[int, int] | None:
        """As the source says."""
        return self.source.stamp(int(self.positions[position]))

    def digest(self, position: int) -> str:
        """As the source says."""
        return self.source.digest(int(self.positions[position]))

    def read(self, positions: Sequence[int], prepare: Callable) -> Iterator:
        """The items at these positions."""
        return self.source.read(self.positions[np.asarray(positions, np.int64)].tolist(), prepare)


class View(Chosen):
    """Some pictures of a source, each changed, and always in the same way.

    Args:
        source: the plain pictures.
        positions: of those that are wanted, increasing.
        name: of the change; views of different names have digests of their own.
        change: from a picture [H, W, 3] uint8 to another.
    """

    def __init__(self, source: Source, positions: np.ndarray, name: str, change: Callable[[np.ndarray], np.ndarray]):
        super().__init__(source, positions)
        self.name, self.change = name, change

    def digest(self, position: int) -> str:
        """Hash of the plain picture's digest and the view."""
        return self.digest_of(super().digest(position))

    def digest_of(self, plain: str) -> str:
        """The digest of a view, from that of the plain picture."""
        return digest_of(plain, self.name)

    def read(self, positions: Sequence[int], prepare: Callable) -> Iterator:
        """Views of the pictures at these positions."""
        return super().read(positions, lambda picture: prepare(self.change(picture)))


def digest_of(plain: str, name: str) -> str:
    """The digest of the view of this name, from that of the plain picture."""
    return hashlib.sha256(f"{plain} {name}".encode()).hexdigest()


def augmented(source: Source, positions: np.ndarray, number: int, flip: bool = True) -> View:
    """The pictures cropped, mirrored and lit differently.

    Args:
        source: the plain pictures.
        positions: of those that are wanted.
        number: 1 or more; each number is another view.
        flip: whether a view may be mirrored left to right. Not for letters, or where left and right differ.
    """
    name = f"view {number}{'' if flip else ', not mirrored'}"
    return View(source, positions, name, functools.partial(augment, number=number, flip=flip))


def turned(source: Source, positions: np.ndarray, quarters: int) -> View:
    """The pictures turned counterclockwise by so many quarters."""
    return View(source, positions, f"turned by {90 * quarters} degrees", functools.partial(turn, quarters=quarters))


def turn(picture: np.ndarray, quarters: int) -> np.ndarray:
    """A picture [H, W, 3], turned counterclockwise by so many quarters."""
    return np.ascontiguousarray(np.rot90(picture, quarters))


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
        crop = mirror(crop)
    contrast, brightness = rng.uniform(0.8, 1.25), rng.uniform(-25, 25)
    mean = crop.mean()
    return np.clip((crop - mean) * contrast + mean + brightness, 0, 255).astype(np.uint8)


def mirror(pictures: Any) -> Any:
    """Pictures [..., H, W, 3], an array or a tensor, left to right."""
    return pictures[..., ::-1, :]


def centre(pictures: Any, eighths: int) -> Any:
    """The centre of pictures [..., H, W, 3], an array or a tensor: so many eighths of height and width, rounded."""
    shape = tf.shape(pictures) if tf.is_tensor(pictures) else np.shape(pictures)
    height, width = shape[-3], shape[-2]
    h, w = (height * eighths + 4) // 8, (width * eighths + 4) // 8
    top, left = (height - h) // 2, (width - w) // 2
    return pictures[..., top : top + h, left : left + w, :]


CHANGES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "flip": {"mirrored": mirror},
    "crops": {f"centre of {n} eighths": functools.partial(centre, eighths=n) for n in (7, 6)},
}
"""By name what makes each of these views of pictures, arrays in training and tensors in an exported model."""


def changes_of(average: Sequence[Average]) -> dict[str, Callable[[Any], Any]]:
    """By name what makes the views that are averaged with the picture itself, in one order whatever that of the names.

    Example:
        >>> list(changes_of(["crops", "flip"]))
        ['mirrored', 'centre of 7 eighths', 'centre of 6 eighths']
    """
    return {name: change for kind, views in CHANGES.items() if kind in average for name, change in views.items()}


def averaged(source: Source, positions: np.ndarray, average: Sequence[Average]) -> list[View]:
    """The pictures' views that are averaged with them.

    Args:
        source: the plain pictures.
        positions: of those that are wanted.
        average: which views.
    """
    return [View(source, positions, name, change) for name, change in changes_of(average).items()]
