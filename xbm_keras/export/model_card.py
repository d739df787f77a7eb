"""`model_card.md`, beside the exported model: what it is, what it was made from, and how good it was measured to be."""

import datetime
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
import yaml

from xbm_keras import __version__
from xbm_keras.data.labels import counted
from xbm_keras.data.views import Average, changes_of
from xbm_keras.evaluation.wording import shown, title, views

VERSIONS = {  # as imported: a checkout may not be installed, and TensorFlow has several names as a distribution
    "xbm-keras": __version__,
    "keras": keras.__version__,
    "tensorflow": tf.__version__,
    "numpy": np.__version__,
}
PROTOCOLS = {
    "leave_one_out": "each test item queries all others",
    "query_gallery": "query items against gallery items",
    "neighbors": "neighbours and similarities of the frozen features that are kept",
    "pairs": "all test queries, over the whole corpus",
    "pairs_unseen_documents": "queries whose documents answered none that trained",
}


def render_card(config: dict, recipe: dict, data: dict, metrics: dict, signatures: dict[str, str]) -> str:
    """The card, Markdown. It goes where the model goes, so no path and nothing from the environment stands in it.

    Args:
        config: the resolved config of the run.
        recipe: what of it may be shown.
        data: what `data.json` holds.
        metrics: what `metrics.json` holds.
        signatures: of the SavedModel, each with what it takes.
    """
    head = config["head"]
    lines = [
        f"# Embedding model, {head['embedding_dim']} dimensions",
        "",
        "Maps an item to a vector of unit length; the cosine similarity of two vectors says how alike the items are. "
        "A frozen network gives features, and a trained FC layer maps them to the vector.",
        "",
        "| | |",
        "|---|---|",
        f"| network | {network_of(config['backbone'])} |",
        f"| licence of its weights | {_license(config)} |",
        f"| data | {data_of(config['data'])} |",
        f"| trained on | {_trained_on(data, metrics)} |",
        f"| tested on | {_tested_on(data)} |",
        f"| left out | {len(data['skipped']):,} items that could not be read |",
        f"| recipe | {head['kind']} head, start `{head['start']}`, loss `{config['loss']['name']}`, "
        f"{counted(metrics['validation']['epoch'], 'epoch')}, seed {config['training']['seed']} |",
        f"| date | {datetime.datetime.now(datetime.UTC):%Y-%m-%d} |",
        f"| made with | {', '.join(f'{name} {version}' for name, version in VERSIONS.items())} |",
        "",
        "## How good it is",
        "",
        _split(data, config["data"]["split"]),
        "",
    ]
    lines += _averaged(config["export"].get("average"))
    for protocol, meaning in PROTOCOLS.items():
        if protocol in metrics:
            lines += [*_table(meaning, metrics[protocol], shown(protocol)), ""]
    lines += ["## How to call it", "", "| signature | takes |", "|---|---|"]
    lines += [f"| `{name}` | {inputs} |" for name, inputs in sorted(signatures.items())]
    if "serve_bytes" in signatures:
        lines += ["", "`serve_bytes` takes JPEG, PNG, GIF, WebP and BMP; what it cannot decode is not `valid`."]
    lines += ["", "`saved_model_cli show --all --dir .` lists them with shapes and types.", "", "## The recipe", ""]
    lines += ["The config of the run without paths and other texts of its author; the rest are defaults.", ""]
    return "\n".join([*lines, "```yaml", as_yaml(recipe).rstrip(), "```", ""])


def as_yaml(recipe: dict) -> str:
    """The recipe as a reader sees it."""
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def _trained_on(data: dict, metrics: dict) -> str:
    """How many items and classes, with which views, and which of them chose the number of epochs."""
    phase = metrics["phase"]
    if "queries" in data:
        queries = data["queries"]
        count = queries["train"] + (queries["validation"] if phase == "refit" else 0)
        chose = f"{queries['validation']:,} queries {'of these' if phase == 'refit' else 'beside them'}"
        return f"{count:,} queries; {chose} chose the number of epochs"
    parts = ("train", "validation") if phase == "refit" else ("train",)
    items, classes = (sum(data[what][part] for part in parts) for what in ("items", "classes"))
    held_out = metrics["validation"].get("held_out", data["items"]["validation"])
    folds = metrics["validation"].get("folds", 1)
    times = f", {folds} times each with others held out," if folds > 1 else ""
    chose = f"{held_out:,} items {'of these' if phase == 'refit' else 'of other classes'}{times}"
    return f"{items:,} items{_of_classes(classes)}{views(metrics['validation'])}; {chose} chose the number of epochs"


