"""A folder of pictures through an exported model: the model needs TensorFlow alone, and no config is read."""

import contextlib
import pathlib

import numpy as np
import tensorflow as tf

from xbm_keras.atomic_files import latest_version, versions
from xbm_keras.data.errors import UnreadableItem
from xbm_keras.data.pictures import decode_picture

BATCH_SIZE = 16
FEATURE_ROWS = 4096  # that are embedded at a time


class ExportedModel:
    """A SavedModel that `export_encoder` wrote.

    Args:
        folder: of the model, `export/<version>/`.
        signature: that is needed: "serve_bytes" for pictures, "serve_features" for features.

    Raises:
        ValueError: if it holds no SavedModel, or one without that signature.
    """

    def __init__(self, folder: pathlib.Path, signature: str = "serve_bytes"):
        if not (folder / "saved_model.pb").is_file():
            raise ValueError(f"Received {str(folder)!r}, which holds no saved_model.pb; expected an exported model.")
        self.loaded = tf.saved_model.load(str(folder))  # kept: the signatures use its variables
        if signature not in self.loaded.signatures:
            raise ValueError(
                f"Received {str(folder)!r}, which takes no {'pictures' if signature == 'serve_bytes' else 'features'}; "
                f"it has the signatures {', '.join(sorted(self.loaded.signatures))}. Index the run's own data instead."
            )
        self.fingerprint = fingerprint_of(folder)

    def embed(self, encoded: list[bytes], max_pixels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [N, E] of encoded pictures, and which are valid [N] bool.

        What the model does not decode itself, since TensorFlow does not know the format or the picture is larger than
        the model was told to take from strangers, is decoded as training does it, by default
        up to as many pixels.
        """
        outputs = self.loaded.signatures["serve_bytes"](bytes=tf.constant(encoded, tf.string))
        embeddings, valid = outputs["embeddings"].numpy(), outputs["valid"].numpy()
        for i in np.flatnonzero(~valid):
            with contextlib.suppress(UnreadableItem):
                picture = tf.constant(decode_picture(encoded[i], max_pixels)[None])
                embeddings[i] = self.loaded.signatures["serve_uint8"](inputs=picture)["embeddings"][0].numpy()
                valid[i] = True
        return embeddings, valid

    def embed_features(self, features: np.ndarray, signature: str = "serve_features") -> np.ndarray:
        """Embeddings [N, E] of features [N, D]; of a model of queries and documents they are those of queries.

        Raises:
            ValueError: for features of another width.
        """
        function = self.loaded.signatures[signature]
        (spec,) = function.structured_input_signature[1].values()
        if features.ndim != 2 or features.shape[1] != spec.shape[1] or not np.isfinite(features).all():
            raise ValueError(
                f"Received features of shape {features.shape}; expected finite numbers [n, {spec.shape[1]}], of the "
                "network that the model was trained on."
            )
        batches = [features[i : i + FEATURE_ROWS] for i in range(0, max(1, len(features)), FEATURE_ROWS)]
        found = [function(features=tf.constant(batch, tf.float32))["embeddings"].numpy() for batch in batches]
        return np.concatenate(found)


def why_invalid(path: pathlib.Path) -> str:
    """What to say of a file that is no valid picture."""
    if path.is_fifo():
        return "no picture that can be read"  # what it held is gone
    try:
        decode_picture(path.read_bytes())
        reason = ""
    except UnreadableItem as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    return f"no picture that can be read{reason and ': '}{reason}"


def exported_by(model: str | pathlib.Path) -> pathlib.Path:
    """The version of an exported model that `--model` names: itself, the newest of its folder, or of a run's export.

    Raises:
        ValueError: where there is none, as after a run whose head was not better than the frozen features.
    """
    folder = pathlib.Path(model)
    folder = folder.parent if folder.is_file() else folder
    if (folder / "saved_model.pb").is_file():
        return folder
    if (folder / "export").is_dir():
        return latest_version(folder / "export")
    if (folder / "model.keras").exists():
        raise ValueError(
            f"Received --model {str(model)!r}, a run that exported nothing, as it says; expected an exported model. "
            f"Train another head, or have this one exported nevertheless: xbm-keras export --model {model} --set "
            "export.only_if_better=false"
        )
    if found := versions(folder):
        return found[-1]
    raise ValueError(
        f"Received --model {str(model)!r}, {'in which there is' if folder.is_dir() else 'which is'} none; expected the "
        "workdir of a run, its export, or a version of it. Give the --workdir of train.py."
    )


def fingerprint_of(folder: pathlib.Path) -> str:
    """What tells this exported model from others: its graph and its weights."""
    return tf.saved_model.experimental.read_fingerprint(str(folder)).singleprint()


def read_bytes(path: pathlib.Path) -> bytes:
    """The file's bytes; none, which are no valid picture, where the disk does not give them."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
