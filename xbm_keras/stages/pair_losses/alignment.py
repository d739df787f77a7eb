"""The loss without labels: similarities after the head are held against those of the frozen features."""

import keras
import tensorflow as tf

from xbm_keras.stages.hard_top_k.by_label import Picks
from xbm_keras.stages.pair_losses.base import PairLoss, has_any, log_sum_exp, mean, require_positive

FORMS = ("listwise", "absolute", "squared")


def similarity_alignment(
    similarities: tf.Tensor,
    picks: Picks,
    *,
    form: str = "listwise",
    temperature: float = 0.03,
    embedding_temperature: float = 0.025,
) -> tf.Tensor:
    r"""Similarity alignment loss per anchor, [B]. With `f` the picks' feature scores:

    - "listwise": the Kullback-Leibler divergence of `softmax(s / u)` from `softmax(f / t)` over the picks: what is near
      must stay near, in order, and what is far only has to stay far. A temperature u below t lets the embedding keep
      the same order with smaller differences
    - "absolute": `mean of |s - f|`
    - "squared": `mean of (s - f)^2`

    Positives and negatives are not told apart, so it needs no labels.

    Reference:
        "absolute": SMEC, arXiv 2510.12474, eq. 12; "listwise": the loss of stochastic neighbour embedding, Hinton and
        Roweis, NeurIPS 2002, on cosines.
    """
    s, f = tf.cast(similarities, tf.float32), tf.stop_gradient(tf.cast(picks.feature_scores, tf.float32))
    if form == "absolute":
        return mean(tf.abs(s - f), picks.is_valid)
    if form == "squared":
        return mean(tf.square(s - f), picks.is_valid)
    after, before = (
        _log_softmax(s / embedding_temperature, picks.is_valid),
        _log_softmax(f / temperature, picks.is_valid),
    )
    return tf.reduce_sum(tf.where(picks.is_valid, tf.exp(before) * (before - after), 0.0), axis=1)


def _log_softmax(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Of each row over the mask, [B, T]; 0 where there is none, so that nothing overflows there."""
    return tf.where(mask, logits - log_sum_exp(logits, mask)[:, None], 0.0)


@keras.saving.register_keras_serializable("xbm_keras")
class SimilarityAlignmentLoss(PairLoss):
    """See `similarity_alignment`. Raises ValueError for an unknown form or a temperature of 0 or less."""

    name = "similarity_alignment"
    uses_labels = False

    def __init__(self, form: str = "listwise", temperature: float = 0.03, embedding_temperature: float = 0.025):
        if form not in FORMS:
            raise ValueError(f"Received form={form!r}; expected one of {', '.join(FORMS)}.")
        self.form = form
        hint = "0.02 to 0.1 is usual."
        self.temperature = require_positive("temperature", temperature, hint)
        self.embedding_temperature = require_positive("embedding_temperature", embedding_temperature, hint)

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return similarity_alignment(similarities, picks, **self.get_config())

    def valid_anchors(self, picks):
        """Those with any pick, [B] bool."""
        return has_any(picks.is_valid)