def _tested_on(data: dict) -> str:
    if "queries" in data:
        return f"{data['queries']['test']:,} queries, {data['documents']:,} documents"
    return f"{data['items']['test']:,} items{_of_classes(data['classes']['test'])}"


def _of_classes(count: int) -> str:
    """Nothing, where the items have no labels."""
    return f" of {count:,} classes" if count else ""


def _averaged(average: Sequence[Average] | None) -> list[str]:
    """What to know of embeddings that are means over views of a picture; nothing, where they are none."""
    if not average:
        return []
    views = list(changes_of(average))
    return [
        f"Each picture passes the network {1 + len(views)} times: its embedding is the mean, of unit length, of those "
        f"of the picture and of its views ({', '.join(views)}). Features are embedded as they are. The scores below "
        "are of pictures without views.",
        "",
    ]


def _table(meaning: str, embeddings: dict[str, dict[str, float]], columns: Mapping[str, str]) -> list[str]:
    """Of one protocol a row for each embedding."""
    rows = [f"| {meaning} | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, values in embeddings.items():
        rows.append(f"| {title(name)} | " + " | ".join(f"{values[key]:.3f}" for key in columns) + " |")
    return rows


def data_of(data: dict) -> str:
    """What kind of data it was, and of TFDS which: paths are nobody's business."""
    return f"`{data['source']}`" + (f": `{data['name']}`" if data["source"] == "tfds" else "")


def network_of(backbone: dict) -> str:
    """The backbone in a few words: by the name that all know it by, files by their content."""
    if backbone["kind"] == "none":
        return "none: it takes vectors that another model gave"
    origin = backbone.get("preset") or backbone.get("path") or backbone.get("weights") or ""
    is_path = ("/" in origin and "://" not in origin) or pathlib.Path(origin).exists()
    is_name = origin == "imagenet" or ("preset" in backbone and not is_path)
    weights = f", weights {f'`{origin}`' if is_name else _content_of(pathlib.Path(origin))}" if origin else ""
    size = "x".join(map(str, backbone.get("image_size") or ()))
    parts = backbone.get("parts")
    told = f", its parts {' + '.join(parts)}" if isinstance(parts, list) else ""
    return f"`{backbone.get('name') or backbone['kind']}`{weights}{told}" + (f", pictures at {size}" if size else "")


def _content_of(place: pathlib.Path) -> str:
    """What tells a file, or the files of a folder, from others."""
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    lines = []
    for path in files:
        if not path.is_file():
            return "of a file that is no longer there"
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(place).as_posix()}\n")
    digest = hashlib.sha256("".join(lines).encode()).hexdigest() if place.is_dir() else lines[0].split()[0]
    return f"of a {'folder' if place.is_dir() else 'file'} with SHA-256 {digest[:16]}"


def _license(config: dict) -> str:
    """The first line of a licence that lies beside the weights."""
    weights = config["backbone"].get("weights") or config["backbone"].get("path") or config["backbone"].get("preset")
    if weights and pathlib.Path(weights).exists():
        place = pathlib.Path(weights)
        for path in sorted((place if place.is_dir() else place.parent).glob("LICENSE*")):
            first = next((line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip()), "")
            return f"{first} (from `{path.name}` beside them)"
    return "not stated (no LICENSE file lies beside them); the exported model contains them"


def _split(data: dict, split: dict) -> str:
    """How test items were told from training items."""
    if "queries" in data:
        leaking = data["test_queries_with_documents_of_training"]
        return (
            f"On test queries, of which {leaking:,} are answered by documents that answer training queries, too. "
            + ("Frozen: the network's own features.")
        )
    if split["by"] == "class":
        return "On test items of classes that training never saw. Frozen: the network's own features."
    return "On test items that training never saw, of the same classes. Frozen: the network's own features."
