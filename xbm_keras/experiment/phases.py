"""A run: select the start and the number of epochs on held-out items, refit on all of them, test once."""

import logging
import pathlib
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from xbm_keras import progress
from xbm_keras.atomic_files import writing_whole
from xbm_keras.config import schema
from xbm_keras.config.yaml_files import blaming_config
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.labels import counted
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.neighbors import NeighborEvaluation
from xbm_keras.evaluation.retrieval import RetrievalEvaluation, embed
from xbm_keras.evaluation.side_by_side import Scores, compare
from xbm_keras.evaluation.thresholds import measure_thresholds
from xbm_keras.experiment import devices
from xbm_keras.experiment.build import (
    left_out,
    make_model,
    make_sampler,
    rate_of_steps,
    steps_per_epoch,
    tell_memory,
)
from xbm_keras.experiment.chosen_head import PARAMETERS, closed_forms_of, make_start
from xbm_keras.experiment.held_out import HeldOutFolds, held_out, some_classes
from xbm_keras.experiment.selection import best_epoch, choose, choose_start
from xbm_keras.model import strategies
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.report.stage_costs import Costs, Stage
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.stages.head.fc_layer import Head
from xbm_keras.stages.head.starts import ClosedForms
from xbm_keras.training.callbacks import HistoryCsv, KeepBestHead, TrainingProgress
from xbm_keras.training.checkpoints import Checkpoints
from xbm_keras.training.known_neighbors import know_neighbors
from xbm_keras.training.memory_batches import prefill_order, training_batches

log = logging.getLogger("xbm_keras")
MAX_STEPS_OF_CALL = 16
HELD_OUT_HEAD = "held_out_head.npz"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C once training began: the model with the best head so far, and that head's epoch.

    Until a refit is through, it is the best one on the validation classes.
    """

    def __init__(self, model: XBMModel, epoch: int):
        super().__init__()
        self.model = model
        self.epoch = epoch


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
    labels, ids = dataset.labels[positions], dataset.sample_ids[positions]
    num_alone = len(np.unique(ids[left_out(config, labels, ids)]))
    if num_alone:
        log.info("%s alone in their class: negatives of the others, and no anchors.", counted(num_alone, "item"))
    head = choose_start(config.head, dataset, HeldOutFolds(dataset, not config.is_without_labels))
    config = config.model_copy(update={"head": head})
    strategy = devices.make_strategy(config.training)
    if strategy.num_replicas_in_sync > 1:
        log.info("%d devices share each batch.", strategy.num_replicas_in_sync)
    with strategies.scope(strategy):
        rate = rate_of_steps(config, steps_per_epoch(config, make_sampler(config, labels, ids)))
        model = make_model(config, backbone, dataset.features.shape[1], len(labels), rate, head.power)
    if head.start != "random":
        rank = max(len(positions), head.embedding_dim)  # beyond so many directions few items have nothing
        closed_forms = closed_forms or closed_forms_of(dataset, positions, head.power, rank)
        model.set_start(make_start(head, closed_forms).scaled())
    with blaming_config():
        model.top_k.adapt(UnitRows(dataset.features, positions))
    if config.memory.prefill and model.memory.memory_size:
        order = prefill_order(len(positions), config.training.seed)
        shuffled = UnitRows(dataset.features, positions[order])
        with progress.watch(shuffled, "prefill") as rows:
            model.memory.prefill(rows, labels[order], ids[order])
    return model


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
    sampler = make_sampler(config, labels, ids)
    steps = steps_per_epoch(config, sampler)
    batches = training_batches(model, rows, labels, ids, sampler, config.training.seed, first_epoch * steps)
    num_ahead = (epochs - first_epoch) * steps * sampler.batch_size
    if "slot" in batches.element_spec[0]:
        know_neighbors(model, num_ahead, config.cache.dir)
    elif "number" in batches.element_spec[0]:
        in_slot = prefill_order(len(rows), config.training.seed)

        def anchors(slots):  # as they are, not rounded
            which = in_slot[slots.numpy()]
            return tf.constant(rows[which]), tf.constant(labels[which]), tf.constant(ids[which])

        know_neighbors(model, num_ahead, config.cache.dir, anchors)
    fit_batches(model, batches, steps, epochs, callbacks, show_progress, first_epoch)


def fit_batches(
    model: XBMModel,
    batches: tf.data.Dataset,
    steps: int,
    epochs: int,
    callbacks: Sequence[keras.callbacks.Callback],
    show_progress: bool,
    first_epoch: int,
) -> None:
    """`model.fit` with a bar, for epochs of so many steps, of which some may be done.

    Several steps make one call of TensorFlow: between calls Keras reads all metrics back for its callbacks. Keras does
    whole calls alone, so their steps divide those of an epoch.
    """
    if model.distribute_strategy.num_replicas_in_sync == 1:
        model.steps_per_execution = max(n for n in range(1, MAX_STEPS_OF_CALL + 1) if steps % n == 0)
    with progress.bar("training", steps * (epochs - first_epoch), "steps") as bar:
        kept = next((each for each in callbacks if isinstance(each, KeepBestHead)), None)
        all_callbacks = [*callbacks, TrainingProgress(bar, kept)] if show_progress else list(callbacks)
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
    best.set_model(model)  # Ctrl-C may come before the first step, while neighbours are searched
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

    Writes `history.csv`, TensorBoard logs and `checkpoints/` on the way, from which it goes on where it was killed;
    `held_out_head.npz` and, where held-out items have labels, `thresholds.json`; and the costs of its stages into
    `costs`.

    Returns:
        The trained model, and the contents of `metrics.json`. Its `validation` is of the first fold: the scores, on its
        validation items, of the head that was trained on its training items for `epoch` epochs, the number that is best
        on the mean over all folds; and what was chosen besides.

    Raises:
        Interrupted: by Ctrl-C, once training began.
    """
    splits = dataset.splits
    costs.begin(Stage.CHOICE)
    config, dataset = choose(config, dataset)
    is_for_refit = config.training.refit and config.training.epochs > 0
    first, *other_folds = held_out(dataset, config.training.folds if is_for_refit else 1)
    positions = first.with_views(first.splits.train)
    model = start_model(config, first, backbone, positions)
    tell_memory(config, model.memory.memory_size)
    start = copy_head(model.head)
    counts = len(first.splits.train), len(first.splits.validation)
    what = "" if config.data.split.by == "item" else " of other classes"
    times = f"; {1 + len(other_folds)} times, each with others held out" if other_folds else ""
    views = f", in {len(positions):,} views," if len(positions) > counts[0] else ""
    told = counted(counts[0], "item"), views, f"{counts[1]:,}", what, times
    log.info("%s train%s and %s%s choose the epoch%s.", *told)
    best = select(config, first, model, *watch(config, workdir, "select"))
    curves = [best.scores]
    kept = best.epoch, model.head.get_weights()  # what Ctrl-C leaves from here on, an epoch and its head
    try:
        for number, fold in enumerate(other_folds, start=2):
            fold_model = start_model(config, fold, backbone, fold.with_views(fold.splits.train))
            curves.append(select(config, fold, fold_model, *watch(config, workdir, f"select_{number}")).scores)
        epoch = best_epoch(curves)
        if epoch != best.epoch:  # of the first fold alone another one is best, whose head `select` left
            which = f"epoch {epoch}" if epoch else "the untrained start"
            log.info("Over all folds %s is best: the first fold is brought there again, for its score.", which)
            model = start_model(config, first, backbone, positions)
            fit(config, first, model, positions, epoch)
            kept = epoch, model.head.get_weights()
        costs.begin(Stage.HELD_OUT)
        validation = _compare(config, first, start, model.head, first.splits.validation)
        write_held_out(workdir, first, model.head)

        if config.training.refit:
            costs.begin(Stage.REFIT)
            everything = dataset.with_views(np.union1d(splits.train, splits.validation))
            log.info(told_of_refit(epoch), f"{len(splits.train) + len(splits.validation):,} items")
            model = start_model(config, dataset, backbone, everything)
            start = copy_head(model.head)
            logs, checkpoints = watch(config, workdir, "refit")
            done = checkpoints.restore(model)
            fit(config, dataset, model, everything, epoch, [*logs, checkpoints], first_epoch=done)
            kept = epoch, model.head.get_weights()
        elif not epoch and config.training.epochs:
            log.info("The untrained start was best, and is kept.")
        costs.begin(Stage.TEST)
        metrics = _compare(config, dataset, start, model.head, splits.test) if len(splits.test) else {}
    except KeyboardInterrupt as interrupt:
        model.head.set_weights(kept[1])
        raise Interrupted(model, kept[0]) from interrupt
    phase = "refit" if config.training.refit else "select"
    chosen = {
        "epoch": epoch,
        "held_out": counts[1],
        "folds": 1 + len(other_folds),
        "views": config.views.number,
        "turned_classes": config.views.turned_classes,
        **({"parts": dataset.parts.chosen, "tried_parts": dataset.parts.scores} if dataset.parts else {}),
        **config.head.model_dump(include={"start", "power", "tried", *PARAMETERS.get(config.head.start, ())}),
    }
    return model, {**metrics, "validation": {**validation, **chosen}, "phase": phase}


