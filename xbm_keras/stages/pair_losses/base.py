"""What the pair losses share: the base class, and reductions over the pairs of an anchor."""

import tensorflow as tf

from xbm_keras.arguments import Saved
from xbm_keras.stages.hard_top_k.by_label import Picks

FAR_BELOW = -1e30  # all logits, of any temperature above 1e-29


class PairLoss(Saved):
    """A pair loss with its parameters, in the manner of `keras.losses.Loss`, called as `loss(similarities, picks)`.

    A loss of your own is a subclass, which keeps the arguments of its constructor as attributes.

    Example:
        >>> class SquaredLoss(PairLoss):
        ...     name = "squared"
        ...     def __call__(self, similarities, picks):
        ...         errors = tf.square(similarities - tf.cast(picks.is_positive, tf.float32))
        ...         return tf.reduce_sum(tf.where(picks.is_valid, errors, 0.0), axis=1)
        >>> is_positive, is_valid = tf.constant([[True, False, False]]), tf.constant([[True, True, False]])
        >>> picks = Picks(tf.constant([[4, 2, 0]]), is_positive, is_valid, tf.zeros([1, 3]))
        >>> similarities = tf.constant([[0.5, 0.2, 0.9]])
        >>> [round(float(loss(similarities, picks)[0]), 4) for loss in (SquaredLoss(), SupConLoss(0.1))]
        [0.29, 0.0486]
    """

    name: str
    uses_labels = True
    """Whether the loss tells positives from negatives; else batches need no labels."""
    needs_both = True
    """Whether an anchor counts with a positive and a negative alone; else with any pick."""

    def __call__(self, similarities: tf.Tensor, picks: Picks) -> tf.Tensor:
        """Loss per anchor, [B] float32, of similarities [B, T]."""
        raise TypeError(f"{type(self).__name__} is abstract; define __call__(similarities, picks) in a subclass.")

    def valid_anchors(self, picks: Picks) -> tf.Tensor:
        """Which anchors count in the mean, [B] bool."""
        return has_both(picks) if self.needs_both else has_any(picks.is_valid)


def split(picks: Picks) -> tuple[tf.Tensor, tf.Tensor]:
    """Masks [B, T] of the positive and of the negative pairs."""
    return picks.is_valid & picks.is_positive, picks.is_valid & ~picks.is_positive


def has_any(mask: tf.Tensor) -> tf.Tensor:
    """Whether each anchor has such a pair, [B] bool."""
    return tf.reduce_max(tf.cast(mask, tf.float32), axis=1) > 0.0  # several times as fast as a reduction of bools


def has_both(picks: Picks) -> tf.Tensor:
    """Whether each anchor has a positive and a negative, [B] bool."""
    is_positive, is_negative = split(picks)
    return has_any(is_positive) & has_any(is_negative)


def count(mask: tf.Tensor) -> tf.Tensor:
    """Number of such pairs of each anchor, [B] float32."""
    return tf.reduce_sum(tf.cast(mask, tf.float32), axis=1)


def mean(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean of each row over the mask, [B]; 0 with zero gradient over an empty one."""
    return tf.reduce_sum(tf.where(mask, values, 0.0), axis=1) / tf.maximum(count(mask), 1.0)


def log_sum_exp(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Log of the sum of exponentials of each row over the mask, [B]; over an empty one a finite number."""
    # Masked before the exponential: at a low temperature it would overflow, and 0 * inf is a NaN gradient. What is
    # masked is so far below any logit that its power is 0.
    masked = tf.where(mask, logits, FAR_BELOW)
    peak = tf.stop_gradient(tf.reduce_max(masked, axis=1, keepdims=True))
    return tf.math.log(tf.reduce_sum(tf.exp(masked - peak), axis=1)) + peak[:, 0]


def distances(similarities: tf.Tensor) -> tf.Tensor:
    """Euclidean distances of unit vectors with these cosines, `sqrt(2 - 2 s)`, with a finite gradient everywhere."""
    squares = 2.0 - 2.0 * similarities
    # Nearer than float32 tells apart, where the root's slope has no bound. Written so that NaN stays NaN.
    return tf.sqrt(tf.where(squares < 1e-6, 1e-6, squares))
