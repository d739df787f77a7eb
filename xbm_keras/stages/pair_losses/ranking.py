"""Losses on the order of an anchor's positives and negatives.

They compare each positive with every other pick, which is done in blocks of positives: [B, T, T] is never held.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import keras
import tensorflow as tf
from annotated_types import Gt, Le, MinLen

from xbm_keras.arguments import AboveZero, Positive, UpTo2, checked
from xbm_keras.stages.hard_top_k.by_label import Picks
from xbm_keras.stages.pair_losses.base import PairLoss, count, has_both, split

BLOCK_ELEMENTS = 1 << 22  # of a block [B, b, T]

Terms = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor | float]]
"""From differences `s_j - s_p` [B, b, T] of each pick j and each positive p, and the masks of the other positives
[B, b, T] and of the negatives [B, 1, T], to values [B, b], their slopes by the differences [B, b, T], and what each
value weighs in the mean [B, b]: how many terms it is the sum of."""


@keras.saving.register_keras_serializable("xbm_keras")
class TripletLoss(PairLoss):
    """Triplet loss: the mean over all (positive, negative) pairs of an anchor.

    With a margin `max(0, s_n - s_p + margin)`; with `margin=None` the soft form `softplus(s_n - s_p)`.

    Args:
        margin: a difference of cosines; None is the soft form.

    Raises:
        ValueError: for a margin outside 0..2.

    Reference:
        Hermans et al., arXiv 1703.07737, "batch all" and the soft margin of section 2.
    """

    name = "triplet"

    @checked
    def __init__(self, margin: UpTo2 | None = 0.1):
        self.margin = margin

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        _, is_negative = split(picks)
        num_negatives = tf.maximum(count(is_negative), 1.0)[:, None]  # [B, 1]

        def terms(differences, is_positive, is_negative):
            if self.margin is None:
                values, slopes = tf.nn.softplus(differences), tf.nn.sigmoid(differences)
            else:
                inside = differences + self.margin
                values, slopes = tf.nn.relu(inside), tf.cast(inside > 0, tf.float32)
            values = tf.reduce_sum(tf.where(is_negative, values, 0.0), axis=2)
            return values / num_negatives, tf.where(is_negative, slopes, 0.0) / num_negatives[:, :, None], 1.0

        return _mean_over_positives(similarities, picks, terms)


@keras.saving.register_keras_serializable("xbm_keras")
class SemiHardTripletLoss(PairLoss):
    """Triplet loss on semi-hard triplets alone, whose negative is farther than the positive, but not by the margin.

    The mean of `s_n - s_p + margin` over an anchor's (positive, negative) pairs with `0 < s_p - s_n < margin`. An
    anchor without any has loss 0 and counts, as one whose triplets all keep the margin does.

    On squared distances of unit vectors the margin is twice as much: the default is FaceNet's 0.2.

    Args:
        margin: a difference of cosines.

    Raises:
        ValueError: for a margin outside 0..2, or of 0.

    Reference:
        Schroff et al., "FaceNet", CVPR 2015, arXiv 1503.03832, section 3.2, with all the semi-hard negatives of a pair
        (`TripletMarginMiner` of pytorch-metric-learning, "semihard") in place of one.
    """

    name = "semi_hard_triplet"

    @checked
    def __init__(self, margin: Annotated[float, Gt(0), Le(2)] = 0.1):
        self.margin = margin

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""

        def terms(differences, is_positive, is_negative):
            # Written so that a pair whose similarity is NaN stays, and shows.
            is_semi_hard = is_negative & ~((differences >= 0) | (differences <= -self.margin))
            values = tf.where(is_semi_hard, differences + self.margin, 0.0)
            slopes = tf.cast(is_semi_hard, tf.float32)
            return tf.reduce_sum(values, axis=2), slopes, tf.reduce_sum(slopes, axis=2)

        return _mean_over_positives(similarities, picks, terms)


@keras.saving.register_keras_serializable("xbm_keras")
class SmoothAPLoss(PairLoss):
    r"""Smooth-AP loss: 1 less the average precision, with a sigmoid in place of each comparison.

    `1 - mean over positives p of (1 + sum over other positives j of g(s_j - s_p)) / (1 + sum over other picks j of
    g(s_j - s_p))` with `g(x) = sigmoid(x / t)`

    Args:
        temperature: t, of similarities. The paper has 0.01.

    Raises:
        ValueError: for a temperature of 0 or less.

    Reference:
        Brown et al., ECCV 2020, arXiv 2007.12163, section 4.
    """

    name = "smooth_ap"

    @checked
    def __init__(self, temperature: AboveZero = 0.01):
        self.temperature = temperature

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""

        def terms(differences, is_positive, is_negative):
            g = tf.nn.sigmoid(differences / self.temperature)
            rank_among_positives = 1.0 + tf.reduce_sum(tf.where(is_positive, g, 0.0), axis=2)  # [B, b]
            num_negatives_before = tf.reduce_sum(tf.where(is_negative, g, 0.0), axis=2)
            rank = rank_among_positives + num_negatives_before
            by_positive = (-num_negatives_before / tf.square(rank))[:, :, None]
            by_negative = (rank_among_positives / tf.square(rank))[:, :, None]
            slopes = tf.where(is_positive, by_positive, tf.where(is_negative, by_negative, 0.0))
            return num_negatives_before / rank, slopes * g * (1.0 - g) / self.temperature, 1.0

        return _mean_over_positives(similarities, picks, terms)


@keras.saving.register_keras_serializable("xbm_keras")
class RecallSurrogateLoss(PairLoss):
    r"""Recall@k surrogate: 1 less the mean over several k of a smooth Recall@k.

    `1 - mean over k of (sum over positives p of sigmoid((k - rank_p) / rank_temperature)) / min(k, num_positives)`
    with `rank_p = 1 + sum over other picks j of sigmoid((s_j - s_p) / temperature)`

    Here Recall@k is the share of the positives, as far as k places can hold them, among the first k. The sum is not cut
    off at k, so that many positives of one rank can bring the loss slightly below 0.

    Args:
        ks: numbers of places, such as (1, 2, 4).
        temperature: of similarities. The paper has 0.01.
        rank_temperature: of ranks. The paper has 1.

    Raises:
        ValueError: for a temperature of 0 or less, no k, or a k below 1.

    Reference:
        Patel et al., CVPR 2022, arXiv 2108.11179, section 3.
    """

    name = "recall_surrogate"

    @checked
    def __init__(
        self,
        ks: Annotated[Sequence[Positive], MinLen(1)] = (1, 2, 4, 8, 16),
        temperature: AboveZero = 0.01,
        rank_temperature: AboveZero = 1.0,
    ):
        self.ks = list(ks)
        self.temperature = temperature
        self.rank_temperature = rank_temperature

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        positives, _ = split(picks)
        num_positives = tf.maximum(count(positives), 1.0)[:, None]  # [B, 1]

        def terms(differences, is_positive, is_negative):
            is_other = is_positive | is_negative
            g = tf.nn.sigmoid(differences / self.temperature)
            rank = 1.0 + tf.reduce_sum(tf.where(is_other, g, 0.0), axis=2)  # [B, b]
            values, by_rank = tf.ones_like(rank), tf.zeros_like(rank)
            for k in self.ks:
                h = tf.nn.sigmoid((k - rank) / self.rank_temperature)
                weight = num_positives / tf.minimum(num_positives, float(k)) / len(self.ks)
                values -= weight * h
                by_rank += weight * h * (1.0 - h) / self.rank_temperature
            return values, by_rank[:, :, None] * tf.where(is_other, g * (1.0 - g), 0.0) / self.temperature, 1.0

        return _mean_over_positives(similarities, picks, terms)


def _mean_over_positives(similarities: tf.Tensor, picks: Picks, terms: Terms) -> tf.Tensor:
    """Mean of each anchor's terms over its positives, [B]; 0 where it lacks a positive or a negative, or has no terms.

    The gradient is gathered on the way forward, so that nothing of a block is kept.
    """
    is_valid_anchor = has_both(picks)
    # The positives first, so that the loop ends where those of the anchor with the most end.
    order = tf.argsort(tf.cast(~split(picks)[0], tf.float32), axis=1, stable=True)
    order = tf.cast(order, tf.int64)  # the gradient of a gather counts with the indices; of int32 on the host
    is_positive, is_negative = (tf.gather(mask, order, batch_dims=1) for mask in split(picks))
    most_positives = tf.cast(tf.reduce_max(count(is_positive)), tf.int32)

    @tf.custom_gradient
    def blocked(s):
        num_anchors, num_picks = tf.shape(s)[0], tf.shape(s)[1]
        block = BLOCK_ELEMENTS // tf.maximum(1, num_anchors * num_picks)
        block = tf.maximum(1, tf.minimum(block, num_picks))  # not wider than the picks: the rest would be padding
        padding = [[0, 0], [0, (num_picks + block - 1) // block * block - num_picks]]
        s_padded, positive_padded = tf.pad(s, padding), tf.pad(is_positive, padding)
        offsets = tf.range(
            tf.cast(block, tf.int64)
        )  # outside the loop: XLA wants the bounds of a range to be constants
        places = tf.range(tf.cast(num_picks, tf.int64))

        def step(i, value, num_terms, own, other):
            columns = tf.cast(i * block, tf.int64) + offsets
            s_p, mask_p = tf.gather(s_padded, columns, axis=1), tf.gather(positive_padded, columns, axis=1)
            is_other_positive = is_positive[:, None, :] & (places[None, :] != columns[:, None])[None, :, :]
            values, slopes, weights = terms(s[:, None, :] - s_p[:, :, None], is_other_positive, is_negative[:, None, :])
            slopes = tf.where(mask_p[:, :, None], slopes, 0.0)
            value += tf.reduce_sum(tf.where(mask_p, values, 0.0), axis=1)
            num_terms += tf.reduce_sum(tf.where(mask_p, weights, 0.0), axis=1)
            own = tf.tensor_scatter_nd_update(
                own, columns[:, None], -tf.transpose(tf.reduce_sum(slopes, axis=2))
            )  # [T padded, B]
            return i + 1, value, num_terms, own, other + tf.reduce_sum(slopes, axis=1)

        nothing = tf.zeros_like(s[:, 0])
        _, value, num_terms, own, other = tf.while_loop(
            lambda i, *_: i * block < most_positives,
            step,
            (0, nothing, nothing, tf.zeros_like(tf.transpose(s_padded)), tf.zeros_like(s)),
        )
        num_terms = tf.maximum(num_terms, 1.0)

        def grad(upstream):
            slopes = other + tf.transpose(own)[:, :num_picks]
            return tf.where(is_valid_anchor, upstream / num_terms, 0.0)[:, None] * slopes

        return tf.where(is_valid_anchor, value / num_terms, 0.0), grad

    return blocked(tf.gather(tf.cast(similarities, tf.float32), order, batch_dims=1))
