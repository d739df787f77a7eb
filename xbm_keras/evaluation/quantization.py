"""Embeddings in fewer bits: the codes that an exported model gives, and the vectors that these stand for.

Queries stay float: a search compares them with the decoded vectors of a gallery, by cosine, for which the scale of a
vector plays no part. So none is stored.

Letters: N items, E embedding width.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from xbm_keras.geometry import unit_length

INT4_STEP = 0.335  # of the root mean square
LEVELS = (
    (
        0.0659, 0.1981, 0.3314, 0.4668, 0.6050, 0.7473, 0.8947, 1.049, 1.212, 1.387, 1.577, 1.788, 2.029, 2.319, 2.692,
        3.263,
    ),
    (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
    (0.2451, 0.7560, 1.344, 2.152),
    (0.4528, 1.510),
    (0.7980,),
)  # fmt: skip
"""Of 5, 4, 3, 2 and 1 bits, those above zero: best for normal numbers of unit variance."""
OCTAVE = 8  # steps of a layer's scale


@dataclasses.dataclass(frozen=True)
class EmbeddingCode:
    """A way to keep embeddings in few bits.

    Example:
        >>> codes = CODES["int4"].encode(tf.constant([[0.6, -0.8, 0.0]])).numpy()
        >>> codes.tolist(), CODES["int4"].decode(codes, 3).numpy().tolist(), CODES["int4"].bytes_per_item(3)
        ([[179, 128]], [[3.5, -4.5, 0.5]], 2)
    """

    name: str
    bytes_per_item: Callable[[int], int]
    """Of a code of so many dimensions."""
    dtype: str
    """Of what holds a code: one dimension or, of fewer than eight bits, several."""
    encode: Callable[[tf.Tensor], tf.Tensor]
    """Embeddings [N, E] float32 of any length to codes [N, columns], in a graph, too."""
    unpack: Callable[[tf.Tensor, int], tf.Tensor]
    """Codes and their width E to vectors [N, E] float32, whose length says nothing, in the `order` that is fastest."""
    length: Callable[[int], float] | None = None
    """Of all these vectors of a width, where they have one length; float32 is taken to be of unit vectors."""
    is_split: bool = False
    """Whether `unpack` gives the dimensions 0, 2, 4, ... and then 1, 3, 5, ..."""

    def columns(self, width: int) -> int:
        """Of the codes of so many dimensions."""
        return self.bytes_per_item(width) // np.dtype(self.dtype).itemsize

    def order(self, width: int) -> np.ndarray:
        """The dimension that each column of unpacked vectors is of."""
        dimensions = np.arange(width)
        return np.concatenate([dimensions[::2], dimensions[1::2]]) if self.is_split else dimensions

    def decode(self, codes: tf.Tensor, width: int) -> tf.Tensor:
        """Codes [N, columns] to vectors [N, E] float32, whose length says nothing."""
        return tf.gather(self.unpack(tf.convert_to_tensor(codes), width), np.argsort(self.order(width)), axis=1)

    def of(self, embeddings: np.ndarray) -> np.ndarray:
        """Codes of an array [N, E]."""
        return self.encode(tf.constant(embeddings, tf.float32)).numpy()

    def rounded(self, embeddings: np.ndarray) -> np.ndarray:
        """Vectors [N, E] float32 of what is left of embeddings [N, E]."""
        return self.decode(self.of(embeddings), embeddings.shape[1]).numpy()


def to_int8(embeddings: tf.Tensor) -> tf.Tensor:
    """Codes [N, E] int8 of embeddings [N, E]: in steps of a 127th of each row's largest component."""
    largest = tf.reduce_max(tf.abs(embeddings), axis=1, keepdims=True)
    return tf.cast(tf.round(tf.math.divide_no_nan(127.0 * embeddings, largest)), tf.int8)


def to_int4(embeddings: tf.Tensor) -> tf.Tensor:
    """Codes [N, ceil(E / 2)] uint8 of embeddings [N, E]: two to a byte, the first one in its high half.

    Sixteen steps, each 0.335 of the row's root mean square, which is best for normal components, and the outer ones
    open: code c stands for c - 7.5 steps. Steps of a 7th of the largest component keep 0.01 fewer of the neighbours.

    Reference:
        Max, "Quantizing for Minimum Distortion", IRE Transactions on Information Theory, 1960, table II.
    """
    step = INT4_STEP * tf.sqrt(tf.reduce_mean(embeddings**2, axis=1, keepdims=True))
    return _packed(tf.clip_by_value(tf.floor(tf.math.divide_no_nan(embeddings, step)), -8.0, 7.0) + 8.0, 4)


def to_binary(embeddings: tf.Tensor) -> tf.Tensor:
    """Codes [N, ceil(E / 8)] uint8 of embeddings [N, E]: the signs, eight to a byte as by `np.packbits`."""
    return _packed(tf.cast(embeddings > 0, tf.float32), 1)


