"""Neighbour table: what a search among the rows of a memory that changes no more finds, for each anchor there is."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from xbm_keras.stages.circular_memory.ring import CircularMemory
from xbm_keras.stages.circular_memory.writes import write_rows
from xbm_keras.stages.cosine_scores import all_bits_of_float32
from xbm_keras.stages.hard_top_k.random_rows import RowsByLabel

BLOCK = 512  # anchors that are searched at a time: more are hardly quicker, and a killed search loses little
IN_VAIN = 2  # blocks, one after another, of which a sample did not tell: of the rest it would not either

Found = tuple[tf.Tensor, tf.Tensor]
"""Rows [B, k] int64, the best one first, and validity [B, k]."""
Search = Callable[..., Found | None]
"""Of features [B, D] of anchors, the memory's `Rows`, labels and sample ids of the anchors, as a top-k sample's call;
with `sampled=True`, outside of graphs, None where a sample of the rows does not tell or is no quicker."""
Anchors = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]
"""From numbers [n] int64 to features [n, D], labels and sample ids of these anchors."""


class NeighborTable:
    """For each anchor the k rows that a step finds for it, whatever batch it comes in: searched once, then looked up.

    The table follows from the rows, so it is not saved with the model; and the memory is sealed, so that it is never
    one of other rows.

    Args:
        memory: frozen, and filled.
        search: of a step.
        k: rows for each anchor.
        anchors: by number; by default the rows of the memory, by slot.
        num_anchors: how many there are; by default as many as rows.

    Raises:
        ValueError: for a memory that steps change.

    Example:
        >>> memory = CircularMemory(3, frozen=True)
        >>> memory.build((None, 2))
        >>> memory.prefill(np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), np.array([0, 0, 1]), np.arange(3))
        >>> table = NeighborTable(memory, HardTopK(num_negatives=1).search, k=1)
        >>> table.fill(0, table.searched(0))
        >>> table.of(tf.constant([0, 2]))[0].numpy().tolist()
        [[2], [1]]
    """

    def __init__(
        self,
        memory: CircularMemory,
        search: Search,
        k: int,
        anchors: Anchors | None = None,
        num_anchors: int | None = None,
    ):
        memory.seal()
        self.memory = memory
        self.num_anchors = num_anchors or memory.memory_size
        self.block_rows = min(BLOCK, self.num_anchors)
        self.indices = keras.Variable(tf.fill([self.num_anchors, k], tf.constant(-1, tf.int64)), trainable=False)
        self.by_label = RowsByLabel(memory.labels.numpy(), memory.read().is_valid.numpy())
        self._anchors = anchors or memory.items
        self._search = search
        self._in_vain = 0

    @property
    def starts(self) -> range:
        """Of the blocks."""
        return range(0, self.num_anchors, self.block_rows)

    def read(self, start: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Features [n, D], labels and sample ids of the anchors of the block at `start`; of the last one, of more."""
        first = min(start, self.num_anchors - self.block_rows)
        return self._anchors(first + tf.range(self.block_rows, dtype=tf.int64))

    @functools.cached_property
    def _searched(self) -> Callable[..., Found]:
        """The search of a block as a graph, made by hand: TensorFlow warns of a function that each table traces."""

        def search(features, labels, ids):
            return self._search(features, self.memory.read(), labels, ids)

        return tf.function(search, autograph=False).get_concrete_function(*self.read(0))

    def searched(self, start: int) -> np.ndarray:
        """The rows [n, k] int32 for the anchors of the block at `start`, -1 where there are no more."""
        with all_bits_of_float32():
            features, labels, ids = self.read(start)
            found = None
            if self._in_vain < IN_VAIN:
                found = self._search(features, self.memory.read(), labels, ids, sampled=True)
                self._in_vain = self._in_vain + 1 if found is None else 0
            indices, is_valid = found or self._searched(features, labels, ids)
        num_anchors = min(self.block_rows, self.num_anchors - start)
        return np.where(is_valid, indices, -1)[-num_anchors:].astype(np.int32)

    def fill(self, start: int, block: np.ndarray) -> None:
        """Take what was searched for the block at `start`."""
        write_rows(self.indices, start + tf.range(len(block), dtype=tf.int64), tf.constant(block))

    def of(self, numbers: tf.Tensor) -> Found:
        """What a search finds for these anchors, [B] int64."""
        indices = tf.gather(self.indices.value, numbers)
        return tf.maximum(indices, 0), indices >= 0
