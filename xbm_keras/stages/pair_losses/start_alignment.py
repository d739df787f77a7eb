"""A second loss beside the pair loss: similarities are held to what they were at the start."""

from collections.abc import Sequence

import tensorflow as tf

from xbm_keras.stages.circular_memory.ring import Rows
from xbm_keras.stages.hard_top_k.by_label import Picks
from xbm_keras.stages.head.fc_layer import Head
from xbm_keras.stages.pair_losses.alignment import SimilarityAlignmentLoss

TEMPERATURE = 0.1  # wide, so that classes stay where they were, and the order of what is near may change


def divergence_from_start(
    similarities: Sequence[tf.Tensor],
    start: Head,
    features: tf.Tensor,
    rows: Rows,
    picks: Picks,
    *,
    embeds_all: bool = False,
) -> list[tf.Tensor]:
    """The listwise similarity alignment, at a temperature of 0.1, with the similarities under the head at the start.

    Args:
        similarities: of anchors and picks under the current head, [B, T] for each nested width.
        start: the head as it was before the first step.
        features: [B, D] of the anchors.
        rows: the memory.
        picks: which rows, [B, T].
        embeds_all: whether all rows pass the head, instead of the picks alone.

    Returns:
        For each nested width a divergence per anchor, [B].

    Reference:
        The old outputs as targets of the new ones: Li and Hoiem, "Learning without Forgetting", ECCV 2016; of
        similarities: Park et al., "Relational Knowledge Distillation", CVPR 2019.
    """
    row_embeddings = start.embed_rows(rows) if embeds_all else None
    before = start.compare(start(features), rows, picks, row_embeddings)
    loss = SimilarityAlignmentLoss("listwise", TEMPERATURE, TEMPERATURE)
    return [loss(now, picks._replace(feature_scores=then)) for now, then in zip(similarities, before, strict=True)]


def squared_distance(head: Head, start: Head) -> tf.Tensor:
    """Sum of the squared differences of a head's trained weights from those at the start.

    Reference:
        Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks" (L2-SP),
        ICML 2018.
    """
    before = {weight.name: weight for weight in start.weights}
    differences = [weight - before[weight.name] for weight in head.trainable_weights]
    return tf.add_n([tf.reduce_sum(tf.square(each)) for each in differences])
