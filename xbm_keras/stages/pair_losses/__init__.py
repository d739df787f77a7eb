"""Pair-based losses on the similarities of anchors and their picks.

Each loss is a class that holds the parameters. Called with similarities [B, T] and `Picks` it gives one value per
anchor, [B] float32: an anchor that lacks what the loss needs gets 0, with zero gradient. It also says which anchors
count; the model takes the mean over those.

- `thresholds`: each pair against a fixed similarity or distance: contrastive, margin, multi-similarity
- `softmax`: positives against a sum over negatives: SupCon, InfoNCE, NT-Xent, tuplet (N-pair), circle, lifted structure
- `ranking`: the order of positives and negatives: triplet, semi-hard triplet, Smooth-AP, the Recall@k surrogate
- `alignment`: without labels: similarities before the head against those after it
"""

from xbm_keras.stages.pair_losses.alignment import SimilarityAlignmentLoss
from xbm_keras.stages.pair_losses.ranking import RecallSurrogateLoss, SemiHardTripletLoss, SmoothAPLoss, TripletLoss
from xbm_keras.stages.pair_losses.softmax import (
    CircleLoss,
    InfoNCELoss,
    LiftedStructureLoss,
    NTXentLoss,
    SupConLoss,
    TupletLoss,
)
from xbm_keras.stages.pair_losses.thresholds import ContrastiveLoss, MarginLoss, MultiSimilarityLoss

LOSSES = {
    loss.name: loss
    for loss in (
        ContrastiveLoss,
        MarginLoss,
        MultiSimilarityLoss,
        SupConLoss,
        InfoNCELoss,
        NTXentLoss,
        TupletLoss,
        CircleLoss,
        LiftedStructureLoss,
        TripletLoss,
        SemiHardTripletLoss,
        SmoothAPLoss,
        RecallSurrogateLoss,
        SimilarityAlignmentLoss,
    )
}
"""By the name that a config gives."""
