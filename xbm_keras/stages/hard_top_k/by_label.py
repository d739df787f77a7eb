"""Top-k sample: which memory rows each anchor is paired with."""

from typing import Annotated, Literal, NamedTuple

import keras
import tensorflow as tf
from annotated_types import Ge, Le

from xbm_keras.arguments import Cosine, NonNegative, Positive, arguments_in, checked
from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.stages.circular_memory.ring import CircularMemory, Rows
from xbm_keras.stages.circular_memory.writes import is_under_xla
from xbm_keras.stages.cosine_scores import Keys, cosine_scores, scores_of_picks
from xbm_keras.stages.hard_top_k.candidates import (
    Candidates,
    find_and_rerank,
    find_best,
    find_sampled,
    sample_pays,
    without,
)
from xbm_keras.stages.hard_top_k.mining import Embed, InFeatures, Mining
from xbm_keras.stages.hard_top_k.neighbor_table import Found, NeighborTable
from xbm_keras.stages.hard_top_k.random_rows import DrawsRows, none_of, random_bits, random_rows
from xbm_keras.stages.hard_top_k.streamed import Search

MAX_PICKS = 1 << 20
Count = Annotated[int, Ge(0), Le(MAX_PICKS)] | Literal["all"]


class Picks(NamedTuple):
    """The pairs of a step: per anchor T memory rows. See `HardTopK` and `PairLoss` for examples."""

    indices: tf.Tensor
    """[B, T] int64, rows of the memory. Where `is_valid` is False it is some row inside the memory."""
    is_positive: tf.Tensor
    """[B, T] bool: the pick has the anchor's label."""
    is_valid: tf.Tensor
    """[B, T] bool: there was such a row; False fills up where fewer than k were to be had."""
    feature_scores: tf.Tensor
    """[B, T] float32, cosine similarity of anchor and pick in the space of the frozen features."""
    shared: tf.Tensor | None = None
    """[S] int64: the last S of each anchor's picks, which are the same rows for all; None is none."""

    @property
    def num_shared(self) -> int:
        """S."""
        return 0 if self.shared is None else self.shared.shape[0]

    @property
    def own(self) -> tf.Tensor:
        """Indices [B, T - S] of those that are not shared."""
        return self.indices[:, : -self.num_shared] if self.num_shared else self.indices


