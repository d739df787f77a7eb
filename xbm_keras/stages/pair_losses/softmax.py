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

import keras
import tensorflow as tf

from xbm_keras.stages.hard_top_k.by_label import Picks
from xbm_keras.stages.pair_losses.base import (
    PairLoss,
    count,
    distances,
    has_both,
    log_sum_exp,
    mean,
    require_between,
    require_positive,
    split,
)


def supcon(similarities: tf.Tensor, picks: Picks, *, temperature: float = 0.05) -> tf.Tensor:
    r"""Supervised contrastive loss per anchor, [B].

    `mean over positives p of -log(exp(s_p / t) / sum over all picks a of exp(s_a / t))`

    Reference:
        Khosla et al., arXiv 2004.11362, eq. 2.
    """
    logits = tf.cast(similarities, tf.float32) / temperature
    is_positive, _ = split(picks)
    log_sum = log_sum_exp(logits, picks.is_valid)
    return tf.where(has_both(picks), mean(log_sum[:, None] - logits, is_positive), 0.0)


def info_nce(similarities: tf.Tensor, picks: Picks, *, temperature: float = 0.1) -> tf.Tensor:
    r"""InfoNCE per anchor, [B]: each positive against the negatives alone, not against the other positives.

    `mean over positives p of -log(exp(s_p / t) / (exp(s_p / t) + sum over negatives n of exp(s_n / t)))`

    Reference:
        van den Oord et al., arXiv 1807.03748, eq. 4.
    """
    logits = tf.cast(similarities, tf.float32) / temperature
    is_positive, is_negative = split(picks)
    log_sum = log_sum_exp(logits, is_negative)
    return tf.where(has_both(picks), mean(tf.nn.softplus(log_sum[:, None] - logits), is_positive), 0.0)


def nt_xent(similarities: tf.Tensor, picks: Picks, *, temperature: float = 0.1) -> tf.Tensor:
    r"""NT-Xent per anchor, [B]: SimCLR's loss, with the positives averaged inside the logarithm.

    `-log(mean over positives p of exp(s_p / t) / sum over all picks a of exp(s_a / t))`

    Reference:
        Chen et al., arXiv 2002.05709, eq. 1, for one positive; for several Khosla et al., arXiv 2004.11362, eq. 3.
        (`NTXentLoss` of pytorch-metric-learning is `info_nce` here.)
    """
    logits = tf.cast(similarities, tf.float32) / temperature
    is_positive, _ = split(picks)
    log_mean = log_sum_exp(logits, is_positive) - tf.math.log(tf.maximum(count(is_positive), 1.0))
    return tf.where(has_both(picks), log_sum_exp(logits, picks.is_valid) - log_mean, 0.0)


def tuplet(similarities: tf.Tensor, picks: Picks, *, margin: float = 0.1, scale: float = 64.0) -> tf.Tensor:
    r"""Tuplet margin loss per anchor, [B]; with `margin=0` the (multi-class) N-pair loss.

    `mean over positives p of log(1 + sum over negatives n of exp(scale (s_n - cos(max(0, angle_p - margin)))))`

    Positives within the margin, in radians, pull no more; the paper lets the angle turn negative there, which would
    push them away. With `margin=0` this is `info_nce` at the temperature `1 / scale`.

    Reference:
        Yu and Tao, ICCV 2019; N-pair: Sohn, NeurIPS 2016, here on cosines.
    """
    s = tf.cast(similarities, tf.float32)
    is_positive, is_negative = split(picks)
    log_sum = log_sum_exp(scale * s, is_negative)
    nearer = _cosine_less_angle(s, margin) if margin else s
    return tf.where(has_both(picks), mean(tf.nn.softplus(log_sum[:, None] - scale * nearer), is_positive), 0.0)


def circle(similarities: tf.Tensor, picks: Picks, *, margin: float = 0.4, gamma: float = 80.0) -> tf.Tensor:
    r"""Circle loss per anchor, [B].

    `log(1 + sum over negatives n of exp(gamma a_n (s_n - margin))
    * sum over positives p of exp(-gamma a_p (s_p - 1 + margin)))`
    with the weights `a_n = max(0, s_n + margin)` and `a_p = max(0, 1 + margin - s_p)`

    Reference:
        Sun et al., CVPR 2020, arXiv 2002.10857, section 3. As there, the weights are constants to the gradient.
    """
    s = tf.cast(similarities, tf.float32)
    is_positive, is_negative = split(picks)
    weight_positive = tf.stop_gradient(tf.nn.relu(1.0 + margin - s))
    weight_negative = tf.stop_gradient(tf.nn.relu(s + margin))
    push = log_sum_exp(gamma * weight_negative * (s - margin), is_negative)
    pull = log_sum_exp(-gamma * weight_positive * (s - 1.0 + margin), is_positive)
    return tf.where(has_both(picks), tf.nn.softplus(push + pull), 0.0)


