"""What a run chooses on training items that it holds out: views, the start of the head, the number of epochs."""

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pydantic

from xbm_keras import progress
from xbm_keras.config import schema
from xbm_keras.config.yaml_files import blaming_config
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.neighbors import FrozenNeighbors
from xbm_keras.evaluation.retrieval import score_queries
from xbm_keras.experiment.loading import TRIED_VIEWS
from xbm_keras.stages.head.starts import ClosedForms, Start

log = logging.getLogger("xbm_keras")
AUTO_STARTS = ("identity", "centred", "pca", "local", "whiten", "lda", "nda")  # ascending in what classes tell them
PARAMETERS = {
    "whiten": ("shrinkage",),
    "local": ("shrinkage",),
    "lda": ("total_share", "shrinkage", "weighting"),
    "nda": ("total_share", "shrinkage", "weighting"),
}
TRIED = {  # where one is auto
    "shrinkage": (0.1, 0.3, 0.5, 0.7, 0.9, 0.98),
    "weighting": (0.3, 1.0),
    "total_share": (0.0, 0.3),
}
LOCAL_SHRINKAGES = (0.8, 0.9, 0.95, 0.98)  # the same for the start "local"
POWERS = (1.0, 0.5)  # of the features before the head, that are tried
ENOUGH_CLASSES = 100  # to choose by
RANK = 384  # of closed forms that are only compared: the time grows with its third power
MAX_SCORED_ITEMS = 8192  # of a fold


def closed_forms_of(
    dataset: Dataset, positions: np.ndarray, power: float = 1.0, rank: int | None = None
) -> ClosedForms:
    """One pass over the features of these items, raised to the head's power."""
    with progress.watch(UnitRows(dataset.features, positions, power), "closed form") as rows:
        return ClosedForms(rows, dataset.labels[positions], rank)


class HeadChoice(schema.HeadConfig):
    """A head with all that a run chooses for it, which no config says."""

    weighting: float | Literal["auto"] = "auto"
    """For lda and nda: a direction whose variance between classes is v times that inside them is scaled by the root of
    v / (v + weighting)."""
    total_share: float | Literal["auto"] = "auto"
    """For lda and nda: of the total covariance in the within-class one."""
    power: float | Literal["auto"] = "auto"
    """Of each feature before the FC layer, which keeps its sign."""


class ChosenHead(HeadChoice):
    """A head of which nothing is left to choose."""

    weighting: float = TRIED["weighting"][0]
    total_share: float = TRIED["total_share"][0]
    power: float = POWERS[0]
    tried: dict[str, dict[str, float]] = pydantic.Field(default_factory=dict)
    """By start and shrinkage MAP@R of held-out classes, the best over the rest."""


