"""What a run chooses on training items that it holds out: views, the start of the head, the number of epochs."""

import itertools
import logging
from collections.abc import Sequence

import numpy as np

from xbm_keras.config import schema
from xbm_keras.config.yaml_files import blaming_config
from xbm_keras.data.dataset import Dataset
from xbm_keras.experiment.chosen_head import PARAMETERS, POWERS, TRIED, ChosenHead, HeadChoice
from xbm_keras.experiment.held_out import HeldOutFolds, are_near_best
from xbm_keras.experiment.loading import TRIED_VIEWS
from xbm_keras.progress import bar

log = logging.getLogger("xbm_keras")
AUTO_STARTS = ("identity", "centred", "pca", "local", "whiten", "lda", "nda")  # ascending in what classes tell them
LOCAL_SHRINKAGES = (0.8, 0.9, 0.95, 0.98)  # that are tried for the start "local"
FAR = 2.0  # standard errors, by a sample of the queries


def choose_start(given: schema.HeadConfig, dataset: Dataset, folds: HeldOutFolds | None = None) -> ChosenHead:
    """The same head, with what suits held-out training items best in place of "auto".

    The start is the one of `most_of_classes`; the power comes last, for that start: the one of the highest mean score.

    Args:
        given: the head.
        dataset: the items.
        folds: of the dataset, where several heads are chosen for, or where no labels are to be used.
    """
    with blaming_config():
        given = given.for_features(dataset.features.shape[1])
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
    heads = [best.model_copy(update={"power": power}) for power in powers]
    folds.find(heads)
    return max(heads, key=folds.score)


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

    Where the held-out items are many, an eighth of them query all first, and what is far behind by these is not looked
    at further: its score stays that of the sample.
    """
    if not folds.uses_labels:
        return choices[int(np.argmax(_scores(choices, folds)))]
    of_sample: dict[tuple[str, str], float] = {}
    if folds.can_sample:
        is_near, scores = _within(FAR, choices, folds, is_sample=True)
        of_sample = _by_shrinkage(choices, scores)
        choices = [choice for choice, near in zip(choices, is_near, strict=True) if near]
    is_close, scores = _within(1.0, choices, folds)

    def taken(i: int) -> tuple:
        return is_close[i], AUTO_STARTS.index(choices[i].start), -_shrinkage(choices[i]), scores[i]

    tried: dict[str, dict[str, float]] = {}
    for (start, shrinkage), score in (of_sample | _by_shrinkage(choices, scores)).items():
        tried.setdefault(start, {})[shrinkage] = score
    return choices[max(range(len(choices)), key=taken)].model_copy(update={"tried": tried})


def _within(
    errors: float, choices: Sequence[ChosenHead], folds: HeldOutFolds, is_sample: bool = False
) -> tuple[np.ndarray, list[float]]:
    """Which starts lack at most so many standard errors, over classes, of the best one, [n] bool; and all scores."""
    scores = _scores(choices, folds, is_sample)
    found = np.stack([folds.by_class(each, is_sample) for each in choices], axis=1)
    return are_near_best(found, errors), scores


def _scores(choices: Sequence[ChosenHead], folds: HeldOutFolds, is_sample: bool = False) -> list[float]:
    with bar("choosing the start", len(choices), "closed forms") as tried:
        folds.find(choices, is_sample, tried.advance)
    return [folds.score(each, is_sample) for each in choices]


def _by_shrinkage(choices: Sequence[ChosenHead], scores: Sequence[float]) -> dict[tuple[str, str], float]:
    """The best score of each start and shrinkage."""
    best: dict[tuple[str, str], float] = {}
    for choice, score in zip(choices, scores, strict=True):
        key = choice.start, str(_shrinkage(choice))
        best[key] = max(score, best.get(key, 0.0))
    return best


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
