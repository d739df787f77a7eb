"""Score matrix: cosine similarity of anchors and memory rows, in float32 under any dtype policy."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf


def cosine_scores(anchors: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Score matrix [B, M], float32.

    Args:
        anchors: [B, D], of unit length.
        rows: [M, D], of unit length, any float dtype.

    Example:
        >>> rows = tf.constant([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> cosine_scores(tf.constant([[0.0, 1.0]]), rows).numpy().tolist()
        [[0.0, 1.0, -1.0]]
    """
    return tf.matmul(tf.cast(anchors, tf.float32), tf.cast(rows, tf.float32), transpose_b=True)


@contextlib.contextmanager
def all_bits_of_float32() -> Iterator[None]:
    """Without TensorFloat-32, which on recent GPUs keeps 10 of the 23 bits of the inputs of a float32 product."""
    was_enabled = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(was_enabled)
