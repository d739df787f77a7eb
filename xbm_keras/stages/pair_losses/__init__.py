"""Pair-based losses on the similarities of anchors and their picks.

Each loss is a pure function of similarities [B, T] and `Picks` that gives one value per anchor, [B] float32: an anchor
that lacks what the loss needs gets 0, with zero gradient. Beside it stands a class that holds the parameters and says
which anchors count; the model takes the mean over those.

- `thresholds`: each pair against a fixed similarity or distance: contrastive, margin, multi-similarity
- `softmax`: positives against a sum over negatives: SupCon, InfoNCE, NT-Xent, tuplet (N-pair), circle, lifted structure
- `alignment`: without labels: similarities before the head against those after it
- `ranking`: the order of positives and negatives: triplet, Smooth-AP, the Recall@k surrogate
"""

from xbm_keras.stages.pair_losses.alignment import SimilarityAlignmentLoss, similarity_alignment
from xbm_keras.stages.pair_losses.base import PairLoss
from xbm_keras.stages.pair_losses.ranking import (
    RecallSurrogateLoss,
    SmoothAPLoss,
    TripletLoss,
    recall_surrogate,
    smooth_ap,
    triplet,
)
from xbm_keras.stages.pair_losses.softmax import (
    CircleLoss,
    InfoNCELoss,
    LiftedStructureLoss,
    NTXentLoss,
    SupConLoss,
    TupletLoss,
    circle,
    info_nce,
    lifted_structure,
    nt_xent,
    supcon,
    tuplet,
)
from xbm_keras.stages.pair_losses.thresholds import (
    ContrastiveLoss,
    MarginLoss,
    MultiSimilarityLoss,
    contrastive,
    margin,
    multi_similarity,
)

__all__ = [
    "CircleLoss",
    "ContrastiveLoss",
    "InfoNCELoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "PairLoss",
    "RecallSurrogateLoss",
    "SimilarityAlignmentLoss",
    "SmoothAPLoss",
    "SupConLoss",
    "TripletLoss",
    "TupletLoss",
    "circle",
    "contrastive",
    "info_nce",
    "lifted_structure",
    "margin",
    "multi_similarity",
    "nt_xent",
    "recall_surrogate",
    "similarity_alignment",
    "smooth_ap",
    "supcon",
    "triplet",
    "tuplet",
]
