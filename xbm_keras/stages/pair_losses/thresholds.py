"""Losses that hold each pair against a fixed similarity or distance."""

import keras
import tensorflow as tf

from xbm_keras.stages.hard_top_k.by_label import Picks
from xbm_keras.stages.pair_losses.base import (
    PairLoss,
    distances,
    has_any,
    has_both,
    log_sum_exp,
    mean,
    require_between,
    require_positive,
    split,
)


def contrastive(
    similarities: tf.Tensor, picks: Picks, *, positive_margin: float = 0.9, negative_margin: float = 0.4
) -> tf.Tensor:
    r"""Contrastive loss per anchor, [B].

    `mean over positives of max(0, positive_margin - s) + mean over negatives of max(0, s - negative_margin)`

    Reference:
        Hadsell et al., CVPR 2006, on cosine similarities as in XBM, arXiv 1912.06798, eq. 3.
    """
    similarities = tf.cast(similarities, tf.float32)
    pull = tf.nn.relu(positive_margin - similarities)
    push = tf.nn.relu(similarities - negative_margin)
    is_positive, is_negative = split(picks)
    return mean(pull, is_positive) + mean(push, is_negative)


def margin(similarities: tf.Tensor, picks: Picks, *, margin: float = 0.2, beta: float = 1.2) -> tf.Tensor:
    r"""Margin loss per anchor, [B], on Euclidean distances `d = sqrt(2 - 2 s)`, which lie in 0..2.

    `mean over positives of max(0, d - beta + margin) + mean over negatives of max(0, beta - d + margin)`

    The paper learns the boundary beta; here it is a constant, its start there, since a loss holds no weights.

    Reference:
        Wu et al., ICCV 2017, arXiv 1706.07567, section 4.2. Its sampling by distance is not part of the loss; the top-k
        sample chooses the pairs.
    """
    d = distances(tf.cast(similarities, tf.float32))
    is_positive, is_negative = split(picks)
    return mean(tf.nn.relu(d - beta + margin), is_positive) + mean(tf.nn.relu(beta - d + margin), is_negative)


def multi_similarity(
    similarities: tf.Tensor,
    picks: Picks,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
) -> tf.Tensor:
    r"""Multi-similarity loss per anchor, [B].

    `1/alpha log(1 + sum over positives of exp(-alpha (s - base)))
    + 1/beta log(1 + sum over negatives of exp(beta (s - base)))`

    Only informative pairs are in the sums: positives with `s < highest negative + epsilon`, negatives with
    `s > lowest positive - epsilon`; with `epsilon=None` all are.

    Reference:
        Wang et al., CVPR 2019, arXiv 1904.06627: the loss in section 3.3, the pair mining in section 3.2.
    """
    s = tf.cast(similarities, tf.float32)
    is_positive, is_negative = split(picks)
    if epsilon is not None:
        lowest_positive = tf.reduce_min(tf.where(is_positive, s, float("inf")), axis=1, keepdims=True)
        highest_negative = tf.reduce_max(tf.where(is_negative, s, -float("inf")), axis=1, keepdims=True)
        # Written so that a pair whose similarity is NaN stays, and shows.
        is_positive &= ~(s >= highest_negative + epsilon)
        is_negative &= ~(s <= lowest_positive - epsilon)
    pull = _softplus_of_sum(-alpha * (s - base), is_positive) / alpha
    push = _softplus_of_sum(beta * (s - base), is_negative) / beta
    return tf.where(has_both(picks), pull + push, 0.0)


@keras.saving.register_keras_serializable("xbm_keras")
class ContrastiveLoss(PairLoss):
    """See `contrastive`. Anchors with any pick count. Raises ValueError for a margin outside the cosine's -1..1."""

    name = "contrastive"

    def __init__(self, positive_margin: float = 0.9, negative_margin: float = 0.4):
        self.positive_margin = require_between("positive_margin", positive_margin, -1, 1, "a cosine similarity")
        self.negative_margin = require_between("negative_margin", negative_margin, -1, 1, "a cosine similarity")

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return contrastive(similarities, picks, **self.get_config())

    def valid_anchors(self, picks):
        """Those with any pick."""
        return has_any(picks.is_valid)


@keras.saving.register_keras_serializable("xbm_keras")
class MarginLoss(PairLoss):
    """See `margin`. Anchors with any pick count. Raises ValueError for a margin or a beta outside 0..2."""

    name = "margin"

    def __init__(self, margin: float = 0.2, beta: float = 1.2):
        self.margin = require_between("margin", margin, 0, 2, "a distance of unit vectors")
        self.beta = require_between("beta", beta, 0, 2, "a distance of unit vectors")

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return margin(similarities, picks, **self.get_config())

    def valid_anchors(self, picks):
        """Those with any pick."""
        return has_any(picks.is_valid)


@keras.saving.register_keras_serializable("xbm_keras")
class MultiSimilarityLoss(PairLoss):
    """See `multi_similarity`.

    Raises:
        ValueError: for an alpha or beta of 0 or less, a base outside the cosine's -1..1, an epsilon outside 0..2.
    """

    name = "multi_similarity"

    def __init__(self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float | None = 0.1):
        self.alpha = require_positive("alpha", alpha, "The paper has 2.")
        self.beta = require_positive("beta", beta, "The paper has 50.")
        self.base = require_between("base", base, -1, 1, "a cosine similarity")
        if epsilon is not None:
            require_between("epsilon", epsilon, 0, 2, "None, or a difference of cosines")
        self.epsilon = epsilon

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return multi_similarity(similarities, picks, **self.get_config())


def _softplus_of_sum(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """`log(1 + sum of exp(logits))` of each row over the mask, [B]; 0 over an empty one."""
    return tf.where(has_any(mask), tf.nn.softplus(log_sum_exp(logits, mask)), 0.0)
