"""Embeddings in fewer bits: int8 and binary codes, and vectors that compare as the codes do.

Letters: N items, E embedding width.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

BITS = (128, 64, 32, 16, 8, 4, 2, 1)  # of a byte, the first component in the highest


def to_int8(embeddings: tf.Tensor) -> tf.Tensor:
    """Codes [N, E] int8 of embeddings [N, E]: in steps of a 127th of each row's largest component.

    The scale of a row is dropped: it plays no part in cosine similarity. A quarter of the bytes of float32.
    """
    largest = tf.reduce_max(tf.abs(embeddings), axis=1, keepdims=True)
    return tf.cast(tf.round(tf.math.divide_no_nan(127.0 * embeddings, largest)), tf.int8)


def to_binary(embeddings: tf.Tensor) -> tf.Tensor:
    """Codes [N, ceil(E / 8)] uint8 of embeddings [N, E]: the signs, eight to a byte as by `np.packbits`.

    The Hamming distance of two codes ranks as the cosine similarity of the signs does. A 32nd of the bytes of float32.
    """
    width = embeddings.shape[1]
    signs = tf.pad(tf.cast(embeddings > 0, tf.float32), [[0, 0], [0, -width % 8]])  # counted on a GPU, unlike integers
    return tf.cast(tf.reduce_sum(tf.reshape(signs, [-1, -(-width // 8), 8]) * BITS, axis=2), tf.uint8)


CODES: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {"int8": to_int8, "binary": to_binary}


def decoded(name: str, embeddings: np.ndarray) -> np.ndarray:
    """Vectors [N, E] float32 whose cosine similarities are those of the codes of embeddings [N, E].

    Args:
        name: "int8" or "binary".
        embeddings: float.
    """
    codes = CODES[name](tf.constant(embeddings, tf.float32)).numpy()
    if name == "int8":
        return codes.astype(np.float32)
    return 2 * np.unpackbits(codes, axis=1, count=embeddings.shape[1]).astype(np.float32) - 1
