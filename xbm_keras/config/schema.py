"""The schema of configs/*.yaml. Its defaults are the recipe: a file names the data, and what it wants otherwise."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import Field

from xbm_keras.arguments import Natural, Positive
from xbm_keras.config.data_schema import BackboneConfig, Cache, DataConfig, Seed, Views
from xbm_keras.config.search_schema import SearchSection
from xbm_keras.config.sections import Section, one_of, section_of
from xbm_keras.stages.pair_losses import LOSSES

Width = Annotated[int, Field(ge=1, le=65_536)]
MAX_BATCH = 1 << 20  # items
IN_CODE_ALONE = {
    "multi_similarity": ("alpha", "epsilon"),
    "tuplet": ("scale",),
    "lifted_structure": ("temperature",),
    "recall_surrogate": ("ks", "rank_temperature"),
    "similarity_alignment": ("form",),
}
"""Arguments of losses of which no measurement shows another value to pay."""
NumPicks = Annotated[int, Field(ge=0, le=1 << 20)]


class HeadConfig(Section):
    """The FC layer."""

    embedding_dim: Width = 128
    """Dimensions of an embedding."""
    kind: Literal["linear", "residual", "mlp"] = "linear"
    """One matrix; the start and a matrix beside it; or the start and a layer of 512 hidden units beside it."""
    start: Literal["auto", "random", "identity", "pca", "whiten", "local", "lda", "nda"] = "auto"
    """The weights before the first step: a closed form of the training features, or random; "auto" takes lda or nda,
    whichever is better on held-out training classes."""
    shrinkage: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Of the within-class covariance, for whiten, lda and nda; of that within neighbourhoods, for local. "auto" takes
    the best one, by the same folds; without labels by the neighbours that are kept among held-out items."""
    widths: list[Width] | None = None
    """Nested ones, such as [16, 32, 64, 128]: each beginning of the embedding is trained to be an embedding itself. The
    last one is `embedding_dim`, which need not be given then."""

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
        return self


class Memory(Section):
    """The cross-batch memory."""

    memory_size: Natural = 65_536
    """Rows; 0 trains on in-batch pairs. More than there are training items is cut to their number."""
    storage_dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """Of its rows."""
    prefill: bool = True
    """Fill the memory with training items before the first step."""


class TopK(Section):
    """The top-k sample, by labels."""

    num_negatives: NumPicks | Literal["all"] = 32
    """k: the hardest rows of other classes, for each anchor."""
    num_positives: NumPicks | Literal["all"] = 8
    """Rows of its own class, at random."""
    mine_in: Literal["features", "embeddings", "sketch"] = "embeddings"
    """Where hardness is measured; "sketch" is a short frozen code of the features."""
    key_refresh: Positive | Literal["exact"] = "exact"
    """Of `mine_in: embeddings`: all rows through the head in each step, or S rows: ages up to memory_size / S steps."""

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

    num_neighbors: Annotated[NumPicks, Field(ge=1)] = 64
    """Rows of highest feature score."""
    num_random: NumPicks = 256
    """Rows at random beside them."""
    centring: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the mean feature that is taken off before similarities are measured."""


class Training(Section):
    """How the head is fitted."""

    epochs: Natural = 10
    """At most; the best epoch on held-out classes counts, and epoch 0, the start, is a candidate."""
    folds: Positive | Literal["auto"] = "auto"
    """How many times other training classes are held out to choose the epoch by the mean; at most four, for each
    holds out a quarter of the training classes. "auto" holds out each half of them, where a quarter is less than a
    hundred classes: to choose by a few is left to chance."""
    patience: Positive = 4
    """Epochs without improvement after which the selection stops."""
    classes_per_batch: Positive = 32
    """Of training with labels."""
    samples_per_class: Positive = 4
    """Items of each class in a batch."""
    batch_size: Positive = 256
    """Of training without labels."""
    steps_per_epoch: Positive | None = None
    """By default as many as draw the number of training items once; without labels 50."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """The last one of `epochs`: the rate grows by a constant factor each step, from a thirtieth of it, so that to
    choose the epoch is to choose how far to go from the start: on some data the best head is near it, on others far."""
    start_alignment: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a second loss, which holds similarities to what they were at the start: training may change the order
    of what is near, and leaves classes where they were. Without labels the default is 10."""
    refit: bool = True
    """After the number of epochs was chosen, train again on all training classes, the validation classes included.
    Without labels the default is false: a tenth more of the items changes little."""
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
    """Of batches, picks and random starts."""


