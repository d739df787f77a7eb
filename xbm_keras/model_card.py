"""`model_card.md`, beside the exported model: what it is, what it was made from, and how good it was measured to be."""

import datetime
import pathlib
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
import yaml

import xbm_keras
from xbm_keras.results import shown, title, views

VERSIONS = {  # as imported: a checkout may not be installed, and TensorFlow has several names as a distribution
    "xbm-keras": xbm_keras.__version__,
    "keras": keras.__version__,
    "tensorflow": tf.__version__,
    "numpy": np.__version__,
}
PROTOCOLS = {
    "leave_one_out": "each test item queries all others",
    "query_gallery": "query items against gallery items",
    "neighbors": "neighbours and similarities of the frozen features that are kept",
}


def render(config: dict, data: dict, metrics: dict, signatures: dict[str, str]) -> str:
    """The card, Markdown.

    Args:
        config: the resolved config of the run.
        data: what `data.json` holds.
        metrics: what `metrics.json` holds.
        signatures: of the SavedModel, each with what it takes.
    """
    items, classes = data["items"], data["classes"]
    origin = config["data"].get("root") or config["data"].get("path") or config["data"].get("name")
    head = config["head"]
    lines = [
        f"# Embedding model, {head['embedding_dim']} dimensions",
        "",
        "Maps an item to a vector of unit length; the cosine similarity of two vectors says how alike the items are. "
        "A frozen network gives features, and a trained FC layer maps them to the vector.",
        "",
        "| | |",
        "|---|---|",
        f"| network | {_network(config['backbone'])} |",
        f"| licence of its weights | {_license(config)} |",
        f"| data | `{config['data']['source']}`: `{origin}` |",
        f"| trained on | {_trained_on(data, metrics)} |",
        f"| tested on | {items['test']:,} items{_of_classes(classes['test'])} |",
        f"| left out | {len(data['skipped']):,} items that could not be read |",
        f"| recipe | {head['kind']} head, start `{head['start']}`, loss `{config['loss']['name']}`, "
        f"{metrics['validation']['epoch']} epochs, seed {config['training']['seed']} |",
        f"| date | {datetime.datetime.now(datetime.UTC):%Y-%m-%d} |",
        f"| made with | {', '.join(f'{name} {version}' for name, version in VERSIONS.items())} |",
        "",
        "## How good it is",
        "",
        _split(config["data"]["split"]),
        "",
    ]
    for protocol, meaning in PROTOCOLS.items():
        if protocol in metrics:
            lines += [*_table(meaning, metrics[protocol], shown(protocol)), ""]
    lines += ["## How to call it", "", "| signature | takes |", "|---|---|"]
    lines += [f"| `{name}` | {inputs} |" for name, inputs in sorted(signatures.items())]
    lines += ["", "`saved_model_cli show --all --dir .` lists them with shapes and types.", "", "## The config", ""]
    return "\n".join(
        [*lines, "```yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip(), "```", ""]
    )


def _trained_on(data: dict, metrics: dict) -> str:
    """How many items and classes, with which views, and which of them chose the number of epochs."""
    phase = metrics["phase"]
    parts = ("train", "validation") if phase == "refit" else ("train",)
    items, classes = (sum(data[what][part] for part in parts) for what in ("items", "classes"))
    chose = f"{data['items']['validation']:,} items {'of these' if phase == 'refit' else 'of other classes'}"
    return f"{items:,} items{_of_classes(classes)}{views(metrics['validation'])}; {chose} chose the number of epochs"


def _of_classes(count: int) -> str:
    """Nothing, where the items have no labels."""
    return f" of {count:,} classes" if count else ""


def _table(meaning: str, embeddings: dict[str, dict[str, float]], columns: Mapping[str, str]) -> list[str]:
    """Of one protocol a row for each embedding."""
    rows = [f"| {meaning} | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, values in embeddings.items():
        rows.append(f"| {title(name)} | " + " | ".join(f"{values[key]:.3f}" for key in columns) + " |")
    return rows


def _network(backbone: dict) -> str:
    """The backbone in a few words."""
    name = backbone.get("name") or backbone.get("preset") or backbone.get("path")
    if name is None:
        return "none: it takes vectors that another model gave"
    weights = f", weights `{backbone['weights']}`" if backbone.get("weights") else ""
    size = "x".join(map(str, backbone.get("image_size") or ()))
    return f"`{name}`{weights}" + (f", pictures at {size}" if size else "")


def _license(config: dict) -> str:
    """What the config says; else the first line of a licence that lies beside the weights."""
    stated = config.get("export", {}).get("license")
    if stated:
        return stated
    weights = config["backbone"].get("weights") or config["backbone"].get("path") or config["backbone"].get("preset")
    if weights and pathlib.Path(weights).exists():
        place = pathlib.Path(weights)
        for path in sorted((place if place.is_dir() else place.parent).glob("LICENSE*")):
            first = next((line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip()), "")
            return f"{first} (from `{path.name}` beside them)"
    return "not stated (set `export.license`); the exported model contains them"


def _split(split: dict) -> str:
    """How test items were told from training items."""
    if split["by"] == "class":
        return "On test items of classes that training never saw. Frozen: the network's own features."
    return "On test items that training never saw, of the same classes. Frozen: the network's own features."
