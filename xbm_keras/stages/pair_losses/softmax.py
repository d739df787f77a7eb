"""Losses in which the positives of an anchor compete with a sum over its negatives.

Three of them differ only in where several positives stand; with one positive they are the same:

| | the logarithm is taken of | the denominator holds |
|---|---|---|
| `supcon` | each positive, then the mean | all picks: the positives, the other ones too, and the negatives |
| `info_nce` | each positive, then the mean | that positive and the negatives, not the other positives |
| `nt_xent` | the mean of the positives | all picks |

So `supcon` pulls all positives to one distance, `info_nce` each as near as the negatives allow, and `nt_xent` mostly
the nearest ones, which leaves a class that has several clusters its clusters.
"""

import math
from typing import Annotated

import keras
import tensorflow as tf
from annotated_types import Ge, Le

from xbm_keras.arguments import AboveZero, Share, UpTo2, checked
from xbm_keras.stages.pair_losses.base import PairLoss, count, distances, has_both, log_sum_exp, mean, split

Angle = Annotated[float, Ge(0), Le(math.pi / 2)]


@keras.saving.register_keras_serializable("xbm_keras")
class SupConLoss(PairLoss):
    r"""Supervised contrastive loss.

    `mean over positives p of -log(exp(s_p / t) / sum over all picks a of exp(s_a / t))`

    Args:
        temperature: t, of similarities; 0.05 to 0.2 is usual.

    Raises:
        ValueError: for a temperature of 0 or less.

    Reference:
        Khosla et al., arXiv 2004.11362, eq. 2.
    """

    name = "supcon"

    @checked
    def __init__(self, temperature: AboveZero = 0.05):
        self.temperature = temperature

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        logits = tf.cast(similarities, tf.float32) / self.temperature
        is_positive, _ = split(picks)
        log_sum = log_sum_exp(logits, picks.is_valid)
        return tf.where(has_both(picks), log_sum - mean(logits, is_positive), 0.0)


@keras.saving.register_keras_serializable("xbm_keras")
class InfoNCELoss(PairLoss):
    r"""InfoNCE: each positive against the negatives alone, not against the other positives.

    `mean over positives p of -log(exp(s_p / t) / (exp(s_p / t) + sum over negatives n of exp(s_n / t)))`

    Args:
        temperature: t, of similarities; 0.05 to 0.2 is usual.

    Raises:
        ValueError: for a temperature of 0 or less.

    Reference:
        van den Oord et al., arXiv 1807.03748, eq. 4.
    """

    name = "info_nce"

    @checked
    def __init__(self, temperature: AboveZero = 0.1):
        self.temperature = temperature

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        logits = tf.cast(similarities, tf.float32) / self.temperature
        is_positive, is_negative = split(picks)
        log_sum = log_sum_exp(logits, is_negative)
        return tf.where(has_both(picks), mean(tf.nn.softplus(log_sum[:, None] - logits), is_positive), 0.0)


@keras.saving.register_keras_serializable("xbm_keras")
class NTXentLoss(PairLoss):
    r"""NT-Xent: SimCLR's loss, with the positives averaged inside the logarithm.

    `-log(mean over positives p of exp(s_p / t) / sum over all picks a of exp(s_a / t))`

    Args:
        temperature: t, of similarities; 0.05 to 0.2 is usual.

    Raises:
        ValueError: for a temperature of 0 or less.

    Reference:
        Chen et al., arXiv 2002.05709, eq. 1, for one positive; for several Khosla et al., arXiv 2004.11362, eq. 3.
        (`NTXentLoss` of pytorch-metric-learning is `InfoNCELoss` here.)
    """

    name = "nt_xent"

    @checked
    def __init__(self, temperature: AboveZero = 0.1):
        self.temperature = temperature

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        logits = tf.cast(similarities, tf.float32) / self.temperature
        is_positive, _ = split(picks)
        log_mean = log_sum_exp(logits, is_positive) - tf.math.log(tf.maximum(count(is_positive), 1.0))
        return tf.where(has_both(picks), log_sum_exp(logits, picks.is_valid) - log_mean, 0.0)


