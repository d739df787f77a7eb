"""Embeddings in fewer bits: the codes that an exported model gives, and the vectors that these stand for.

Queries stay float: a search compares them with the decoded vectors of a gallery, by cosine, for which the scale of a
vector plays no part. So none is stored.

Letters: N items, E embedding width.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from xbm_keras.evaluation.layered_codes import LAYERS, TRELLIS
from xbm_keras.evaluation.packed_bits import BITS, packed

INT4_STEP = 0.335  # of the root mean square


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
    return packed(tf.clip_by_value(tf.floor(tf.math.divide_no_nan(embeddings, step)), -8.0, 7.0) + 8.0, 4)


def to_binary(embeddings: tf.Tensor) -> tf.Tensor:
    """Codes [N, ceil(E / 8)] uint8 of embeddings [N, E]: the signs, eight to a byte as by `np.packbits`."""
    return packed(tf.cast(embeddings > 0, tf.float32), 1)


def _from_int4(codes: tf.Tensor, width: int) -> tf.Tensor:
    """Not interleaved, which would take most of the time of a search."""
    numbers = tf.cast(codes, tf.float32)
    high = tf.floor(numbers / 16.0)
    return tf.concat([high, (numbers - 16.0 * high)[:, : width // 2]], axis=1) - 7.5


def _from_binary(codes: tf.Tensor, width: int) -> tf.Tensor:
    signs = tf.gather(2 * BITS.astype(np.float32) - 1, tf.cast(codes, tf.int32))
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
        EmbeddingCode("trellis", TRELLIS.bytes_per_item, "uint8", TRELLIS.encode, TRELLIS.unpack),
        EmbeddingCode("layers", LAYERS.bytes_per_item, "uint8", LAYERS.encode, LAYERS.unpack),
        EmbeddingCode("binary", _bits_of(1), "uint8", to_binary, _from_binary, lambda width: width**0.5),
    )
}
"""From fine to coarse."""
