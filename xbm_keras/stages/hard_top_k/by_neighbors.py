"""Top-k sample without labels: the nearest memory rows of each anchor, and some at random."""

from typing import Annotated

import keras
import numpy as np
import tensorflow as tf
from annotated_types import Ge, Le

from xbm_keras.arguments import Share, arguments_in, checked
from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.geometry import unit_length
from xbm_keras.stages.circular_memory.ring import CircularMemory, Rows
from xbm_keras.stages.circular_memory.writes import is_under_xla
from xbm_keras.stages.cosine_scores import Keys, cosine_scores, scores_of_picks
from xbm_keras.stages.hard_top_k.by_label import MAX_PICKS, Picks
from xbm_keras.stages.hard_top_k.candidates import Candidates, find_best, find_sampled, sample_pays
from xbm_keras.stages.hard_top_k.mining import Embed
from xbm_keras.stages.hard_top_k.neighbor_table import Found, NeighborTable
from xbm_keras.stages.hard_top_k.random_rows import DrawsRows, none_of
from xbm_keras.stages.hard_top_k.streamed import Search

BLOCK_ROWS = 8192  # of the pass over the features whose mean is taken


@keras.saving.register_keras_serializable("xbm_keras")
class NeighborTopK(DrawsRows):
    """Per anchor the rows of highest feature score, and random rows, whatever their labels.

    The neighbours alone say what is near, not what is far: a head that is trained on them keeps the near and loses the
    far. The random rows stand for the rest. As in `HardTopK`, a row with the anchor's own sample id is masked before
    anything is picked, and k larger than what the memory holds is legal.

    With `centring` the scores are cosines of the features less that share of their mean, once `adapt` was called. The
    features of many networks share one large component, which all similarities contain and which tells nothing apart;
    without any of it the similarities would be of another space than the one that is searched today.

    In the picks the neighbours come first and are `is_positive`; a random row that is among the neighbours is not
    valid, so that each row is picked at most once.

    Args:
        num_neighbors: rows of highest feature score.
        num_random: rows drawn at random, the same ones for all anchors of a batch, so that the head embeds each once.
        centring: share of the mean feature that is taken off before similarities are measured.
        seed: of the random rows. The generator's state is saved with the model.

    Raises:
        ValueError: for counts or a `centring` out of bounds.

    Example:
        >>> features = tf.math.l2_normalize(tf.constant([[1.0, 0.0], [0.9, 0.1], [0.8, 0.3], [0.0, 1.0]]), axis=1)
        >>> labels, ids = tf.zeros([4], tf.int64), tf.range(4, dtype=tf.int64)
        >>> rows = batch_as_rows(features, labels, ids)
        >>> picks = NeighborTopK(num_neighbors=2, num_random=0, centring=0.0)(features, rows, labels, ids)
        >>> picks.indices.numpy().tolist()
        [[1, 2], [0, 2], [1, 0], [2, 1]]

    Reference:
        Neighbours from the memory in SMEC, arXiv 2510.12474, section 3.3; random pairs beside them as in
        Matryoshka-Adaptor, arXiv 2407.20243, section 3.2.
    """

    uses_labels = False
    by_relevance = False

    @checked
    def __init__(
        self,
        num_neighbors: Annotated[int, Ge(1), Le(MAX_PICKS)] = 64,
        num_random: Annotated[int, Ge(0), Le(MAX_PICKS)] = 256,
        centring: Share = 0.5,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.num_neighbors = num_neighbors
        self.num_random = num_random
        self.centring = centring
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.table: NeighborTable | None = None

    def build(self, input_shape):
        """Create the offset for features of shape `(batch, D)`."""
        shape = (input_shape[-1],)
        self.offset = self.add_weight(name="offset", shape=shape, dtype="float32", initializer="zeros", trainable=False)
        self.built = True

    def adapt(self, features: FeatureRows) -> None:
        """Take the mean of these features, [N, D] unit vectors, for the `centring`; they are read in blocks."""
        if self.table is not None:
            raise ValueError(
                "Received features to adapt to, after the neighbours were searched; expected them before. Make a new "
                "NeighborTopK."
            )
        if not self.built:
            self.build(features.shape)
        total = np.zeros(features.shape[1])
        for start in range(0, len(features), BLOCK_ROWS):
            total += np.asarray(features[start : start + BLOCK_ROWS], np.float64).sum(axis=0)
        self.offset.assign(self.centring * total / len(features))

    def keep(self, memory: CircularMemory, embedding_dim: int) -> list[keras.Layer]:
        """Nothing is kept for a memory's rows."""
        return []

    def most_rows(self, num_anchors: int, num_rows: int) -> int:
        """Rows, each once, that the picks of so many anchors can be, in a memory of `num_rows`."""
        return min(num_rows, num_anchors * self.num_neighbors + self.num_random)

    def call(
        self,
        features: tf.Tensor,
        rows: Rows,
        labels: tf.Tensor,
        sample_ids: tf.Tensor,
        anchors: tf.Tensor | None = None,
        embed: Embed | None = None,
    ) -> Picks:
        """Pick T rows for each anchor. No gradient passes.

        Args:
            features: [B, D] unit vectors of the anchors.
            rows: the memory.
            labels: not used.
            sample_ids: [B] int64 of the anchors.
            anchors: not used.
            embed: not used.
        """
        features = tf.stop_gradient(self._centred(features))
        if self.table is None or rows.numbers is None:
            scores, indices, is_valid = self._nearest(features, rows, sample_ids)
        else:
            indices, is_valid = self.table.of(rows.numbers)
            scores = scores_of_picks(features, self._centred(rows.take(indices)))
        scores, is_neighbor = tf.where(is_valid, scores, 0.0), tf.ones_like(is_valid)
        drawn = tf.zeros([0], tf.int64)
        if self.num_random:
            drawn, is_drawn = self.some_rows(rows, self.num_random)
            is_own = tf.gather(rows.sample_ids, drawn)[None, :] == sample_ids[:, None]  # [B, random]
            is_drawn = is_drawn[None, :] & ~is_own & none_of(drawn, indices, is_valid)  # [B, random]
            drawn_scores = cosine_scores(features, self._centred(rows.take(drawn)))  # [B, random]
            indices = tf.concat([indices, tf.broadcast_to(drawn[None, :], tf.shape(is_drawn))], axis=1)
            is_valid = tf.concat([is_valid, is_drawn], axis=1)
            is_neighbor = tf.concat([is_neighbor, tf.zeros_like(is_drawn)], axis=1)
            scores = tf.concat([scores, drawn_scores], axis=1)
        return Picks(indices, is_neighbor, is_valid, tf.stop_gradient(scores), drawn)

    @property
    def num_known(self) -> int:
        """k of a neighbour table."""
        return self.num_neighbors

    def search(
        self, features: tf.Tensor, rows: Rows, labels: tf.Tensor, sample_ids: tf.Tensor, sampled: bool = False
    ) -> Found | None:
        """The neighbours alone, as `call` finds them without a table.

        `sampled`: by a sample of the rows, outside of graphs; None where that is no quicker or does not tell.
        """
        if sampled and not sample_pays(self.num_known, rows):
            return None
        found = self._nearest(self._centred(features), rows, sample_ids, sampled)
        return found and found[1:]

    def _nearest(self, features, rows, sample_ids, sampled=False):
        """Scores, indices and validity of the neighbours of centred features, each [B, k]."""
        # To `Candidates` all rows are of one class, the anchors'.
        among = Candidates.of(
            rows._replace(labels=tf.zeros_like(rows.sample_ids)), tf.zeros_like(sample_ids), sample_ids
        )
        block, take = (lambda *which, of=of: self._centred(of(*which)) for of in (rows.block, rows.take))
        keys = Keys(features, block, take)
        common = None if is_under_xla() else tf.constant(0, tf.int64)  # all valid rows have this code
        search = Search(self.num_neighbors, 1.0, among.own_class, None, common)
        if sampled:
            return find_sampled(keys, search, among)
        return find_best(keys, {"neighbors": search}, among)["neighbors"]

    def _centred(self, features):
        """Features [..., D] less the offset, float32 of unit length."""
        return unit_length(tf.cast(features, tf.float32) - self.offset)

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), **arguments_in(self)}
