"""Start alignment: a second loss beside the pair loss, which holds similarities to what they were at the start."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from xbm_keras.arguments import AboveZero, Saved, checked
from xbm_keras.stages.circular_memory.ring import Rows
from xbm_keras.stages.hard_top_k.by_label import Picks
from xbm_keras.stages.head.fc_layer import Head
from xbm_keras.stages.pair_losses.alignment import SimilarityAlignmentLoss

TEMPERATURE = 0.1  # wide, so that classes stay where they were, and the order of what is near may change


@keras.saving.register_keras_serializable("xbm_keras")
class StartAlignment(Saved):
    """Holds each anchor's similarities to its picks to what they were under the head at the start.

    The loss is the listwise similarity alignment, at a temperature of 0.1. The start is kept: a copy of the head, which
    is not trained, and which `XBMModel.set_start` renews.

    Args:
        weight: of this loss beside the pair loss. For no such loss leave it out.

    Raises:
        ValueError: for a weight that is not above 0.

    Reference:
        The old outputs as targets of the new ones: Li and Hoiem, "Learning without Forgetting", ECCV 2016; of
        similarities: Park et al., "Relational Knowledge Distillation", CVPR 2019.

    Example:
        >>> stages = Head(8), CircularMemory(256), HardTopK(16, 4), SupConLoss()
        >>> model = XBMModel(None, *stages, start_alignment=StartAlignment(3.0))
        >>> model.build({"features": (None, 32)})
        >>> bool(tf.reduce_all(model.start_alignment.start.kernel == model.head.kernel))
        True
    """

    start: Head
    """The head as it was before the first step."""
    _head: Head | None = None

    @checked
    def __init__(self, weight: AboveZero):
        self.weight = weight

    def follow(self, head: Head) -> Head:
        """Keep a copy of this head, which is returned. Raises ValueError where it keeps one of another head already."""
        if self._head not in (None, head):
            raise ValueError(
                "Received a StartAlignment that keeps the start of another head; expected one for each head. Make a "
                "StartAlignment of its own."
            )
        if self._head is None:
            self._head = head
            self.start = Head.from_config({**head.get_config(), "name": "start", "trainable": False})
        return self.start

    def remember(self, head: Head) -> None:
        """The head as it is now is the start."""
        if not self.start.built:
            self.start.build((None, head.kernel.shape[0]))
        self.start.set_weights(head.get_weights())

    def __call__(
        self, similarities: Sequence[tf.Tensor], features: tf.Tensor, rows: Rows, picks: Picks
    ) -> list[tf.Tensor]:
        """The weighted divergence per anchor, [B] for each nested width.

        Args:
            similarities: of anchors and picks under the current head, [B, T] for each nested width.
            features: [B, D] of the anchors.
            rows: the memory; where all of it passed the head, all of it passes the start.
            picks: which rows, [B, T].
        """
        if rows.embeddings is not None:
            rows = rows._replace(embeddings=self.start.embed_rows(rows))
        before = self.start.compare(self.start(features), rows, picks)
        loss = SimilarityAlignmentLoss("listwise", TEMPERATURE, TEMPERATURE)
        return [
            self.weight * loss(now, picks._replace(feature_scores=then))
            for now, then in zip(similarities, before, strict=True)
        ]
