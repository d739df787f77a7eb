"""What a run leaves behind."""

import datetime
import importlib.metadata
import json
import logging
import pathlib
import shlex
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from xbm_keras import model_card
from xbm_keras.config import ConfigError, save_config
from xbm_keras.costs import Cost
from xbm_keras.data.sources import DataError
from xbm_keras.export import describe_signatures, export_encoder
from xbm_keras.loading import Dataset
from xbm_keras.model import XBMModel
from xbm_keras.report.projector import write_projector
from xbm_keras.report.run_report import write_run_report
from xbm_keras.schema import Config, Neighbors
from xbm_keras.stages.head import Head
from xbm_keras.stages.hub_backbone import HubBackbone

log = logging.getLogger("xbm_keras")


def create(workdir: str | None, config_path: str, config: Config) -> pathlib.Path:
    """Make the folder of a run and write `config.yaml`, which runs again as it is.

    Raises:
        ConfigError: if a finished run is there, or the folder cannot be made.
    """
    if workdir is None:
        workdir = f"runs/{pathlib.Path(config_path).stem}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder = pathlib.Path(workdir)
    if (folder / "metrics.json").exists():
        raise ConfigError(
            f"Received --workdir {workdir}, which holds a finished run; give another folder, or remove it."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in ("history.csv", "data.json", "report.html"):
            (folder / leftover).unlink(missing_ok=True)
        save_config(config, folder / "config.yaml")
    except OSError as error:
        raise ConfigError(f"Received --workdir {workdir}, which cannot be written: {error}") from error
    return folder


def write_data(workdir: pathlib.Path, dataset: Dataset) -> None:
    """Write `data.json`: the labels by number, how many items do what, what was skipped and why."""
    splits = dataset.splits
    counts = np.bincount(dataset.labels[: len(dataset.keys)], minlength=len(dataset.label_names))
    about: dict = {
        "labels": dataset.label_names,
        "items": {name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
        "classes": {name: _num_classes(dataset, getattr(splits, name)) for name in ("train", "validation", "test")},
        "classes_with_one_item": [dataset.label_names[i] for i in np.flatnonzero(counts == 1)],
        "skipped": dataset.skipped,
        "read_for_backbone": dataset.num_computed,
    }
    (workdir / "data.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), "utf-8")
    for key, what in (("skipped", "item(s) skipped"), ("classes_with_one_item", "class(es) with one item")):
        if about[key]:
            log.warning("%d %s; see data.json.", len(about[key]), what)


def write_model(workdir: pathlib.Path, model: XBMModel) -> None:
    """Write `model.keras`, and of a model of texts `tokenizer/`.

    A backbone that is a SavedModel or of keras_hub is left out of `model.keras`: Keras files cannot hold the one, nor
    the preprocessing of the other.
    """
    backbone = model.backbone
    if isinstance(backbone, HubBackbone) and backbone.modality == "text":
        backbone.save_tokenizer(workdir / "tokenizer")
    if backbone is not None and (backbone.is_saved_model or isinstance(backbone, HubBackbone)):
        model = model.without_backbone()
    model.save(workdir / "model.keras")


def export_model(workdir: pathlib.Path, model: XBMModel, config: Config, metrics: dict) -> pathlib.Path:
    """Write the next `export/<version>/`, with `model_card.md` and `labels.json`, the names of the classes."""
    c = config.export
    target = export_encoder(model, workdir / "export", weights=c.weights, max_pixels=c.max_pixels, codes=c.codes)
    about = json.loads((workdir / "data.json").read_text("utf-8"))
    card = model_card.render(config.model_dump(mode="json"), about, metrics, describe_signatures(target))
    (target / "model_card.md").write_text(card, "utf-8")
    (target / "labels.json").write_text(json.dumps(about["labels"], indent=1, ensure_ascii=False), "utf-8")
    return target


def write_metrics(workdir: pathlib.Path, metrics: dict) -> None:
    """Write `metrics.json`, last of all: it marks a run as finished."""
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1), "utf-8")


def write_report(
    workdir: pathlib.Path, config: Config, dataset: Dataset, head: Head, metrics: dict, costs: Sequence[Cost]
) -> None:
    """Write `report.html`, and the test embeddings for TensorBoard's projector; where they cannot be made, say why.

    The run itself is finished by then.
    """
    try:
        write_run_report(
            workdir / "report.html",
            title=workdir.name,
            command=shlex.join(["python", *sys.argv]),
            about=_about(config, dataset, head, metrics),
            config=(workdir / "config.yaml").read_text("utf-8"),
            dataset=dataset,
            head=head,
            metrics=metrics,
            costs=costs,
        )
        write_projector(workdir / "tensorboard", dataset, head)
    except (OSError, DataError) as error:
        log.warning("The report could not be written: %s", error)


def _num_classes(dataset: Dataset, positions: np.ndarray) -> int:
    return len(np.unique(dataset.labels[positions])) if dataset.has_labels else 0


def _about(config: Config, dataset: Dataset, head: Head, metrics: dict) -> dict[str, str]:
    """What was run, for people."""
    c, splits, data = config, dataset.splits, config.data
    where = next((getattr(data, name) for name in ("root", "path", "name") if hasattr(data, name)), None)
    network = c.backbone
    counts = {
        name: f"{len(rows):,} items" + (f", {_num_classes(dataset, rows):,} classes" if dataset.has_labels else "")
        for name, rows in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
    }
    memory_size = min(c.memory.memory_size, len(splits.train) + len(splits.validation) * c.training.refit)
    start = metrics["validation"].get("start", c.head.start)  # which one, where the config says "auto"
    widths = ", ".join(map(str, c.head.widths or [c.head.embedding_dim]))
    if isinstance(c.top_k, Neighbors):
        picked = f"{c.top_k.num_neighbors} neighbours, {c.top_k.num_random} random rows, without labels"
    else:
        picked = f"{c.top_k.num_negatives} negatives, {c.top_k.num_positives} positives, in {c.top_k.mine_in}"
    devices = tf.config.list_physical_devices("GPU")
    return {
        "Data": f"{where} ({data.source})" if where else data.source,
        "Network": next(
            (str(getattr(network, n)) for n in ("name", "preset", "path") if hasattr(network, n)),
            "vectors as given" if network.kind == "none" else network.kind,
        ),
        "Training": counts["train"],
        "Validation": counts["validation"],
        "Test": counts["test"],
        "Head": f"{c.head.kind}, {dataset.features.shape[1]} → {widths} dimensions, start {start}",
        "Memory": f"{memory_size:,} rows, {c.memory.storage_dtype}" if memory_size else "off: pairs within a batch",
        "Top-k sample": picked,
        "Loss": ", ".join(f"{name} {value}" for name, value in c.loss.model_dump().items()).removeprefix("name "),
        "Epochs": f"{metrics['validation']['epoch']} of at most {c.training.epochs}; last phase {metrics['phase']}",
        "Seed": str(c.training.seed),
        "Device": "CPU" if not devices else str(tf.config.experimental.get_device_details(devices[0])["device_name"]),
        "Versions": ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")
        ),
    }
