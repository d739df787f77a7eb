"""Training items that are held out, and how starts of the head fare on them."""

import concurrent.futures
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np

from xbm_keras.data.dataset import Dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.neighbors import FrozenNeighbors
from xbm_keras.evaluation.retrieval import score_queries
from xbm_keras.experiment.chosen_head import ChosenHead, closed_forms_of, make_start
from xbm_keras.stages.cosine_scores import all_bits_of_float32
from xbm_keras.stages.head.neighbor_scatter import one_thread
from xbm_keras.stages.head.starts import ClosedForms, Start

ENOUGH_CLASSES = 100  # to choose by
RANK = 384  # of closed forms that are only compared: the time grows with its third power
MAX_SCORED_ITEMS = 8192  # of a fold
SAMPLE_SHARE = 8  # of these items each eighth is a query, where starts are told apart that are far from each other
MIN_SAMPLE = 256  # of queries: with fewer all are asked at once


class HeldOutFolds:
    """Scores starts by folds of a dataset's training items; keeps closed forms and scores for the next head.

    Args:
        dataset: the items.
        uses_labels: else scores are the overlap@10 with the frozen features among the validation items, the mean over
            widths.
    """

    def __init__(self, dataset: Dataset, uses_labels: bool = True):
        self.uses_labels = uses_labels
        self.folds = held_out(dataset) if uses_labels else [dataset]
        self._found: dict[tuple[str, bool], list[tuple[np.ndarray, np.ndarray]]] = {}
        self._closed_forms: dict[tuple[int, float, int], ClosedForms] = {}
        self._start = functools.cache(self._make_start)  # of the sample, and of all
        self._rows = functools.lru_cache(len(self.folds))(self._scored_rows)
        self._frozen: FrozenNeighbors | None = None
        self._making = [threading.RLock() for _ in self.folds]  # what a fold has once

    def score(self, choice: ChosenHead, is_sample: bool = False) -> float:
        """Of a start on held-out items: MAP@R, the mean over folds; of a sample of the queries it is an estimate."""
        return float(np.mean([values.mean() for values, _ in self.found(choice, is_sample)]))

    def by_class(self, choice: ChosenHead, is_sample: bool = False) -> np.ndarray:
        """The same of each class, [C], fold after fold, as large as its share in the score, which is their mean."""
        shares = []
        for values, classes in self.found(choice, is_sample):
            _, places = np.unique(classes, return_inverse=True)
            shares.append(np.bincount(places, values) / len(values))
        return np.concatenate(shares) * sum(map(len, shares)) / len(shares)

    @property
    def can_sample(self) -> bool:
        """Whether the items are so many that an eighth of them tell starts apart."""
        sizes = [min(len(fold.splits.validation), MAX_SCORED_ITEMS) for fold in self.folds]
        return self.uses_labels and min(sizes) >= SAMPLE_SHARE * MIN_SAMPLE

    def found(self, choice: ChosenHead | None, is_sample: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
        """MAP@R and class of the held-out items of each fold, [n] each; None is the frozen features.

        Without labels it is the overlap of each fold, [1], and no class.
        """
        if (key := _key(choice, is_sample)) not in self._found:
            self.find([choice], is_sample)
        return self._found[key]

    @one_thread()
    @all_bits_of_float32()
    def find(
        self,
        choices: Sequence[ChosenHead | None],
        is_sample: bool = False,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        """What `found` gives for each of these, several at a time; `advance` is told how many more were looked at."""
        missing = {key: each for each in choices if (key := _key(each, is_sample)) not in self._found}
        groups = [list(group) for _, group in itertools.groupby(missing.values(), _shared)]
        tasks = itertools.product(groups, range(len(self.folds)))
        pool = concurrent.futures.ThreadPoolExecutor(max(2, len(self.folds)))
        try:
            done = pool.map(lambda task: [self._find(task[1], each, is_sample) for each in task[0]], tasks)
            for group in groups:
                of_folds = [next(done) for _ in self.folds]
                for choice, of_choice in zip(group, zip(*of_folds, strict=True), strict=True):
                    self._found[_key(choice, is_sample)] = list(of_choice)
                advance(len(group))
        finally:
            pool.shutdown(cancel_futures=True)

    def _find(self, i: int, choice: ChosenHead | None, is_sample: bool) -> tuple[np.ndarray, np.ndarray]:
        with self._making[i]:
            positions, rows = self._rows(i, choice.power if choice else 1.0)
        embeddings = rows
        if choice is not None:
            kernel, bias = self._start(i, choice.model_dump_json(exclude={"tried"}))
            embeddings = rows @ kernel + bias
        if not self.uses_labels:
            with self._making[i]:
                self._frozen = self._frozen or FrozenNeighbors(self._rows(i, 1.0)[1])
            widths = (choice and choice.widths) or [embeddings.shape[1]]
            overlap = self._frozen.mean_score(embeddings, widths)["neighbor_overlap_at_10"]
            return np.array([overlap]), np.arange(0)
        labels = self.folds[i].labels[positions]
        sample = np.random.default_rng(0).permutation(len(labels))[: len(labels) // SAMPLE_SHARE]
        order, found = score_queries(embeddings, labels, chosen=sample if is_sample else None)
        return found["map_at_r"], labels[order]

    def _scored_rows(self, i: int, power: float) -> tuple[np.ndarray, np.ndarray]:
        """Positions [n] of the held-out items that are scored, and their features [n, D]."""
        dataset = self.folds[i]
        scored = dataset.splits.validation
        if self.uses_labels:
            scored = some_classes(scored, dataset.labels)
        return scored, np.asarray(UnitRows(dataset.features, scored, power))

    def _make_start(self, i: int, named: str) -> Start:
        choice, dataset = ChosenHead.model_validate_json(named), self.folds[i]
        train = dataset.with_views(dataset.splits.train)
        rank = max(min(RANK, len(train)), choice.embedding_dim)
        key = (i, choice.power, rank)
        with self._making[i]:
            if key not in self._closed_forms:
                self._closed_forms[key] = closed_forms_of(dataset, train, choice.power, rank, is_draft=True)
        return make_start(choice, self._closed_forms[key])


def _key(choice: ChosenHead | None, is_sample: bool) -> tuple[str, bool]:
    return "frozen" if choice is None else choice.model_dump_json(exclude={"tried"}), is_sample


def _shared(choice: ChosenHead | None) -> tuple | None:
    """The same for starts that have the dearest part of a closed form in common: one thread makes them in turn."""
    if choice is None:
        return None
    return choice.start, choice.power, choice.total_share, None if choice.start == "local" else choice.shrinkage


def held_out(dataset: Dataset, count: int | str = "auto") -> list[Dataset]:
    """What choices are made on: the same data, each time with other training items held out for validation.

    Args:
        dataset: the items, with the validation items that come first.
        count: of folds, at most as many as there are; or "auto": the data as it is, or, where its validation classes
            are few, each half of the folds. A few classes say little of others, and what is best among a few is not
            what is best among as many as there will be.
    """
    splits, folds = dataset.splits, dataset.splits.folds
    if count != "auto":
        others = [fold for fold in folds if not np.array_equal(fold, splits.validation)]
        return [dataset, *(_holding_out(dataset, fold) for fold in others[: int(count) - 1])]
    if len(folds) < 2 or len(np.unique(dataset.labels[splits.validation])) >= ENOUGH_CLASSES:
        return [dataset]
    middle = len(folds) // 2
    return [_holding_out(dataset, np.sort(np.concatenate(half))) for half in (folds[:middle], folds[middle:])]


def are_near_best(found: np.ndarray, errors: float = 1.0) -> np.ndarray:
    """Which of several ways lack at most so many standard errors, over classes, of the best one, [n] bool.

    Args:
        found: [C, n], of each way scores of classes, whose mean is its score.
        errors: how many.
    """
    lacking = found[:, int(np.argmax(found.mean(axis=0))), None] - found
    return lacking.mean(axis=0) <= errors * lacking.std(axis=0, ddof=1) / np.sqrt(len(lacking))


def some_classes(positions: np.ndarray, labels: np.ndarray, max_items: int | None = None) -> np.ndarray:
    """All of these positions; or those of so many classes, drawn at random, that they are enough to compare heads.

    Args:
        positions: of items.
        labels: of all items.
        max_items: how many are enough; two classes are taken in any case.
    """
    max_items = MAX_SCORED_ITEMS if max_items is None else max_items
    names, counts = np.unique(labels[positions], return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    num_classes = max(2, np.searchsorted(np.cumsum(counts[order]), max_items))
    return positions[np.isin(labels[positions], names[order[:num_classes]])]


def _holding_out(dataset: Dataset, positions: np.ndarray) -> Dataset:
    """The same data, with these of all training items for validation."""
    splits = dataset.splits
    train = np.setdiff1d(np.union1d(splits.train, splits.validation), positions)
    return dataclasses.replace(dataset, splits=dataclasses.replace(splits, train=train, validation=positions))
