"""Turn any frozen pretrained network into a better, smaller retrieval embedding."""

__version__ = "0.1.0"

import importlib
import os
import sys
from typing import TYPE_CHECKING

# The program imports what a command needs once its arguments are read, and all of this where a name of it is asked for.
# In any other process every class is imported, which registers it with Keras, so that saved models load.
if os.path.basename(sys.argv[0]) != "xbm-keras" or "__getattr__" in globals():
    from xbm_keras.data.batches import PKSampler
    from xbm_keras.evaluation.near_duplicates import near_duplicates
    from xbm_keras.evaluation.retrieval import RetrievalEvaluation, evaluate_retrieval
    from xbm_keras.experiment.fitting import FittedHead, FittedPairs, fit_head, fit_pairs
    from xbm_keras.export.saved_model import export_encoder
    from xbm_keras.model.non_finite import NonFiniteFeatures, NonFiniteLoss
    from xbm_keras.model.xbm_model import XBMModel
    from xbm_keras.stages.backbone.frozen import Backbone
    from xbm_keras.stages.circular_memory.ring import CircularMemory, Rows, batch_as_rows
    from xbm_keras.stages.cosine_scores import cosine_scores
    from xbm_keras.stages.hard_top_k.by_label import HardTopK, Picks
    from xbm_keras.stages.hard_top_k.by_neighbors import NeighborTopK
    from xbm_keras.stages.hard_top_k.by_relevance import RelevantTopK
    from xbm_keras.stages.hard_top_k.mining import InEmbeddings, InFeatures, InSketch
    from xbm_keras.stages.head.fc_layer import Head
    from xbm_keras.stages.head.starts import ClosedForms, Start
    from xbm_keras.stages.pair_losses import (
        CircleLoss,
        ContrastiveLoss,
        InfoNCELoss,
        LiftedStructureLoss,
        MarginLoss,
        MultiSimilarityLoss,
        NTXentLoss,
        RecallSurrogateLoss,
        SemiHardTripletLoss,
        SimilarityAlignmentLoss,
        SmoothAPLoss,
        SupConLoss,
        TripletLoss,
        TupletLoss,
    )
    from xbm_keras.stages.pair_losses.base import PairLoss
    from xbm_keras.stages.pair_losses.start_alignment import StartAlignment
elif not TYPE_CHECKING:  # which would take any name for one of the package

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.reload(sys.modules[__name__]), name)  # this file once more, now that it holds this


__all__ = [
    "Backbone",
    "CircleLoss",
    "CircularMemory",
    "ClosedForms",
    "ContrastiveLoss",
    "FittedHead",
    "FittedPairs",
    "HardTopK",
    "Head",
    "InEmbeddings",
    "InFeatures",
    "InSketch",
    "InfoNCELoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "NeighborTopK",
    "NonFiniteFeatures",
    "NonFiniteLoss",
    "PKSampler",
    "PairLoss",
    "Picks",
    "RecallSurrogateLoss",
    "RelevantTopK",
    "RetrievalEvaluation",
    "Rows",
    "SemiHardTripletLoss",
    "SimilarityAlignmentLoss",
    "SmoothAPLoss",
    "Start",
    "StartAlignment",
    "SupConLoss",
    "TripletLoss",
    "TupletLoss",
    "XBMModel",
    "batch_as_rows",
    "cosine_scores",
    "evaluate_retrieval",
    "export_encoder",
    "fit_head",
    "fit_pairs",
    "near_duplicates",
]
