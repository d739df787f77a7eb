"""From a config to data, model and results: the one place that wires them."""

import contextlib
import dataclasses
import functools
import logging
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import pandas as pd

from xbm_keras import schema
from xbm_keras.config import ConfigError
from xbm_keras.data import arrays, sources, texts, tfds
from xbm_keras.data.batches import PKSampler, batch_dataset
from xbm_keras.data.rows import UnitRows
from xbm_keras.data.splits import Splits, split_items
from xbm_keras.data.views import View
from xbm_keras.evaluation import RetrievalEvaluation, embed, evaluate_retrieval
from xbm_keras.feature_cache import CachedFeatures, ShardedRows, compute_features
from xbm_keras.model import XBMModel
from xbm_keras.stages.backbone import Backbone
from xbm_keras.stages.circular_memory import CircularMemory
from xbm_keras.stages.hard_top_k import HardTopK
from xbm_keras.stages.head import Head, whiten
from xbm_keras.stages.hub_backbone import HubBackbone
from xbm_keras.stages.pair_losses import ContrastiveLoss, InfoNCELoss, SupConLoss, TripletLoss

log = logging.getLogger("xbm_keras")
LOSSES = {"contrastive": ContrastiveLoss, "triplet": TripletLoss, "supcon": SupConLoss, "info_nce": InfoNCELoss}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Features of all usable items, and who does what."""

    features: np.ndarray
    """[V * N, D], as the backbone or the user gave them; may be read from disk when indexed. First all N items, then
    all their augmented views, one view after the other."""
    labels: np.ndarray
    """[V * N] int64, positions in `label_names`."""
    label_names: list
    sample_ids: np.ndarray
    """[V * N] int64."""
    keys: np.ndarray
    """[N] str."""
    splits: Splits
    """Positions below N."""
    skipped: dict[str, str]
    """Key of each item left out, and why."""
    num_computed: int
    """Items and views that were read for the backbone in this run; the rest was cached."""

    def with_views(self, positions: np.ndarray) -> np.ndarray:
        """Positions of these items and of all their views."""
        offsets = np.arange(0, len(self.labels), len(self.keys))
        return (offsets[:, None] + positions).ravel()


def make_backbone(config: schema.Config) -> Backbone | None:
    """The frozen network; None where the data are vectors."""
    c = config.backbone
    if isinstance(c, schema.NoBackbone):
        return None
    size = (c.image_size[0], c.image_size[1]) if c.image_size else None
    with _blaming_config():
        if isinstance(c, schema.KerasHub):
            backbone = HubBackbone.from_preset(c.preset, c.max_length, c.pooling, size)
            if (backbone.modality == "text") != (config.data.source == "text"):
                raise ValueError(
                    f"Received data.source {config.data.source!r} with the preset {c.preset!r}, a network of "
                    f"{backbone.modality}s; expected data of its kind. Change data.source or backbone.preset."
                )
            return backbone
        if isinstance(c, schema.Application):
            return Backbone.from_application(c.name, c.weights, size, c.pooling)
        if isinstance(c, schema.KerasFile):
            return Backbone.from_keras_file(c.path, c.preprocessing, size, c.pooling)
        return Backbone.from_saved_model(c.path, c.endpoint, c.preprocessing, size, c.pooling)


@contextlib.contextmanager
def _blaming_config() -> Iterator[None]:
    """What a stage refuses here, the config asked for."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def make_source(config: schema.Config) -> sources.Source | arrays.Features:
    """The items."""
    c = config.data
    if isinstance(c, schema.ImageFolder):
        return sources.ImageFolder(c.root)
    if isinstance(c, schema.ImageTable):
        return sources.ImageTable(c.root, c.table, c.path_column, c.label_column)
    if isinstance(c, schema.ImageArray):
        return arrays.ImageArray(c.path, c.images, c.labels, c.label_names, c.invert, c.test_path)
    if isinstance(c, schema.TFDS):
        return tfds.TFDS(c.name, c.data_dir, c.image_key, c.label_key)
    if isinstance(c, schema.Text):
        return texts.TextTable(c.path, c.text_column, c.label_column)
    return arrays.Features(c.path, c.features, c.labels)


def load_dataset(config: schema.Config, backbone: Backbone | None) -> Dataset:
    """Features, labels and splits; the backbone sees each item once, ever.

    Raises:
        DataError: for data that cannot be used as they are.
    """
    source = make_source(config)
    items = source.items
    if items.labels is None:
        raise sources.DataError("Received data without labels; expected one per item. Set the column that holds them.")
    if isinstance(source, arrays.Features):
        features, positions, skipped, num_computed, num_views = source.features, np.arange(len(items.keys)), {}, 0, 1
    else:
        cached = _compute_features(config, source, backbone)
        features, positions, num_views = cached.rows, cached.positions, config.cache.views
        skipped, num_computed = cached.skipped, cached.num_computed
    kept = sources.Items(
        items.keys[positions],
        np.asarray(items.labels)[positions],
        {name: values[positions] for name, values in items.columns.items()},
    )
    names, codes = np.unique(kept.labels, return_inverse=True)
    sample_ids = np.tile(kept.sample_ids(), num_views)
    if config.cache.views_as_positives:
        views = [np.char.add(kept.keys.astype(str), f" view {v}" if v else "") for v in range(num_views)]
        sample_ids = sources.Items(np.concatenate(views), None, {}).sample_ids()
    splits = split_items(kept, **config.data.split.model_dump())
    labels = np.tile(codes.astype(np.int64), num_views)
    return Dataset(features, labels, names.tolist(), sample_ids, kept.keys, splits, skipped, num_computed)


