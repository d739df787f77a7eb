"""A run on queries and documents: select the start and the number of epochs, refit, test once.

As `phases` does it for classes. What is held out to choose by are queries whose documents answer no query that trains.
"""

import logging
import pathlib
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from xbm_keras import progress
from xbm_keras.config import schema
from xbm_keras.data.batches import ShuffledSampler, query_dataset
from xbm_keras.data.labels import counted
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.pair_scores import PairEvaluation, PairScores, compare_pairs
from xbm_keras.evaluation.pairs import evaluate_pairs
from xbm_keras.experiment import devices
from xbm_keras.experiment.build import make_model, rate_of_steps, steps_per_epoch, tell_memory
from xbm_keras.experiment.pair_starts import choose_pair_start, make_pair_start
from xbm_keras.experiment.phases import (
    Interrupted,
    copy_head,
    fit_batches,
    told_of_refit,
    watch,
    write_held_out_head,
)
from xbm_keras.experiment.selection import best_epoch
from xbm_keras.model import strategies
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.report.stage_costs import Costs, Stage
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.stages.head.fc_layer import Head
from xbm_keras.training.callbacks import KeepBestHead
from xbm_keras.training.checkpoints import Checkpoints
from xbm_keras.training.known_neighbors import know_neighbors
from xbm_keras.training.memory_batches import prefill_order

log = logging.getLogger("xbm_keras")
MONITOR = "val_ndcg_at_10"
ROWS = {"answers": "documents that answer training queries", "corpus": "documents", "queries": "training queries"}
"""What the rows of the memory are, by `training.negatives`."""


