"""Pair-based losses on the similarities of anchors and their picks.

Each loss is a pure function of similarities [B, T] and `Picks` that gives one value per anchor, [B] float32: an anchor
that lacks what the loss needs gets 0, with zero gradient. The classes below them hold the parameters and say which
anchors count; the model takes the mean over those.
"""

import keras
import tensorflow as tf

from xbm_keras.stages.hard_top_k import Picks

TRIPLET_BLOCK = 1 << 24  # elements of [B, block, T] that the triplet loss holds at once


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
    is_positive, is_negative = _split(picks)
    return _mean(pull, is_positive) + _mean(push, is_negative)


def triplet(similarities: tf.Tensor, picks: Picks, *, margin: float | None = 0.1) -> tf.Tensor:
    """Triplet loss per anchor, [B]: the mean over all its (positive, negative) pairs.

    With a margin `max(0, s_n - s_p + margin)`; with `margin=None` the soft form `softplus(s_n - s_p)`. The pairs are
    taken in blocks, and the gradient is gathered on the way, so that [B, T, T] is never held.

    Reference:
        Hermans et al., arXiv 1703.07737, eq. 5 and section 2.3.
    """
    is_positive, is_negative = _split(picks)

    def value_and_slope(x):
        if margin is None:
            return tf.nn.softplus(x), tf.nn.sigmoid(x)
        return tf.nn.relu(x + margin), tf.cast(x + margin > 0, tf.float32)

    @tf.custom_gradient
    def blocked(s):
        num_anchors, num_picks = tf.shape(s)[0], tf.shape(s)[1]
        block = TRIPLET_BLOCK // tf.maximum(1, num_anchors * num_picks)
        block = tf.maximum(1, tf.minimum(block, num_picks))  # not wider than the picks: the rest would be padding
        num_blocks = (num_picks + block - 1) // block
        padding = [[0, 0], [0, num_blocks * block - num_picks]]
        s_padded, positive_padded = tf.pad(s, padding), tf.pad(is_positive, padding)
        offsets = tf.range(block)  # outside the loop: XLA wants the bounds of a range to be constants

        def step(i, value, pull, push):
            columns = i * block + offsets
            s_p, mask_p = tf.gather(s_padded, columns, axis=1), tf.gather(positive_padded, columns, axis=1)
            is_pair = mask_p[:, :, None] & is_negative[:, None, :]  # [B, block, T]
            values, slopes = value_and_slope(s[:, None, :] - s_p[:, :, None])
            slopes = tf.where(is_pair, slopes, 0.0)
            value += tf.reduce_sum(tf.where(is_pair, values, 0.0), axis=[1, 2])
            pull = tf.tensor_scatter_nd_update(
                pull, columns[:, None], tf.transpose(tf.reduce_sum(slopes, axis=2))
            )  # [T padded, B]
            return i + 1, value, pull, push + tf.reduce_sum(slopes, axis=1)

        _, value, pull, push = tf.while_loop(
            lambda i, *_: i < num_blocks,
            step,
            (0, tf.zeros_like(s[:, 0]), tf.zeros_like(tf.transpose(s_padded)), tf.zeros_like(s)),
        )
        num_pairs = tf.reduce_sum(_count(is_positive) * _count(is_negative), axis=1)
        num_pairs = tf.maximum(num_pairs, 1.0)

        def grad(upstream):
            slope = push - tf.transpose(pull)[:, :num_picks]
            return slope * (upstream / num_pairs)[:, None]

        return value / num_pairs, grad

    return blocked(tf.cast(similarities, tf.float32))


def supcon(similarities: tf.Tensor, picks: Picks, *, temperature: float = 0.1) -> tf.Tensor:
    r"""Supervised contrastive loss per anchor, [B].

    `mean over positives p of -log(exp(s_p / t) / sum over all picks a of exp(s_a / t))`

    Reference:
        Khosla et al., arXiv 2004.11362, eq. 2.
    """
    logits = tf.cast(similarities, tf.float32) / temperature
    is_positive, is_negative = _split(picks)
    log_sum = _log_sum_exp(logits, picks.is_valid)
    per_anchor = _mean(log_sum[:, None] - logits, is_positive)
    return tf.where(_any(is_positive) & _any(is_negative), per_anchor, 0.0)