def _compute_features(config: schema.Config, source: sources.Source, backbone: Backbone) -> CachedFeatures:
    """Features of all items and, behind them, of their augmented views."""
    c = config.cache
    options = c.model_dump(include={"dtype", "batch_size", "shard_rows", "on_error", "engine", "ray_workers"})
    views = [source, *(View(source, number, c.flip) for number in range(1, c.views))]
    cached = [compute_features(view, backbone, c.dir, **options) for view in views]
    positions = functools.reduce(np.intersect1d, [each.positions for each in cached])
    rows = [each.rows.take(np.searchsorted(each.positions, positions)) for each in cached]
    return CachedFeatures(
        ShardedRows.concatenate(rows),
        positions,
        {key: reason for each in cached for key, reason in each.skipped.items()},
        sum(each.num_computed for each in cached),
    )


def make_model(config: schema.Config, backbone: Backbone | None, width: int, num_rows: int) -> XBMModel:
    """The model, built for features of a width, with a memory of at most `num_rows` rows."""
    memory_size = min(config.memory.memory_size, num_rows)
    if memory_size < config.memory.memory_size:
        log.info(
            "The memory holds all %d training items (memory.memory_size is %d).", num_rows, config.memory.memory_size
        )
    c, seed = config.head, config.training.seed
    model = XBMModel(
        backbone,
        Head(c.embedding_dim, c.kind, c.hidden_dim, seed=seed, name="head"),
        CircularMemory(memory_size, config.memory.storage_dtype, name="memory"),
        HardTopK(
            config.top_k.num_negatives, config.top_k.num_positives, config.top_k.positives, seed=seed, name="top_k"
        ),
        LOSSES[config.loss.name](**config.loss.model_dump(exclude={"name"})),
        mine_in=config.top_k.mine_in,
        # A prefilled memory that holds all training items has nothing to learn from a batch.
        enqueue=not (config.memory.prefill and memory_size == num_rows),
        name="xbm",
    )
    model.build({"features": (None, width)})
    model.compile(
        keras.optimizers.AdamW(config.training.learning_rate, weight_decay=config.training.weight_decay),
        jit_compile=config.training.jit_compile,
    )
    model.optimizer.build(model.trainable_variables)  # Keras warns on loading a model whose optimizer took no step
    return model


def start_model(config: schema.Config, dataset: Dataset, backbone: Backbone | None, positions: np.ndarray) -> XBMModel:
    """A model before its first step: the head at its closed form of these items, the memory prefilled with them."""
    rows, labels = UnitRows(dataset.features, positions), dataset.labels[positions]
    model = make_model(config, backbone, rows.shape[1], len(rows))
    if config.head.start == "whiten":
        with _blaming_config():
            model.head.set_start(whiten(rows, labels, config.head.embedding_dim, config.head.shrinkage))
    if config.memory.prefill and model.memory.memory_size:
        order = np.random.default_rng(config.training.seed).permutation(len(rows))
        shuffled = UnitRows(dataset.features, positions[order])
        model.memory.prefill(shuffled, labels[order], dataset.sample_ids[positions][order])
    return model


