"""The searches of a run's data that a promise is measured by: of held-out items or queries, and of those that test.

Letters: N gallery items, D feature width.
"""

from typing import NamedTuple, Protocol

import numpy as np

from xbm_keras.data.dataset import Dataset
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.promises import Promise, PromisedItems, PromisedPairs, Trial, some_queries
from xbm_keras.experiment.held_out import MAX_SCORED_ITEMS, some_classes

MAX_ROWS = 20_000  # that are searched while all is tried


class HeldOut(NamedTuple):
    """A search that no choice of the head knows."""

    trial: Trial
    ordering: np.ndarray
    """[n, D] features, whose moments order the directions of a cut: others than those that are searched for."""


class Trials(Protocol):
    """Searches of one run's data."""

    how: str
    """Who searches what, for people."""

    def held_out(self, promises: tuple[Promise, ...]) -> HeldOut:
        """By what did not train the held-out head. Raises ValueError for promises that such data cannot tell."""

    def test(self, promises: tuple[Promise, ...]) -> tuple[Trial, str] | None:
        """By what tests, and how that is called; None where nothing is there to tell."""

    def final_ordering(self) -> np.ndarray:
        """[n, D] features, all that may order the directions of what is exported."""

    def labelled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Features [n, D] and labels [n] of held-out items, and features of the training items; None without labels."""


class ItemTrials:
    """Items query each other: held-out ones themselves and half of the training items.

    Among themselves alone they would find it too easy: the more items there are, the nearer lie those that a coarse
    code cannot tell apart. The other half orders the directions of a cut, which suit the items that they were made of.
    """

    how = "Training items that were held out from the head query these and half of the others."

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def held_out(self, promises: tuple[Promise, ...]) -> HeldOut:
        """See `Trials`."""
        dataset = self._dataset
        asking = scored_items(dataset, dataset.splits.validation)
        ordering, others = halves(dataset, dataset.splits.train)
        positions = np.concatenate([asking, others[: max(0, MAX_ROWS - len(asking))]])
        return HeldOut(self._among(positions, promises, len(asking)), self._features(ordering))

    def test(self, promises: tuple[Promise, ...]) -> tuple[Trial, str] | None:
        """See `Trials`."""
        positions = np.random.default_rng(0).permutation(self._dataset.splits.test)[:MAX_ROWS]
        try:
            return self._among(positions, promises), f"{len(self._dataset.splits.test):,} test items"
        except ValueError:
            return None

    def final_ordering(self) -> np.ndarray:
        """See `Trials`."""
        return self._features(np.union1d(self._dataset.splits.train, self._dataset.splits.validation))

    def labelled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """See `Trials`."""
        known = self._dataset.labelled(self._dataset.splits.validation)
        if not len(known):
            return None
        positions = some_classes(known, self._dataset.labels)
        labels, trained = self._dataset.labels[positions], self._features(self._dataset.splits.train)
        return self._features(positions), labels, trained

    def _features(self, positions: np.ndarray) -> np.ndarray:
        return np.asarray(UnitRows(self._dataset.features, positions))

    def _among(self, positions: np.ndarray, promises: tuple[Promise, ...], num_asking: int | None = None) -> Trial:
        """The items at these positions, with their labels, where the data has some; the first so many query."""
        labels = self._dataset.labels[positions] if self._dataset.has_labels else None
        return PromisedItems(self._features(positions), labels, promises, num_asking)


class PairTrials:
    """Held-out queries, whose documents answer no query that trained, search the documents.

    The documents that answer them order no directions: they stand for those that are yet to come.
    """

    how = "Held-out queries, whose documents answer no query that trained, search the documents."

    def __init__(self, dataset: PairDataset):
        self._dataset = dataset

    def held_out(self, promises: tuple[Promise, ...]) -> HeldOut:
        """See `Trials`."""
        queries = some_queries(self._dataset.splits.validation)
        answers = self._answers(queries)
        others = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(len(self._dataset.documents)), answers))
        searched = np.sort(np.concatenate([answers, others[: max(0, MAX_ROWS - len(answers))]]))
        return HeldOut(self._among(queries, searched, promises), self._documents(np.sort(others)))

    def test(self, promises: tuple[Promise, ...]) -> tuple[Trial, str] | None:
        """See `Trials`: those whose documents never trained, among all documents."""
        splits = self._dataset.splits
        trained = np.union1d(splits.train, splits.validation)
        queries = some_queries(splits.test[self._dataset.is_unseen(splits.test, trained)])
        if len(queries) < 2:
            return None
        trial = self._among(queries, np.arange(len(self._dataset.documents)), promises)
        return trial, f"{len(queries):,} test queries, whose documents never trained,"

    def final_ordering(self) -> np.ndarray:
        """See `Trials`."""
        return self._documents(np.arange(len(self._dataset.documents)))

    def labelled(self) -> None:
        """See `Trials`."""

    def _answers(self, queries: np.ndarray) -> np.ndarray:
        relevant, _ = self._dataset.pairs.relevant(queries)
        return np.unique(relevant[relevant >= 0])

    def _documents(self, positions: np.ndarray) -> np.ndarray:
        return np.asarray(UnitRows(self._dataset.documents, positions))

    def _among(self, queries: np.ndarray, documents: np.ndarray, promises: tuple[Promise, ...]) -> Trial:
        relevant, grades = self._dataset.pairs.relevant(queries)
        relevant = np.where(relevant >= 0, np.searchsorted(documents, relevant), -1)
        asked = np.asarray(UnitRows(self._dataset.queries, queries))
        return PromisedPairs(asked, self._documents(documents), relevant, grades, promises)


def trials_of(dataset: Dataset | PairDataset) -> Trials:
    """The searches of items, or of queries and documents."""
    return PairTrials(dataset) if isinstance(dataset, PairDataset) else ItemTrials(dataset)


def scored_items(dataset: Dataset, positions: np.ndarray) -> np.ndarray:
    """So many of these positions that codes can be compared on, in whole classes, where all have one."""
    if len(dataset.labelled(positions)) == len(positions):
        return some_classes(positions, dataset.labels)
    return np.sort(np.random.default_rng(0).permutation(positions)[:MAX_SCORED_ITEMS])


def halves(dataset: Dataset, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """These positions in two halves, in random order; of items that all have a class, no class is in both."""
    order = np.random.default_rng(0).permutation(positions)
    units = dataset.labels[order] if len(dataset.labelled(order)) == len(order) else order
    unique = np.unique(units)
    is_first = np.isin(units, np.random.default_rng(1).permutation(unique)[: (len(unique) + 1) // 2])
    return order[is_first], order[~is_first]
