"""The schema of configs/*.yaml. Its defaults are the recipe: a file names the data, and what it wants otherwise."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from annotated_types import Le
from pydantic import Field

from xbm_keras.arguments import AboveZero, Natural, NonNegative, Positive
from xbm_keras.config.data_schema import BackboneConfig, Cache, DataConfig, Seed, Views
from xbm_keras.config.head_schema import HeadConfig
from xbm_keras.config.search_schema import SearchSection
from xbm_keras.config.sections import Section, one_of, section_of
from xbm_keras.export.saved_model import export_encoder
from xbm_keras.stages.circular_memory.ring import CircularMemory
from xbm_keras.stages.hard_top_k.by_label import HardTopK, require_pairs
from xbm_keras.stages.hard_top_k.by_neighbors import NeighborTopK
from xbm_keras.stages.pair_losses import LOSSES

IN_CODE_ALONE = {
    "contrastive": ("positive_margin",),
    "margin": ("margin", "beta"),
    "multi_similarity": ("alpha", "base", "epsilon"),
    "tuplet": ("scale", "margin"),
    "circle": ("gamma",),
    "lifted_structure": ("margin", "temperature"),
    "semi_hard_triplet": ("margin",),
    "smooth_ap": ("temperature",),
    "recall_surrogate": ("ks", "temperature", "rank_temperature"),
    "similarity_alignment": ("form",),
    "top_k": ("positives", "mining", "max_score", "absolute_margin", "relative_margin", "max_rows_for_all", "seed"),
}
"""Arguments of losses and stages that a run fills in, or of which no measurement shows another value to pay."""
RECIPE: dict[str, dict[str, Any]] = {
    "memory": {"memory_size": 65_536},
    "top_k": {"mine_in": "features", "num_negatives": 8, "num_random": 256},
}
"""Defaults where the constructors have others, or none."""


class Memory(section_of(CircularMemory, without=["frozen"], recipe=RECIPE["memory"])):  # type: ignore[misc]
    """The cross-batch memory. More rows than there are training items are cut to their number."""

    prefill: bool = True
    """Fill the memory with training items before the first step."""


class TopK(section_of(HardTopK, without=IN_CODE_ALONE["top_k"], recipe=RECIPE["top_k"])):  # type: ignore[misc]
    """The top-k sample, by labels."""

    mine_in: Literal["features", "embeddings", "sketch"] | Positive = RECIPE["top_k"]["mine_in"]
    """Where hardness is measured; "sketch" is a short frozen code of the features. In "embeddings" all rows pass the
    head in each step; a number S is embeddings, too, of which S are made anew in each step: ages up to
    memory_size / S steps."""

    @pydantic.model_validator(mode="after")
    def _has_pairs(self):
        require_pairs(self.num_negatives, self.num_positives, self.num_random)
        return self


class Neighbors(section_of(NeighborTopK, without=["seed"])):  # type: ignore[misc]
    """The top-k sample without labels."""


class Training(Section):
    """How the head is fitted."""

    epochs: Natural = 20
    """At most; the best epoch on held-out classes counts, and epoch 0, the start, is a candidate. Of pairs
    the default is 10."""
    folds: Positive | Literal["auto"] = "auto"
    """How many times other training classes are held out to choose the epoch by the mean; at most four, for each
    holds out a quarter of the training classes. "auto" holds out each half of them, where a quarter is less than a
    hundred classes: to choose by a few is left to chance. Of pairs queries are held out, by "auto" four times where
    once is fewer than 400. Without `refit` it is once: that head is the one that chose."""
    patience: Positive = 4
    """Epochs without improvement after which the selection stops."""
    batch_size: Annotated[Positive, Le(1 << 20)] = 128
    """Items of a batch. Without labels the default is 256, of pairs, whose queries these are, 64."""
    samples_per_class: Positive = 4
    """Of training with labels: items of each class in a batch, which has as many classes as it has room for."""
    negatives: Literal["answers", "corpus", "queries"] = "answers"
    """Of pairs: what the memory holds: the documents that answer some training query; or the whole corpus, of which the
    others are only ever pushed away, also from queries to come that they answer; or the training queries, and then
    documents are what a batch is made of."""
    steps_per_epoch: Positive | None = None
    """By default as many as draw the number of training items once; without labels 50."""
    learning_rate: AboveZero = 1e-3
    """Of the last of `epochs`, or of the tenth, if that comes before: the rate grows by a constant factor each step,
    from a thirtieth of it and on beyond it, so that to choose the epoch is to choose how far to go from the start: on
    some data the best head is near it, on others far. Of pairs, which end far from it, it is the first step's, and
    falls to a thirtieth of it over all `epochs`."""
    start_alignment: NonNegative = 0.0
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
    checkpoint_every_seconds: NonNegative = 60.0
    """A killed run goes on from its last checkpoint. One is written at the end of an epoch, at most so often, and at
    the end of each phase."""
    seed: Seed = 0
    """Of batches, picks and random starts."""


class Export(section_of(export_encoder, without=("model", "folder", "add_files"))):  # type: ignore[misc]
    """The SavedModel."""

    only_if_better: bool = True
    """Of pairs: export nothing where held-out queries, whose documents never trained, are not served better than by the
    frozen features. False where fewer dimensions are worth a loss."""


DEFAULT_LOSS = "supcon"
STARTS_WITHOUT_LABELS = ("random", "identity", "pca", "local")
WITHOUT_LABELS = {
    "data": {"split": {"by": "item"}},
    "head": {"start": "local"},
    "training": {
        "batch_size": 256,
        "epochs": 10,
        "steps_per_epoch": 50,
        "learning_rate": 1.5e-3,
        "patience": 10,
        "refit": False,
        "folds": 1,
        "start_alignment": 10.0,
    },
}
"""The defaults of a loss without labels, where they are others."""


STARTS_OF_PAIRS = {
    "both": ("auto", "random", "identity", "centred", "pca", "whiten", "nda"),
    "query": ("auto", "identity", "ridge", "procrustes"),
    "two": ("auto", "random", "identity", "centred", "pca", "whiten", "nda"),
}
OF_PAIRS = {
    "memory": {"memory_size": 1 << 20},
    "top_k": {"mine_in": "embeddings", "num_negatives": 32, "num_random": 0},
    "training": {"batch_size": 64, "epochs": 10},
}
"""The defaults of queries and documents, where they are others."""


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
    def is_of_pairs(self) -> bool:
        """Whether the data are queries and documents."""
        return self.data.source == "pairs"

    @property
    def classes_per_batch(self) -> int:
        """Of training with labels."""
        return self.training.batch_size // self.training.samples_per_class

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
        by_default = "auto" if names.get("kind") == "keras_applications" else None
        if names.get("layers", by_default) == "auto":
            values = {**values, "backbone": {**names, "layers": "last" if is_without else "auto"}}
        if names.get("kind") == "keras_hub" and names.get("parts", "auto") == "auto":
            is_pooled = is_without or ("pooling" in names and "parts" not in names)  # a saved config has both
            values = {**values, "backbone": {**names, "parts": "pooled" if is_pooled else "auto"}}
        data = values.get("data")
        if isinstance(data, dict) and data.get("source") == "pairs":
            return _merged(OF_PAIRS, values)
        if not is_without:
            return values
        top_k = values.get("top_k", {})
        values = {**values, "top_k": _OfNeighbors(top_k) if isinstance(top_k, dict) else top_k}
        return _merged(WITHOUT_LABELS, values)

    @pydantic.model_validator(mode="after")
    def _fits_together(self):
        modality, source, kind = self.data.modality, self.data.source, self.backbone.kind
        if self.is_of_pairs:
            self._fits_pairs()
            modality = "vector" if kind == "none" else modality
        elif self.head.sides != "both" or self.training.negatives == "queries":
            raise ValueError(
                f"head.sides {self.head.sides!r} and training.negatives {self.training.negatives!r} do not go with "
                f"data.source {source!r}; they are of pairs"
            )
        elif self.head.start in ("ridge", "procrustes"):
            raise ValueError(f"head.start {self.head.start!r} does not go with data.source {source!r}; it is of pairs")
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
        if self.export.average and modality != "image":
            raise ValueError(
                f"export.average {self.export.average} does not go with data.source {source!r}; it takes pictures"
            )
        if self.views.turned_classes is True and (modality != "image" or self.is_without_labels):
            raise ValueError(
                f"views.turned_classes does not go with data.source {source!r} and loss.name {self.loss.name!r}; it "
                "takes pictures and labels"
            )
        c = self.training
        if 0 < self.memory.memory_size < c.batch_size:
            raise ValueError(
                f"memory.memory_size {self.memory.memory_size} is smaller than the batch of {c.batch_size} "
                "(training.batch_size); use 0 for in-batch pairs, or a memory of several batches"
            )
        if not (self.is_without_labels or self.is_of_pairs or self.classes_per_batch):
            raise ValueError(
                f"training.samples_per_class {c.samples_per_class} is more than the batch of {c.batch_size} "
                "(training.batch_size); use fewer, or a larger batch"
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

    def _fits_pairs(self):
        """Raises ValueError for what does not go with queries and documents."""
        head = self.head
        if self.is_without_labels:
            raise ValueError(
                f"loss.name {self.loss.name!r} does not go with data.source 'pairs', which tell what answers what; use "
                f"{DEFAULT_LOSS}"
            )
        if head.start not in STARTS_OF_PAIRS[head.sides]:
            raise ValueError(
                f"head.start {head.start!r} does not go with head.sides {head.sides!r} of pairs; use one of "
                f"{', '.join(STARTS_OF_PAIRS[head.sides])}"
            )
        if self.training.negatives == "queries" and head.sides != "both":
            raise ValueError(
                f"training.negatives 'queries' does not go with head.sides {head.sides!r}; use sides: both"
            )


def _merged(defaults: dict, values: dict) -> dict:
    """Nested values over defaults."""
    merged = {**defaults, **values}
    for key, default in defaults.items():
        given = values.get(key, {})
        if isinstance(default, dict):
            merged[key] = _merged(default, given) if isinstance(given, dict) else given
    return merged