@keras.saving.register_keras_serializable("xbm_keras")
class TupletLoss(PairLoss):
    r"""Tuplet margin loss; with `margin=0` the (multi-class) N-pair loss.

    `mean over positives p of log(1 + sum over negatives n of exp(scale (s_n - cos(max(0, angle_p - margin)))))`

    Positives within the margin pull no more; the paper lets the angle turn negative there, which would push them away.
    With `margin=0` this is InfoNCE at the temperature `1 / scale`.

    Args:
        margin: an angle in radians.
        scale: of cosines. The paper has 64.

    Raises:
        ValueError: for a margin outside 0..pi/2 or a scale of 0 or less.

    Reference:
        Yu and Tao, ICCV 2019; N-pair: Sohn, NeurIPS 2016, here on cosines.
    """

    name = "tuplet"

    @checked
    def __init__(self, margin: Angle = 0.1, scale: AboveZero = 64.0):
        self.margin = margin
        self.scale = scale

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        s = tf.cast(similarities, tf.float32)
        is_positive, is_negative = split(picks)
        log_sum = log_sum_exp(self.scale * s, is_negative)
        nearer = _cosine_less_angle(s, self.margin) if self.margin else s
        return tf.where(has_both(picks), mean(tf.nn.softplus(log_sum[:, None] - self.scale * nearer), is_positive), 0.0)


@keras.saving.register_keras_serializable("xbm_keras")
class CircleLoss(PairLoss):
    r"""Circle loss.

    `log(1 + sum over negatives n of exp(gamma a_n (s_n - margin))
    * sum over positives p of exp(-gamma a_p (s_p - 1 + margin)))`
    with the weights `a_n = max(0, s_n + margin)` and `a_p = max(0, 1 + margin - s_p)`

    Args:
        margin: a difference of cosines.
        gamma: steepness. The paper has 80 for retrieval, 256 for faces.

    Raises:
        ValueError: for a margin outside 0..1 or a gamma of 0 or less.

    Reference:
        Sun et al., CVPR 2020, arXiv 2002.10857, section 3. As there, the weights are constants to the gradient.
    """

    name = "circle"

    @checked
    def __init__(self, margin: Share = 0.4, gamma: AboveZero = 80.0):
        self.margin = margin
        self.gamma = gamma

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        s = tf.cast(similarities, tf.float32)
        is_positive, is_negative = split(picks)
        weight_positive = tf.stop_gradient(tf.nn.relu(1.0 + self.margin - s))
        weight_negative = tf.stop_gradient(tf.nn.relu(s + self.margin))
        push = log_sum_exp(self.gamma * weight_negative * (s - self.margin), is_negative)
        pull = log_sum_exp(-self.gamma * weight_positive * (s - 1.0 + self.margin), is_positive)
        return tf.where(has_both(picks), tf.nn.softplus(push + pull), 0.0)


@keras.saving.register_keras_serializable("xbm_keras")
class LiftedStructureLoss(PairLoss):
    r"""Lifted structure loss, in its generalised form, on Euclidean distances of unit vectors, `d = sqrt(2 - 2 s)`.

    `max(0, t log(sum over positives p of exp(d_p / t)) + t log(sum over negatives n of exp((margin - d_n) / t)))`

    Args:
        margin: a distance of unit vectors.
        temperature: t, of distances. The paper has 1. On unit vectors, whose distances lie in 0..2, the two sums are
            then hardly more than counts of pairs; near 0 the loss becomes the triplet loss of the farthest positive and
            the nearest negative.

    Raises:
        ValueError: for a margin outside 0..2 or a temperature of 0 or less.

    Reference:
        Hermans et al., arXiv 1703.07737, the generalised form ("L_LG") of Song et al., arXiv 1511.06452.
    """

    name = "lifted_structure"

    @checked
    def __init__(self, margin: UpTo2 = 1.0, temperature: AboveZero = 1.0):
        self.margin = margin
        self.temperature = temperature

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        d = distances(tf.cast(similarities, tf.float32))
        is_positive, is_negative = split(picks)
        pull = log_sum_exp(d / self.temperature, is_positive)
        push = log_sum_exp((self.margin - d) / self.temperature, is_negative)
        return tf.where(has_both(picks), tf.nn.relu(self.temperature * (pull + push)), 0.0)


def _cosine_less_angle(cosines: tf.Tensor, angle: float) -> tf.Tensor:
    """Cosine of each angle less another, at least 0, with a finite gradient everywhere."""
    squares = 1.0 - tf.square(cosines)
    sines = tf.sqrt(tf.where(squares < 1e-6, 1e-6, squares))  # the root's slope has no bound at 0; NaN stays NaN
    turned = cosines * math.cos(angle) + sines * math.sin(angle)
    return tf.where(cosines > math.cos(angle), 1.0, turned)
