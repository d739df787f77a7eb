"""Turn any frozen pretrained network into a better, smaller retrieval embedding."""

from xbm_keras.model import XBMModel
from xbm_keras.non_finite import NonFiniteFeatures, NonFiniteLoss
from xbm_keras.stages.backbone import Backbone
from xbm_keras.stages.circular_memory import CircularMemory, Rows, batch_as_rows
from xbm_keras.stages.cosine_scores import cosine_scores
from xbm_keras.stages.hard_top_k import HardTopK, Picks
from xbm_keras.stages.head import Head
from xbm_keras.stages.head_starts import ClosedForms, Start
from xbm_keras.stages.neighbor_top_k import NeighborTopK
from xbm_keras.stages.pair_losses import (
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    LiftedStructureLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    PairLoss,
    RecallSurrogateLoss,
    SimilarityAlignmentLoss,
    SmoothAPLoss,
    SupConLoss,
    TripletLoss,
    TupletLoss,
)
from xbm_keras.stages.sketch import Sketch, principal_directions

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "CircleLoss",
    "CircularMemory",
    "ClosedForms",
    "ContrastiveLoss",
    "HardTopK",
    "Head",
    "InfoNCELoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "NeighborTopK",
    "NonFiniteFeatures",
    "NonFiniteLoss",
    "PairLoss",
    "Picks",
    "RecallSurrogateLoss",
    "Rows",
    "SimilarityAlignmentLoss",
    "Sketch",
    "SmoothAPLoss",
    "Start",
    "SupConLoss",
    "TripletLoss",
    "TupletLoss",
    "XBMModel",
    "batch_as_rows",
    "cosine_scores",
    "principal_directions",
]
