"""From a config and a dataset to a model and its results: the one place that wires the stages."""

import logging
import math
import pathlib
from collections.abc import Sequence

import keras
import numpy as np

from xbm_keras import devices, progress, schema
from xbm_keras.callbacks import HistoryCsv, KeepBestHead, NextWidth, TrainingProgress
from xbm_keras.checkpoints import Checkpoints
from xbm_keras.costs import Costs
from xbm_keras.data.batches import PKSampler, ShuffledSampler
from xbm_keras.data.rows import UnitRows
from xbm_keras.evaluation import RetrievalEvaluation
from xbm_keras.loading import Dataset, blaming_config
from xbm_keras.model import XBMModel
from xbm_keras.neighbor_evaluation import NeighborEvaluation
from xbm_keras.scoring import Scores, compare
from xbm_keras.selection import (
    PARAMETERS,
    HeldOutFolds,
    best_epoch,
    choose,
    choose_start,
    closed_forms_of,
    held_out,
    make_start,
)
from xbm_keras.stages import replicas
from xbm_keras.stages.backbone import Backbone
from xbm_keras.stages.circular_memory import CircularMemory
from xbm_keras.stages.hard_top_k import HardTopK
from xbm_keras.stages.head import Head
from xbm_keras.stages.head_starts import ClosedForms
from xbm_keras.stages.neighbor_top_k import NeighborTopK
from xbm_keras.stages.pair_losses import (
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    LiftedStructureLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    RecallSurrogateLoss,
    SimilarityAlignmentLoss,
    SmoothAPLoss,
    SupConLoss,
    TripletLoss,
    TupletLoss,
)
from xbm_keras.stages.sketch import Sketch, principal_directions
from xbm_keras.training_batches import prefill_order, training_batches

