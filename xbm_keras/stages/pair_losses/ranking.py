"""Losses on the order of an anchor's positives and negatives.

They compare each positive with every other pick, which is done in blocks of positives: [B, T, T] is never held.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from xbm_keras.stages.hard_top_k.by_label import Picks
from xbm_keras.stages.pair_losses.base import PairLoss, count, has_both, require_between, require_positive, split

BLOCK_ELEMENTS = 1 << 22  # of a block [B, b, T]

Terms = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""From differences `s_j - s_p` [B, b, T] of each pick j and each positive p, and the masks of the other positives
[B, b, T] and of the negatives [B, 1, T], to values [B, b] and their slopes by the differences [B, b, T]."""


def triplet(similarities: tf.Tensor, picks: Picks, *, margin: float | None = 0.1) -> tf.Tensor:
    """Triplet loss per anchor, [B]: the mean over all its (positive, negative) pairs.

    With a margin `max(0, s_n - s_p + margin)`; with `margin=None` the soft form `softplus(s_n - s_p)`.

    Reference:
        Hermans et al., arXiv 1703.07737, "batch all" and the soft margin of section 2.
    """
    _, is_negative = split(picks)
    num_negatives = tf.maximum(count(is_negative), 1.0)[:, None]  # [B, 1]

    def terms(differences, is_positive, is_negative):
        if margin is None:
            values, slopes = tf.nn.softplus(differences), tf.nn.sigmoid(differences)
        else:
            values, slopes = tf.nn.relu(differences + margin), tf.cast(differences + margin > 0, tf.float32)
        values = tf.reduce_sum(tf.where(is_negative, values, 0.0), axis=2)
        return values / num_negatives, tf.where(is_negative, slopes, 0.0) / num_negatives[:, :, None]

    return _mean_over_positives(similarities, picks, terms)


def smooth_ap(similarities: tf.Tensor, picks: Picks, *, temperature: float = 0.01) -> tf.Tensor:
    r"""Smooth-AP loss per anchor, [B]: 1 less the average precision, with a sigmoid in place of each comparison.

    `1 - mean over positives p of (1 + sum over other positives j of g(s_j - s_p)) / (1 + sum over other picks j of
    g(s_j - s_p))` with `g(x) = sigmoid(x / t)`

    Reference:
        Brown et al., ECCV 2020, arXiv 2007.12163, section 4.
    """

    def terms(differences, is_positive, is_negative):
        g = tf.nn.sigmoid(differences / temperature)
        rank_among_positives = 1.0 + tf.reduce_sum(tf.where(is_positive, g, 0.0), axis=2)  # [B, b]
        num_negatives_before = tf.reduce_sum(tf.where(is_negative, g, 0.0), axis=2)
        rank = rank_among_positives + num_negatives_before
        by_positive = (-num_negatives_before / tf.square(rank))[:, :, None]
        by_negative = (rank_among_positives / tf.square(rank))[:, :, None]
        slopes = tf.where(is_positive, by_positive, tf.where(is_negative, by_negative, 0.0))
        return num_negatives_before / rank, slopes * g * (1.0 - g) / temperature

    return _mean_over_positives(similarities, picks, terms)


def recall_surrogate(
    similarities: tf.Tensor,
    picks: Picks,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    temperature: float = 0.01,
    rank_temperature: float = 1.0,
) -> tf.Tensor:
    r"""Recall@k surrogate per anchor, [B]: 1 less the mean over several k of a smooth Recall@k.

    `1 - mean over k of (sum over positives p of sigmoid((k - rank_p) / rank_temperature)) / min(k, num_positives)`
    with `rank_p = 1 + sum over other picks j of sigmoid((s_j - s_p) / temperature)`

    Here Recall@k is the share of the positives, as far as k places can hold them, among the first k. The sum is not cut
    off at k, so that many positives of one rank can bring the loss slightly below 0.

    Reference:
        Patel et al., CVPR 2022, arXiv 2108.11179, section 3.
    """
    positives, _ = split(picks)
    num_positives = tf.maximum(count(positives), 1.0)[:, None]  # [B, 1]

    def terms(differences, is_positive, is_negative):
        is_other = is_positive | is_negative
        g = tf.nn.sigmoid(differences / temperature)
        rank = 1.0 + tf.reduce_sum(tf.where(is_other, g, 0.0), axis=2)  # [B, b]
        values, by_rank = tf.ones_like(rank), tf.zeros_like(rank)
        for k in ks:
            h = tf.nn.sigmoid((k - rank) / rank_temperature)
            weight = num_positives / tf.minimum(num_positives, float(k)) / len(ks)
            values -= weight * h
            by_rank += weight * h * (1.0 - h) / rank_temperature
        return values, by_rank[:, :, None] * tf.where(is_other, g * (1.0 - g), 0.0) / temperature

    return _mean_over_positives(similarities, picks, terms)


