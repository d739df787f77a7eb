"""Keys that configs had once: those that have another name now, and those that left, with what became of them.

So the `config.yaml` of an earlier run loads, and whoever writes an old key is told what to write in its place.
"""

import copy
from typing import Any, NamedTuple

from xbm_keras.arguments import arguments_of
from xbm_keras.config.schema import DEFAULT_LOSS, IN_CODE_ALONE
from xbm_keras.data.glyphs import Glyphs
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.stages.hard_top_k.by_label import HardTopK
from xbm_keras.stages.head.fc_layer import Head
from xbm_keras.stages.pair_losses import LOSSES

RENAMED = {
    "data.path_column": "data.images",
    "data.label_column": "data.labels",
    "data.text_column": "data.texts",
    "data.text_key": "data.texts",
    "data.label_key": "data.labels",
    "data.split.test_classes": "data.split.test",
    "data.split.test_fraction": "data.split.test",
    "cache.views": "views.number",
    "cache.turned_classes": "views.turned_classes",
    "cache.flip": "views.flip",
}
"""An old key, and the one that now says the same; of two that came to one, the first one comes first."""
OF_A_RUN = {"data", "backbone", "cache", "head", "memory", "top_k", "loss", "training", "export"}
"""The sections that each run writes, and each trial of a search, and hardly anybody by hand."""
UNLABELLED = "similarity_alignment"  # a loss without labels
FILES = ("keras_file", "saved_model")
"""Kinds of a backbone that the path tells apart."""


class Left(NamedTuple):
    """A key that left.

    Attributes:
        defaults: the values under which nothing is lost without it.
        became: what became of it, and why.
        instead: what to do now.
        unlabelled: its default where the loss uses no labels, if another one.
        where: a key and its value with which alone the key left.
        decides_features: whether a finished run cannot be used without it, either. Else it was of the training alone.
    """

    defaults: tuple
    became: str
    instead: str = "leave it out"
    unlabelled: Any = None
    where: tuple[str, str] | None = None
    decides_features: bool = False


NO_GAIN = "it gained nothing where it was measured (docs/measured/quality.md)"
CHOSEN = "each run chooses it on held-out classes (docs/measured/quality.md)"
UNMEASURED = "no measurement shows that it pays"
IN_CODE = "leave it out; in code {} takes it"


def _in_code(
    section: str, constructor: Any, *names: str, became: str = UNMEASURED, where=None, decides_features: bool = False
) -> dict[str, Left]:
    """Arguments of a constructor that have no key any more: a run has their defaults."""
    arguments, instead = arguments_of(constructor), IN_CODE.format(constructor.__qualname__)
    defaults = {name: arguments[name].default for name in names}
    return {
        f"{section}.{name}": Left(
            (list(value) if isinstance(value, tuple) else value,), became, instead, None, where, decides_features
        )
        for name, value in defaults.items()
    }


LEFT = {
    "data.split.validation_fraction": Left((0.25,), "it is a quarter, or without labels a tenth", unlabelled=0.1),
    "data.split.validation_fold": Left((0,), "training.folds holds out one after another (docs/measured/quality.md)"),
    "data.split.validation": Left((0.15,), "it is 15 %"),
    "data.data_dir": Left((None,), "TensorFlow Datasets has a variable for it", "set TFDS_DATA_DIR"),
    "data.image_key": Left(("image",), "it is the feature image, or the only image", decides_features=True),
    **_in_code("data", Glyphs, "min_fonts", "drawings", "rotation", "noise", decides_features=True),
    **_in_code(
        "backbone", Backbone.from_application, "pooling", became="maxima found no more than means",
        where=("backbone.kind", "keras_applications"), decides_features=True,
    ),
    **_in_code("backbone", Backbone.from_file, "endpoint", decides_features=True),
    "cache.on_error": Left(("skip",), "data.json lists what was skipped", "leave it out, and look there"),
    "cache.shard_rows": Left((1024,), "it is a constant: it decides nothing"),
    "cache.views_as_positives": Left((False,), UNMEASURED),
    **_in_code("head", Head, "hidden_dim", "width_weights"),
    "head.weighting": Left(("auto",), CHOSEN),
    "head.total_share": Left(("auto",), CHOSEN),
    "head.power": Left(("auto",), CHOSEN, IN_CODE.format("Head"), unlabelled=1.0),
    "head.nesting": Left(("joint",), UNMEASURED, "leave it out: all widths train at once"),
    "top_k.kind": Left(("hard", "neighbors"), "it follows from loss.name"),
    "top_k.sketch_dim": Left((64,), "other widths picked no better (docs/measured/rows.md)"),
    "top_k.rerank": Left((4,), "fewer candidates picked worse (docs/measured/rows.md)"),
    **_in_code("top_k", HardTopK, "positives", "max_score", "absolute_margin", "relative_margin"),
    "training.schedule": Left(("growing",), "the rate of pairs falls, any other grows (docs/config.md)"),
    "training.warmup": Left((0.0,), "the rate of pairs falls, any other grows (docs/config.md)"),
    "training.weight_decay": Left((0.0,), UNMEASURED),
    "training.feature_dropout": Left((0.0,), NO_GAIN),
    "training.averaging": Left((None,), NO_GAIN),
    "training.start_l2": Left((0.0,), NO_GAIN, "leave it out; training.start_alignment also holds on to the start"),
    "training.jit_compile": Left(("auto",), "Keras chooses (docs/scale.md)", IN_CODE.format("compile()")),
    "export.license": Left((None,), "the model card tells it", "put a LICENSE file beside the weights"),
    "search.folds": Left((1,), UNMEASURED),
    "search.patience": Left((2,), "it is a constant", "leave it out; training.patience may be smaller"),
}  # fmt: skip
LEFT_OF_LOSSES = {
    name: _in_code(
        "loss", loss, *IN_CODE_ALONE.get(name, ()),
        became=UNMEASURED if loss.uses_labels else "others keep what is far (docs/compress.md)",
    )
    for name, loss in LOSSES.items()
}  # fmt: skip
"""Of each loss by itself: what left one is a key of others."""