log = logging.getLogger("xbm_keras")
FIRST_RATE = 1 / 30  # of the learning rate, in the first step
TOP_K = {"hard": HardTopK, "neighbors": NeighborTopK}
MINING = ("mine_in", "key_refresh", "sketch_dim", "rerank")  # of top_k, what is an argument of the model
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
    "similarity_alignment": SimilarityAlignmentLoss,
}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C once training began: the model with the best head so far, and that head's epoch.

    Until a refit is through, it is the best one on the validation classes.
    """

    def __init__(self, model: XBMModel, epoch: int):
        super().__init__()
        self.model = model
        self.epoch = epoch


def make_model(config: schema.Config, backbone: Backbone | None, width: int, labels: np.ndarray) -> XBMModel:
    """The model, built for features of a width, with a memory that holds at most the items with these labels."""
    num_rows = len(labels)
    memory_size = min(config.memory.memory_size, num_rows)
    if memory_size < config.memory.memory_size:
        log.info(
            "The memory holds all %d training items (memory.memory_size is %d).", num_rows, config.memory.memory_size
        )
    c, seed, dropout = config.head, config.training.seed, config.training.feature_dropout
    picking = config.top_k.model_dump(exclude={"kind"})
    mining = {name: picking.pop(name) for name in MINING if name in picking}
    if mining and mining["mine_in"] == "sketch":
        mining["sketch"] = Sketch(mining.pop("sketch_dim"))
    mining.pop("sketch_dim", None)
    nested = (c.widths, c.width_weights, c.nesting)
    head = Head(c.embedding_dim, c.kind, c.hidden_dim, c.power, seed, *nested, dropout, name="head")
    model = XBMModel(
        backbone,
        head,
        CircularMemory(memory_size, config.memory.storage_dtype, name="memory"),
        TOP_K[config.top_k.kind](**picking, seed=seed, name="top_k"),
        LOSSES[config.loss.name](**config.loss.model_dump(exclude={"name"})),
        # A prefilled memory that holds all training items has nothing to learn from a batch.
        enqueue=not (config.memory.prefill and memory_size == num_rows),
        start_alignment=config.training.start_alignment,
        start_l2=config.training.start_l2,
        **mining,
        name="xbm",
    )
    model.build({"features": (None, width)})
    steps_of_epoch = steps_per_epoch(config, make_sampler(config, labels))
    num_steps = max(1, config.training.epochs * steps_of_epoch)
    if c.nesting == "sequential":
        num_steps = max(1, num_steps // len(model.head.widths))  # each width has a schedule of its own
    rate = config.training.learning_rate
    if config.training.schedule == "cosine":
        rising = round(config.training.warmup * num_steps)
        how = {"warmup_target": rate, "warmup_steps": rising} if rising else {}
        schedule = keras.optimizers.schedules.CosineDecay(0.0 if rising else rate, num_steps - rising, **how)
    else:
        schedule = keras.optimizers.schedules.ExponentialDecay(FIRST_RATE * rate, num_steps, 1 / FIRST_RATE)
    averaging: dict = {}
    if config.training.averaging is not None:
        momentum = config.training.averaging
        averaging = {"use_ema": True, "ema_momentum": momentum, "ema_overwrite_frequency": steps_of_epoch}
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=config.training.weight_decay, **averaging),
        jit_compile=config.training.jit_compile,
    )
    model.optimizer.build(model.trainable_variables)  # Keras warns on loading a model whose optimizer took no step
    return model


def _with_start(config: schema.Config, dataset: Dataset) -> schema.Config:
    """The config with what suits held-out training items best in place of "auto" in its head."""
    folds = HeldOutFolds(dataset, not config.is_without_labels)
    return config.model_copy(update={"head": choose_start(config.head, dataset, folds)})


def start_model(
    config: schema.Config,
    dataset: Dataset,
    backbone: Backbone | None,
    positions: np.ndarray,
    closed_forms: ClosedForms | None = None,
) -> XBMModel:
    """A model before its first step: the head at its closed form of these items, the memory prefilled with them.

    Args:
        config: of the run.
        dataset: the items.
        backbone: None for a model of features.
        positions: of the training items.
        closed_forms: of the same items, where they are known already.
    """
    labels = dataset.labels[positions]
    config = _with_start(config, dataset)
    strategy = devices.make_strategy(config.training)
    if strategy.num_replicas_in_sync > 1:
        log.info("%d devices share each batch.", strategy.num_replicas_in_sync)
    with replicas.scope(strategy):
        model = make_model(config, backbone, dataset.features.shape[1], labels)
    if config.head.start != "random":
        closed_forms = closed_forms or closed_forms_of(dataset, positions, config.head.power)
        model.set_start(make_start(config.head, closed_forms).scaled())
    if isinstance(model.top_k, NeighborTopK):
        model.top_k.adapt(UnitRows(dataset.features, positions))
    if model.sketch is not None:
        rows = UnitRows(dataset.features, positions)
        with blaming_config():
            model.sketch.projection.assign(principal_directions(rows, config.top_k.sketch_dim))
    if config.memory.prefill and model.memory.memory_size:
        order = prefill_order(len(positions), config.training.seed)
        shuffled = UnitRows(dataset.features, positions[order])
        with progress.watch(shuffled, "prefill") as shuffled:
            model.memory.prefill(shuffled, labels[order], dataset.sample_ids[positions][order])
    return model


def make_sampler(config: schema.Config, labels: np.ndarray) -> PKSampler | ShuffledSampler:
    """Batches of items with these labels."""
    c = config.training
    if config.is_without_labels:
        return ShuffledSampler(len(labels), min(c.batch_size, len(labels)), c.seed)
    return PKSampler(labels, min(c.classes_per_batch, len(np.unique(labels))), c.samples_per_class, c.seed)


def steps_per_epoch(config: schema.Config, sampler: PKSampler | ShuffledSampler) -> int:
    """By default as many as draw the number of items once."""
    return config.training.steps_per_epoch or math.ceil(sampler.num_items / sampler.batch_size)


def fit(
    config: schema.Config,
    dataset: Dataset,
    model: XBMModel,
    positions: np.ndarray,
    epochs: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    show_progress: bool = True,
    first_epoch: int = 0,
) -> None:
    """Train on the items at these positions, for at most this number of epochs, of which some may be done."""
    if not epochs:
        return
    rows, labels, ids = UnitRows(dataset.features, positions), dataset.labels[positions], dataset.sample_ids[positions]
    sampler = make_sampler(config, labels)
    steps = steps_per_epoch(config, sampler)
    if config.head.nesting == "sequential":
        callbacks = [*callbacks, NextWidth(config.training.epochs)]
    batches = training_batches(model, rows, labels, ids, sampler, config.training.seed, first_epoch * steps)
    with progress.bar("training", steps * (epochs - first_epoch), "steps") as bar:
        all_callbacks = [*callbacks, TrainingProgress(bar)] if show_progress else list(callbacks)
        counts = {"epochs": epochs, "initial_epoch": first_epoch, "steps_per_epoch": steps}
        model.fit(batches, **counts, callbacks=all_callbacks, verbose=0, shuffle=False)


def select(
    config: schema.Config,
    dataset: Dataset,
    model: XBMModel,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoints: Checkpoints | None = None,
    show_progress: bool = True,
) -> KeepBestHead:
    """Train on the training items, and end with the head of the epoch that is best on the validation items.

    Raises Interrupted by Ctrl-C.
    """
    splits = dataset.splits
    rows = UnitRows(dataset.features, splits.validation)
    evaluation: RetrievalEvaluation | NeighborEvaluation
    if config.is_without_labels:
        evaluation, monitor = NeighborEvaluation(rows), "val_neighbor_overlap_at_10"
    else:
        evaluation, monitor = RetrievalEvaluation(rows, dataset.labels[splits.validation]), "val_map_at_r"
    best = KeepBestHead(evaluation, config.training.patience, monitor)
    train = dataset.with_views(splits.train)
    callbacks = [evaluation, best, *callbacks, *([checkpoints] if checkpoints else [])]
    done = checkpoints.restore(model, best) if checkpoints else 0
    try:
        fit(config, dataset, model, train, config.training.epochs, callbacks, show_progress, done)
    except KeyboardInterrupt as interrupt:
        best.on_train_end()
        raise Interrupted(model, best.epoch) from interrupt
    return best


def _compare(config: schema.Config, dataset: Dataset, start: Head, trained: Head, positions: np.ndarray) -> Scores:
    """Frozen, closed form and trained side by side."""
    heads = {"frozen": None, "closed_form": start, "trained": trained}
    if config.head.start == "random":
        del heads["closed_form"]
    return compare(dataset, heads, positions, config.is_without_labels, config.export.codes)


def run(
    config: schema.Config, dataset: Dataset, backbone: Backbone | None, workdir: pathlib.Path, costs: Costs
) -> tuple[XBMModel, dict]:
    """Choose views, start and the number of epochs on held-out classes, train on all training classes, and test once.

    Writes `history.csv`, TensorBoard logs and `checkpoints/` on the way, from which it goes on where it was killed; and
    the costs of its stages into `costs`.

    Returns:
        The trained model, and the contents of `metrics.json`. Its `validation` is of the first fold: the scores, on its
        validation items, of the head that was trained on its training items for `epoch` epochs, the number that is best
        on the mean over all folds; and what was chosen besides.

    Raises:
        Interrupted: by Ctrl-C, once training began.
    """
    splits = dataset.splits
    costs.begin("select: training")
    config, dataset = choose(config, dataset)
    is_for_refit = config.training.refit and config.training.epochs > 0
    first, *other_folds = held_out(dataset, config.training.folds if is_for_refit else 1)
    positions = first.with_views(first.splits.train)
    model = start_model(config, first, backbone, positions)
    start = copy_head(model.head)
    counts = len(first.splits.train), len(first.splits.validation)
    what = "held-out items" if config.data.split.by == "item" else "items of held-out classes"
    log.info("Phase select: %d items train, %d %s choose the epoch.", *counts, what)
    if other_folds:
        log.info("So %d times, each time with others held out.", 1 + len(other_folds))
    best = select(config, first, model, *_watch(config, workdir, "select"))
    curves = [best.scores]
    kept = best.epoch, model.head.get_weights()  # what Ctrl-C leaves from here on, an epoch and its head
    try:
        for number, fold in enumerate(other_folds, start=2):
            fold_model = start_model(config, fold, backbone, fold.with_views(fold.splits.train))
            curves.append(select(config, fold, fold_model, *_watch(config, workdir, f"select_{number}")).scores)
        epoch = best_epoch(curves)
        if epoch != best.epoch:  # of the first fold alone another one is best, whose head `select` left
            log.info("Over all folds epoch %d is best: the first one is trained to it again, for its score.", epoch)
            model = start_model(config, first, backbone, positions)
            fit(config, first, model, positions, epoch)
            kept = epoch, model.head.get_weights()
        costs.begin("select: validation")
        validation = _compare(config, first, start, model.head, first.splits.validation)

        if config.training.refit:
            costs.begin("refit: training")
            everything = dataset.with_views(np.union1d(splits.train, splits.validation))
            log.info("Phase refit: all %d training items, %d epochs.", len(everything), epoch)
            model = start_model(config, dataset, backbone, everything)
            start = copy_head(model.head)
            logs, checkpoints = _watch(config, workdir, "refit")
            done = checkpoints.restore(model)
            fit(config, dataset, model, everything, epoch, [*logs, checkpoints], first_epoch=done)
            kept = epoch, model.head.get_weights()
        costs.begin("test")
        metrics = _compare(config, dataset, start, model.head, splits.test)
    except KeyboardInterrupt as interrupt:
        model.head.set_weights(kept[1])
        raise Interrupted(model, kept[0]) from interrupt
    phase = "refit" if config.training.refit else "select"
    chosen = {
        "epoch": epoch,
        **config.cache.model_dump(include={"views", "turned_classes"}),
        **config.head.model_dump(include={"start", "power", *PARAMETERS.get(config.head.start, ())}),
    }
    return model, {**metrics, "validation": {**validation, **chosen}, "phase": phase}


def copy_head(head: Head) -> Head:
    """A head with the same weights, which stay as they are."""
    copy = Head.from_config(head.get_config())
    copy.build((None, head.kernel.shape[0]))
    copy.set_weights(head.get_weights())
    return copy


def _watch(
    config: schema.Config, workdir: pathlib.Path, phase: str
) -> tuple[list[keras.callbacks.Callback], Checkpoints]:
    """What writes down how a phase goes, and what saves it."""
    history = workdir / "history.csv"
    logs = [HistoryCsv(history, phase), keras.callbacks.TensorBoard(workdir / "tensorboard" / phase, write_graph=False)]
    return logs, Checkpoints(workdir / "checkpoints" / phase, config.training.checkpoint_every_seconds, history)
