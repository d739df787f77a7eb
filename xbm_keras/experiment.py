"""From a config and a dataset to a model and its results: the one place that wires the stages."""

import logging
import math
import pathlib
import sys
from collections.abc import Sequence

import keras
import numpy as np

from xbm_keras import schema
from xbm_keras.callbacks import HistoryCsv, KeepBestHead
from xbm_keras.data.batches import PKSampler, batch_dataset
from xbm_keras.data.rows import UnitRows
from xbm_keras.evaluation import RetrievalEvaluation, embed, evaluate_retrieval
from xbm_keras.loading import Dataset, blaming_config
from xbm_keras.model import XBMModel
from xbm_keras.stages.backbone import Backbone
from xbm_keras.stages.circular_memory import CircularMemory
from xbm_keras.stages.hard_top_k import HardTopK
from xbm_keras.stages.head import Head, whiten
from xbm_keras.stages.pair_losses import (
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    LiftedStructureLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    RecallSurrogateLoss,
    SmoothAPLoss,
    SupConLoss,
    TripletLoss,
    TupletLoss,
)

log = logging.getLogger("xbm_keras")
LOSSES = {
    "contrastive": ContrastiveLoss,
    "margin": MarginLoss,
    "multi_similarity": MultiSimilarityLoss,
    "supcon": SupConLoss,
    "info_nce": InfoNCELoss,
    "nt_xent": NTXentLoss,
    "tuplet": TupletLoss,
    "circle": CircleLoss,
    "lifted_structure": LiftedStructureLoss,
    "triplet": TripletLoss,
    "smooth_ap": SmoothAPLoss,
    "recall_surrogate": RecallSurrogateLoss,
}


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
        with blaming_config():
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
    verbose: int | None = None,
) -> None:
    """Train on the items at these positions, for at most this number of epochs; `verbose` as of `keras.Model.fit`."""
    if not epochs:
        return
    c = config.training
    labels = dataset.labels[positions]
    sampler = PKSampler(labels, min(c.classes_per_batch, len(np.unique(labels))), c.samples_per_class, c.seed)
    rows = UnitRows(dataset.features, positions)
    batches = batch_dataset(rows, labels, dataset.sample_ids[positions], sampler)
    steps = c.steps_per_epoch or math.ceil(len(rows) / sampler.batch_size)
    if verbose is None:
        verbose = 1 if sys.stdout.isatty() else 2
    model.fit(batches, steps_per_epoch=steps, epochs=epochs, callbacks=list(callbacks), verbose=verbose, shuffle=False)


def select(
    config: schema.Config,
    dataset: Dataset,
    model: XBMModel,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | None = None,
) -> KeepBestHead:
    """Train on the training classes, and end with the head of the epoch that is best on the validation classes."""
    splits = dataset.splits
    evaluation = RetrievalEvaluation(UnitRows(dataset.features, splits.validation), dataset.labels[splits.validation])
    best = KeepBestHead(evaluation, config.training.patience)
    train = dataset.with_views(splits.train)
    fit(config, dataset, model, train, config.training.epochs, [evaluation, best, *callbacks], verbose)
    return best


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
    model = start_model(config, dataset, backbone, dataset.with_views(splits.train))
    start = copy_head(model.head)
    log.info(
        "Phase select: %d items train, %d of held-out classes choose the epoch.",
        len(splits.train),
        len(splits.validation),
    )
    best = select(config, dataset, model, _logs(workdir, "select"))
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


def _logs(workdir: pathlib.Path, phase: str) -> list[keras.callbacks.Callback]:
    return [
        HistoryCsv(workdir / "history.csv", phase),
        keras.callbacks.TensorBoard(workdir / "tensorboard" / phase, write_graph=False),
    ]
