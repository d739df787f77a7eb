"""The schema of configs/*.yaml. Its defaults are the recipe: a file names the data, and what it wants otherwise."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]


class Section(pydantic.BaseModel):
    """Strict: no unknown keys, no silent conversions, no changes after loading."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Split(Section):
    """Which items train and which test. By class, unless said otherwise: test classes are never seen in training."""

    by: Literal["class", "item"] = "class"
    column: str | None = None
    """Column that says "train" or "test" (items with another value are left out). Comes before the other ways."""
    test_classes: list[str | int] | None = None
    num_train_classes: Positive | None = None
    """The first classes, in sorted order, train; the rest test: the standard split of many retrieval data sets."""
    test_fraction: Fraction = 0.5
    """Of the classes (or items), drawn with `seed`; used when nothing above is given."""
    validation_fraction: Fraction = 0.25
    """Of the training classes (or items), held out to choose the number of epochs."""
    query_column: str | None = None
    """Column that says which test items are queries ("query" or "test") and which are the gallery ("gallery" or
    "train") of the query/gallery protocol; items with another value take part in neither."""
    seed: int = 0


class _Data(Section):
    split: Split = Split()


class ImageFolder(_Data):
    """Pictures, one folder per class."""

    source: Literal["image_folder"]
    root: str


class ImageTable(_Data):
    """Pictures listed in a CSV or Parquet table."""

    source: Literal["image_table"]
    root: str
    table: str
    """Relative to `root`, or absolute."""
    path_column: str = "path"
    label_column: str | None = "label"


class ImageArray(_Data):
    """Pictures in `.npy` or `.npz` arrays, [N, H, W] or [N, H, W, 3], or bits packed by `np.packbits`."""

    source: Literal["image_array"]
    path: str
    test_path: str | None = None
    """A second file; its items have "test" in the column `split`, those of the first "train"."""
    label_names: str | None = None
    """Name of an array of names that the labels number."""
    invert: bool = False
    images: str = "images"
    """Name of the array inside an `.npz`."""
    labels: str | None = "label"
    """Name of the array inside an `.npz`, or path of an `.npy`."""


class TFDS(_Data):
    """A picture data set of TensorFlow Datasets; the column `tfds_split` says which of its splits an item is in."""

    source: Literal["tfds"]
    name: str
    data_dir: str | None = None
    image_key: str = "image"
    label_key: str = "label"


class Features(_Data):
    """Vectors that some model already gave."""

    source: Literal["features"]
    path: str
    """`.npz`, `.npy` (memory-mapped) or Parquet."""
    features: str = "features"
    """Name of the array inside an `.npz`, or of the column of a Parquet file."""
    labels: str | None = "label"
    """Name of the array or column, or path of an `.npy`; null for none."""


class Text(_Data):
    """Texts in a JSONL, CSV or Parquet table."""

    source: Literal["text"]
    path: str
    text_column: str = "text"
    label_column: str | None = "label"


DataConfig = Annotated[ImageFolder | ImageTable | ImageArray | TFDS | Features | Text, Field(discriminator="source")]


class NoBackbone(Section):
    """The input already is a feature vector."""

    kind: Literal["none"]


class _ImageBackbone(Section):
    image_size: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [224, 224]


class Application(_ImageBackbone):
    """A network of `keras.applications`."""

    kind: Literal["keras_applications"]
    name: str
    weights: str | None = "imagenet"
    """Or the path of a weights file."""
    pooling: Literal["avg", "max"] = "avg"


class KerasFile(_ImageBackbone):
    """A model saved as `.keras`."""

    kind: Literal["keras_file"]
    path: str
    preprocessing: str | None = None
    """The `keras.applications` model whose `preprocess_input` comes first, if any."""
    pooling: Literal["avg", "max", "first"] = "avg"


class SavedModel(_ImageBackbone):
    """A model saved as a TensorFlow SavedModel."""

    kind: Literal["saved_model"]
    path: str
    endpoint: str = "serving_default"
    preprocessing: str | None = None
    pooling: Literal["avg", "max", "first"] = "avg"


class KerasHub(Section):
    """A network of `keras_hub`, of texts or pictures, with the preprocessing of its preset; needs the extra [hub]."""

    kind: Literal["keras_hub"]
    preset: str
    """A preset's name, or a folder: of a preset, or of a Hugging Face model."""
    max_length: Annotated[int, Field(ge=3)] = 128
    """Tokens of a text, special ones included; what is longer is cut."""
    pooling: Literal["avg", "max", "first"] = "avg"
    """Of the tokens of a text, the padding left out; of the tokens or maps of a picture."""
    image_size: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    """By default what the network was made for."""


BackboneConfig = Annotated[NoBackbone | Application | KerasFile | SavedModel | KerasHub, Field(discriminator="kind")]


