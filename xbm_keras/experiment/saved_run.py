"""A finished run, opened again: what its network and head make of any data."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import ConfigError, blaming_config, check_config, load_config, read_values
from xbm_keras.data.arrays import Vectors
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.errors import DataError
from xbm_keras.data.pair_dataset import PairDataset, split_pairs
from xbm_keras.data.unit_rows import FeatureRows, UnitRows
from xbm_keras.data.views import Average
from xbm_keras.evaluation.retrieval import embed
from xbm_keras.experiment.averaging import with_views
from xbm_keras.experiment.build import make_backbone
from xbm_keras.experiment.loading import held_out, load_dataset, split_of, usable
from xbm_keras.experiment.pair_loading import VALIDATION_SHARE, load_pairs
from xbm_keras.experiment.run_folder import read_record
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.stages.backbone.frozen import load_keras_file
from xbm_keras.stages.head.fc_layer import Head

PLACES = ("root", "table", "path", "test_path", "data_dir")  # keys of the section `data` that are paths


def run_of(model: str) -> pathlib.Path:
    """The workdir of the run that `--model` names: itself, or that of its export or of a version of it."""
    path = pathlib.Path(os.path.abspath(model))
    if (path / "config.yaml").is_file():
        return pathlib.Path(model)
    if path.name in ("export", "model.keras"):
        return path.parent
    return path.parent.parent if path.parent.name == "export" else pathlib.Path(model)


def load_data(
    run: str,
    config_path: str | None = None,
    overrides: Sequence[str] = (),
    all_test: bool = False,
    finds_held_out: bool = False,
) -> Dataset | PairDataset:
    """The items, or queries and documents, that a config describes, with features of the network of a run.

    Args:
        run: its workdir, export, or a version of it.
        config_path: of the data, which need no labels, and the cache. By default the run's own. The network, and all
            that was decided about it, is the run's: other sections do not matter, and may be left out.
        overrides: `section.key=value`.
        all_test: whether all items, or queries, test, instead of those that the config says.
        finds_held_out: whether those that trained and those that chose are told apart as in the run: of items without
            labels their vectors are read for it.

    Raises:
        ConfigError: where the folder holds no finished run, or the config cannot be used.
        DataError: for data that cannot be used.
    """
    config = _configs(run, config_path, overrides)[1]
    if config.is_of_pairs:
        return load_pairs(config, make_backbone(config), only_test=all_test)[0]
    dataset = load_dataset(config, make_backbone(config), all_test, is_training=False)
    if finds_held_out:
        return dataclasses.replace(dataset, splits=held_out(config, dataset.splits, dataset.features))
    return dataset


def average_views(
    run: str,
    head: Head,
    data: Dataset | PairDataset,
    average: Sequence[Average],
    config_path: str | None = None,
    overrides: Sequence[str] = (),
) -> np.ndarray:
    """Embeddings [n, E] of the test pictures, each the mean of its own and of those of its views, as export gives them.

    Args:
        run: as for `load_data`.
        head: of it.
        data: what `load_data` gave.
        average: which views.
        config_path: the same as there.
        overrides: the same.

    Raises:
        ConfigError: where the data are no pictures, or the network names no size of them.
        DataError: where a picture cannot be read any more.
    """
    config = _configs(run, config_path, overrides)[1]
    backbone = make_backbone(config)
    is_of_pictures = config.data.modality == "image"
    if isinstance(data, PairDataset) or isinstance(data.source, Vectors) or backbone is None or not is_of_pictures:
        raise ConfigError(
            f"Received --average with data.source {config.data.source!r}; expected pictures, of which there are views. "
            "Leave it out."
        )
    if not backbone.image_size:
        raise ConfigError(
            "Received --average with a run whose network names no size of its pictures; expected one, to which views "
            "are resized. Leave it out, or train with backbone.image_size."
        )
    check_width(head, data.features)
    test = data.splits.test
    positions, plain = data.source_positions[test], embed_items(head, data.features, test)
    embed_rows = functools.partial(embed_items, head)
    found, _, reasons = with_views(plain, data.source, positions, average, config, backbone, embed_rows)
    for position, reason in reasons.items():
        raise DataError(
            f"Received {data.source.items.keys[position]}, which can no longer be read: {reason}. Try again."
        )
    return found


def count_trained(
    run: str, data: Dataset | PairDataset, config_path: str | None = None, overrides: Sequence[str] = ()
) -> int:
    """How many of the items, or queries, its head was trained or chosen by; 0 where that cannot be told, such as for
    data that are not those of the run, or that changed since.

    Args:
        run: as for `load_data`.
        data: what it gave, all for test.
        config_path: the same.
        overrides: the same.
    """
    own, other = _configs(run, config_path, overrides)
    if _place(own) != _place(other):
        return 0
    try:
        about = read_record(run_of(run) / "data.json")
        if isinstance(data, PairDataset):
            splits = split_pairs(data.pairs, own.data.split.test, VALIDATION_SHARE, own.data.split.seed)
        else:
            items = data.source.items.take(data.source_positions)
            splits = split_of(own, items.take(usable(own, items)), is_training=False)
    except (ConfigError, DataError, OSError):
        return 0
    counts = {name: len(getattr(splits, name)) for name in ("train", "validation", "test")}
    if about.get("queries" if isinstance(data, PairDataset) else "items") != counts:
        return 0
    return counts["train"] + counts["validation"]


def _place(config: Config) -> dict:
    """What data a config names, and where they are."""
    named = config.data.model_dump(mode="json", exclude={"split"})
    return named | {key: os.path.realpath(os.path.expanduser(named[key])) for key in PLACES if named.get(key)}


def _configs(run: str, config_path: str | None, overrides: Sequence[str]) -> tuple[Config, Config]:
    """That of the run, and that of the data: see `load_data`."""
    own = run_of(run) / "config.yaml"
    if not own.is_file():
        raise ConfigError(f"Received --model {run!r}, which holds no config.yaml; expected the workdir of a run.")
    former = load_config(str(own), is_finished=True)
    saved = former.model_dump(mode="json")
    path = config_path or str(own)
    values = read_values(path, overrides)
    given = {name: values[name] for name in values if name in ("data", "cache") or name not in saved}
    given["views"] = {}  # of training
    given["export"] = {}  # of pictures, which the data need not be
    given.setdefault("cache", {"dir": saved["cache"]["dir"]})
    data = given.get("data")
    if isinstance(data, dict) and data.get("source") == "features":
        given["backbone"] = {"kind": "none"}
    given.setdefault("data", {})
    return former, check_config({**saved, **given}, path, is_finished=True)


def load_head(run: str) -> Head:
    """The trained head. Raises ConfigError where the folder holds no finished run."""
    return _load(run).head


def load_model(run: str) -> XBMModel:
    """The whole model, with its backbone. Raises ConfigError where the folder holds no finished run."""
    model = _load(run)
    backbone = make_backbone(load_config(str(run_of(run) / "config.yaml"), is_finished=True))
    if backbone is None or model.backbone is not None:
        return model
    return model.with_backbone(backbone)  # it was saved without


def _load(run: str) -> XBMModel:
    path = run_of(run) / "model.keras"
    if not path.is_file():
        raise ConfigError(f"Received --model {run!r}, which holds no model.keras; expected the workdir of a run.")
    with blaming_config():
        return load_keras_file(path)


def check_width(head: Head, features: FeatureRows) -> None:
    """Raises ConfigError where the features are of another width than the head's."""
    width, expected = features.shape[1], head.kernel.shape[0]
    if width != expected:
        raise ConfigError(
            f"Received features of width {width} for a head that takes {expected}; expected features of the network "
            "that the head was trained on."
        )


def embed_items(
    head: Head, features: FeatureRows, positions: np.ndarray | None = None, of_rows: bool = False
) -> np.ndarray:
    """Embeddings [n, E] of items, by default of all, float32 of unit length; `of_rows` for documents."""
    chosen = np.arange(len(features)) if positions is None else positions
    return embed(head, UnitRows(features, chosen), of_rows=of_rows)
