"""Unit length and the signed power, once for tensors and once for arrays.

The same rule for both: the last axis gets unit length, float32; a zero row stays zero; no square over- or underflows,
however long or short a row is; NaN stays NaN.
"""

import keras
import numpy as np
import tensorflow as tf

SQUARES_HOLD = (1e-15, 1e15)  # where the largest component lies between, float32 holds the squares and their sum
UNIT_TO_ROUNDING = 1e-6


def unit_length(x: tf.Tensor) -> tf.Tensor:
    """Tensor [..., D] of any float dtype with rows of unit length; those that `unit_rows` made stay bit by bit.

    A zero row has no gradient, also under XLA.
    """
    x = tf.cast(x, tf.float32)
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    shortest, longest = SQUARES_HOLD
    # Powers of two, and 1 for most rows, so that no bit of these changes.
    longer = tf.where(largest < shortest, tf.sign(largest) * 2.0**100, tf.ones_like(largest))
    scale = tf.where(largest > longest, 2.0**-100, longer)
    x *= tf.stop_gradient(scale)
    squares = tf.reduce_sum(tf.square(x), axis=-1, keepdims=True)
    factor = tf.math.rsqrt(tf.maximum(squares, 1e-30))
    # The difference to 1 is exact, and so is the sum. As a constant it leaves the gradient what it is.
    rest = tf.where(tf.abs(squares - 1.0) < 2.0 * UNIT_TO_ROUNDING, 1.0 - factor, 0.0)
    return x * (factor + tf.stop_gradient(rest))


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Array [..., D] of any dtype with rows of unit length; those that have it to rounding stay bit by bit as they are.

    So rows that were made unit once, such as those of a memory, are not changed by being made unit again.
    """
    rows = np.asarray(rows)
    rows = rows.astype(np.result_type(rows, np.float32), order="C", copy=False)  # another order would sum differently
    # Of the highest and the lowest one, without a copy of all.
    largest = np.maximum(rows.max(axis=-1, keepdims=True, initial=0), -rows.min(axis=-1, keepdims=True, initial=0))
    is_plain = (largest > SQUARES_HOLD[0]) & (largest < SQUARES_HOLD[1]) | (largest == 0)
    if not is_plain.all():
        rows = rows / np.where(is_plain, 1, largest)
    rows = rows.astype(np.float32, copy=False)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    is_done = (np.abs(lengths - 1) < UNIT_TO_ROUNDING) | (lengths == 0)
    return rows / np.where(is_done, 1, lengths)


def all_finite(x: tf.Tensor, axis: int | None = None) -> tf.Tensor:
    """Whether all numbers of a tensor, or along an axis, are finite: bool.

    By a sum of small parts of them, which no finite numbers make overflow: a reduction of bools costs several times it.
    """
    return tf.math.is_finite(tf.reduce_sum(tf.cast(x, tf.float32) * 2.0**-100, axis=axis))


def signed_power(x, power: float):
    """Components of a tensor or an array to a power that keep their signs; 1 leaves them as they are."""
    if power == 1:
        return x
    return (tf if tf.is_tensor(x) else np).sign(x) * abs(x) ** power


@keras.saving.register_keras_serializable("xbm_keras")
class UnitLength(keras.layers.Layer):
    """`unit_length` as a layer, for the models that are made of layers."""

    def call(self, x):
        """Rows [..., D] of unit length, float32."""
        return unit_length(x)