def to_layers(embeddings: tf.Tensor) -> tf.Tensor:
    """Codes [N, columns] uint8 of embeddings [N, E]: the first fifth of the dimensions in 5 bits, the last one in 1.

    For embeddings whose first dimensions hold most, and where those of a layer, a fifth, are mixed, so that their
    numbers are as normal ones, for which these levels are best. Of each layer there is its root mean square, in a byte,
    c for 2^((c - 255) / 8) of the length of the embedding, and then all highest bits, eight to a byte, all second ones,
    and so on.

    Reference:
        Max, "Quantizing for Minimum Distortion", IRE Transactions on Information Theory, 1960, table I.
    """
    parts, unit = [], unit_length(embeddings)
    for layer, levels in _layers(embeddings.shape[1]):
        some = unit[:, layer]
        root = tf.sqrt(tf.reduce_mean(some**2, axis=1, keepdims=True))
        power = tf.math.log(tf.maximum(root, 2.0**-32)) / np.log(2.0)
        scale = tf.clip_by_value(tf.round(OCTAVE * power) + 255.0, 0.0, 255.0)
        between = ((levels[1:] + levels[:-1]) / 2).tolist()
        numbers = tf.cast(tf.raw_ops.Bucketize(input=some / _root_of(scale), boundaries=between), tf.float32)
        places = [len(levels) / 2.0 ** (i + 1) for i in range(_bits(levels))]
        parts += [tf.cast(scale, tf.uint8), *(_packed(tf.floor(numbers / each) % 2.0, 1) for each in places)]
    return tf.concat(parts, axis=1)


def _layers(width: int) -> list[tuple[slice, np.ndarray]]:
    """The dimensions of each layer that has some, and all of its levels, ascending."""
    ends = np.cumsum([0, *map(len, np.array_split(np.arange(width), len(LEVELS)))]).tolist()
    levels = [np.array([*(-x for x in above[::-1]), *above], np.float32) for above in LEVELS]
    return [(slice(*each), found) for *each, found in zip(ends, ends[1:], levels, strict=False) if each[0] < each[1]]


def _bits(levels: np.ndarray) -> int:
    return len(levels).bit_length() - 1


def _root_of(scale: tf.Tensor) -> tf.Tensor:
    return 2.0 ** ((scale - 255.0) / OCTAVE)


def _bytes_of_layers(width: int) -> int:
    return sum(1 + _bits(levels) * -(-(layer.stop - layer.start) // 8) for layer, levels in _layers(width))


def _from_layers(codes: tf.Tensor, width: int) -> tf.Tensor:
    parts, start = [], 0
    for layer, levels in _layers(width):
        size, bits = layer.stop - layer.start, _bits(levels)
        stop = start + 1 + bits * -(-size // 8)
        planes = tf.gather(SIGNS, tf.cast(codes[:, start + 1 : stop], tf.int32)) > 0  # [N, bytes, 8]
        planes = tf.reshape(tf.cast(planes, tf.int32), [-1, bits, (stop - start - 1) // bits * 8])[:, :, :size]
        numbers = tf.reduce_sum(planes * [[2 ** (bits - 1 - i)] for i in range(bits)], axis=1)
        parts.append(tf.gather(levels, numbers) * _root_of(tf.cast(codes[:, start : start + 1], tf.float32)))
        start = stop
    return tf.concat(parts, axis=1)


def _packed(numbers: tf.Tensor, bits: int) -> tf.Tensor:
    """Whole numbers [N, E] of so many bits, float32, as bytes, the first number in the highest bits of the first."""
    width, per_byte = numbers.shape[1], 8 // bits
    numbers = tf.pad(numbers, [[0, 0], [0, -width % per_byte]])  # counted on a GPU, unlike integers
    places = [2.0 ** (8 - bits * (i + 1)) for i in range(per_byte)]
    return tf.cast(tf.reduce_sum(tf.reshape(numbers, [-1, -(-width // per_byte), per_byte]) * places, axis=2), tf.uint8)


def _from_int4(codes: tf.Tensor, width: int) -> tf.Tensor:
    """Not interleaved, which would take most of the time of a search."""
    numbers = tf.cast(codes, tf.float32)
    high = tf.floor(numbers / 16.0)
    return tf.concat([high, (numbers - 16.0 * high)[:, : width // 2]], axis=1) - 7.5


SIGNS = 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) - 1
"""[256, 8], of each byte."""


def _from_binary(codes: tf.Tensor, width: int) -> tf.Tensor:
    signs = tf.gather(SIGNS, tf.cast(codes, tf.int32))
    return tf.reshape(signs, [-1, 8 * codes.shape[1]])[:, :width]


def _as_floats(codes: tf.Tensor, width: int) -> tf.Tensor:
    return tf.cast(codes, tf.float32)


def _bits_of(bits: int) -> Callable[[int], int]:
    """Bytes of a width, of so many bits a dimension."""
    return lambda width: -(-width * bits // 8)


CODES = {
    code.name: code
    for code in (
        EmbeddingCode("float32", _bits_of(32), "float32", lambda embeddings: embeddings, _as_floats, lambda width: 1.0),
        EmbeddingCode("float16", _bits_of(16), "float16", lambda each: tf.cast(each, tf.float16), _as_floats),
        EmbeddingCode("int8", _bits_of(8), "int8", to_int8, _as_floats),
        EmbeddingCode("int4", _bits_of(4), "uint8", to_int4, _from_int4, is_split=True),
        EmbeddingCode("layers", _bytes_of_layers, "uint8", to_layers, _from_layers),
        EmbeddingCode("binary", _bits_of(1), "uint8", to_binary, _from_binary, lambda width: width**0.5),
    )
}
"""From fine to coarse."""