@keras.saving.register_keras_serializable("xbm_keras")
class HardTopK(DrawsRows):
    """Per anchor the hardest negatives and a choice of positives, from the score matrix of batch against memory.

    A row that carries the anchor's own sample id is masked before anything is picked, so a sample never meets itself,
    nor the copy of itself that the last epoch left. k larger than what the memory holds is legal: the rest is masked.

    The hardest negatives may be false ones: rows of the anchor's kind under another label. Guards refuse a negative
    whose feature score, in the space that is not trained, is higher than

    - `max_score`,
    - `p - absolute_margin`,
    - `p - relative_margin |p|`,

    where p is the feature score of the anchor's hardest positive in the memory; an anchor without one has no margin.

    Args:
        num_negatives: k: the hardest rows of other classes, for each anchor.
        num_positives: rows of its own class, by default at random.
        positives: which positives: "hardest" (lowest score), "easiest" (highest score) or "random".
        mining: where hardness is measured: `InFeatures()`, the default, `InEmbeddings()` or `InSketch()`.
        max_score: guard, a cosine; None is off.
        absolute_margin: guard, such as 0.05; None is off.
        relative_margin: guard, such as 0.05; None is off.
        max_rows_for_all: "all" makes picks of the memory's width; above this many rows it is refused.
        num_random: rows at random beside those, the same for all anchors; of them those of other classes are negatives.
        seed: of what is random. The generator's state is saved with the model.

    Raises:
        ValueError: for counts or guards out of bounds, for nothing to pick, for an unknown `positives`.

    Reference:
        Hard negatives in SMEC's memory module, arXiv 2510.12474, section 3.3; guards by the score of the positive in
        NV-Retriever, arXiv 2407.15831, section 3.2.

    Example:
        >>> features = tf.math.l2_normalize(tf.constant([[1.0, 0.0], [0.9, 0.1], [0.8, 0.3], [0.0, 1.0]]), axis=1)
        >>> labels, ids = tf.constant([0, 0, 1, 1], tf.int64), tf.range(4, dtype=tf.int64)
        >>> picks = HardTopK(2, 1, "hardest")(features, batch_as_rows(features, labels, ids), labels, ids)
        >>> picks.indices[0].numpy().tolist(), picks.is_positive[0].numpy().tolist()
        ([1, 2, 3], [True, False, False])
    """

    uses_labels = True
    """Whether picks are told apart as positive and negative, as the losses that use labels need it."""
    by_relevance = False
    """Whether anchors are queries, and rows documents, told apart by which document answers which query."""

    @checked
    def __init__(
        self,
        num_negatives: Count = 32,
        num_positives: Count = 8,
        positives: Literal["hardest", "easiest", "random"] = "random",
        mining: Mining | None = None,
        max_score: Cosine | None = None,
        absolute_margin: NonNegative | None = None,
        relative_margin: NonNegative | None = None,
        max_rows_for_all: Positive = 65_536,
        num_random: Annotated[int, Ge(0), Le(MAX_PICKS)] = 0,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        require_pairs(num_negatives, num_positives, num_random)
        if not isinstance(mining, Mining | None):
            raise ValueError(
                f"Received {mining=}; expected InFeatures(), InEmbeddings() or InSketch(), from xbm_keras."
            )
        self.num_negatives = num_negatives
        self.num_positives = num_positives
        self.num_random = num_random
        self.positives = positives
        self.mining = mining or InFeatures()
        self.max_score = max_score
        self.absolute_margin = absolute_margin
        self.relative_margin = relative_margin
        self.max_rows_for_all = max_rows_for_all
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.table: NeighborTable | None = None
        self.built = True

    def keep(self, memory: CircularMemory, embedding_dim: int) -> list[keras.Layer]:
        """Make what is kept for a memory's rows; the layers of which it is state are returned, to be saved."""
        return self.mining.keep(memory, embedding_dim)

    def adapt(self, features: FeatureRows) -> None:
        """Learn what `mining` needs of these features, [N, D] unit vectors, which are read in blocks."""
        self.mining.adapt(features)

    def most_rows(self, num_anchors: int, num_rows: int) -> int:
        """Rows, each once, that the picks of so many anchors can be, in a memory of `num_rows`."""
        counts = [num_rows if count == "all" else count for count in (self.num_negatives, self.num_positives)]
        return min(num_rows, num_anchors * sum(counts) + self.num_random)

    def call(
        self,
        features: tf.Tensor,
        rows: Rows,
        labels: tf.Tensor,
        sample_ids: tf.Tensor,
        anchors: tf.Tensor | None = None,
        embed: Embed | None = None,
    ) -> Picks:
        """Pick T rows for each anchor: first the positives, then the negatives, random ones last. No gradient passes.

        The score matrix is never held whole, except for "all".

        Args:
            features: [B, D] unit vectors of the anchors.
            rows: the memory.
            labels: [B] int64 of the anchors.
            sample_ids: [B] int64 of the anchors.
            anchors: [B, E] embeddings of the anchors, to mine in embeddings.
            embed: the head, likewise.
        """
        features = tf.stop_gradient(tf.cast(features, tf.float32))
        in_features = Keys(features, rows.block, rows.take)
        among = self._candidates(rows, labels, sample_ids)
        picked = {} if self.table is None or rows.numbers is None else {"negatives": self.table.of(rows.numbers)}
        ceilings = None if picked else self._ceilings(in_features, among)
        searches = {}
        if isinstance(self.num_positives, int) and self.num_positives and self.positives != "random":
            sign = 1.0 if self.positives == "easiest" else -1.0
            searches["positives"] = Search(self.num_positives, sign, among.own_class)
        if isinstance(self.num_negatives, int) and self.num_negatives and not picked:
            searches["negatives"] = self._negatives(self.num_negatives, among, ceilings)
        keys = self.mining.keys(in_features, rows, anchors, embed)
        keys = keys._replace(anchors=tf.stop_gradient(tf.cast(keys.anchors, tf.float32)))
        if self.mining.rerank:
            best = find_and_rerank(keys, in_features, searches, among, self.mining.rerank)
        else:
            is_other = ceilings is not None and keys.block is not in_features.block
            best = find_best(keys, searches, among, guard=in_features if is_other else None)
        picked |= {name: (indices, is_valid) for name, (_, indices, is_valid) in best.items()}
        if isinstance(self.num_positives, int) and self.num_positives and self.positives == "random":
            picked["positives"] = self._random_positives(among, self.num_positives + 1)
        shared = tf.zeros([0], tf.int64)
        if self.num_random and self.num_negatives != "all":  # which leaves none to draw
            shared, is_valid = self._random_negatives(rows, labels, sample_ids, picked.get("negatives"))
            picked["random"] = tf.broadcast_to(shared[None, :], tf.shape(is_valid)), is_valid
        if "all" in (self.num_negatives, self.num_positives):
            return self._with_all(picked, features, among, ceilings)
        indices, is_positive, is_valid = _joined(picked)
        picks = Picks(indices, is_positive, is_valid, tf.zeros(()), shared)
        rows_of_all = rows.take(shared) if picks.num_shared else None
        scores = scores_of_picks(features, rows.take(picks.own), rows_of_all)  # unless read, not computed
        return picks._replace(feature_scores=tf.stop_gradient(scores))

    @property
    def num_known(self) -> int:
        """k of a neighbour table, which holds the negatives; 0 where they change though the rows do not."""
        k = self.num_negatives
        return k if isinstance(self.mining, InFeatures) and isinstance(k, int) else 0

    def search(
        self, features: tf.Tensor, rows: Rows, labels: tf.Tensor, sample_ids: tf.Tensor, sampled: bool = False
    ) -> Found | None:
        """The negatives alone, by features, as `call` finds them without a table.

        `sampled`: by a sample of the rows, outside of graphs; None where that is no quicker or does not tell, as with
        guards.
        """
        if sampled and (self._has_guards or not sample_pays(self.num_known, rows)):
            return None
        in_features = Keys(tf.cast(features, tf.float32), rows.block, rows.take)
        among = self._candidates(rows, labels, sample_ids)
        if sampled:
            found = find_sampled(in_features, self._negatives(self.num_known, among, None), among)
            return found and found[1:]
        negatives = self._negatives(self.num_known, among, self._ceilings(in_features, among))
        return find_best(in_features, {"negatives": negatives}, among)["negatives"][1:]

    def _negatives(self, k, among, ceilings):
        return Search(k, 1.0, among.other_classes, ceilings, None if is_under_xla() else among.common_code)

    def _candidates(self, rows, labels, sample_ids):
        """Which rows are positives of which anchor, and which negatives."""
        return Candidates.of(rows, labels, sample_ids)

    @property
    def _has_guards(self):
        return (self.max_score, self.absolute_margin, self.relative_margin) != (None, None, None)

    def _ceilings(self, in_features, among):
        """Highest feature score that a negative may have, [B]; None without guards."""
        if not self._has_guards:
            return None
        margins = self.absolute_margin, self.relative_margin
        ceilings = tf.fill(tf.shape(among.sample_ids), float("inf") if self.max_score is None else self.max_score)
        if margins == (None, None):
            return ceilings
        values, _, is_valid = find_best(in_features, {"lowest": Search(1, -1.0, among.own_class)}, among)["lowest"]
        hardest = -values[:, 0]
        margin = tf.maximum(margins[0] or 0.0, (margins[1] or 0.0) * tf.abs(hardest))
        return tf.where(is_valid[:, 0], tf.minimum(ceilings, hardest - margin), ceilings)

    def _random_positives(self, among, k):
        """Indices [B, k - 1] and validity [B, k - 1]."""
        seeds = [self.seed_generator.next() for _ in range(2)]
        if self.table is not None and among.rows.numbers is not None:
            drawn, is_valid = self.table.by_label.random_rows(among.rows.numbers, k, seeds[0])
        else:
            num_codes = tf.shape(among.own_class, tf.int64)[0]
            drawn, is_valid = random_rows(among.codes, num_codes, among.classes, k, seeds[0])
        # Without the anchor's own row, or without any one of k + 1: either way all sets of k are equally likely.
        any_one = random_bits(tf.size(among.sample_ids), 1, seeds[1])[:, 0] % k
        any_one = tf.where(is_valid[:, 0], any_one, 0)  # where there are fewer than k + 1, the first is none
        return without(among.place_of_own(drawn, is_valid, any_one), drawn, is_valid)

    def _random_negatives(self, rows, labels, sample_ids, negatives):
        """Rows [S], and for each anchor which of them are of another class and not among its negatives, [B, S]."""
        drawn, is_drawn = self.some_rows(rows, self.num_random)
        drawn_labels, drawn_ids = (tf.gather(each, drawn) for each in (rows.labels, rows.sample_ids))
        few = rows._replace(labels=drawn_labels, sample_ids=drawn_ids, is_valid=is_drawn)
        is_valid = self._are_others(few, labels, sample_ids) & (drawn_ids[None, :] != sample_ids[:, None])
        if negatives is not None:
            is_valid &= none_of(drawn, *negatives)
        return drawn, is_valid

    def _are_others(self, rows, labels, sample_ids):
        """Which of a few rows are negatives of which anchor, [B, M] bool."""
        return rows.is_valid[None, :] & (rows.labels[None, :] != labels[:, None])

    def _with_all(self, picked, features, among, ceilings):
        """Picks with all rows on the positives' side, on the negatives', or on both, from the whole score matrix."""
        rows = among.rows
        self._refuse_all_of_many(rows)
        scores = cosine_scores(features, tf.stop_gradient(rows.block(0, tf.shape(rows.labels)[0])))
        every = tf.broadcast_to(tf.range(tf.shape(scores, tf.int64)[1])[None, :], tf.shape(scores))
        is_positive = tf.transpose(tf.gather(among.own_class, among.codes)) == 0.0
        is_valid = rows.is_valid[None, :] & (among.sample_ids[:, None] != rows.sample_ids[None, :])
        if ceilings is not None:
            is_valid &= is_positive | (scores <= ceilings[:, None])
        if self.num_negatives == self.num_positives:
            return Picks(every, is_positive, is_valid, scores, tf.zeros([0], tf.int64))
        if self.num_positives == "all":
            picked["positives"] = every, is_valid & is_positive
        else:
            picked["negatives"] = every, is_valid & ~is_positive
        indices, is_positive, is_valid = _joined(picked)
        scores = tf.gather(scores, indices, batch_dims=1)
        return Picks(indices, is_positive, is_valid, scores, tf.zeros([0], tf.int64))

    def _refuse_all_of_many(self, rows):
        num_rows = rows.features.shape[0]
        if num_rows is not None and num_rows > self.max_rows_for_all:
            raise ValueError(
                f"Received 'all' with a memory of {num_rows} rows; expected at most {self.max_rows_for_all}. "
                "Give a number of picks, such as num_negatives=32, or raise max_rows_for_all."
            )

    def get_config(self):
        """Arguments of the constructor."""
        mining = keras.saving.serialize_keras_object(self.mining)
        return {**super().get_config(), **arguments_in(self), "mining": mining}

    @classmethod
    def from_config(cls, config):
        """The stage that `get_config` described; one of earlier versions mines in the features."""
        mining = config.get("mining")
        return cls(**{**config, "mining": mining and keras.saving.deserialize_keras_object(mining)})


def require_pairs(num_negatives: Count, num_positives: Count, num_random: int = 0) -> None:
    """Raises ValueError where there is nothing to pick."""
    if num_negatives == num_positives == num_random == 0:
        raise ValueError(
            "Received num_negatives=0 and num_positives=0, which leaves no pairs; make at least one of them 1."
        )


def _joined(picked):
    """Indices, is_positive and is_valid, each [B, T], of the positives, the negatives and the random ones there are."""
    names = [name for name in ("positives", "negatives", "random") if name in picked]
    indices, is_valid = (tf.concat([picked[name][i] for name in names], axis=1) for i in range(2))
    parts = [tf.fill(tf.shape(picked[name][0]), name == "positives") for name in names]
    return indices, tf.concat(parts, axis=1), is_valid
