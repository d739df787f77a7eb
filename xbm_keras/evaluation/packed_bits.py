"""Whole numbers of few bits, several to a byte."""

import numpy as np
import tensorflow as tf

BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int32)
"""[256, 8], of each byte, the highest one first."""


def packed(numbers: tf.Tensor, bits: int) -> tf.Tensor:
    """Whole numbers [N, E] of so many bits, float32, as bytes, the first number in the highest bits of the first."""
    width, per_byte = numbers.shape[1], 8 // bits
    numbers = tf.pad(numbers, [[0, 0], [0, -width % per_byte]])  # counted on a GPU, unlike integers
    places = [2.0 ** (8 - bits * (i + 1)) for i in range(per_byte)]
    return tf.cast(tf.reduce_sum(tf.reshape(numbers, [-1, -(-width // per_byte), per_byte]) * places, axis=2), tf.uint8)
