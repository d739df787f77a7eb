"""The section `loss` of configs/*.yaml: one class for each loss."""

import math
from typing import Annotated, Literal

from pydantic import Field

from xbm_keras.config.data_schema import Positive, Section

AboveZero = Annotated[float, Field(gt=0)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
UpTo2 = Annotated[float, Field(ge=0, le=2)]
"""A distance of unit vectors, or a difference of cosines."""


class Contrastive(Section):
    """Contrastive loss on cosine similarities."""

    name: Literal["contrastive"]
    positive_margin: Cosine = 0.9
    negative_margin: Cosine = 0.4


class Margin(Section):
    """Margin loss on Euclidean distances of unit vectors."""

    name: Literal["margin"]
    margin: UpTo2 = 0.2
    beta: UpTo2 = 1.2
    """The boundary between positives and negatives."""


class MultiSimilarity(Section):
    """Multi-similarity loss; `epsilon: null` keeps all pairs, else only those that its mining finds informative."""

    name: Literal["multi_similarity"]
    alpha: AboveZero = 2.0
    beta: AboveZero = 50.0
    base: Cosine = 0.5
    epsilon: UpTo2 | None = 0.1


class SupCon(Section):
    """Supervised contrastive loss."""

    name: Literal["supcon"]
    temperature: AboveZero = 0.05


class InfoNCE(Section):
    """InfoNCE loss."""

    name: Literal["info_nce"]
    temperature: AboveZero = 0.1


class NTXent(Section):
    """NT-Xent loss."""

    name: Literal["nt_xent"]
    temperature: AboveZero = 0.1


class Tuplet(Section):
    """Tuplet margin loss; `margin: 0` is the N-pair loss."""

    name: Literal["tuplet"]
    margin: Annotated[float, Field(ge=0, le=math.pi / 2)] = 0.1
    """In radians."""
    scale: AboveZero = 64.0


class Circle(Section):
    """Circle loss."""

    name: Literal["circle"]
    margin: Annotated[float, Field(ge=0, le=1)] = 0.4
    gamma: AboveZero = 80.0


class LiftedStructure(Section):
    """Generalised lifted structure loss on Euclidean distances of unit vectors."""

    name: Literal["lifted_structure"]
    margin: UpTo2 = 1.0
    temperature: AboveZero = 1.0


class Triplet(Section):
    """Triplet loss; `margin: null` is the soft form."""

    name: Literal["triplet"]
    margin: UpTo2 | None = 0.1


class SmoothAP(Section):
    """Smooth average precision."""

    name: Literal["smooth_ap"]
    temperature: AboveZero = 0.01


class RecallSurrogate(Section):
    """Smooth Recall@k, the mean over several k."""

    name: Literal["recall_surrogate"]
    ks: list[Positive] = Field([1, 2, 4, 8, 16], min_length=1)
    temperature: AboveZero = 0.01
    rank_temperature: AboveZero = 1.0


class SimilarityAlignment(Section):
    """Without labels: similarities after the head are held against those of the frozen features."""

    name: Literal["similarity_alignment"]
    form: Literal["listwise", "absolute", "squared"] = "listwise"
    temperature: AboveZero = 0.03
    """Of the frozen features' similarities, for "listwise"."""
    embedding_temperature: AboveZero = 0.025
    """Of the embeddings'."""


LossConfig = Annotated[
    Contrastive
    | Margin
    | MultiSimilarity
    | SupCon
    | InfoNCE
    | NTXent
    | Tuplet
    | Circle
    | LiftedStructure
    | Triplet
    | SmoothAP
    | RecallSurrogate
    | SimilarityAlignment,
    Field(discriminator="name"),
]
