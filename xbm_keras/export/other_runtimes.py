"""Exports for ONNX Runtime (extra [onnx]) and LiteRT (extra [litert]), by Keras' own converters."""

import importlib
import logging
import pathlib
import warnings
from collections.abc import Callable

import keras
import numpy as np

from xbm_keras.atomic_files import writing_whole
from xbm_keras.export.check import in_float32, require_same
from xbm_keras.model.xbm_model import XBMModel, make_encoder

log = logging.getLogger("xbm_keras")
FORMATS = {".onnx": "onnx", ".tflite": "litert"}


def export_to(model: XBMModel, path: pathlib.Path) -> pathlib.Path:
    """Write the encoder as `.onnx` or `.tflite`, as the path ends, with preprocessing and normalisation inside.

    Pictures come as float32 RGB in 0..255 at the size of the network, [N, height, width, 3]: neither format has the
    antialiased resizing of training, nor decoders, so the client decodes and resizes (`tf.image.resize(images, size,
    antialias=True)`, or an equal one). N is free in ONNX; LiteRT resizes its input tensor for another N than 1.

    It computes in float32 whatever the dtype policy of the model. The file gets its name once its own runtime has
    loaded it and given the embeddings of the model.

    Raises:
        ValueError: for another suffix, a missing converter or runtime, or where the file does not run or gives other
            embeddings. A network with operations that the format lacks may end in the converter's own error. There is
            no file then.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"Received {str(path)!r}; expected a path that ends in {' or '.join(FORMATS)}.")
    kind = FORMATS[path.suffix]
    with in_float32(model.backbone, model.head):
        size = model.backbone and model.backbone.image_size
        inputs = keras.Input((*size, 3), name="inputs") if size else None
        encoder = make_encoder(model.backbone, model.head, model.memory.feature_dim, inputs)
        signature = [keras.tree.map_structure(lambda x: keras.InputSpec(x.dtype, x.shape, name=x.name), encoder.input)]
        trial = [_trial(tensor) for tensor in keras.tree.flatten(encoder.input)]
        expected = {"embeddings": encoder(keras.tree.pack_sequence_as(encoder.input, trial), training=False)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing_whole(path) as side:
            try:
                with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of tf2onnx about numpy
                    encoder.export(str(side), format=kind, verbose=False, input_signature=signature)
                run = RUNTIMES[path.suffix](side)
            except ImportError as error:
                raise ValueError(
                    f"Received {path}, and its converter or runtime cannot be imported ({error}); expected the extra "
                    f'[{kind}]. Install it with: pip install ".[{kind}]"'
                ) from error
            names = [tensor.name for tensor in keras.tree.flatten(encoder.input)]
            require_same(path.name, lambda: {"embeddings": run(dict(zip(names, trial, strict=True)))}, expected)
    takes = " and ".join(map(_described, keras.tree.flatten(encoder.input))) + ", RGB of 0 to 255" * bool(size)
    log.info("It takes %s; it gives embeddings [N, %d].", takes, encoder.output.shape[1])
    return path


def _described(tensor: keras.KerasTensor) -> str:
    shape = ", ".join(["N", *(str(size or "any") for size in tensor.shape[1:])])
    return f"'{tensor.name}', {tensor.dtype} [{shape}]"


def _trial(tensor: keras.KerasTensor) -> np.ndarray:
    """Two items such as the tensor takes: random pictures or features, or tokens."""
    shape = [2, *(size or 4 for size in tensor.shape[1:])]
    if "int" in tensor.dtype:
        return np.ones(shape, tensor.dtype)
    return np.random.default_rng(0).uniform(0, 255, shape).astype(tensor.dtype)


def _onnx(path: pathlib.Path) -> Callable[[dict], np.ndarray]:
    runtime = importlib.import_module("onnxruntime")

    def run(inputs):
        session = runtime.InferenceSession(str(path))
        return session.run(None, inputs)[0]

    return run


def _litert(path: pathlib.Path) -> Callable[[dict], np.ndarray]:
    runtime = importlib.import_module("ai_edge_litert.interpreter")

    def run(inputs):
        interpreter = runtime.Interpreter(model_path=str(path))
        runner = interpreter.get_signature_runner()
        return next(iter(runner(**inputs).values()))

    return run


RUNTIMES = {".onnx": _onnx, ".tflite": _litert}
