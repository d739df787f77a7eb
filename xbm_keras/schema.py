"""The schema of configs/*.yaml. Its defaults are the recipe: a file names the data, and what it wants otherwise."""

import math
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from xbm_keras.data_schema import BackboneConfig, Cache, DataConfig, Positive, Section
from xbm_keras.search_schema import Search

AboveZero = Annotated[float, Field(gt=0)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
UpTo2 = Annotated[float, Field(ge=0, le=2)]
"""A distance of unit vectors, or a difference of cosines."""


class HeadConfig(Section):
    """The FC layer."""

    embedding_dim: Positive = 128
    kind: Literal["linear", "residual", "mlp"] = "linear"
    hidden_dim: Positive = 512
    start: Literal["auto", "random", "identity", "pca", "whiten", "lda", "nda"] = "auto"
    """The weights before the first step: a closed form of the training features, or random; "auto" takes lda or nda,
    whichever is better on held-out training classes, the mean over folds of them."""
    shrinkage: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Of the within-class covariance, for whiten, lda and nda; "auto" takes the best one, by the same folds."""
    weighting: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """For lda and nda: the power of what a direction tells of the known classes by which it is scaled; "auto" takes 0.1
    or 0.2, by the same folds."""
    power: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    """Of each feature before the FC layer, which keeps its sign; "auto" takes 1 or 0.5 by the same folds."""


class Memory(Section):
    """The cross-batch memory."""

    memory_size: Annotated[int, Field(ge=0)] = 65_536
    """Rows; 0 trains on in-batch pairs. More than there are training items is cut to their number."""
    storage_dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    prefill: bool = True
    """Fill the memory with training items before the first step."""


class TopK(Section):
    """The top-k sample."""

    num_negatives: Annotated[int, Field(ge=0)] | Literal["all"] = 32
    num_positives: Annotated[int, Field(ge=0)] | Literal["all"] = 8
    positives: Literal["hardest", "easiest", "random"] = "random"
    mine_in: Literal["features", "embeddings", "sketch"] = "embeddings"
    """Where hardness is measured; "sketch" is a short frozen code of the features."""
    key_refresh: Positive | Literal["exact"] = "exact"
    """Of `mine_in: embeddings`: all rows through the head in each step, or S rows: ages up to memory_size / S steps."""
    sketch_dim: Positive = 64
    rerank: Positive = 4
    """Of `mine_in: sketch`: of the best `rerank` k by sketch the best k by feature score are picked."""
    max_score: Cosine | None = None
    """Guard: no negative with a higher feature score."""
    absolute_margin: UpTo2 | None = None
    """Guard: no negative closer than this to the feature score of the anchor's hardest positive."""
    relative_margin: Annotated[float, Field(ge=0, le=1)] | None = None
    """Guard: the same as a share of that score."""

    @pydantic.model_validator(mode="after")
    def _has_picks(self):
        if self.num_negatives == self.num_positives == 0:
            raise ValueError("num_negatives and num_positives are both 0, which leaves no pairs; make one of them 1")
        if self.key_refresh != "exact" and self.mine_in != "embeddings":
            raise ValueError(
                f"key_refresh {self.key_refresh} does not go with mine_in {self.mine_in!r}, whose keys never change; "
                "use mine_in: embeddings, or leave key_refresh out"
            )
        return self


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
    | RecallSurrogate,
    Field(discriminator="name"),
]


class Training(Section):
    """How the head is fitted."""

    epochs: Annotated[int, Field(ge=0)] = 10
    """At most; the best epoch on held-out classes counts, and epoch 0, the start, is a candidate."""
    folds: Positive | Literal["auto"] = "auto"
    """How many times other training classes are held out to choose the epoch by the mean; at most as many as
    data.split.validation_fraction leaves room for. "auto" takes up to 4, until a hundred classes were held out: to
    choose by fewer is left to chance."""
    patience: Positive = 4
    """Epochs without improvement after which the selection stops."""
    classes_per_batch: Positive = 32
    samples_per_class: Positive = 4
    steps_per_epoch: Positive | None = None
    """By default as many as draw the number of training items once."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """At the end of the last of `epochs`. It grows by a constant factor each step, from a thirtieth, so that to choose
    the epoch is to choose how far to go from the start: on some data the best head is near it, on others far."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    refit: bool = True
    """After the number of epochs was chosen, train again on all training classes, the validation classes included."""
    jit_compile: bool | Literal["auto"] = "auto"
    seed: int = 0


class Export(Section):
    """The SavedModel."""

    weights: Literal["float32", "float16"] = "float32"
    """float16 halves the size; what is computed stays float32."""
    max_pixels: Positive = 1 << 25
    """Encoded pictures with more are refused before they are decoded."""
    license: str | None = None
    """Of the backbone's weights, for the model card; by default what a LICENSE file beside them begins with."""


class Config(Section):
    """One experiment."""

    data: DataConfig
    backbone: BackboneConfig
    cache: Cache = Cache()
    head: HeadConfig = HeadConfig()
    memory: Memory = Memory()
    top_k: TopK = TopK()
    loss: LossConfig = SupCon(name="supcon")
    training: Training = Training()
    export: Export = Export()
    search: Search = Search()

    @pydantic.field_validator("loss", mode="before")
    @classmethod
    def _default_loss(cls, loss):
        """Parameters without a name are those of the default loss."""
        return {"name": "supcon", **loss} if isinstance(loss, dict) else loss

    @pydantic.model_validator(mode="after")
    def _fits_together(self):
        modality, source, kind = self.data.modality, self.data.source, self.backbone.kind
        if (modality == "vector") != (kind == "none"):
            raise ValueError(
                f"data.source {source!r} does not go with backbone.kind {kind!r}; vectors take no backbone, everything "
                "else needs one"
            )
        if modality == "text" and kind != "keras_hub":
            raise ValueError(
                f"data.source {source!r} with texts does not go with backbone.kind {kind!r}; texts take keras_hub"
            )
        if self.cache.views > 1 and modality != "image":
            raise ValueError(f"cache.views {self.cache.views} does not go with data.source {source!r}; use 1")
        batch_size = self.training.classes_per_batch * self.training.samples_per_class
        if 0 < self.memory.memory_size < batch_size:
            raise ValueError(
                f"memory.memory_size {self.memory.memory_size} is smaller than the batch of {batch_size} "
                "(training.classes_per_batch x training.samples_per_class); use 0 for in-batch pairs, or a memory of "
                "several batches"
            )
        return self
