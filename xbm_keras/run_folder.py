"""What a run leaves behind, and its closing words in the terminal."""

import datetime
import json
import pathlib

import numpy as np
import rich.console
import rich.table

from xbm_keras.config import Config, ConfigError, save_config
from xbm_keras.experiment import Dataset
from xbm_keras.model import XBMModel

SHOWN = {"recall_at_1": "Recall@1", "recall_at_5": "Recall@5", "recall_at_10": "Recall@10"}
SHOWN |= {"map_at_r": "MAP@R", "r_precision": "R-Precision"}


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
        for leftover in ("history.csv", "data.json"):
            (folder / leftover).unlink(missing_ok=True)
        save_config(config, folder / "config.yaml")
    except OSError as error:
        raise ConfigError(f"Received --workdir {workdir}, which cannot be written: {error}") from error
    return folder


def write_data(workdir: pathlib.Path, dataset: Dataset) -> None:
    """Write `data.json`: the labels by number, how many items do what, what was skipped and why."""
    splits = dataset.splits
    counts = np.bincount(dataset.labels, minlength=len(dataset.label_names))
    about = {
        "labels": dataset.label_names,
        "items": {name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
        "classes": {
            name: len(np.unique(dataset.labels[getattr(splits, name)])) for name in ("train", "validation", "test")
        },
        "classes_with_one_item": [dataset.label_names[i] for i in np.flatnonzero(counts == 1)],
        "skipped": dataset.skipped,
        "computed_by_backbone": dataset.num_computed,
    }
    (workdir / "data.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), "utf-8")


def write_model(workdir: pathlib.Path, model: XBMModel) -> None:
    """Write `model.keras`; without its backbone where that is a SavedModel, which Keras files cannot hold."""
    if model.backbone is not None and model.backbone.is_saved_model:
        model = model.without_backbone()
    model.save(workdir / "model.keras")


def write_metrics(workdir: pathlib.Path, metrics: dict) -> None:
    """Write `metrics.json`, last of all: it marks a run as finished."""
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1), "utf-8")


def verdict(metrics: dict) -> str:
    """One sentence: is the trained head worth having."""
    scores = {name: values["map_at_r"] for name, values in metrics["leave_one_out"].items()}
    others = {name: value for name, value in scores.items() if name != "trained"}
    best = max(others, key=others.__getitem__)
    gain = scores["trained"] - others[best]
    name = best.replace("_", " ")
    if scores["trained"] < scores["frozen"]:
        return (
            f"The head is WORSE than the frozen features: MAP@R {scores['trained']:.3f} against {scores['frozen']:.3f}."
        )
    if gain < 0:
        return f"Training made the head worse than its {name} start, by {-gain:.3f} MAP@R: use training.epochs=0."
    return f"The trained head is {gain:.3f} MAP@R above the best of the others ({name})."


def print_results(workdir: pathlib.Path, metrics: dict) -> None:
    """The table of `metrics.json`, the verdict and the paths."""
    console = rich.console.Console()
    table = rich.table.Table(title="Test items" if console.is_terminal else None, box=rich.box.SIMPLE)
    table.add_column("protocol")
    table.add_column("embedding")
    for title in SHOWN.values():
        table.add_column(title, justify="right")
    for protocol in ("leave_one_out", "query_gallery"):
        for name, values in metrics.get(protocol, {}).items():
            table.add_row(
                protocol.replace("_", " "), name.replace("_", " "), *(f"{values[metric]:.3f}" for metric in SHOWN)
            )
    console.print(table)
    console.print(verdict(metrics), highlight=False)
    console.print(f"Model: {workdir}/export/1 (SavedModel), {workdir}/model.keras", highlight=False)
    console.print(f"Numbers: {workdir}/metrics.json, {workdir}/history.csv", highlight=False)
