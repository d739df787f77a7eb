"""What closed forms give on held-out training classes: whether a head is worth it, told before any training."""

from typing import NamedTuple

import numpy as np

from xbm_keras.config.schema import Config
from xbm_keras.data.dataset import Dataset
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.experiment.chosen_head import ChosenHead
from xbm_keras.experiment.held_out import HeldOutFolds
from xbm_keras.experiment.learning import class_learning_curve
from xbm_keras.experiment.selection import choose_start
from xbm_keras.report.learning_curve import LearningCurve

STARTS = ("pca", "whiten", "lda")
FEW_CLASSES = 2  # batches that hold them all


class Row(NamedTuple):
    """MAP@R of held-out training classes under one form."""

    name: str
    score: float
    interval: tuple[float, float]
    """Of 95 %, by bootstrap over the classes; so is the next one."""
    above_frozen: tuple[float, float] | None = None
    """Of the differences from the frozen features, query by query; None for these themselves."""


class Preview(NamedTuple):
    """Frozen features and closed forms side by side, and what follows."""

    rows: list[Row]
    """Frozen, centred and then the forms of `STARTS`, each as it is best on the held-out classes."""
    curve: LearningCurve | None
    """Of the best form, over more and more training classes."""
    advice: str


def preview(config: Config, dataset: Dataset) -> Preview:
    """Score frozen features and closed forms by folds of the training classes; nothing trains, nothing is tested.

    Args:
        config: of the run that is thought of.
        dataset: its data; views play no part.
    """
    folds = HeldOutFolds(dataset)
    widths = {"embedding_dim": dataset.features.shape[1], "widths": None}
    forms = {"centred": ChosenHead(**{**config.head.model_dump(), **widths, "start": "centred"})}
    for start in STARTS:
        forms[start] = choose_start(config.head.model_copy(update={"start": start}), dataset, folds)
    frozen, classes = (np.concatenate(each) for each in zip(*folds.found(None), strict=True))
    rows = [Row("frozen", float(frozen.mean()), bootstrap_interval(frozen, classes))]
    for name, form in forms.items():
        values = np.concatenate([each for each, _ in folds.found(form)])
        intervals = (bootstrap_interval(each, classes) for each in (values, values - frozen))
        rows.append(Row(name, float(values.mean()), *intervals))
    best = max(rows[1:], key=lambda row: row.score)
    chosen = {**forms[best.name].model_dump(), "views": 1, "turned_classes": False}
    num_classes = len(np.unique(dataset.labels[np.union1d(dataset.splits.train, dataset.splits.validation)]))
    advice = _advice(best, num_classes, config.classes_per_batch, dataset.features.shape[1])
    return Preview(rows, class_learning_curve(config, dataset, chosen), advice)


def _advice(best: Row, num_classes: int, classes_per_batch: int, width: int) -> str:
    """Leave it, solve it, or train it: in one sentence, with the reason."""
    low, high = best.above_frozen or (0.0, 0.0)
    if low <= 0:
        return (
            f"Leave it: of all forms the best, {best.name} is not surely better than the frozen features: {low:+.3f} "
            f"to {high:+.3f} MAP@R, the 95 % interval over classes. Use the features as they are."
        )
    told = f"{best.name} is {low:+.3f} to {high:+.3f} MAP@R above the frozen features"
    if num_classes <= FEW_CLASSES * classes_per_batch:
        which = "is the closed form itself"
        if best.name == "centred":
            which = f"with head.start=centred and head.embedding_dim={width} is this one, in all dimensions"
        return (
            f"Solve it: {told}. A batch of {classes_per_batch} classes has most of the {num_classes} there are, so "
            f"training from a memory adds little: training.epochs=0 {which}."
        )
    return (
        f"Train it: {told}, and {num_classes} classes are many more than the {classes_per_batch} of a batch, so the "
        "memory has hard negatives that a batch lacks."
    )
