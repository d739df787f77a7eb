"""Space to mine in: where hardness is measured, and the keys that anchors and rows have there."""

from collections.abc import Callable
from typing import Literal

import keras
import tensorflow as tf

from xbm_keras.arguments import Positive, Saved, checked
from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.stages.circular_memory.ring import CircularMemory, Rows
from xbm_keras.stages.cosine_scores import Keys
from xbm_keras.stages.hard_top_k.mining_keys import MiningKeys
from xbm_keras.stages.hard_top_k.sketch import Sketch, principal_directions

Refresh = Positive | Literal["exact"]
Embed = Callable[[tf.Tensor], tf.Tensor]
"""From features [n, D] to embeddings [n, E] of unit length, under the current weights."""


class Mining(Saved):
    """A space in which `HardTopK` seeks the hardest rows. The loss embeds the picks anew, wherever they were sought."""

    rerank = 0
    """c, where keys merely approximate the features: of the best c k by key the best k by feature score are picked."""

    def keep(self, memory: CircularMemory, embedding_dim: int) -> list[keras.Layer]:
        """Make what is kept for a memory's rows; the layers of which it is state are returned, to be saved."""
        return []

    def adapt(self, features: FeatureRows) -> None:
        """Learn what the space is to be from these features, [N, D] unit vectors, which are read in blocks."""

    def keys(self, in_features: Keys, rows: Rows, anchors: tf.Tensor | None, embed: Embed | None) -> Keys:
        """Keys of anchors and rows.

        Args:
            in_features: features of both.
            rows: the memory.
            anchors: [B, E], embeddings of the anchors.
            embed: the head.
        """
        raise TypeError(f"{type(self).__name__} is abstract; use InFeatures, InEmbeddings or InSketch.")


@keras.saving.register_keras_serializable("xbm_keras")
class InFeatures(Mining):
    """Hardness in the frozen features: exact, and of a product of the features' width.

    Example:
        >>> HardTopK(32, 8, mining=InFeatures()).mining.get_config()
        {}
    """

    def keys(self, in_features, rows, anchors, embed):
        """The features themselves."""
        return in_features


class _WithStoredKeys(Mining):
    """A space whose keys of the rows are stored, made in the step that enqueues a row, and renewed in turn."""

    stored: MiningKeys | None = None
    _memory: CircularMemory | None = None

    def _store(self, memory, width, num_refreshed=0) -> list[keras.Layer]:
        if self._memory not in (None, memory):
            raise ValueError(
                "Received a top_k that keeps keys of another memory's rows; expected one for each memory. Make a "
                f"HardTopK with an {type(self).__name__} of its own."
            )
        if self.stored is None:
            self._memory = memory
            self.stored = MiningKeys(memory.memory_size, width, num_refreshed, name="mining_keys")
        return [self.stored]

    def _block(self, make_keys, rows):
        """Keys of blocks of rows: in a step those that are stored, else made as they are asked for."""
        if self.stored is None or rows.num_new is None:
            return lambda start, width: make_keys(rows.block(start, width))
        self.stored.update(make_keys, rows)
        return self.stored.block


@keras.saving.register_keras_serializable("xbm_keras")
class InEmbeddings(_WithStoredKeys):
    """Hardness by the current head: what it confuses, not what the features do. No gradient passes.

    Args:
        refresh: "exact" passes all rows through the current head in each step; a number S keeps their embeddings and
            renews S of them per step, in turn, so that none is older than ceil(M / S) steps.

    Raises:
        ValueError: for another `refresh`; in a call of `HardTopK` without embeddings.

    Example:
        >>> HardTopK(32, 8, mining=InEmbeddings(refresh=4096)).mining.refresh
        4096
    """

    @checked
    def __init__(self, refresh: Refresh = "exact"):
        self.refresh = refresh

    def keep(self, memory, embedding_dim):
        """Stored keys, unless all are made in each step."""
        is_stored = self.refresh != "exact" and memory.memory_size
        return self._store(memory, embedding_dim, self.refresh) if is_stored else []

    def keys(self, in_features, rows, anchors, embed):
        """The anchors' embeddings, and those of the rows."""
        if anchors is None or embed is None:
            raise ValueError(
                "Received no embeddings to mine in; expected those of the anchors, and the head. Call "
                "top_k(features, rows, labels, sample_ids, anchors=anchors, embed=head), or mine InFeatures()."
            )
        if rows.embeddings is not None and self.stored is None:
            return Keys(anchors, lambda start, width: tf.slice(rows.embeddings, [start, 0], [width, -1]))
        return Keys(anchors, self._block(embed, rows))


@keras.saving.register_keras_serializable("xbm_keras")
class InSketch(_WithStoredKeys):
    """Hardness in a short frozen code of the features, which never goes stale; the best of it are ranked anew.

    Args:
        dim: width K of the code. Its directions are random ones until `adapt` makes them the principal ones.
        rerank: c: of the best c k by sketch the best k by feature score are picked.
        seed: of the random directions.

    Raises:
        ValueError: for a `dim` or `rerank` below 1; in `adapt`, for features that are not as wide as the sketch.

    Example:
        >>> features = tf.math.l2_normalize(tf.random.normal([100, 32], seed=0), axis=1)
        >>> top_k = HardTopK(2, 1, mining=InSketch(dim=8))
        >>> top_k.adapt(features.numpy())
        >>> top_k.mining.sketch(features).shape
        TensorShape([100, 8])
    """

    @checked
    def __init__(self, dim: Positive = 64, rerank: Positive = 4, seed: int = 0):
        self.dim, self.rerank, self.seed = dim, rerank, seed
        self.sketch = Sketch(dim, seed, name="sketch")

    def keep(self, memory, embedding_dim):
        """The projection, and the stored sketches."""
        return [self.sketch, *(self._store(memory, self.dim) if memory.memory_size else [])]

    def adapt(self, features):
        """Take the principal directions of these features."""
        if not self.sketch.built:
            self.sketch.build(features.shape)
        self.sketch.projection.assign(principal_directions(features, self.dim))

    def keys(self, in_features, rows, anchors, embed):
        """Sketches of both."""
        return Keys(self.sketch(in_features.anchors), self._block(self.sketch, rows))