def lifted_structure(
    similarities: tf.Tensor, picks: Picks, *, margin: float = 1.0, temperature: float = 1.0
) -> tf.Tensor:
    r"""Lifted structure loss per anchor, [B], in its generalised form, on Euclidean distances `d = sqrt(2 - 2 s)`.

    `max(0, t log(sum over positives p of exp(d_p / t)) + t log(sum over negatives n of exp((margin - d_n) / t)))`

    The paper has t = 1. On unit vectors, whose distances lie in 0..2, the two sums are then hardly more than counts of
    pairs; near 0 the loss becomes the triplet loss of the farthest positive and the nearest negative.

    Reference:
        Hermans et al., arXiv 1703.07737, the generalised form ("L_LG") of Song et al., arXiv 1511.06452.
    """
    d = distances(tf.cast(similarities, tf.float32))
    is_positive, is_negative = split(picks)
    pull = log_sum_exp(d / temperature, is_positive)
    push = log_sum_exp((margin - d) / temperature, is_negative)
    return tf.where(has_both(picks), tf.nn.relu(temperature * (pull + push)), 0.0)


class _TemperatureLoss(PairLoss):
    def __init__(self, temperature: float = 0.1):
        self.temperature = require_positive("temperature", temperature, "0.05 to 0.2 is usual.")


@keras.saving.register_keras_serializable("xbm_keras")
class SupConLoss(_TemperatureLoss):
    """See `supcon`. Raises ValueError for a temperature of 0 or less."""

    name = "supcon"

    def __init__(self, temperature: float = 0.05):
        super().__init__(temperature)

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return supcon(similarities, picks, temperature=self.temperature)


@keras.saving.register_keras_serializable("xbm_keras")
class InfoNCELoss(_TemperatureLoss):
    """See `info_nce`. Raises ValueError for a temperature of 0 or less."""

    name = "info_nce"

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return info_nce(similarities, picks, temperature=self.temperature)


@keras.saving.register_keras_serializable("xbm_keras")
class NTXentLoss(_TemperatureLoss):
    """See `nt_xent`. Raises ValueError for a temperature of 0 or less."""

    name = "nt_xent"

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return nt_xent(similarities, picks, temperature=self.temperature)


@keras.saving.register_keras_serializable("xbm_keras")
class TupletLoss(PairLoss):
    """See `tuplet`. Raises ValueError for a margin outside 0..pi/2 or a scale of 0 or less."""

    name = "tuplet"

    def __init__(self, margin: float = 0.1, scale: float = 64.0):
        self.margin = require_between("margin", margin, 0, math.pi / 2, "an angle in radians")
        self.scale = require_positive("scale", scale, "The paper has 64.")

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return tuplet(similarities, picks, **self.get_config())


@keras.saving.register_keras_serializable("xbm_keras")
class CircleLoss(PairLoss):
    """See `circle`. Raises ValueError for a margin outside 0..1 or a gamma of 0 or less."""

    name = "circle"

    def __init__(self, margin: float = 0.4, gamma: float = 80.0):
        self.margin = require_between("margin", margin, 0, 1, "a difference of cosines")
        self.gamma = require_positive("gamma", gamma, "The paper has 80 for retrieval, 256 for faces.")

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return circle(similarities, picks, **self.get_config())


@keras.saving.register_keras_serializable("xbm_keras")
class LiftedStructureLoss(PairLoss):
    """See `lifted_structure`. Raises ValueError for a margin outside 0..2 or a temperature of 0 or less."""

    name = "lifted_structure"

    def __init__(self, margin: float = 1.0, temperature: float = 1.0):
        self.margin = require_between("margin", margin, 0, 2, "a distance of unit vectors")
        self.temperature = require_positive("temperature", temperature, "The paper has 1.")

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return lifted_structure(similarities, picks, **self.get_config())


def _cosine_less_angle(cosines: tf.Tensor, angle: float) -> tf.Tensor:
    """Cosine of each angle less another, at least 0, with a finite gradient everywhere."""
    squares = 1.0 - tf.square(cosines)
    sines = tf.sqrt(tf.where(squares < 1e-6, 1e-6, squares))  # the root's slope has no bound at 0; NaN stays NaN
    turned = cosines * math.cos(angle) + sines * math.sin(angle)
    return tf.where(cosines > math.cos(angle), 1.0, turned)
