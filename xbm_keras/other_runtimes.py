"""Exports for ONNX Runtime (extra [onnx]) and LiteRT (extra [litert]), by Keras' own converters."""

import pathlib

import keras

from xbm_keras.model import XBMModel

FORMATS = {".onnx": "onnx", ".tflite": "litert"}


def export_to(model: XBMModel, path: pathlib.Path) -> pathlib.Path:
    """Write the encoder as `.onnx` or `.tflite`, as the path ends, with preprocessing and normalisation inside.

    Pictures come as float32 RGB in 0..255 at the size of the network, [N, height, width, 3]: neither format has the
    antialiased resizing of training, nor decoders, so the client decodes and resizes (`tf.image.resize(images, size,
    antialias=True)`, or an equal one). N is free in ONNX; LiteRT resizes its input tensor for another N than 1.

    Raises:
        ValueError: for another suffix, or a missing converter. A network with operations that the format lacks ends in
            the converter's own error.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"Received {str(path)!r}; expected a path that ends in {' or '.join(FORMATS)}.")
    kind = FORMATS[path.suffix]
    encoder = model.encoder
    if model.backbone is not None and model.backbone.image_size:
        inputs = keras.Input((*model.backbone.image_size, 3), name="inputs")
        encoder = keras.Model(inputs, model.head(model.unit_length(model.backbone(inputs))), name="encoder")
    path.parent.mkdir(parents=True, exist_ok=True)
    signature = [keras.tree.map_structure(lambda x: keras.InputSpec(x.dtype, x.shape, name=x.name), encoder.input)]
    try:
        encoder.export(str(path), format=kind, verbose=False, input_signature=signature)
    except ImportError as error:
        raise ValueError(
            f"Received {path}, and its converter cannot be imported ({error}); expected the extra [{kind}]. Install it "
            f'with: pip install ".[{kind}]"'
        ) from error
    return path