def translated(values: dict[str, Any], is_finished: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Values of a config as they are written now, and what is wrong with their old keys: a line for each.

    Args:
        values: nested; unchecked, and left as they are.
        is_finished: whether they are of a finished run, for which keys of the training decide nothing any more.
    """
    values, problems = renamed(values), []
    backbone = values.get("backbone")
    name_of_loss = _loss_of(values)
    is_unlabelled = name_of_loss == UNLABELLED
    if isinstance(backbone, dict) and is_finished:  # of versions that chose nothing here: others say what they took
        kind, layers = backbone.get("kind"), backbone.get("layers", "auto")
        if kind == "keras_hub":
            backbone.setdefault("parts", "pooled")
        elif kind == "keras_applications" and layers == "auto" and not is_unlabelled:
            backbone["layers"] = "pyramid"
    for key, left in {**LEFT, **LEFT_OF_LOSSES.get(name_of_loss, {})}.items():
        section, name = _inside(values, left.where[0] if left.where else key)
        if not _has(values, key) or (left.where and section.get(name) != left.where[1]):
            continue
        value = _take(values, key)
        defaults = (left.unlabelled,) if is_unlabelled and left.unlabelled is not None else left.defaults
        is_lost = not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in defaults)
        if is_lost and (left.decides_features or not is_finished):
            problems.append(f"{key}: received {value!r}; this key left, since {left.became}: {left.instead}")
    search = values.get("search")
    if isinstance(search, dict) and isinstance(search.get("space"), dict):
        search["space"] = _space(search["space"], problems)
    return values, problems


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Values of a config, nested, whose old keys are those of today, but for keys that left; unchecked, and a copy."""
    values = copy.deepcopy(values)
    _merge_ray(values)
    backbone = values.get("backbone")
    if isinstance(backbone, dict) and backbone.get("kind") in FILES:
        backbone["kind"] = "file"
    top_k = values.get("top_k")
    if isinstance(top_k, dict) and "key_refresh" in top_k:
        if values.keys() >= OF_A_RUN:
            top_k.setdefault("num_random", 0)  # of a version that knew none
        if top_k["key_refresh"] == "exact":
            del top_k["key_refresh"]
        elif top_k.get("mine_in") == "embeddings":
            top_k["mine_in"] = top_k.pop("key_refresh")
    for old, new in RENAMED.items():
        if _has(values, old):
            value = _take(values, old)
            if value is not None or new != "data.split.test":  # null was its default
                _put(values, new, value)
    _merge_batch(values)
    anchors = _take(values, "training.anchors")
    if anchors == "documents":
        values["training"]["negatives"] = "queries"
    elif anchors not in (None, "queries"):
        values["training"]["anchors"] = anchors  # to be told of as any unknown key
    return values


def _loss_of(values: dict[str, Any]) -> str:
    loss = values.get("loss")
    return str(loss.get("name", DEFAULT_LOSS)) if isinstance(loss, dict) else DEFAULT_LOSS


def _merge_ray(values: dict[str, Any]) -> None:
    """`cache.engine` and the number of its workers were two keys."""
    engine = _take(values, "cache.engine")
    if engine == "local":
        _take(values, "cache.ray_workers")
    elif engine == "ray" and not values["cache"].get("ray_workers"):
        values["cache"]["ray_workers"] = 2
    elif engine is not None and engine != "ray":
        values["cache"]["engine"] = engine  # to be told of as any unknown key


def _merge_batch(values: dict[str, Any]) -> None:
    """A batch with labels was so many classes of so many items; `batch_size` was of other batches alone."""
    training, data = values.get("training"), values.get("data")
    if not isinstance(training, dict):
        return
    classes, samples = training.get("classes_per_batch"), training.get("samples_per_class", 4)
    if isinstance(classes, int) and isinstance(samples, int):  # else it is told of as any unknown key
        del training["classes_per_batch"]
        if not (_loss_of(values) == UNLABELLED or (isinstance(data, dict) and data.get("source") == "pairs")):
            training["batch_size"] = classes * samples


def _space(space: dict, problems: list[str]) -> dict:
    """The keys of a search, and those of its conditions."""
    now = {}
    for key, given in space.items():
        left = LEFT.get(key)
        if left and not left.where:
            problems.append(f"search.space with {key}: this key left, since {left.became}: take it out of the space")
        now[RENAMED.get(key, key)] = given
    return now


def _inside(values: Any, key: str) -> tuple[Any, str]:
    *sections, name = key.split(".")
    for section in sections:
        values = values.get(section) if isinstance(values, dict) else None
    return values, name


def _has(values: dict[str, Any], key: str) -> bool:
    inside, name = _inside(values, key)
    return isinstance(inside, dict) and name in inside


def _take(values: dict[str, Any], key: str) -> Any:
    """The value of a key, taken out; None where it is not there."""
    inside, name = _inside(values, key)
    return inside.pop(name, None) if isinstance(inside, dict) else None


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a value, unless the new key is there too, which comes first."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    if isinstance(values, dict):
        values.setdefault(name, value)
