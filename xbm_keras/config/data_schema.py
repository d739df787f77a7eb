"""The sections of configs/*.yaml that say what the data and the frozen network are."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from xbm_keras.config.sections import Section

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Split(Section):
    """Which items train and which test. By class, unless said otherwise: test classes are never seen in training."""

    by: Literal["class", "item"] = "class"
    """What is kept apart: classes, or single items."""
    column: str | None = None
    """Column that says "train" or "test" (items with another value are left out); by class, no class may be in both.
    Comes before the other ways."""
    num_train_classes: Positive | None = None
    """The first classes, in sorted order, train; the rest test: the standard split of many retrieval data sets. Comes
    before `test`."""
    test: Fraction | list[str | int] = 0.5
    """The share of the classes (or items) that test, drawn with `seed`; or the classes."""
    query_column: str | None = None
    """Column that says which test items are queries ("query" or "test") and which are the gallery ("gallery" or
    "train") of the query/gallery protocol; items with another value take part in neither."""
    seed: Seed = 0
    """Of the draw."""

    @pydantic.model_validator(mode="after")
    def _has_one_unit(self):
        if self.by == "item" and isinstance(self.test, list):
            raise ValueError(
                f"test {self.test} does not go with by 'item', which tells no classes apart; use by: class, or give a "
                "share"
            )
        return self


class _Data(Section):
    split: Split = Split()

    @property
    def modality(self) -> Literal["image", "text", "vector"]:
        """What an item is."""
        return "image"


class ImageFolder(_Data):
    """Pictures, one folder per class."""

    source: Literal["image_folder"]
    root: str
    """The folder; `root/<class>/<picture>`."""


class ImageTable(_Data):
    """Pictures listed in a CSV, Parquet or JSONL table. Cells of a CSV are text, to the letter."""

    source: Literal["image_table"]
    root: str
    """The folder of the pictures."""
    table: str
    """Relative to `root`, or absolute."""
    images: str = "path"
    """Name of the column of their paths, relative to `root`."""
    labels: str | None = "label"
    """Name of the column; null for no labels. An item whose cell is empty (or null) has none."""


class ImageArray(_Data):
    """Pictures in `.npy` or `.npz` arrays, [N, H, W] or [N, H, W, 3], or bits packed by `np.packbits`."""

    source: Literal["image_array"]
    path: str
    """The file."""
    test_path: str | None = None
    """A second file; its items have "test" in the column `split`, those of the first "train"."""
    label_names: str | None = None
    """Name of an array of names that the labels number, from 0 on."""
    invert: bool = False
    """Black for white."""
    images: str = "images"
    """Name of the array inside an `.npz`."""
    labels: str | None = "label"
    """Name of the array inside an `.npz`, [N] or [N, 1], or path of an `.npy`; null for none. An item of -1, NaN or an
    empty string has no label."""


class TFDS(_Data):
    """Pictures or texts of TensorFlow Datasets; the column `tfds_split` says which of its splits an item is in."""

    source: Literal["tfds"]
    name: str
    """Such as cars196, or my_dataset/config:1.0.0."""
    data_dir: str | None = None
    """Where TFDS keeps its data; by default where TFDS says."""
    texts: str | None = None
    """Name of a text feature, for texts instead of pictures; it takes a backbone of keras_hub."""
    labels: str = "label"
    """Name of the feature. Items of -1, as in a split that is not labelled, have no label."""
    allow_community: bool = False
    """Also take a name with a namespace, such as "huggingface:mnist": a program of others, which is then run."""

    @property
    def modality(self):
        """A picture or a text."""
        return "text" if self.texts else "image"


class Features(_Data):
    """Vectors that some model already gave."""

    source: Literal["features"]
    path: str
    """`.npz`, `.npy` (memory-mapped) or Parquet."""
    features: str = "features"
    """Name of the array inside an `.npz`, or of the column of a Parquet file."""
    labels: str | None = "label"
    """Name of the array or column, [N] or [N, 1], or path of an `.npy`; null for none. An item of NaN, an empty string
    or, in an array, -1 has no label."""

    @property
    def modality(self):
        """A vector."""
        return "vector"


class Text(_Data):
    """Texts in a JSONL, CSV or Parquet table."""

    source: Literal["text"]
    path: str
    """The table."""
    texts: str = "text"
    """Name of the column."""
    labels: str | None = "label"
    """Name of the column; null for no labels. An item whose cell is empty (or null) has none."""

    @property
    def modality(self):
        """A text."""
        return "text"


class Glyphs(_Data):
    """Characters of the fonts that ship with matplotlib, drawn a little turned and noisy; each character is a class.

    The column `role` says "query" for fonts with serifs and "gallery" for those without.
    """

    source: Literal["glyphs"]
    max_classes: Positive | None = None
    """At most so many characters, spread evenly over Unicode."""


DataConfig = Annotated[
    ImageFolder | ImageTable | ImageArray | TFDS | Features | Text | Glyphs, Field(discriminator="source")
]


class NoBackbone(Section):
    """The input already is a feature vector."""

    kind: Literal["none"]


Layers = Literal["last", "pyramid"] | Annotated[list[str], Field(min_length=1)]


class _ImageBackbone(Section):
    image_size: list[Positive] = Field([224, 224], min_length=2, max_length=2)
    """Height and width that pictures are resized to."""


class Application(_ImageBackbone):
    """A network of `keras.applications`."""

    kind: Literal["keras_applications"]
    name: str
    """Such as MobileNetV2."""
    weights: str | None = "imagenet"
    """Or the path of a weights file."""
    layers: Layers | Literal["auto"] = "auto"
    """Whose maps are pooled: "pyramid", the last of each of the three lowest resolutions; "last"; or names. "auto" is
    "last" where the loss needs no labels, so that what is kept are the neighbours in the network's own output; else
    "pyramid"."""


class ModelFile(_ImageBackbone):
    """A network of yours: a model saved as `.keras`, or the folder of a TensorFlow SavedModel."""

    kind: Literal["file"]
    path: str
    """Of the file, or the folder."""
    preprocessing: str | None = None
    """The `keras.applications` model whose `preprocess_input` comes first, if any."""
    pooling: Literal["avg", "max", "first"] = "avg"
    """Of the maps or tokens that it gives."""


class GlyphNet(Section):
    """The small network of 48x48 pictures that ships with the package, pretrained on Latin and Cyrillic characters."""

    kind: Literal["glyph_net"]


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


BackboneConfig = Annotated[NoBackbone | Application | ModelFile | GlyphNet | KerasHub, Field(discriminator="kind")]


class Cache(Section):
    """Where and how backbone outputs are kept."""

    dir: str = "~/.cache/xbm_keras"
    """The folder of all caches."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the rows on disk."""
    batch_size: Positive | None = None
    """Items per call of the backbone; by default 16 on a CPU, 128 on a GPU."""
    on_error: Literal["skip", "raise"] = "skip"
    """What to do with an item that cannot be read."""
    ray_workers: Natural = 0
    """At most so many workers of the Ray cluster at RAY_ADDRESS (without one: on this machine) compute, each of which
    holds the backbone and uses all cores that its machine has free, or a GPU; 0: this process computes."""


class Views(Section):
    """What trains beside the pictures themselves."""

    number: Positive | Literal["auto"] = "auto"
    """Of each training picture: 1 is the picture alone, more adds augmented ones, all with the picture's sample id.
    "auto" tries 3 where there are at most 8,192 training pictures with labels, and takes them where held-out training
    classes are told apart better for it."""
    turned_classes: bool | Literal["auto"] = "auto"
    """Whether training pictures are turned by quarters, too, each turn of a class being a class of its own: for
    characters and other drawings, of which there are four times as many then. "auto" tries it as it tries views."""
    flip: bool = True
    """Whether a view may be mirrored left to right: not where a mirrored thing is another one."""
