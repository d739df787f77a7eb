"""The loss without labels: similarities after the head are held against those of the frozen features."""

from typing import Literal

import keras
import tensorflow as tf

from xbm_keras.arguments import AboveZero, checked
from xbm_keras.stages.pair_losses.base import PairLoss, log_sum_exp, mean


@keras.saving.register_keras_serializable("xbm_keras")
class SimilarityAlignmentLoss(PairLoss):
    r"""Similarity alignment loss. Anchors with any pick count. With `f` the picks' feature scores:

    - "listwise": the Kullback-Leibler divergence of `softmax(s / u)` from `softmax(f / t)` over the picks: what is near
      must stay near, in order, and what is far only has to stay far. A temperature u below t lets the embedding keep
      the same order with smaller differences
    - "absolute": `mean of |s - f|`
    - "squared": `mean of (s - f)^2`

    Positives and negatives are not told apart, so it needs no labels.

    Args:
        form: how they are held against each other.
        temperature: t, of the frozen features' similarities, for "listwise"; 0.02 to 0.1 is usual.
        embedding_temperature: u, of the embeddings' similarities; 0.02 to 0.1 is usual.

    Raises:
        ValueError: for an unknown form or a temperature of 0 or less.

    Reference:
        "absolute": SMEC, arXiv 2510.12474, eq. 12; "listwise": the loss of stochastic neighbour embedding, Hinton and
        Roweis, NeurIPS 2002, on cosines.
    """

    name = "similarity_alignment"
    uses_labels = False
    needs_both = False

    @checked
    def __init__(
        self,
        form: Literal["listwise", "absolute", "squared"] = "listwise",
        temperature: AboveZero = 0.03,
        embedding_temperature: AboveZero = 0.025,
    ):
        self.form = form
        self.temperature = temperature
        self.embedding_temperature = embedding_temperature

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        s, f = tf.cast(similarities, tf.float32), tf.stop_gradient(tf.cast(picks.feature_scores, tf.float32))
        if self.form == "absolute":
            return mean(tf.abs(s - f), picks.is_valid)
        if self.form == "squared":
            return mean(tf.square(s - f), picks.is_valid)
        after = _log_softmax(s / self.embedding_temperature, picks.is_valid)
        before = _log_softmax(f / self.temperature, picks.is_valid)
        return tf.reduce_sum(tf.where(picks.is_valid, tf.exp(before) * (before - after), 0.0), axis=1)


def _log_softmax(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Of each row over the mask, [B, T]; 0 where there is none, so that nothing overflows there."""
    return tf.where(mask, logits - log_sum_exp(logits, mask)[:, None], 0.0)