class Cache(Section):
    """Where and how backbone outputs are kept."""

    dir: str = "~/.cache/xbm_keras"
    dtype: Literal["float32", "float16"] = "float32"
    batch_size: Positive | None = None
    """Items per call of the backbone; by default 16 on a CPU, 128 on a GPU."""
    shard_rows: Positive = 1024
    views: Positive = 1
    """Of each training picture: 1 is the picture alone, more adds augmented ones, all with the picture's sample id."""
    flip: bool = True
    """Whether a view may be mirrored left to right."""
    views_as_positives: bool = False
    """Give each view a sample id of its own, so that two views of one picture can be a positive pair."""
    on_error: Literal["skip", "raise"] = "skip"
    """What to do with an item that cannot be read."""
    engine: Literal["local", "ray"] = "local"
    """Who computes: this process, or workers of the Ray cluster at RAY_ADDRESS (without one: on this machine)."""
    ray_workers: Positive = 2
    """At most so many; each holds the backbone and uses all cores that its machine has free, or a GPU."""


class HeadConfig(Section):
    """The FC layer."""

    embedding_dim: Positive = 128
    kind: Literal["linear", "residual", "mlp"] = "linear"
    hidden_dim: Positive = 512
    start: Literal["random", "whiten"] = "whiten"
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.3


class Memory(Section):
    """The cross-batch memory."""

    memory_size: Annotated[int, Field(ge=0)] = 65_536
    """Rows; 0 trains on in-batch pairs. More than there are training items is cut to their number."""
    storage_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    prefill: bool = True
    """Fill the memory with training items before the first step."""


class TopK(Section):
    """The top-k sample."""

    num_negatives: Annotated[int, Field(ge=0)] | Literal["all"] = 32
    num_positives: Annotated[int, Field(ge=0)] | Literal["all"] = 8
    positives: Literal["hardest", "easiest", "random"] = "random"
    mine_in: Literal["features", "embeddings"] = "embeddings"

    @pydantic.model_validator(mode="after")
    def _has_picks(self):
        if self.num_negatives == self.num_positives == 0:
            raise ValueError("num_negatives and num_positives are both 0, which leaves no pairs; make one of them 1")
        return self


class Contrastive(Section):
    """Contrastive loss on cosine similarities."""

    name: Literal["contrastive"]
    positive_margin: Cosine = 0.9
    negative_margin: Cosine = 0.4


class Triplet(Section):
    """Triplet loss; `margin: null` is the soft form."""

    name: Literal["triplet"]
    margin: Annotated[float, Field(ge=0, le=2)] | None = 0.1


class SupCon(Section):
    """Supervised contrastive loss."""

    name: Literal["supcon"]
    temperature: Annotated[float, Field(gt=0)] = 0.1


class InfoNCE(Section):
    """InfoNCE loss."""

    name: Literal["info_nce"]
    temperature: Annotated[float, Field(gt=0)] = 0.1


LossConfig = Annotated[Contrastive | Triplet | SupCon | InfoNCE, Field(discriminator="name")]


class Training(Section):
    """How the head is fitted."""

    epochs: Annotated[int, Field(ge=0)] = 30
    """At most; the best epoch on the validation classes counts, and epoch 0, the start, is a candidate."""
    patience: Positive = 8
    """Epochs without improvement after which the selection stops."""
    classes_per_batch: Positive = 32
    samples_per_class: Positive = 4
    steps_per_epoch: Positive | None = None
    """By default as many as draw the number of training items once."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    refit: bool = True
    """After the number of epochs was chosen, train again on all training classes, the validation classes included."""
    jit_compile: bool | Literal["auto"] = "auto"
    seed: int = 0


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

    @pydantic.model_validator(mode="after")
    def _fits_together(self):
        has_vectors = self.data.source == "features"
        if has_vectors != (self.backbone.kind == "none"):
            raise ValueError(
                f"data.source {self.data.source!r} does not go with backbone.kind {self.backbone.kind!r}; "
                "vectors take no backbone, everything else needs one"
            )
        if self.data.source == "text" and self.backbone.kind != "keras_hub":
            raise ValueError(
                f"data.source 'text' does not go with backbone.kind {self.backbone.kind!r}; texts take keras_hub"
            )
        if self.cache.views > 1 and self.data.source not in ("image_folder", "image_table", "image_array", "tfds"):
            raise ValueError(f"cache.views {self.cache.views} does not go with data.source {self.data.source!r}; use 1")
        batch_size = self.training.classes_per_batch * self.training.samples_per_class
        if 0 < self.memory.memory_size < batch_size:
            raise ValueError(
                f"memory.memory_size {self.memory.memory_size} is smaller than the batch of {batch_size} "
                "(training.classes_per_batch x training.samples_per_class); use 0 for in-batch pairs, or a memory of "
                "several batches"
            )
        return self
