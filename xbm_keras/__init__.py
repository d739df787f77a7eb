"""Turn any frozen pretrained network into a better, smaller retrieval embedding."""

from xbm_keras.model import NonFiniteFeatures, XBMModel
from xbm_keras.stages.backbone import Backbone
from xbm_keras.stages.circular_memory import CircularMemory, Rows, batch_as_rows
from xbm_keras.stages.cosine_scores import cosine_scores
from xbm_keras.stages.hard_top_k import HardTopK, Picks
from xbm_keras.stages.head import Head
from xbm_keras.stages.head_starts import ClosedForms, Start
from xbm_keras.stages.pair_losses import ContrastiveLoss, InfoNCELoss, SupConLoss, TripletLoss

__all__ = [
    "Backbone",
    "CircularMemory",
    "ClosedForms",
    "ContrastiveLoss",
    "HardTopK",
    "Head",
    "InfoNCELoss",
    "NonFiniteFeatures",
    "Picks",
    "Rows",
    "Start",
    "SupConLoss",
    "TripletLoss",
    "XBMModel",
    "batch_as_rows",
    "cosine_scores",
]
