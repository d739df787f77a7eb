"""The schema of configs/*.yaml. Its defaults are the recipe: a file names the data, and what it wants otherwise."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from xbm_keras.config.data_schema import BackboneConfig, Cache, DataConfig, Natural, Positive, Section, Seed
from xbm_keras.config.loss_schema import AboveZero, Cosine, LossConfig, SupCon, UpTo2
from xbm_keras.config.search_schema import Search

Width = Annotated[int, Field(ge=1, le=65_536)]
MAX_BATCH = 1 << 20  # items
Picks = Annotated[int, Field(ge=0, le=1 << 20)]


class HeadConfig(Section):
    """The FC layer."""

    embedding_dim: Width = 128
    kind: Literal["linear", "residual", "mlp"] = "linear"
    hidden_dim: Width = 512
    start: Literal["auto", "random", "identity", "pca", "whiten", "local", "lda", "nda"] = "auto"
    """The weights before the first step: a closed form of the training features, or random; "auto" takes lda or nda,
    whichever is better on held-out training classes."""
    shrinkage: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Of the within-class covariance, for whiten, lda and nda; of that within neighbourhoods, for local. "auto" takes
    the best one, by the same folds; without labels by the neighbours that are kept among held-out items."""
    weighting: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """For lda and nda: a direction whose variance between classes is v times that inside them is scaled by the root of
    v / (v + weighting); "auto" takes 0.3 or 1, by the same folds."""
    total_share: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """For lda and nda: of the total covariance in the within-class one; "auto" takes 0 or 0.3, by the same folds."""
    power: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    """Of each feature before the FC layer, which keeps its sign; "auto" takes 1 or 0.5 by the same folds."""
    widths: list[Width] | None = None
    """Nested ones, such as [16, 32, 64, 128]: each beginning of the embedding is trained to be an embedding itself. The
    last one is `embedding_dim`, which need not be given then."""
    width_weights: list[AboveZero] | None = None
    """Of the losses of the nested widths; by default the widths themselves."""
    nesting: Literal["joint", "sequential"] = "joint"
    """"sequential": the narrowest width first, then the columns that the next one adds, while the others stay."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _widest(cls, values):
        """The widest nested width is the embedding's; what is no list of widths is told of as such, below."""
        widths = values.get("widths") if isinstance(values, dict) else None
        if isinstance(widths, list) and widths and "embedding_dim" not in values:
            return {**values, "embedding_dim": widths[-1]}
        return values

    @pydantic.model_validator(mode="after")
    def _nested(self):
        widths = self.widths
        if widths is not None and (widths != sorted(set(widths)) or [self.embedding_dim] != widths[-1:]):
            raise ValueError(
                f"widths {widths} with embedding_dim {self.embedding_dim}; expected ascending widths, of which "
                "embedding_dim is the last"
            )
        if self.width_weights is not None and len(self.width_weights) != len(widths or ()):
            raise ValueError(f"width_weights {self.width_weights} with widths {widths}; expected one for each width")
        return self


class Memory(Section):
    """The cross-batch memory."""

    memory_size: Natural = 65_536
    """Rows; 0 trains on in-batch pairs. More than there are training items is cut to their number."""
    storage_dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    prefill: bool = True
    """Fill the memory with training items before the first step."""


class TopK(Section):
    """The top-k sample, by labels."""

    kind: Literal["hard"] = "hard"
    num_negatives: Picks | Literal["all"] = 32
    num_positives: Picks | Literal["all"] = 8
    positives: Literal["hardest", "easiest", "random"] = "random"
    mine_in: Literal["features", "embeddings", "sketch"] = "embeddings"
    """Where hardness is measured; "sketch" is a short frozen code of the features."""
    key_refresh: Positive | Literal["exact"] = "exact"
    """Of `mine_in: embeddings`: all rows through the head in each step, or S rows: ages up to memory_size / S steps."""
    sketch_dim: Width = 64
    rerank: Annotated[int, Field(ge=1, le=1024)] = 4
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


