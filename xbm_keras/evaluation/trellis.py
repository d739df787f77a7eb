"""Trellis-coded quantization: twice as many levels as the bits of a number can name, of which the past leaves half.

The levels, in order, fall into four subsets in turn. The first bit of each number enters a register, and this bit and
the four before it say which subset the number is of; its other bits say which level of that. So the levels lie as
densely as with one bit more, and a dynamic program finds the bits whose levels are nearest to all numbers together.

Letters: N items, n numbers of each, R bits of a number, L levels, 2^(R + 1).

Reference:
    Marcellin and Fischer, "Trellis Coded Quantization of Memoryless and Gauss-Markov Sources", IEEE Transactions on
    Communications, 1990; the code of 16 states: Ungerboeck, "Channel Coding with Multilevel/Phase Signals", IEEE
    Transactions on Information Theory, 1982, table I.
"""

import numpy as np
import tensorflow as tf

from xbm_keras.evaluation.packed_bits import BITS

MEMORY = 4  # bits of the past
STATES = 2**MEMORY
TAPS = 0o23, 0o04  # which of the last five bits, the newest one lowest, add up to the high and the low bit of a subset


def _subsets(windows: np.ndarray) -> np.ndarray:
    """Of the last five bits."""
    high, low = (BITS[windows & taps].sum(axis=-1) % 2 for taps in TAPS)
    return 2 * high + low


SUBSETS = _subsets(np.arange(2 * STATES)).astype(np.int32)


def _subsets_by(bits: np.ndarray) -> np.ndarray:
    """[256, 8] of the last eight of bits [256, 16]."""
    return SUBSETS[sum(bits[:, 8 - i : 16 - i] << i for i in range(MEMORY + 1))]


# The code is linear: what a byte and the one before it say of subsets are added bit by bit.
BY_BYTE = _subsets_by(np.pad(BITS, [(0, 0), (8, 0)]))
BY_BYTE_BEFORE = _subsets_by(np.pad(BITS, [(0, 0), (0, 8)]))


def chosen_levels(numbers: tf.Tensor, levels: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """The first bits of numbers [N, n] and the places of their levels [L] within the subsets, both [N, n] float32."""
    places, errors = [], []
    for subset in range(4):
        some = levels[subset::4]
        between = ((some[1:] + some[:-1]) / 2).tolist()
        place = tf.raw_ops.Bucketize(input=numbers, boundaries=between)
        places.append(tf.cast(place, tf.float32))
        errors.append((numbers - tf.gather(some, place)) ** 2)
    windows = tf.transpose(_best_windows(tf.transpose(tf.stack(errors), [2, 0, 1])))
    windows = tf.ensure_shape(windows, numbers.shape)
    subset = tf.gather(SUBSETS, windows)
    bits = tf.gather(np.arange(2 * STATES, dtype=np.float32) % 2, windows)
    return bits, tf.gather(tf.stack(places, axis=2), subset, batch_dims=2)


@tf.function(input_signature=[tf.TensorSpec((None, 4, None), tf.float32)])
def _best_windows(errors):
    """The last five bits at each number [n, N] int32, of least sum, of errors of each subset's nearest level [n, 4, N].

    By Viterbi's algorithm, from the state 0: a window is a state, the four bits before, and one bit more.
    """
    size, num_items = tf.shape(errors)[0], tf.shape(errors)[2]
    subsets = SUBSETS.reshape(2, STATES // 2, 2)  # by the oldest bit, the three next ones, the newest
    sums = tf.pad(tf.zeros([1, num_items]), [[0, STATES - 1], [0, 0]], constant_values=np.inf)
    oldest = tf.TensorArray(tf.bool, size, element_shape=[STATES // 2, 2, None])
    for i in tf.range(size):
        both = tf.reshape(sums, [2, STATES // 2, 1, -1]) + tf.gather(errors[i], subsets)
        oldest = oldest.write(i, both[1] < both[0])
        sums = tf.reshape(tf.minimum(both[0], both[1]), [STATES, num_items])
    state, items = tf.argmin(sums, axis=0, output_type=tf.int32), tf.range(num_items)
    windows = tf.TensorArray(tf.int32, size, element_shape=[None])
    for i in tf.range(size - 1, -1, -1):
        is_set = tf.gather(tf.reshape(oldest.read(i), [-1]), state * num_items + items)
        window = state + tf.where(is_set, STATES, 0)
        windows, state = windows.write(i, window), window // 2
    return windows.stack()


def subsets_of(codes: tf.Tensor) -> tf.Tensor:
    """Of the numbers whose first bits fill these bytes [N, bytes] int32: [N, bytes, 8] int32."""
    before = tf.pad(codes, [[0, 0], [1, 0]])[:, :-1]
    return tf.bitwise.bitwise_xor(tf.gather(BY_BYTE, codes), tf.gather(BY_BYTE_BEFORE, before))
