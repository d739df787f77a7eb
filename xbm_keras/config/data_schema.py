"""The sections of configs/*.yaml that say what the data and the frozen network are."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pydantic
from annotated_types import Ge, Gt, Lt

from xbm_keras.arguments import Positive
from xbm_keras.config.sections import ArgumentsSection, Section, one_of, section_of
from xbm_keras.data.arrays import Features, ImageArray
from xbm_keras.data.glyphs import Glyphs
from xbm_keras.data.pairs import read_pairs
from xbm_keras.data.sources import ImageFolder, ImageTable
from xbm_keras.data.splits import GALLERY_VALUES, QUERY_VALUES
from xbm_keras.data.texts import TextTable
from xbm_keras.data.tfds import TFDS
from xbm_keras.feature_cache.cache import compute_features
from xbm_keras.stages.backbone.frozen import Backbone, Layers
from xbm_keras.stages.backbone.hub import HubBackbone
from xbm_keras.stages.backbone.vision_parts import PartNames

Fraction = Annotated[float, Gt(0), Lt(1)]
Seed = Annotated[int, Ge(0), Lt(2**32)]


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
    """Column that says which test items are queries and which are the gallery of the query/gallery protocol."""
    query_values: list[str] = list(QUERY_VALUES)  # noqa: RUF012 (pydantic copies it)
    """What `query_column` says of queries."""
    gallery_values: list[str] = list(GALLERY_VALUES)  # noqa: RUF012
    """What it says of the gallery. Items with another value take part in neither."""
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


class _Data(ArgumentsSection):
    constructor: ClassVar[Any]  # of a source, whose class says its modality
    split: Split = Split()

    @property
    def modality(self) -> str:
        """What an item is."""
        is_text = getattr(self, "texts", None) is not None
        return "text" if is_text else type(self).constructor.modality


class PairSplit(Section):
    """Which queries train and test, where the judgements do not say: whole groups that share no document."""

    test: Fraction = 0.3
    """The share of the queries that test."""
    seed: Seed = 0
    """Of the draw."""


class _Pairs(ArgumentsSection):
    modality: ClassVar[str] = "text"  # unless they come as vectors
    split: PairSplit = PairSplit()
    query_prefix: str = ""
    """Put before each query that a network of texts embeds, such as "query: "."""
    document_prefix: str = ""
    """The same for documents, such as "passage: "."""


class _Application(ArgumentsSection):
    layers: Layers | Literal["auto"] = "auto"
    """Whose maps are pooled: "pyramid", the last of each of the three lowest resolutions; "last"; or names, among them
    "pyramid.1" to "pyramid.3", the finest first. A name that ends in "/2x2" is pooled in four cells, side by side.
    "auto" computes the pyramid, and takes those neighbouring maps of it, whole or in cells, by which held-out training
    classes are told apart best, of as good ones the narrowest; it is "last" where the loss needs no labels, so that
    what is kept are the neighbours in the network's own output."""


class _File(ArgumentsSection):
    layers: Layers | Literal["auto"] = "last"
    """Of a `.keras` model, as for `keras_applications`: which give the features; "last" are its own outputs, and "auto"
    is for networks that end in maps."""


class _Hub(ArgumentsSection):
    parts: Literal["auto", "pooled"] | PartNames = "auto"
    """Of a vision transformer, side by side: "class", the class token, or what CLIP and SigLIP compare; "patches", the
    mean of the patches; "gem", their generalised mean; "blocks", the class tokens of the last four blocks. "auto"
    computes all of them and takes those by which held-out training classes are told apart best, of as good ones the
    narrowest; it is "pooled" for other networks, where the loss needs no labels, and where `pooling` alone is given.
    "pooled" is what `pooling` makes of all tokens."""


def no_backbone() -> None:
    """The input already is a feature vector."""


GLYPHS = ("min_fonts", "drawings", "rotation", "noise", "pretraining", "cache_dir")  # what no run chooses
OF_FILES = ("endpoint",)
OF_A_RUN = ("source", "backbone", "cache_dir", "shard_rows", "title")
if TYPE_CHECKING:  # made of constructors, which no type checker follows
    DataConfig = Any
    BackboneConfig = Any
else:
    DataConfig = one_of(
        [
            section_of(ImageFolder, _Data, source="image_folder"),
            section_of(ImageTable, _Data, source="image_table"),
            section_of(ImageArray, _Data, source="image_array"),
            section_of(TFDS, _Data, without=["images", "data_dir"], source="tfds"),
            section_of(Features, _Data, source="features"),
            section_of(TextTable, _Data, source="text"),
            section_of(Glyphs, _Data, without=GLYPHS, source="glyphs"),
            section_of(read_pairs, _Pairs, source="pairs"),
        ],
        "source",
    )
    BackboneConfig = one_of(
        [
            section_of(no_backbone, kind="none"),
            section_of(Backbone.from_application, _Application, without=["pooling"], kind="keras_applications"),
            section_of(Backbone.from_file, _File, without=OF_FILES, recipe={"image_size": [224, 224]}, kind="file"),
            section_of(Backbone.from_glyph_net, kind="glyph_net"),
            section_of(HubBackbone.from_preset, _Hub, kind="keras_hub"),
        ],
        "kind",
    )


class Cache(section_of(compute_features, without=OF_A_RUN)):  # type: ignore[misc]
    """Where and how backbone outputs are kept."""

    dir: str = "~/.cache/xbm_keras"
    """The folder of all caches."""


class Views(Section):
    """What trains beside the pictures themselves."""

    number: Positive | Literal["auto"] = "auto"
    """Of each training picture: 1 is the picture alone, more adds augmented ones, which train like further pictures.
    "auto" tries 3 where there are at most 8,192 training pictures with labels, and takes them where held-out training
    classes are told apart better for it."""
    turned_classes: bool | Literal["auto"] = "auto"
    """Whether training pictures are turned by quarters, too, each turn of a class being a class of its own: for
    characters and other drawings, of which there are four times as many then. "auto" tries it as it tries views."""
    flip: bool = True
    """Whether a view may be mirrored left to right: not where a mirrored thing is another one."""