class Neighbors(Section):
    """The top-k sample without labels."""

    kind: Literal["neighbors"] = "neighbors"
    num_neighbors: Annotated[Picks, Field(ge=1)] = 64
    """Rows of highest feature score."""
    num_random: Picks = 256
    """Rows at random beside them."""
    centring: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the mean feature that is taken off before similarities are measured."""


class Training(Section):
    """How the head is fitted."""

    epochs: Natural = 10
    """At most; the best epoch on held-out classes counts, and epoch 0, the start, is a candidate."""
    folds: Positive | Literal["auto"] = "auto"
    """How many times other training classes are held out to choose the epoch by the mean; at most as many as
    data.split.validation_fraction leaves room for. "auto" holds out each half of the training classes, where
    validation_fraction gives less than a hundred classes: to choose by a few is left to chance."""
    patience: Positive = 4
    """Epochs without improvement after which the selection stops."""
    classes_per_batch: Positive = 32
    samples_per_class: Positive = 4
    batch_size: Positive = 256
    """Of training without labels."""
    steps_per_epoch: Positive | None = None
    """By default as many as draw the number of training items once; without labels 50."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """The highest one of the schedule."""
    schedule: Literal["growing", "cosine"] = "growing"
    """"growing": by a constant factor each step, from a thirtieth of the rate to the rate at the end of the last of
    `epochs`, so that to choose the epoch is to choose how far to go from the start: on some data the best head is near
    it, on others far. "cosine": from the rate to 0."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps in which the cosine schedule first rises from 0 to the rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an anchor's features that are left out in each step, by chance; those of memory rows stay."""
    averaging: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Momentum of a moving average of the head's weights, which takes their place at the end of each epoch."""
    start_l2: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared distance of the head's weights from the start's."""
    start_alignment: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a second loss, which holds similarities to what they were at the start: training may change the order
    of what is near, and leaves classes where they were. Without labels the default is 10."""
    refit: bool = True
    """After the number of epochs was chosen, train again on all training classes, the validation classes included.
    Without labels the default is false: a tenth more of the items changes little."""
    jit_compile: bool | Literal["auto"] = "auto"
    strategy: Literal["auto", "none", "mirrored"] = "auto"
    """The devices that share each batch. "auto": all GPUs, where there are several; "none": one device; "mirrored": all
    GPUs, and an error where there are fewer than two. On a machine without a GPU "mirrored" takes the logical CPUs that
    TensorFlow was told to make (`tf.config.set_logical_device_configuration`), for tests. The result is that of one
    device, to float tolerance, and a run may go on under another strategy. A trial of a search runs on one device,
    unless this says "mirrored"."""
    checkpoint_every_seconds: Annotated[float, Field(ge=0)] = 60.0
    """A killed run goes on from its last checkpoint. One is written at the end of an epoch, at most so often, and at
    the end of each phase."""
    seed: Seed = 0


class Export(Section):
    """The SavedModel."""

    weights: Literal["float32", "float16"] = "float32"
    """float16 halves the size; what is computed stays float32."""
    codes: list[Literal["int8", "binary"]] = Field(default=[])
    """Also give the embeddings in these codes, of a quarter and of a 32nd of the bytes; what they cost is measured."""
    max_pixels: Positive = 12 << 20
    """Encoded pictures with more are refused before they are decoded: small files may hold many. Training reads larger
    ones; where clients send such, say how large."""
    license: str | None = None
    """Of the backbone's weights, for the model card; by default what a LICENSE file beside them begins with."""


STARTS_WITHOUT_LABELS = ("random", "identity", "pca", "local")
WITHOUT_LABELS = {
    "data": {"split": {"by": "item", "validation_fraction": 0.1}},
    "head": {"start": "local", "power": 1.0},
    "top_k": {"kind": "neighbors"},
    "training": {
        "steps_per_epoch": 50,
        "learning_rate": 1.5e-3,
        "patience": 10,
        "refit": False,
        "folds": 1,
        "start_alignment": 10.0,
    },
}
"""The defaults of a loss without labels, where they are others."""