def info_nce(similarities: tf.Tensor, picks: Picks, *, temperature: float = 0.1) -> tf.Tensor:
    r"""InfoNCE per anchor, [B]: each positive against the negatives alone, not against the other positives.

    `mean over positives p of -log(exp(s_p / t) / (exp(s_p / t) + sum over negatives n of exp(s_n / t)))`

    Reference:
        van den Oord et al., arXiv 1807.03748, eq. 4.
    """
    logits = tf.cast(similarities, tf.float32) / temperature
    is_positive, is_negative = _split(picks)
    log_sum = _log_sum_exp(logits, is_negative)
    per_anchor = _mean(tf.nn.softplus(log_sum[:, None] - logits), is_positive)
    return tf.where(_any(is_positive) & _any(is_negative), per_anchor, 0.0)


class PairLoss:
    """A pair loss with its parameters, in the manner of `keras.losses.Loss`, called as `loss(similarities, picks)`."""

    name: str

    def __call__(self, similarities: tf.Tensor, picks: Picks) -> tf.Tensor:
        """Loss per anchor, [B] float32, of similarities [B, T]."""
        raise TypeError(f"{type(self).__name__} is abstract; define __call__(similarities, picks) in a subclass.")

    def valid_anchors(self, picks: Picks) -> tf.Tensor:
        """Which anchors count in the mean, [B] bool: those with a positive and a negative."""
        is_positive, is_negative = _split(picks)
        return _any(is_positive) & _any(is_negative)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: dict) -> "PairLoss":
        """The loss that `get_config` described."""
        return cls(**config)


@keras.saving.register_keras_serializable("xbm_keras")
class ContrastiveLoss(PairLoss):
    """See `contrastive`. Anchors with any pick count. Raises ValueError for a margin outside the cosine's -1..1."""

    name = "contrastive"

    def __init__(self, positive_margin: float = 0.9, negative_margin: float = 0.4):
        for name, margin in (("positive_margin", positive_margin), ("negative_margin", negative_margin)):
            if not -1 <= margin <= 1:
                raise ValueError(f"Received {name}={margin}; expected a cosine similarity, in -1..1.")
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return contrastive(similarities, picks, **self.get_config())

    def valid_anchors(self, picks):
        """Those with any pick."""
        return _any(picks.is_valid)


@keras.saving.register_keras_serializable("xbm_keras")
class TripletLoss(PairLoss):
    """See `triplet`. Raises ValueError for a margin outside 0..2."""

    name = "triplet"

    def __init__(self, margin: float | None = 0.1):
        if margin is not None and not 0 <= margin <= 2:
            raise ValueError(
                f"Received margin={margin}; expected 0..2 (cosines differ by at most 2), or None: softplus."
            )
        self.margin = margin

    def __call__(self, similarities, picks):
        """Loss per anchor, [B]."""
        return triplet(similarities, picks, margin=self.margin)


class _TemperatureLoss(PairLoss):
    def __init__(self, temperature: float = 0.1):
        if not temperature > 0:
            raise ValueError(f"Received temperature={temperature}; expected more than 0. 0.05 to 0.2 is usual.")
        self.temperature = temperature


@keras.saving.register_keras_serializable("xbm_keras")
class SupConLoss(_TemperatureLoss):
    """See `supcon`. Raises ValueError for a temperature of 0 or less."""

    name = "supcon"

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


def _split(picks: Picks) -> tuple[tf.Tensor, tf.Tensor]:
    """Masks [B, T] of the positive and of the negative pairs."""
    return picks.is_valid & picks.is_positive, picks.is_valid & ~picks.is_positive


def _any(mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_any(mask, axis=1)


def _count(mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(mask, tf.float32), axis=1, keepdims=True)


def _mean(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean of each row over the mask, [B]; 0 with zero gradient over an empty one."""
    return tf.reduce_sum(tf.where(mask, values, 0.0), axis=1) / tf.maximum(_count(mask)[:, 0], 1.0)


def _log_sum_exp(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Log of the sum of exponentials of each row over the mask, [B]; over an empty one a finite number."""
    lowest = tf.reduce_min(logits, axis=1, keepdims=True)
    peak = tf.stop_gradient(tf.reduce_max(tf.where(mask, logits, lowest), axis=1, keepdims=True))
    # Masked before the exponential: at a low temperature it would overflow, and 0 * inf is a NaN gradient.
    powers = tf.where(mask, tf.exp(tf.where(mask, logits - peak, 0.0)), 0.0)
    total = tf.reduce_sum(powers, axis=1)
    return tf.math.log(tf.where(_any(mask), total, 1.0)) + peak[:, 0]
