"""A folder of pictures through an exported model: needs TensorFlow alone, and no config."""

import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from xbm_keras.data.sources import PICTURE_SUFFIXES
from xbm_keras.decoding import count_pixels

BATCH_SIZE = 16


class ExportedModel:
    """A SavedModel that `export_encoder` wrote.

    Args:
        folder: of the model, `export/<version>/`.

    Raises:
        ValueError: if it holds no SavedModel, or one that takes no pictures.
    """

    def __init__(self, folder: pathlib.Path):
        if not (folder / "saved_model.pb").is_file():
            raise ValueError(f"Received {str(folder)!r}, which holds no saved_model.pb; expected an exported model.")
        self.loaded = tf.saved_model.load(str(folder))  # kept: the signatures use its variables
        if "serve_bytes" not in self.loaded.signatures:
            raise ValueError(
                f"Received {str(folder)!r}, which takes no pictures; it has the signatures "
                f"{', '.join(sorted(self.loaded.signatures))}. Index the run's own data instead."
            )
        self.fingerprint = fingerprint(folder)

    def embed(self, encoded: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [N, E] of encoded pictures, and which are valid [N] bool."""
        outputs = self.loaded.signatures["serve_bytes"](bytes=tf.constant(encoded, tf.string))
        return outputs["embeddings"].numpy(), outputs["valid"].numpy()


def why_invalid(encoded: bytes) -> str:
    """What to say of bytes that an exported model calls no valid picture."""
    try:
        pixels = int(count_pixels(tf.constant(encoded)))
    except tf.errors.OpError:  # the header is damaged
        pixels = 0
    large = f", or more pixels ({pixels:,}) than export.max_pixels of the model" if pixels > 0 else ""
    return f"no picture that can be read{large}"


def fingerprint(folder: pathlib.Path) -> str:
    """What tells this exported model from others: its graph and its weights."""
    return tf.saved_model.experimental.read_fingerprint(str(folder)).singleprint()


def list_pictures(folder: pathlib.Path) -> list[str]:
    """Paths of the pictures in a folder relative to it, in order. Raises ValueError if there are none."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_picture(path))
    if not paths:
        raise ValueError(
            f"Received {str(folder)!r}, which holds no pictures; expected files that end in "
            f"{', '.join(PICTURE_SUFFIXES)}."
        )
    return paths


def embed_folder(
    model: ExportedModel, folder: pathlib.Path, paths: list[str]
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Of pictures at these paths below a folder: paths, embeddings and validity, batch by batch."""
    for start in range(0, len(paths), BATCH_SIZE):
        batch = paths[start : start + BATCH_SIZE]
        yield batch, *model.embed([(folder / path).read_bytes() for path in batch])


def _is_picture(path: pathlib.Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