class Roles:
    """Who is anchor and who is row: queries and documents, or the other way round.

    Args:
        config: says which.
        dataset: the data.
        queries: [n] positions of those that train.
    """

    def __init__(self, config: schema.Config, dataset: PairDataset, queries: np.ndarray):
        relevant, _ = dataset.pairs.relevant(queries)  # [n, P]
        places, ranks = np.nonzero(relevant >= 0)
        answered, which = np.unique(relevant[places, ranks], return_inverse=True)
        negatives = config.training.negatives
        if negatives != "queries":
            documents = np.arange(len(dataset.documents)) if negatives == "corpus" else answered
            self.anchors, self.anchor_ids = UnitRows(dataset.queries, queries), queries
            self.rows = UnitRows(dataset.documents, documents)
            self.relevant = np.where(relevant >= 0, np.searchsorted(documents, relevant), -1)
        else:
            order = np.argsort(which, kind="stable")
            counts = np.bincount(which)
            columns = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
            self.relevant = np.full((len(answered), counts.max()), -1, np.int64)
            self.relevant[which[order], columns] = places[order]
            self.anchors, self.anchor_ids = UnitRows(dataset.documents, answered), answered
            self.rows = UnitRows(dataset.queries, queries)
        self.row_ids = np.arange(len(self.rows))

    def anchors_at(self, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What a step is given of these anchors, [n]: features [n, D], relevant rows [n, P], and ids, of no row."""
        features, relevant = self.anchors[numbers.numpy()], self.relevant[numbers.numpy()]
        return tf.constant(features), tf.constant(relevant), -tf.ones_like(numbers)


def start_model(
    config: schema.Config, dataset: PairDataset, backbone: Backbone | None, queries: np.ndarray
) -> XBMModel:
    """A model before its first step: the head at its closed form of these queries, the memory prefilled.

    Args:
        config: of the run; nothing in its head is "auto".
        dataset: the data.
        backbone: None for a model of features.
        queries: [n] positions of those that train.
    """
    roles = Roles(config, dataset, queries)
    strategy = devices.make_strategy(config.training)
    with strategies.scope(strategy):
        rate = rate_of_steps(config, steps_per_epoch(config, _sampler(config, roles)))
        model = make_model(config, backbone, dataset.queries.shape[1], len(roles.rows), rate, power=1.0)
    if config.head.start != "random":
        model.set_start(make_pair_start(config.head, dataset, queries).scaled())
    model.top_k.adapt(roles.rows)
    if config.memory.prefill and model.memory.memory_size:
        order = prefill_order(len(roles.rows), config.training.seed)
        shuffled = UnitRows(roles.rows.features, roles.rows.positions[order])
        with progress.watch(shuffled, "prefill") as rows:
            model.memory.prefill(rows, np.zeros(len(order), np.int64), roles.row_ids[order])
    return model


def _sampler(config: schema.Config, roles: Roles) -> ShuffledSampler:
    c = config.training
    return ShuffledSampler(len(roles.anchors), min(c.batch_size, len(roles.anchors)), c.seed)


def fit(
    config: schema.Config,
    dataset: PairDataset,
    model: XBMModel,
    queries: np.ndarray,
    epochs: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    show_progress: bool = True,
    first_epoch: int = 0,
) -> None:
    """Train on these queries, for at most this number of epochs, of which some may be done."""
    if not epochs:
        return
    roles = Roles(config, dataset, queries)
    sampler = _sampler(config, roles)
    steps = steps_per_epoch(config, sampler)
    held = None if model.memory.frozen and model.memory.memory_size else roles.rows
    if held is None:
        num_ahead = (epochs - first_epoch) * steps * sampler.batch_size
        know_neighbors(model, num_ahead, config.cache.dir, roles.anchors_at, len(roles.anchors))
    batches = query_dataset(roles.anchors, roles.anchor_ids, roles.relevant, sampler, held, first_epoch * steps)
    fit_batches(model, batches, steps, epochs, callbacks, show_progress, first_epoch)


def select(
    config: schema.Config,
    dataset: PairDataset,
    model: XBMModel,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoints: Checkpoints | None = None,
    show_progress: bool = True,
) -> KeepBestHead:
    """Train on the training queries, and end with the head of the epoch that is best on the validation queries.

    Raises Interrupted by Ctrl-C.
    """
    train, validation = dataset.splits.train, dataset.splits.validation
    corpus = UnitRows(dataset.documents)
    evaluation = PairEvaluation(UnitRows(dataset.queries, validation), corpus, *dataset.pairs.relevant(validation))
    best = KeepBestHead(evaluation, config.training.patience, MONITOR)
    callbacks = [evaluation, best, *callbacks, *([checkpoints] if checkpoints else [])]
    best.set_model(model)  # Ctrl-C may come before the first step, while neighbours are searched
    done = checkpoints.restore(model, best) if checkpoints else 0
    try:
        fit(config, dataset, model, train, config.training.epochs, callbacks, show_progress, done)
    except KeyboardInterrupt as interrupt:
        best.on_train_end()
        raise Interrupted(model, best.epoch) from interrupt
    return best


def _frozen_score(dataset: PairDataset) -> float:
    """nDCG@10 of the validation queries by the frozen features."""
    validation = dataset.splits.validation
    queries = np.asarray(UnitRows(dataset.queries, validation))
    documents = np.asarray(UnitRows(dataset.documents))
    found = evaluate_pairs(queries, documents, *dataset.pairs.relevant(validation))
    return float(found["ndcg_at_10"].mean())


def compare(
    config: schema.Config,
    dataset: PairDataset,
    start: Head | None,
    trained: Head,
    queries: np.ndarray,
    trained_on: np.ndarray | None = None,
) -> PairScores:
    """Frozen, closed form and trained side by side; where it is said who trained, by both protocols."""
    heads = {"frozen": None, "closed_form": start, "trained": trained}
    if start is None:
        del heads["closed_form"]
    return compare_pairs(
        UnitRows(dataset.queries, queries),
        UnitRows(dataset.documents),
        *dataset.pairs.relevant(queries),
        heads,
        None if trained_on is None else dataset.is_unseen(queries, trained_on),
        config.export.codes,
    )


def run(
    config: schema.Config,
    folds: Sequence[PairDataset],
    backbone: Backbone | None,
    workdir: pathlib.Path,
    costs: Costs,
) -> tuple[XBMModel, dict]:
    """Choose start and number of epochs on held-out queries, train on all training queries, and test once.

    Args:
        config: of the run.
        folds: the data, each time with other queries held out.
        backbone: None for a model of features.
        workdir: gets `history.csv`, TensorBoard logs, `held_out_head.npz` and `checkpoints/`, from which it goes on
            where it was killed.
        costs: of the stages.

    Returns:
        The trained model, and the contents of `metrics.json`; its `validation` is of the first fold, but for
        `above_frozen`, how much nDCG@10 of held-out queries is above that of the frozen features, the mean over folds.

    Raises:
        Interrupted: by Ctrl-C, once training began.
    """
    costs.begin(Stage.CHOICE)
    head = choose_pair_start(config.head, folds)
    config = config.model_copy(update={"head": head})
    dataset, has_start = folds[0], head.start != "random"
    splits = dataset.splits
    times = f"; {len(folds)} times, each with others held out" if len(folds) > 1 else ""
    told = counted(len(splits.train), "query"), f"{len(splits.validation):,}", times
    log.info("%s train and %s choose the epoch%s.", *told)
    model = start_model(config, dataset, backbone, splits.train)
    tell_memory(config, model.memory.memory_size, ROWS[config.training.negatives])
    start = copy_head(model.head) if has_start else None
    best = select(config, dataset, model, *watch(config, workdir, "select"))
    curves = [best.scores]
    kept = best.epoch, model.head.get_weights()
    try:
        for number, fold in enumerate(folds[1:], start=2):
            fold_model = start_model(config, fold, backbone, fold.splits.train)
            curves.append(select(config, fold, fold_model, *watch(config, workdir, f"select_{number}")).scores)
        epoch = best_epoch(curves, simplest=True)
        if epoch != best.epoch:
            which = f"epoch {epoch}" if epoch else "the untrained start"
            log.info("Over all folds %s is chosen: the first fold is brought there again, for its score.", which)
            model = start_model(config, dataset, backbone, splits.train)
            fit(config, dataset, model, splits.train, epoch)
            kept = epoch, model.head.get_weights()
        costs.begin(Stage.HELD_OUT)
        validation = compare(config, dataset, start, model.head, splits.validation)
        write_held_out_head(workdir, model.head)
        trained_on = splits.train
        if config.training.refit:
            costs.begin(Stage.REFIT)
            trained_on = np.union1d(splits.train, splits.validation)
            log.info(told_of_refit(epoch), f"{len(trained_on):,} queries")
            model = start_model(config, dataset, backbone, trained_on)
            start = copy_head(model.head) if has_start else None
            logs, checkpoints = watch(config, workdir, "refit")
            done = checkpoints.restore(model)
            fit(config, dataset, model, trained_on, epoch, [*logs, checkpoints], first_epoch=done)
            kept = epoch, model.head.get_weights()
        elif not epoch and config.training.epochs:
            log.info("The untrained start was best, and is kept.")
        costs.begin(Stage.TEST)
        metrics = compare(config, dataset, start, model.head, splits.test, trained_on) if len(splits.test) else {}
    except KeyboardInterrupt as interrupt:
        model.head.set_weights(kept[1])
        raise Interrupted(model, kept[0]) from interrupt
    phase = "refit" if config.training.refit else "select"
    above = validation["pairs"]["trained"]["ndcg_at_10_above_frozen"]
    if best.scores:  # else nothing trained, and the first fold alone was scored
        ends = [curve[min(epoch, len(curve) - 1)] for curve in curves]
        above = float(np.mean([end - _frozen_score(fold) for end, fold in zip(ends, folds, strict=True)]))
    about = head.model_dump(include={"start", "shrinkage", "parameters"})
    chosen = {"epoch": epoch, "above_frozen": above, **about}
    return model, {**metrics, "validation": {**validation, **chosen}, "phase": phase}