def write_held_out(workdir: pathlib.Path, dataset: Dataset, head: Head) -> None:
    """Write a head that did not train on the validation items; and `thresholds.json` of these, if they have labels."""
    write_held_out_head(workdir, head)
    found, known = None, dataset.labelled(dataset.splits.validation)
    if len(known):
        chosen = some_classes(known, dataset.labels)
        found = measure_thresholds(embed(head, UnitRows(dataset.features, chosen)), dataset.labels[chosen])
    if found is not None:
        found.write(workdir)
    elif len(known):
        log.info("Held-out items tell no threshold of matches: no two of them share a label.")


def write_held_out_head(workdir: pathlib.Path, head: Head) -> None:
    """Write the weights of a head that did not train on what was held out, `held_out_head.npz`."""
    with writing_whole(workdir / HELD_OUT_HEAD) as side:
        np.savez(side, *head.get_weights())


def told_of_refit(epoch: int) -> str:
    """What is said before it, with a place for how many are trained on."""
    if not epoch:
        return "The untrained start was best: it is computed anew of all %s, and no step is taken."
    return f"All %s train, for {counted(epoch, 'epoch')}."


def copy_head(head: Head) -> Head:
    """A head with the same weights, which stay as they are."""
    copy = Head.from_config(head.get_config())
    copy.build((None, head.kernel.shape[0]))
    copy.set_weights(head.get_weights())
    return copy


def watch(
    config: schema.Config, workdir: pathlib.Path, phase: str
) -> tuple[list[keras.callbacks.Callback], Checkpoints]:
    """What writes down how a phase goes, and what saves it."""
    history = workdir / "history.csv"
    logs = [HistoryCsv(history, phase), keras.callbacks.TensorBoard(workdir / "tensorboard" / phase, write_graph=False)]
    return logs, Checkpoints(workdir / "checkpoints" / phase, config.training.checkpoint_every_seconds, history)