class Config(Section):
    """One experiment."""

    data: DataConfig
    backbone: BackboneConfig
    cache: Cache = Cache()
    head: HeadConfig = HeadConfig()
    memory: Memory = Memory()
    top_k: Annotated[TopK | Neighbors, Field(discriminator="kind")] = TopK()
    loss: LossConfig = SupCon(name="supcon")
    training: Training = Training()
    export: Export = Export()
    search: Search = Search()

    @property
    def is_without_labels(self) -> bool:
        """Whether training uses no labels."""
        return self.loss.name == "similarity_alignment"

    @property
    def batch_size(self) -> int:
        """Items of a batch."""
        c = self.training
        return c.batch_size if self.is_without_labels else c.classes_per_batch * c.samples_per_class

    @pydantic.model_validator(mode="before")
    @classmethod
    def _recipe(cls, values):
        """The defaults that follow from the loss."""
        if not isinstance(values, dict):
            return values
        loss = values.get("loss")
        is_without = isinstance(loss, dict) and loss.get("name") == "similarity_alignment"
        recipe = WITHOUT_LABELS if is_without else {"top_k": {"kind": "hard"}}
        backbone = values.get("backbone")
        names = backbone if isinstance(backbone, dict) else {}
        if names.get("kind") == "keras_applications" and names.get("layers", "auto") == "auto":
            # So that a saved config says what it came to.
            values = {**values, "backbone": {**names, "layers": "last" if is_without else "pyramid"}}
        return _merged(recipe, values)

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
        if self.cache.views not in ("auto", 1) and modality != "image":
            raise ValueError(f"cache.views {self.cache.views} does not go with data.source {source!r}; use 1")
        if self.cache.turned_classes is True and (modality != "image" or self.is_without_labels):
            raise ValueError(
                f"cache.turned_classes does not go with data.source {source!r} and loss.name {self.loss.name!r}; it "
                "takes pictures and labels"
            )
        c = self.training
        if 0 < self.memory.memory_size < self.batch_size:
            keys = "batch_size" if self.is_without_labels else "classes_per_batch x training.samples_per_class"
            raise ValueError(
                f"memory.memory_size {self.memory.memory_size} is smaller than the batch of {self.batch_size} "
                f"(training.{keys}); use 0 for in-batch pairs, or a memory of several batches"
            )
        if self.batch_size > MAX_BATCH:
            raise ValueError(
                f"a batch of {self.batch_size} items (training.batch_size, or training.classes_per_batch x "
                f"training.samples_per_class); expected at most {MAX_BATCH}"
            )
        if c.warmup and c.schedule != "cosine":
            raise ValueError(
                f"training.warmup {c.warmup} does not go with training.schedule {c.schedule!r}, whose rate rises all "
                "the way; use schedule: cosine, or leave warmup out"
            )
        if c.strategy == "mirrored" and c.jit_compile is True:
            raise ValueError(
                "training.jit_compile true does not go with training.strategy 'mirrored': XLA compiles a step for one "
                "device; leave one of them out"
            )
        if self.is_without_labels != (self.top_k.kind == "neighbors"):
            raise ValueError(
                f"top_k.kind {self.top_k.kind!r} does not go with loss.name {self.loss.name!r}; leave it out, then it "
                "follows from the loss"
            )
        if self.head.nesting == "sequential" and (self.head.widths is None or c.weight_decay):
            raise ValueError(
                f"head.nesting 'sequential' does not go with head.widths {self.head.widths} and training.weight_decay "
                f"{c.weight_decay}; it takes widths, and a weight decay of 0, which would move what is to stay"
            )
        if self.is_without_labels and self.head.start not in STARTS_WITHOUT_LABELS:
            raise ValueError(
                f"head.start {self.head.start!r} does not go with loss.name {self.loss.name!r}, which uses no labels; "
                f"use one of {', '.join(STARTS_WITHOUT_LABELS)}"
            )
        if self.is_without_labels and (self.head.power == "auto" or c.folds != 1):
            raise ValueError(
                f"head.power {self.head.power!r} and training.folds {c.folds!r} do not go with loss.name "
                f"{self.loss.name!r}: labels would choose; give a number for head.power, and 1 for training.folds"
            )
        return self


def _merged(defaults: dict, values: dict) -> dict:
    """Nested values over defaults."""
    merged = {**defaults, **values}
    for key, default in defaults.items():
        given = values.get(key, {})
        if isinstance(default, dict):
            merged[key] = _merged(default, given) if isinstance(given, dict) else given
    return merged