def make_start(config: ChosenHead, closed_forms: ClosedForms) -> Start:
    """The closed form that the config names."""
    with blaming_config():
        parameters = {name: getattr(config, name) for name in PARAMETERS.get(config.start, ())}
        return getattr(closed_forms, config.start)(config.embedding_dim, **parameters)


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
        self._found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._closed_forms: dict[tuple[int, float, int], ClosedForms] = {}
        self._frozen: FrozenNeighbors | None = None

    def score(self, choice: ChosenHead) -> float:
        """Of a start on held-out items: MAP@R, the mean over folds."""
        return float(np.mean([values.mean() for values, _ in self.found(choice)]))

    def by_class(self, choice: ChosenHead) -> np.ndarray:
        """The same of each class, [C], fold after fold, as large as its share in the score, which is their mean."""
        shares = []
        for values, classes in self.found(choice):
            _, places = np.unique(classes, return_inverse=True)
            shares.append(np.bincount(places, values) / len(values))
        return np.concatenate(shares) * sum(map(len, shares)) / len(shares)

    def found(self, choice: ChosenHead | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """MAP@R and class of the held-out items of each fold, [n] each; None is the frozen features.

        Without labels it is the overlap of each fold, [1], and no class.
        """
        key = "frozen" if choice is None else choice.model_dump_json(exclude={"tried"})
        if key not in self._found:
            self._found[key] = [self._find(i, choice) for i in range(len(self.folds))]
        return self._found[key]

    def _find(self, i: int, choice: ChosenHead | None) -> tuple[np.ndarray, np.ndarray]:
        dataset = self.folds[i]
        scored = dataset.splits.validation
        if self.uses_labels:
            scored = some_classes(scored, dataset.labels)
        embeddings = self._embedded(i, choice, scored)
        if not self.uses_labels:
            self._frozen = self._frozen or FrozenNeighbors(UnitRows(dataset.features, scored))
            widths = (choice and choice.widths) or [embeddings.shape[1]]
            overlap = self._frozen.mean_score(embeddings, widths)["neighbor_overlap_at_10"]
            return np.array([overlap]), np.arange(0)
        labels = dataset.labels[scored]
        order, found = score_queries(embeddings, labels)
        return found["map_at_r"], labels[order]

    def _embedded(self, i: int, choice: ChosenHead | None, positions: np.ndarray) -> np.ndarray:
        dataset = self.folds[i]
        if choice is None:
            return np.asarray(UnitRows(dataset.features, positions))
        rank = max(RANK, choice.embedding_dim)
        key = (i, choice.power, rank)
        if key not in self._closed_forms:
            train = dataset.with_views(dataset.splits.train)
            self._closed_forms[key] = closed_forms_of(dataset, train, choice.power, rank)
        kernel, bias = make_start(choice, self._closed_forms[key])
        return np.asarray(UnitRows(dataset.features, positions, choice.power)) @ kernel + bias


def choose_start(given: schema.HeadConfig, dataset: Dataset, folds: HeldOutFolds | None = None) -> ChosenHead:
    """The same head, with what suits held-out training items best in place of "auto".

    The start is the one of `most_of_classes`; the power comes last, for that start: the one of the highest mean score.

    Args:
        given: the head.
        dataset: the items.
        folds: of the dataset, where several heads are chosen for, or where no labels are to be used.
    """
    config = given if isinstance(given, HeadChoice) else HeadChoice(**given.model_dump())
    folds = folds or HeldOutFolds(dataset)
    tried_powers = POWERS if folds.uses_labels else POWERS[:1]
    powers = tried_powers if config.power == "auto" else (config.power,)
    fixed = config.model_dump(exclude={"power", "weighting", "total_share"})
    if config.start == "random":
        return ChosenHead(**fixed, power=powers[0])
    choices = _choices(config, fixed | {"power": powers[0]}, dataset.features.shape[1])
    best = choices[0] if len(choices) == 1 else most_of_classes(choices, folds)
    if len(powers) == 1:
        return best
    return max((best.model_copy(update={"power": power}) for power in powers), key=folds.score)


def _choices(config: HeadChoice, fixed: dict, width: int) -> list[ChosenHead]:
    """What is tried: each start with each value of what is "auto". The features as they are only where none is cut."""
    starts: Sequence[str] = (config.start,)
    if config.start == "auto":
        starts = AUTO_STARTS[0 if config.embedding_dim == width else 2 :]
    choices = []
    for start in starts:
        names = PARAMETERS.get(start, ())
        known = {**TRIED, "shrinkage": LOCAL_SHRINKAGES} if start == "local" else TRIED
        tried = [known[name] if (value := getattr(config, name)) == "auto" else (value,) for name in names]
        for values in itertools.product(*tried):
            choices.append(ChosenHead(**{**fixed, **dict(zip(names, values, strict=True)), "start": start}))
    return choices


def most_of_classes(choices: Sequence[ChosenHead], folds: HeldOutFolds) -> ChosenHead:
    """Of the starts that held-out classes cannot tell from the best, the one that takes most from training classes.

    The others lack more than one standard error, over the held-out classes, of their difference from the best. What is
    left is ordered by `AUTO_STARTS`, by less shrinkage, and then by score: a fold knows fewer classes than the run
    will, and understates what needs many. Without labels it is the best.
    """
    scores = [folds.score(choice) for choice in choices]
    best = int(np.argmax(scores))
    if not folds.uses_labels:
        return choices[best]
    lacking = folds.by_class(choices[best])[:, None] - np.stack([folds.by_class(each) for each in choices], axis=1)
    error = lacking.std(axis=0, ddof=1) / np.sqrt(len(lacking))
    is_close = lacking.mean(axis=0) <= error

    def taken(i: int) -> tuple:
        return is_close[i], AUTO_STARTS.index(choices[i].start), -_shrinkage(choices[i]), scores[i]

    tried: dict[str, dict[str, float]] = {}
    for choice, score in zip(choices, scores, strict=True):
        of_start, shrinkage = tried.setdefault(choice.start, {}), str(_shrinkage(choice))
        of_start[shrinkage] = max(score, of_start.get(shrinkage, 0.0))
    return choices[max(range(len(choices)), key=taken)].model_copy(update={"tried": tried})


def _shrinkage(choice: ChosenHead) -> float:
    """1 for starts that have none: they take nothing from what is inside classes."""
    return float(choice.shrinkage) if "shrinkage" in PARAMETERS.get(choice.start, ()) else 1.0


def choose(config: schema.Config, dataset: Dataset) -> tuple[schema.Config, Dataset]:
    """The same config, with what suits held-out training items best in place of "auto" in its head and its views.

    First the head, by the items as they are; then the views, each kind that the data has and the config leaves open,
    with and without, for that head; then the head once more, where it is to have views.

    Args:
        config: of the run.
        dataset: its data, with all views that are to be tried.

    Returns:
        The config, and the data with those views alone that were chosen.
    """
    ways = _ways_to_view(config.views, dataset)
    folds = [HeldOutFolds(data, not config.is_without_labels) for _, data in ways]
    head, best = choose_start(config.head, ways[0][1], folds[0]), 0
    if len(ways) > 1 and head.start != "random":  # of which there is nothing to compare before it is trained
        scores = [each.score(head) for each in folds]
        told = [f"{score:.3f} {_described(way)}" for (way, _), score in zip(ways, scores, strict=True)]
        log.info("MAP@R of held-out classes by views of training pictures: %s.", ", ".join(told))
        best = int(np.argmax(scores))
    views, chosen = ways[best]
    if best:
        head = choose_start(config.head, chosen, folds[best])
    return config.model_copy(update={"head": head, "views": views}), chosen


def _described(views: schema.Views) -> str:
    kinds = ["augmented ones"] * (views.number != 1) + ["turned classes"] * bool(views.turned_classes)
    return f"with {' and '.join(kinds)}" if kinds else "without"


def _ways_to_view(views: schema.Views, dataset: Dataset) -> list[tuple[schema.Views, Dataset]]:
    """The kinds of views that may train, of those that the data has: as few as the config allows come first."""
    is_turned = dataset.is_turned
    numbers = [1, TRIED_VIEWS] if (~is_turned).any() else [1]
    turns = [False, True] if is_turned.any() else [False]
    if isinstance(views.number, int):
        numbers = [views.number]
    if isinstance(views.turned_classes, bool):
        turns = [views.turned_classes]
    return [
        (views.model_copy(update={"number": n, "turned_classes": t}), dataset.keeping_views(n > 1, t))
        for n, t in itertools.product(numbers, turns)
    ]


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


def some_classes(positions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """All of these positions; or those of so many classes, drawn at random, that they are enough to compare heads."""
    names, counts = np.unique(labels[positions], return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    num_classes = max(2, np.searchsorted(np.cumsum(counts[order]), MAX_SCORED_ITEMS))
    return positions[np.isin(labels[positions], names[order[:num_classes]])]


def _holding_out(dataset: Dataset, positions: np.ndarray) -> Dataset:
    """The same data, with these of all training items for validation."""
    splits = dataset.splits
    train = np.setdiff1d(np.union1d(splits.train, splits.validation), positions)
    return dataclasses.replace(dataset, splits=dataclasses.replace(splits, train=train, validation=positions))


def best_epoch(curves: Sequence[Sequence[float]], simplest: bool = False) -> int:
    """The epoch of the highest mean score over folds.

    Args:
        curves: scores of all epochs of each fold, epoch 0 first. One that ended early keeps its last score; none at
            all leave epoch 0.
        simplest: the first epoch that is within two standard errors, of its differences from the best one over the
            folds: to go farther on what may be chance is to learn by heart. Of one fold it is the best.
    """
    length = max(map(len, curves))
    if not length:
        return 0
    scores = np.array([[*curve, *[curve[-1]] * (length - len(curve))] for curve in curves])  # [folds, epochs]
    best = int(np.argmax(scores.mean(axis=0)))
    if not simplest or len(scores) == 1:
        return best
    lacking = scores[:, best, None] - scores
    error = lacking.std(axis=0, ddof=1) / np.sqrt(len(scores))
    return int(np.argmax(lacking.mean(axis=0) <= 2 * error))
