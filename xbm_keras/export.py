"""The SavedModel that serves: inputs -> embeddings, with no memory, miner, loss or optimizer inside."""

import pathlib

import keras
import tensorflow as tf

from xbm_keras.model import XBMModel


def export_encoder(model: XBMModel, folder: pathlib.Path) -> pathlib.Path:
    """Write the encoder in TF Serving's layout, `folder/<version>/`, as the next version.

    `serving_default` takes what the model was made for: RGB images in 0..255, float32 [N, H, W, 3] of any one size
    (`inputs`), backbone features [N, D] (`features`), or of texts `token_ids` and `padding_mask`, int32 [N, L]; it
    gives `embeddings`, float32 [N, E] of unit length. N is free, also 0. Preprocessing is inside, except for the
    tokenizer, whose operations TensorFlow alone does not have.

    Returns:
        The folder of the new version.
    """
    versions = [int(path.name) for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
    target = folder / str(max(versions, default=0) + 1)
    encoder = model.encoder
    signature = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype, name=x.name), encoder.input)
    archive = keras.export.ExportArchive()
    archive.track(encoder)
    archive.add_endpoint("serving_default", lambda x: {"embeddings": encoder(x, training=False)}, [signature])
    archive.write_out(str(target), verbose=False)
    return target
