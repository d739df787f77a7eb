"""Losses that hold each pair against a fixed similarity or distance."""

import keras
import tensorflow as tf

from xbm_keras.arguments import AboveZero, Cosine, UpTo2, checked
from xbm_keras.stages.pair_losses.base import PairLoss, distances, has_any, has_both, log_sum_exp, mean, split


@keras.saving.register_keras_serializable("xbm_keras")
class ContrastiveLoss(PairLoss):
    """Contrastive loss on cosine similarities. Anchors with any pick count.

    `mean over positives of max(0, positive_margin - s) + mean over negatives of max(0, s - negative_margin)`

    Args:
        positive_margin: a cosine similarity, above which positives pull no more.
        negative_margin: a cosine similarity, below which negatives push no more.

    Raises:
        ValueError: for a margin outside the cosine's -1..1.

    Reference:
        Hadsell et al., CVPR 2006, on cosine similarities as in XBM, arXiv 1912.06798, eq. 3.
    """

    name = "contrastive"
    needs_both = False

    @checked
    def __init__(self, positive_margin: Cosine = 0.9, negative_margin: Cosine = 0.4):
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        similarities = tf.cast(similarities, tf.float32)
        pull = tf.nn.relu(self.positive_margin - similarities)
        push = tf.nn.relu(similarities - self.negative_margin)
        is_positive, is_negative = split(picks)
        return mean(pull, is_positive) + mean(push, is_negative)


@keras.saving.register_keras_serializable("xbm_keras")
class MarginLoss(PairLoss):
    """Margin loss on Euclidean distances of unit vectors, `d = sqrt(2 - 2 s)`. Anchors with any pick count.

    `mean over positives of max(0, d - beta + margin) + mean over negatives of max(0, beta - d + margin)`

    The paper learns the boundary beta; here it is a constant, its start there, since a loss holds no weights.

    Args:
        margin: a distance of unit vectors, by which pairs keep off the boundary.
        beta: the boundary between positives and negatives, a distance of unit vectors.

    Raises:
        ValueError: for a margin or a beta outside 0..2.

    Reference:
        Wu et al., ICCV 2017, arXiv 1706.07567, section 4.2. Its sampling by distance is not part of the loss; the top-k
        sample chooses the pairs.
    """

    name = "margin"
    needs_both = False

    @checked
    def __init__(self, margin: UpTo2 = 0.2, beta: UpTo2 = 1.2):
        self.margin = margin
        self.beta = beta

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        d = distances(tf.cast(similarities, tf.float32))
        is_positive, is_negative = split(picks)
        pull, push = tf.nn.relu(d - self.beta + self.margin), tf.nn.relu(self.beta - d + self.margin)
        return mean(pull, is_positive) + mean(push, is_negative)


@keras.saving.register_keras_serializable("xbm_keras")
class MultiSimilarityLoss(PairLoss):
    r"""Multi-similarity loss.

    `1/alpha log(1 + sum over positives of exp(-alpha (s - base)))
    + 1/beta log(1 + sum over negatives of exp(beta (s - base)))`

    Args:
        alpha: steepness for positives. The paper has 2.
        beta: steepness for negatives. The paper has 50.
        base: a cosine similarity, the boundary between positives and negatives.
        epsilon: a difference of cosines. Only informative pairs are in the sums: positives with `s < highest negative +
            epsilon`, negatives with `s > lowest positive - epsilon`; with None all are.

    Raises:
        ValueError: for an alpha or beta of 0 or less, a base outside the cosine's -1..1, an epsilon outside 0..2.

    Reference:
        Wang et al., CVPR 2019, arXiv 1904.06627: the loss in section 3.3, the pair mining in section 3.2.
    """

    name = "multi_similarity"

    @checked
    def __init__(
        self,
        alpha: AboveZero = 2.0,
        beta: AboveZero = 50.0,
        base: Cosine = 0.5,
        epsilon: UpTo2 | None = 0.1,
    ):
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        s = tf.cast(similarities, tf.float32)
        is_positive, is_negative = split(picks)
        if self.epsilon is not None:
            lowest_positive = tf.reduce_min(tf.where(is_positive, s, float("inf")), axis=1, keepdims=True)
            highest_negative = tf.reduce_max(tf.where(is_negative, s, -float("inf")), axis=1, keepdims=True)
            # Written so that a pair whose similarity is NaN stays, and shows.
            is_positive &= ~(s >= highest_negative + self.epsilon)
            is_negative &= ~(s <= lowest_positive - self.epsilon)
        pull = _softplus_of_sum(-self.alpha * (s - self.base), is_positive) / self.alpha
        push = _softplus_of_sum(self.beta * (s - self.base), is_negative) / self.beta
        return tf.where(has_both(picks), pull + push, 0.0)


def _softplus_of_sum(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """`log(1 + sum of exp(logits))` of each row over the mask, [B]; 0 over an empty one."""
    return tf.where(has_any(mask), tf.nn.softplus(log_sum_exp(logits, mask)), 0.0)