class Export(Section):
    """The SavedModel."""

    weights: Literal["float32", "float16"] = "float32"
    """float16 halves the size; what is computed stays float32."""
    codes: list[Literal["int8", "binary"]] = Field(default=[])
    """Also give the embeddings in these codes, of a quarter and of a 32nd of the bytes; what they cost is measured."""
    max_pixels: Positive = 12 << 20
    """Encoded pictures with more are refused before they are decoded: small files may hold many. Training reads larger
    ones; where clients send such, say how large."""


DEFAULT_LOSS = "supcon"
STARTS_WITHOUT_LABELS = ("random", "identity", "pca", "local")
WITHOUT_LABELS = {
    "data": {"split": {"by": "item"}},
    "head": {"start": "local"},
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


if TYPE_CHECKING:  # made of classes, which no type checker follows
    LossConfig = Any
else:
    LossConfig = one_of(
        (section_of(loss, without=IN_CODE_ALONE.get(name, ()), name=name) for name, loss in LOSSES.items()), "name"
    )


class _OfNeighbors(dict):
    """A section `top_k` where the loss uses no labels."""


def _kind_of(top_k) -> str:
    return "neighbors" if isinstance(top_k, Neighbors | _OfNeighbors) else "hard"


class Config(Section):
    """One experiment."""

    data: DataConfig
    backbone: BackboneConfig
    cache: Cache = Cache()
    views: Views = Views()
    head: HeadConfig = HeadConfig()
    memory: Memory = Memory()
    top_k: Annotated[
        Annotated[TopK, pydantic.Tag("hard")] | Annotated[Neighbors, pydantic.Tag("neighbors")],
        Field(discriminator=pydantic.Discriminator(_kind_of)),
    ] = TopK()
    loss: LossConfig
    training: Training = Training()
    export: Export = Export()
    search: SearchSection = SearchSection()

    @property
    def is_without_labels(self) -> bool:
        """Whether training uses no labels."""
        return not LOSSES[self.loss.name].uses_labels

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
        values = _merged({"loss": {"name": DEFAULT_LOSS}}, values)
        loss = values["loss"]
        named = LOSSES.get(str(loss.get("name"))) if isinstance(loss, dict) else None
        is_without = named is not None and not named.uses_labels
        backbone = values.get("backbone")
        names = backbone if isinstance(backbone, dict) else {}
        if names.get("kind") == "keras_applications" and names.get("layers", "auto") == "auto":
            # So that a saved config says what it came to.
            values = {**values, "backbone": {**names, "layers": "last" if is_without else "pyramid"}}
        if not is_without:
            return values
        top_k = values.get("top_k", {})
        values = {**values, "top_k": _OfNeighbors(top_k) if isinstance(top_k, dict) else top_k}
        return _merged(WITHOUT_LABELS, values)

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
        if self.views.number not in ("auto", 1) and modality != "image":
            raise ValueError(f"views.number {self.views.number} does not go with data.source {source!r}; use 1")
        if self.views.turned_classes is True and (modality != "image" or self.is_without_labels):
            raise ValueError(
                f"views.turned_classes does not go with data.source {source!r} and loss.name {self.loss.name!r}; it "
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
        if self.is_without_labels and self.head.start not in STARTS_WITHOUT_LABELS:
            raise ValueError(
                f"head.start {self.head.start!r} does not go with loss.name {self.loss.name!r}, which uses no labels; "
                f"use one of {', '.join(STARTS_WITHOUT_LABELS)}"
            )
        if self.is_without_labels and c.folds != 1:
            raise ValueError(
                f"training.folds {c.folds!r} does not go with loss.name {self.loss.name!r}: labels would choose; give 1"
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