@keras.saving.register_keras_serializable("xbm_keras")
class TripletLoss(PairLoss):
    """See `triplet`. Raises ValueError for a margin outside 0..2."""

    name = "triplet"

    def __init__(self, margin: float | None = 0.1):
        if margin is not None:
            require_between("margin", margin, 0, 2, "None (the soft form), or a difference of cosines")
        self.margin = margin

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return triplet(similarities, picks, margin=self.margin)


@keras.saving.register_keras_serializable("xbm_keras")
class SmoothAPLoss(PairLoss):
    """See `smooth_ap`. Raises ValueError for a temperature of 0 or less."""

    name = "smooth_ap"

    def __init__(self, temperature: float = 0.01):
        self.temperature = require_positive("temperature", temperature, "The paper has 0.01.")

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return smooth_ap(similarities, picks, temperature=self.temperature)


@keras.saving.register_keras_serializable("xbm_keras")
class RecallSurrogateLoss(PairLoss):
    """See `recall_surrogate`. Raises ValueError for a temperature of 0 or less, no k, or a k below 1."""

    name = "recall_surrogate"

    def __init__(self, ks: Sequence[int] = (1, 2, 4, 8, 16), temperature: float = 0.01, rank_temperature: float = 1.0):
        if not ks or min(ks) < 1:
            raise ValueError(f"Received ks={ks}; expected one or more whole numbers from 1 on, such as (1, 2, 4).")
        self.ks = list(ks)
        self.temperature = require_positive("temperature", temperature, "The paper has 0.01.")
        self.rank_temperature = require_positive("rank_temperature", rank_temperature, "The paper has 1.")

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return recall_surrogate(similarities, picks, **self.get_config())


def _mean_over_positives(similarities: tf.Tensor, picks: Picks, terms: Terms) -> tf.Tensor:
    """Mean of each anchor's terms over its positives, [B]; 0 where it lacks a positive or a negative.

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

        def step(i, value, own, other):
            columns = tf.cast(i * block, tf.int64) + offsets
            s_p, mask_p = tf.gather(s_padded, columns, axis=1), tf.gather(positive_padded, columns, axis=1)
            is_other_positive = is_positive[:, None, :] & (places[None, :] != columns[:, None])[None, :, :]
            values, slopes = terms(s[:, None, :] - s_p[:, :, None], is_other_positive, is_negative[:, None, :])
            slopes = tf.where(mask_p[:, :, None], slopes, 0.0)
            value += tf.reduce_sum(tf.where(mask_p, values, 0.0), axis=1)
            own = tf.tensor_scatter_nd_update(
                own, columns[:, None], -tf.transpose(tf.reduce_sum(slopes, axis=2))
            )  # [T padded, B]
            return i + 1, value, own, other + tf.reduce_sum(slopes, axis=1)

        _, value, own, other = tf.while_loop(
            lambda i, *_: i * block < most_positives,
            step,
            (0, tf.zeros_like(s[:, 0]), tf.zeros_like(tf.transpose(s_padded)), tf.zeros_like(s)),
        )
        num_positives = tf.maximum(count(is_positive), 1.0)

        def grad(upstream):
            slopes = other + tf.transpose(own)[:, :num_picks]
            return tf.where(is_valid_anchor, upstream / num_positives, 0.0)[:, None] * slopes

        return tf.where(is_valid_anchor, value / num_positives, 0.0), grad

    return blocked(tf.gather(tf.cast(similarities, tf.float32), order, batch_dims=1))
