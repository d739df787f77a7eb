"""Codes of layers: many bits for the dimensions that hold most, few for the others, and the scale of each layer.

For embeddings whose first dimensions hold most, and where those of a layer are mixed by a rotation, so that their
numbers are as normal ones, for which the levels are best.

Letters: N items, E embedding width, n dimensions of a layer, R bits of one of its numbers.
"""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf

from xbm_keras.evaluation.packed_bits import BITS, packed
from xbm_keras.evaluation.trellis import chosen_levels, subsets_of
from xbm_keras.geometry import unit_length

OCTAVE = 8  # steps of a layer's scale
LEAST = 2.0**-32  # of a root mean square, where a layer is nothing but zeros
LEAST_FIRST = 2.0**-15  # by a trellis, of the first layer, beside which no other's is more than 2^(127 / 8)
LLOYD_MAX = (
    (
        0.0659, 0.1981, 0.3314, 0.4668, 0.6050, 0.7473, 0.8947, 1.049, 1.212, 1.387, 1.577, 1.788, 2.029, 2.319, 2.692,
        3.263,
    ),
    (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
    (0.2451, 0.7560, 1.344, 2.152),
    (0.4528, 1.510),
    (0.7980,),
)  # fmt: skip
"""Of 5, 4, 3, 2 and 1 bits, the levels above zero: best for normal numbers of unit variance."""
OF_TRELLIS = {
    5: (
        0.0332, 0.09988, 0.1669, 0.2332, 0.3019, 0.3678, 0.4371, 0.5057, 0.5762, 0.6459, 0.7164, 0.7895, 0.864, 0.9393,
        1.019, 1.097, 1.18, 1.267, 1.354, 1.447, 1.544, 1.646, 1.756, 1.873, 2.0, 2.137, 2.288, 2.46, 2.665, 2.911,
        3.227, 3.739,
    ),
    4: (
        0.06416, 0.1932, 0.326, 0.4561, 0.5939, 0.7298, 0.8732, 1.021, 1.18, 1.349, 1.533, 1.741, 1.983, 2.279, 2.66,
        3.231,
    ),
    3: (0.1212, 0.3548, 0.6069, 0.8642, 1.157, 1.493, 1.942, 2.628),
    2: (0.201, 0.6202, 1.101, 1.903),
}  # fmt: skip
"""By bits, the same for the trellis, which chooses among twice as many: the means of the 400,000 random
numbers that it gives each level, computed eight times over from those of Lloyd and Max."""


def layers_of(width: int, count: int, step: int = 8) -> list[slice]:
    """The dimensions of so many layers, as equal as whole numbers of steps can be; those that have some."""
    sizes = [step * len(part) for part in np.array_split(np.arange(-(-width // step)), count)]
    ends = np.minimum(np.cumsum([0, *sizes]), width).tolist()
    return [slice(*each) for each in itertools.pairwise(ends) if each[0] < each[1]]


@dataclasses.dataclass(frozen=True)
class LayeredCode:
    """Of each layer the root mean square, in a byte, c for 2^((c - 255) / 8) of the embedding's length, and then all
    highest bits of its numbers, eight to a byte, all second ones, and so on. By a trellis the first layer has no such
    byte, since a cosine knows no length, and that of another is c for 2^((c - 128) / 8) of the first one's.

    Reference:
        Max, "Quantizing for Minimum Distortion", IRE Transactions on Information Theory, 1960, table I.
    """

    positive: tuple[tuple[float, ...], ...]
    """Of each layer the levels above zero."""
    is_trellis: bool
    """Whether the highest bits choose subsets of the levels: see `trellis`. The layers have whole bytes then."""

    def bytes_per_item(self, width: int) -> int:
        """Of a code of so many dimensions."""
        return sum(1 + num_bytes * bits for _, _, num_bytes, bits in self._layers(width)) - self.is_trellis

    def encode(self, embeddings: tf.Tensor) -> tf.Tensor:
        """Codes [N, columns] uint8 of embeddings [N, E]."""
        parts: list[tf.Tensor] = []
        unit, of_one = unit_length(embeddings), 1.0
        for layer, levels, _, bits in self._layers(embeddings.shape[1]):
            some = unit[:, layer]
            root = tf.maximum(tf.sqrt(tf.reduce_mean(some**2, axis=1, keepdims=True)), LEAST)
            if self.is_trellis and not parts:
                of_one = root = tf.maximum(root, LEAST_FIRST)
            else:
                power = tf.math.log(root / of_one) / np.log(2.0)
                scale = tf.clip_by_value(tf.round(OCTAVE * power) + self._of_one, 0.0, 255.0)
                root = self._root_of(scale) * of_one
                parts.append(tf.cast(scale, tf.uint8))
            numbers = some / root
            if self.is_trellis:
                first, numbers = chosen_levels(numbers, levels)
                planes, bits = [first], bits - 1
            else:
                between = ((levels[1:] + levels[:-1]) / 2).tolist()
                planes, numbers = [], tf.cast(tf.raw_ops.Bucketize(input=numbers, boundaries=between), tf.float32)
            planes += [tf.floor(numbers / 2.0**i) % 2.0 for i in reversed(range(bits))]
            parts += [packed(plane, 1) for plane in planes]
        return tf.concat(parts, axis=1)

    def unpack(self, codes: tf.Tensor, width: int) -> tf.Tensor:
        """Vectors [N, E] float32 of codes [N, columns]."""
        parts: list[tf.Tensor] = []
        start = 0
        for layer, levels, num_bytes, bits in self._layers(width):
            root = 1.0
            if parts or not self.is_trellis:
                root = self._root_of(tf.cast(codes[:, start : start + 1], tf.float32))
                start += 1
            planes = tf.cast(codes[:, start : start + bits * num_bytes], tf.int32)
            planes = tf.split(planes, bits, axis=1)
            numbers = [subsets_of(planes.pop(0))] if self.is_trellis else []
            numbers += [tf.gather(BITS * len(levels) // 2 ** (i + 1), plane) for i, plane in enumerate(planes)]
            numbers = tf.reshape(tf.add_n(numbers), [-1, 8 * num_bytes])[:, : layer.stop - layer.start]
            parts.append(tf.gather(levels, numbers) * root)
            start += bits * num_bytes
        return tf.concat(parts, axis=1)

    @property
    def _of_one(self) -> float:
        """The byte that stands for 1."""
        return 128.0 if self.is_trellis else 255.0

    def _root_of(self, scale: tf.Tensor) -> tf.Tensor:
        return 2.0 ** ((scale - self._of_one) / OCTAVE)

    def _layers(self, width: int) -> list[tuple[slice, np.ndarray, int, int]]:
        """Of each layer its dimensions, all its levels, ascending, the bytes of one bit of each number, and bits."""
        found = []
        layers = layers_of(width, len(self.positive), 8 if self.is_trellis else 1)
        for layer, above in zip(layers, self.positive, strict=False):
            levels = np.array([*(-x for x in above[::-1]), *above], np.float32)
            bits = len(levels).bit_length() - 1 - self.is_trellis
            found.append((layer, levels, -(-(layer.stop - layer.start) // 8), bits))
        return found


LAYERS = LayeredCode(LLOYD_MAX, is_trellis=False)
"""5, 4, 3, 2 and 1 bits at the levels of Lloyd and Max."""
TRELLIS = LayeredCode(tuple(OF_TRELLIS[bits] for bits in (5, 4, 3, 2, 2)), is_trellis=True)
"""5, 4, 3, 2 and 2 bits by a trellis."""