def fit(
    config: schema.Config,
    dataset: Dataset,
    model: XBMModel,
    positions: np.ndarray,
    epochs: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Train on the items at these positions, for at most this number of epochs."""
    if not epochs:
        return
    c = config.training
    labels = dataset.labels[positions]
    sampler = PKSampler(labels, min(c.classes_per_batch, len(np.unique(labels))), c.samples_per_class, c.seed)
    rows = UnitRows(dataset.features, positions)
    batches = batch_dataset(rows, labels, dataset.sample_ids[positions], sampler)
    steps = c.steps_per_epoch or math.ceil(len(rows) / sampler.batch_size)
    verbose = 1 if sys.stdout.isatty() else 2
    model.fit(batches, steps_per_epoch=steps, epochs=epochs, callbacks=list(callbacks), verbose=verbose, shuffle=False)


def score(dataset: Dataset, head: Head | None, positions: np.ndarray) -> dict[str, dict[str, float]]:
    """Retrieval metrics `{protocol: {metric: value}}` of the items at these positions.

    Args:
        dataset: the items.
        head: what embeds them; None for the frozen features themselves.
        positions: [n]; the query/gallery protocol is there for the test items of data that has it.
    """
    labels = dataset.labels[positions]
    rows = UnitRows(dataset.features, positions)
    vectors = np.asarray(rows) if head is None else embed(head, rows)
    results = {"leave_one_out": evaluate_retrieval(vectors, labels)}
    splits = dataset.splits
    if positions is splits.test and splits.is_query is not None:
        q, g = splits.is_query, splits.is_gallery
        results["query_gallery"] = evaluate_retrieval(vectors[q], labels[q], vectors[g], labels[g])
    return results


def compare(
    config: schema.Config, dataset: Dataset, start: Head, trained: Head, positions: np.ndarray
) -> dict[str, dict[str, dict[str, float]]]:
    """Retrieval metrics `{protocol: {embedding: {metric: value}}}`: frozen, closed form and trained side by side."""
    heads = {"frozen": None, "closed_form": start, "trained": trained}
    if config.head.start == "random":
        del heads["closed_form"]
    scores = {name: score(dataset, head, positions) for name, head in heads.items()}
    return {protocol: {name: scores[name][protocol] for name in heads} for protocol in scores["frozen"]}


def run(
    config: schema.Config, dataset: Dataset, backbone: Backbone | None, workdir: pathlib.Path
) -> tuple[XBMModel, dict]:
    """Choose the number of epochs on validation classes, train on all training classes, and test once.

    Writes `history.csv` and TensorBoard logs on the way.

    Returns:
        The trained model, and the contents of `metrics.json`.
    """
    splits = dataset.splits
    train = dataset.with_views(splits.train)
    model = start_model(config, dataset, backbone, train)
    start = copy_head(model.head)
    evaluation = RetrievalEvaluation(UnitRows(dataset.features, splits.validation), dataset.labels[splits.validation])
    best = KeepBestHead(evaluation, config.training.patience)
    log.info(
        "Phase select: %d items train, %d of held-out classes choose the epoch.",
        len(splits.train),
        len(splits.validation),
    )
    fit(config, dataset, model, train, config.training.epochs, [evaluation, best, *_logs(workdir, "select")])
    validation = compare(config, dataset, start, model.head, splits.validation)

    if config.training.refit:
        everything = dataset.with_views(np.sort(np.concatenate([splits.train, splits.validation])))
        log.info("Phase refit: all %d training items, %d epochs.", len(everything), best.epoch)
        model = start_model(config, dataset, backbone, everything)
        start = copy_head(model.head)
        fit(config, dataset, model, everything, best.epoch, _logs(workdir, "refit"))
    metrics = compare(config, dataset, start, model.head, splits.test)
    phase = "refit" if config.training.refit else "select"
    return model, {**metrics, "validation": {**validation, "epoch": best.epoch}, "phase": phase}


def copy_head(head: Head) -> Head:
    """A head with the same weights, which stay as they are."""
    copy = Head.from_config(head.get_config())
    copy.build((None, head.kernel.shape[0]))
    copy.set_weights(head.get_weights())
    return copy


class KeepBestHead(keras.callbacks.Callback):
    """Ends with the head of the epoch of the best `val_map_at_r`; epoch 0, the untrained head, is a candidate.

    Only the head is copied: `EarlyStopping(restore_best_weights=True)` would copy the memory at each improvement.

    Args:
        evaluation: stands before this one in the list of callbacks.
        patience: epochs without improvement after which training stops.
    """

    def __init__(self, evaluation: RetrievalEvaluation, patience: int):
        super().__init__()
        self.evaluation = evaluation
        self.patience = patience
        self.epoch = 0

    def on_train_begin(self, logs=None):
        """Epoch 0."""
        self.best = self.evaluation.baseline["val_map_at_r"]
        self.weights = self.model.head.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        """Keep the head where it is the best so far."""
        if logs["val_map_at_r"] > self.best:
            self.epoch, self.best = epoch + 1, logs["val_map_at_r"]
            self.weights = self.model.head.get_weights()
        elif epoch + 1 - self.epoch >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        """Back to the best head."""
        self.model.head.set_weights(self.weights)


class HistoryCsv(keras.callbacks.Callback):
    """Appends each epoch's logs to a CSV file, written anew each time, so that an interrupted run keeps its history."""

    def __init__(self, path: pathlib.Path, phase: str):
        super().__init__()
        self.path = path
        self.phase = phase

    def on_epoch_end(self, epoch, logs=None):
        """Write."""
        row = pd.DataFrame([{"phase": self.phase, "epoch": epoch + 1, **(logs or {})}])
        old = [pd.read_csv(self.path)] if self.path.exists() else []
        pd.concat([*old, row]).to_csv(self.path, index=False)


def _logs(workdir: pathlib.Path, phase: str) -> list[keras.callbacks.Callback]:
    return [
        HistoryCsv(workdir / "history.csv", phase),
        keras.callbacks.TensorBoard(workdir / "tensorboard" / phase, write_graph=False),
    ]
