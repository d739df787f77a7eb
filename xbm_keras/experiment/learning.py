"""Would more data help: the chosen closed form by the number of training classes, or queries."""

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from xbm_keras.config.schema import Config
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.evaluation.retrieval import score_queries
from xbm_keras.experiment.chosen_head import PARAMETERS, ChosenHead, closed_forms_of, make_start
from xbm_keras.experiment.held_out import RANK, some_classes
from xbm_keras.progress import track
from xbm_keras.report.learning_curve import LearningCurve
from xbm_keras.stages.cosine_scores import all_bits_of_float32
from xbm_keras.stages.head.neighbor_scatter import one_thread

Made = TypeVar("Made")
MIN_CLASSES = 10
SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)


class Stopped(Exception):
    """What is made meanwhile is no longer wanted."""


@contextlib.contextmanager
def meanwhile(make: Callable[..., Made], *args: Any) -> Iterator[Callable[[], Made]]:
    """`make` of these, and of an event, in a thread of its own while the block runs: what waits for the result.

    Whether both are at work or one, products have one thread of BLAS each and all bits. The event is set once the block
    ends, which an error or Ctrl-C may do before `make` has: it should raise `Stopped` then, for the block waits for it.
    """
    stopped = threading.Event()
    with one_thread(), all_bits_of_float32(), concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(make, *args, stopped).result
        finally:
            stopped.set()


@one_thread()
def class_learning_curve(
    config: Config, dataset: Dataset, chosen: dict, stopped: threading.Event | None = None
) -> LearningCurve | None:
    """MAP@R of the validation classes under the closed form of 5 to 100 % of the training classes.

    Args:
        config: of the run.
        dataset: its data, with all views that it tried.
        chosen: the start, its parameters and the views, as `metrics.json` has them.
        stopped: is asked before each closed form.

    Returns:
        None where the run is one without labels, the start is random, or fewer than ten classes train.

    Raises:
        Stopped: once it is set.
    """
    if config.is_without_labels or chosen["start"] == "random":
        return None
    train, labels = dataset.splits.train, dataset.labels
    classes = np.unique(labels[train])
    if len(classes) < MIN_CLASSES:
        return None
    keys = ("start", "power", *PARAMETERS.get(chosen["start"], ()))
    given = config.head.for_features(dataset.features.shape[1])
    head = ChosenHead(**{**given.model_dump(), **{key: chosen[key] for key in keys}})
    data = dataset.keeping_views(chosen["views"] > 1, chosen["turned_classes"])
    scored = some_classes(dataset.splits.validation, labels)
    rows = np.asarray(UnitRows(dataset.features, scored, head.power))

    def score(some: np.ndarray) -> np.ndarray:
        if stopped and stopped.is_set():
            raise Stopped
        positions = data.with_views(train[np.isin(labels[train], some)])
        rank = max(min(RANK, len(positions)), head.embedding_dim)
        forms = closed_forms_of(data, positions, head.power, rank)
        kernel, bias = make_start(head, forms)
        return score_queries(rows @ kernel + bias, labels[scored])[1]["map_at_r"]

    order, frozen = score_queries(UnitRows(dataset.features, scored)[:], labels[scored])
    shuffled = np.random.default_rng(0).permutation(classes)
    return curve_of(shuffled, score, frozen["map_at_r"], "MAP@R", "classes", labels[scored][order])


def curve_of(
    order: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    frozen: np.ndarray,
    metric: str,
    units: str,
    groups: np.ndarray | None = None,
) -> LearningCurve | None:
    """The curve over 5, 10, 20, 50 and 100 % of what may train.

    Args:
        order: [n] what may train, at random: the first of it are taken.
        score: from a sorted part of it to the scores [q] of the same held-out items or queries.
        frozen: [q] those of the frozen features.
        metric: what it is called.
        units: what is counted.
        groups: [q] what the bootstrap draws, by default single scores.

    Returns:
        None where fewer than two parts give a closed form.
    """
    counts = np.unique([max(2, round(share * len(order))) for share in SHARES]).tolist()
    found: dict[int, np.ndarray] = {}
    for i in track(range(len(counts)), "learning curve", len(counts), "closed forms"):
        with contextlib.suppress(ValueError):  # of parts too small for the form, such as classes of one item each
            found[counts[i]] = score(np.sort(order[: counts[i]]))
    if len(found) < 2:
        return None
    *_, less, most = found.values()
    means = {count: float(each.mean()) for count, each in found.items()}
    return LearningCurve(means, float(frozen.mean()), bootstrap_interval(most - less, groups), metric, units)
