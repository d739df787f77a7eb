"""Requests that TF Serving sends to a model itself when it loads it, so that no client waits for the first pass.

The file holds `PredictionLog` records (tensorflow_serving/apis/prediction_log.proto). The package that defines them is
made for one TensorFlow release each and brings gRPC along; the four nested messages are written here by hand instead.
"""

import pathlib

import tensorflow as tf

# Field numbers of prediction_log.proto, predict.proto and model.proto.
PREDICT_LOG, REQUEST, MODEL_SPEC, INPUTS, SIGNATURE_NAME = 6, 1, 1, 2, 3
MAP_KEY, MAP_VALUE = 1, 2


def write_requests(path: pathlib.Path, requests: dict[str, dict[str, tf.Tensor]]) -> None:
    """Write `assets.extra/tf_serving_warmup_requests`: the inputs by name, of each signature by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests.items():
            spec = _field(MODEL_SPEC, _field(SIGNATURE_NAME, signature.encode()))
            entries = [
                _field(MAP_KEY, name.encode()) + _field(MAP_VALUE, tf.make_tensor_proto(value).SerializeToString())
                for name, value in inputs.items()
            ]
            request = spec + b"".join(_field(INPUTS, entry) for entry in entries)
            writer.write(_field(PREDICT_LOG, _field(REQUEST, request)))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field in protocol buffers' wire format."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value > 127:
        octets.append(value & 127 | 128)
        value >>= 7
    return bytes([*octets, value])
