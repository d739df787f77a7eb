"""What was run, names and values for people."""

import numpy as np
import tensorflow as tf

from xbm_keras.config.schema import Config, Neighbors
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.evaluation.wording import views
from xbm_keras.experiment.pair_phases import ROWS, Roles
from xbm_keras.export import model_card


def num_classes(dataset: Dataset, positions: np.ndarray) -> int:
    """How many classes these items are of."""
    return len(np.unique(dataset.labels[dataset.labelled(positions)]))


def about_items(config: Config, dataset: Dataset, metrics: dict) -> dict[str, str]:
    """Of a run on items, with or without classes."""
    splits, chosen = dataset.splits, metrics["validation"]
    counts = {
        name: f"{len(rows):,} items" + (f", {num_classes(dataset, rows):,} classes" if dataset.has_labels else "")
        for name, rows in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
    }
    dataset = dataset.keeping_views(chosen.get("views", 1) > 1, bool(chosen.get("turned_classes")))
    trained_on = np.union1d(splits.train, splits.validation) if config.training.refit else splits.train
    return {
        **_inputs(config),
        "Training": counts["train"] + views(chosen),
        "Validation": counts["validation"],
        "Test": counts["test"],
        **_recipe(config, dataset.features.shape[1], len(dataset.with_views(trained_on)), metrics),
    }


def about_pairs(config: Config, dataset: PairDataset, metrics: dict) -> dict[str, str]:
    """Of a run on queries and documents."""
    splits, pairs = dataset.splits, dataset.pairs
    trained_on = np.union1d(splits.train, splits.validation) if config.training.refit else splits.train
    answers = pairs.document[pairs.grade > 0]
    num_irrelevant = len(pairs.grade) - len(answers)
    anchors = "documents" if config.training.negatives == "queries" else "queries"
    return {
        **_inputs(config),
        "Training": f"{len(splits.train):,} queries",
        "Validation": f"{len(splits.validation):,} queries",
        "Test": f"{len(splits.test):,} queries",
        "Documents": f"{len(dataset.documents):,}, of which {len(np.unique(answers)):,} answer a query",
        "Judgements": f"{len(pairs.grade):,}"
        + (f", of which {num_irrelevant:,} of no relevance" if num_irrelevant else ""),
        "Sides": {"both": "one layer for both", "query": "a layer for queries alone", "two": "one layer each"}[
            config.head.sides
        ],
        "Anchors": f"{anchors}; rows of the memory are {ROWS[config.training.negatives]}",
        **_recipe(config, dataset.queries.shape[1], len(Roles(config, dataset, trained_on).rows), metrics),
    }


def _inputs(config: Config) -> dict[str, str]:
    return {
        "Data": model_card.data_of(config.data.model_dump()).replace("`", ""),
        "Network": model_card.network_of(config.backbone.model_dump()).replace("`", ""),
    }


def _recipe(config: Config, width: int, num_rows: int, metrics: dict) -> dict[str, str]:
    """Head, memory and training.

    Args:
        config: of the run.
        width: of the features.
        num_rows: that the memory can hold at most.
        metrics: the contents of `metrics.json`.
    """
    c, chosen = config, metrics["validation"]
    start = chosen.get("start", c.head.start)  # which one, where the config says "auto"
    memory_size = min(c.memory.memory_size, num_rows)
    widths = ", ".join(map(str, c.head.widths or [c.head.for_features(width).embedding_dim]))
    if isinstance(c.top_k, Neighbors):
        picked = f"{c.top_k.num_neighbors} neighbours, {c.top_k.num_random} random rows, without labels"
    else:
        space = c.top_k.mine_in if isinstance(c.top_k.mine_in, str) else f"embeddings, {c.top_k.mine_in} anew a step"
        picked = f"{c.top_k.num_negatives} negatives in {space}, {c.top_k.num_positives} positives"
        picked += f", {c.top_k.num_random} random rows" if c.top_k.num_random else ""
    devices = tf.config.list_physical_devices("GPU")
    return {
        "Head": f"{c.head.kind}, {width} → {widths} dimensions, start {start}",
        "Memory": f"{memory_size:,} rows, {c.memory.storage_dtype}" if memory_size else "off: pairs within a batch",
        "Top-k sample": picked,
        "Loss": ", ".join(f"{name} {value}" for name, value in c.loss.model_dump().items()).removeprefix("name "),
        "Epochs": f"{chosen['epoch']} of at most {c.training.epochs}; last phase {metrics['phase']}",
        "Seed": str(c.training.seed),
        "Device": "CPU" if not devices else str(tf.config.experimental.get_device_details(devices[0])["device_name"]),
        "Versions": ", ".join(f"{name} {version}" for name, version in model_card.VERSIONS.items()),
    }
