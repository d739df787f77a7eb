"""The schema of configs/*.yaml, and how a file, overrides and environment variables become one checked `Config`.

The defaults of the schema are the recipe: a config file says what the data is and what it wants otherwise.
"""

import difflib
import pathlib
import typing
from typing import Annotated, Any, Literal

import omegaconf
import pydantic
import yaml
from pydantic import Field

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key, what was received and what was expected."""


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
    """Pictures in `.npy` or `.npz` arrays, [N, H, W] or [N, H, W, 3]."""

    source: Literal["image_array"]
    path: str
    images: str = "images"
    """Name of the array inside an `.npz`."""
    labels: str | None = "label"
    """Name of the array inside an `.npz`, or path of an `.npy`."""


class Features(_Data):
    """Vectors that some model already gave."""

    source: Literal["features"]
    path: str
    """`.npz`, `.npy` (memory-mapped) or Parquet."""
    features: str = "features"
    """Name of the array inside an `.npz`, or of the column of a Parquet file."""
    labels: str | None = "label"
    """Name of the array or column, or path of an `.npy`; null for none."""


DataConfig = Annotated[ImageFolder | ImageTable | ImageArray | Features, Field(discriminator="source")]


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


BackboneConfig = Annotated[NoBackbone | Application | KerasFile | SavedModel, Field(discriminator="kind")]


class Cache(Section):
    """Where and how backbone outputs are kept."""

    dir: str = "~/.cache/xbm_keras"
    dtype: Literal["float32", "float16"] = "float32"
    batch_size: Positive | None = None
    """Items per call of the backbone; by default 16 on a CPU, 128 on a GPU."""
    shard_rows: Positive = 1024
    on_error: Literal["skip", "raise"] = "skip"
    """What to do with an item that cannot be read."""


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
        batch_size = self.training.classes_per_batch * self.training.samples_per_class
        if 0 < self.memory.memory_size < batch_size:
            raise ValueError(
                f"memory.memory_size {self.memory.memory_size} is smaller than the batch of {batch_size} "
                "(training.classes_per_batch x training.samples_per_class); use 0 for in-batch pairs, or a memory of "
                "several batches"
            )
        return self


def load_config(path: str, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides and `${oc.env:NAME,default}`, and check the result.

    Raises:
        ConfigError: one message for all that is wrong, before any data is read.
    """
    if not pathlib.Path(path).is_file():
        near = ", ".join(str(p) for p in sorted(pathlib.Path("configs").glob("*.yaml")))
        raise ConfigError(
            f"Received --config {path!r}, which is no file; expected a YAML file{near and ', such as: '}{near}."
        )
    malformed = [override for override in overrides if "=" not in override]
    if malformed:
        raise ConfigError(
            f"Received --set {malformed[0]!r}; expected section.key=value, such as --set training.epochs=5."
        )
    try:
        loaded = omegaconf.OmegaConf.load(path)
        if not isinstance(loaded, omegaconf.DictConfig):
            raise ConfigError(f"Received {path}, which holds no sections; expected keys such as data: and backbone:.")
        merged = omegaconf.OmegaConf.merge(loaded, omegaconf.OmegaConf.from_dotlist(list(overrides)))
        values = omegaconf.OmegaConf.to_container(merged, resolve=True)
    except (omegaconf.errors.OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Received {path}, which cannot be read as a config: {error}") from error
    return check_config(values, path)


def check_config(values: dict[str, Any], origin: str) -> Config:
    """Validate nested dicts. Raises ConfigError with one line per problem."""
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        # A union of plain types gives one error for each member: the first says it.
        lines = {".".join(_locate(details["loc"])[1]): _explain(details) for details in reversed(error.errors())}
        raise ConfigError(f"{origin} cannot be run:\n" + "\n".join(f"  {line}" for line in lines.values())) from error


def save_config(config: Config, path: pathlib.Path) -> None:
    """Write the resolved config; it runs again as it is."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), "utf-8")


def _explain(details) -> str:
    """One problem in one line: the key, what was received, what was expected."""
    section, keys = _locate(details["loc"])
    key = ".".join(keys)
    kind, message = details["type"], details["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = sorted(section.model_fields)
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        return f"{key}: unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}")
    if kind == "missing":
        return f"{key}: missing; it has no default"
    if kind == "union_tag_not_found":
        return f"{key}.{details['ctx']['discriminator'].strip(chr(39))}: missing; it has no default"
    if kind == "union_tag_invalid":
        tag, known = details["ctx"]["tag"], details["ctx"]["expected_tags"].replace("'", "")
        near = difflib.get_close_matches(tag, known.split(", "), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return (
            f"{key}.{details['ctx']['discriminator'].strip(chr(39))}: received {tag!r}; expected one of {known}{hint}"
        )
    if kind == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: received {details['input']!r}; {message[0].lower()}{message[1:]}"


def _locate(location: tuple[int | str, ...]) -> tuple[type[Section], list[str]]:
    """The section of the schema that an error lies in, and the keys as a user writes them.

    Pydantic's location also holds the tag of a chosen member of a union, or the name of a member's type.
    """
    section: type[Section] = Config
    members: dict[str, type[Section]] = {}
    keys: list[str] = []
    for part in map(str, location):
        if part in members:
            section, members = members[part], {}
        elif part in section.model_fields:
            field = section.model_fields[part]
            sections = [t for t in (field.annotation, *typing.get_args(field.annotation)) if _is_section(t)]
            if field.discriminator:
                members = {typing.get_args(t.model_fields[field.discriminator].annotation)[0]: t for t in sections}
            elif sections:
                section = sections[0]
            keys.append(part)
        elif not keys or keys[-1] not in section.model_fields:  # below a plain value stand types, not keys
            keys.append(part)
    return section, keys


def _is_section(annotation) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
