"""Which items train, which validate, which test."""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np

from xbm_keras.data.errors import DataError
from xbm_keras.data.labels import Labels, as_text
from xbm_keras.data.sources import Items
from xbm_keras.data.tables import require_column
from xbm_keras.data.unit_rows import FeatureRows, UnitRows

NEIGHBORHOODS, MIN_NEIGHBORHOOD = 8, 20  # that are held out, at most; items of one, where there are as many
BLOCK_ROWS = 8192
MIN_COMPARED = 3  # items whose neighbours can be compared
QUERY_VALUES, GALLERY_VALUES = ("query", "test"), ("gallery", "train")


@dataclasses.dataclass(frozen=True)
class Splits:
    """Positions of items, each [n] int64. By class, no class is in more than one of the three."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    is_query: np.ndarray | None = None
    """[n test] bool, where the data has a query/gallery protocol."""
    is_gallery: np.ndarray | None = None
    folds: tuple[np.ndarray, ...] = ()
    """Disjoint parts of what trains, validation included, each cut off as `validation` is."""


def split_items(
    items: Items,
    *,
    by: str = "class",
    column: str | None = None,
    num_train_classes: int | None = None,
    test: float | list | None = 0.5,
    validation_fraction: float = 0.25,
    query_column: str | None = None,
    query_values: Sequence[str] = QUERY_VALUES,
    gallery_values: Sequence[str] = GALLERY_VALUES,
    seed: int = 0,
) -> Splits:
    """Split items into train, validation and test; see docs/config.md, `data.split`, for the arguments.

    Where `test` is None nothing tests. Validation is carved from what trains, with the same unit (classes or items):
    `validation_fraction` of them, the first of the parts that this cuts them into. By class, items without a label are
    in none of the three.

    Raises:
        DataError: for a column that does not exist, never says "train" or "test", or says both of one class; for
            classes that do not exist; or where too few classes remain to train on (2), to validate on (2) or to test
            on (1).
    """
    num_items = len(items.keys)
    if by == "class":
        if items.labels is None:
            raise DataError(
                "Received data without labels and split.by 'class'; set data.split.by=item, or give labels."
            )
        units, names, is_known = items.labels.codes, items.labels.names, items.labels.is_labelled
    else:
        units, names, is_known = np.arange(num_items), list(range(num_items)), np.ones(num_items, bool)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    if column is not None:
        require_column(column, items.columns, "the data")
        values = as_text(items.columns[column])
        is_train, is_test = is_known & (values == "train"), is_known & (values == "test")
        if not (is_train.any() and is_test.any()):
            raise DataError(
                f"Received split column {column!r} with the values {', '.join(np.unique(values[is_known])[:8])}; "
                "expected both 'train' and 'test' among them."
            )
        _require_apart([names[unit] for unit in np.intersect1d(units[is_train], units[is_test])], column)
    else:
        if num_train_classes is not None:
            is_test = units >= num_train_classes
        elif test is None:
            is_test = np.zeros(num_items, bool)
        elif isinstance(test, list):
            is_test = np.isin(units, _chosen(test, names, items.labels))
        else:
            is_test = np.isin(units, shuffled[: max(1, round(test * len(names)))])
        is_train = is_known & ~is_test
    train_names = shuffled[np.isin(shuffled, units[is_train])]
    num_validation = max(2, round(validation_fraction * len(train_names)))
    if len(train_names) - num_validation < 2 or not (is_test.any() or test is None):
        mend = "let others test: --set data.split.test=0.2, say."
        if column is not None:
            mend = f"let others test by the column {column!r}."
        elif num_train_classes is not None:
            mend = f"change data.split.num_train_classes, which is {num_train_classes}."
        raise DataError(
            f"Received {len(train_names)} training and {len(np.unique(units[is_test]))} test {_plural(by)}; expected "
            f"at least 4 to train on, 2 of which validate, and 1 to test on. Add some, or {mend}"
        )
    num_folds = len(train_names) // num_validation
    names_of_folds = train_names[: num_folds * num_validation].reshape(num_folds, num_validation)
    folds = tuple(np.flatnonzero(is_train & np.isin(units, fold)) for fold in names_of_folds)
    validation, tested = folds[0], np.flatnonzero(is_test)
    train = np.setdiff1d(np.flatnonzero(is_train), validation)
    roles = _roles(items, tested, query_column, query_values, gallery_values)
    return Splits(train, validation, tested, *roles, folds)


def with_neighborhoods_held_out(splits: Splits, features: FeatureRows, seed: int) -> Splits:
    """As many items validate, but those nearest to a few that are drawn at random: their kind is not trained on.

    Neighbours of training items are kept too well to tell how new ones will fare.

    Args:
        splits: of items without labels.
        features: [N, D] of all items.
        seed: of the draw.
    """
    positions, num_held = np.union1d(splits.train, splits.validation), len(splits.validation)
    rows = UnitRows(features, positions)
    count = max(1, min(NEIGHBORHOODS, num_held // MIN_NEIGHBORHOOD))
    centers = rows[np.sort(np.random.default_rng((seed, 0)).permutation(len(positions))[:count])]
    blocks = range(0, len(positions), BLOCK_ROWS)
    similarities = np.concatenate([centers @ rows[start : start + BLOCK_ROWS].T for start in blocks], axis=1)
    is_held = np.zeros(len(positions), bool)
    for number, nearest in enumerate(np.argsort(-similarities, axis=1, kind="stable")):
        free = nearest[~is_held[nearest]]
        is_held[free[: (num_held + number) // count]] = True
    validation = positions[is_held]
    return dataclasses.replace(splits, train=positions[~is_held], validation=validation, folds=(validation,))


def only_test(
    items: Items,
    query_column: str | None = None,
    query_values: Sequence[str] = QUERY_VALUES,
    gallery_values: Sequence[str] = GALLERY_VALUES,
) -> Splits:
    """All items test. Raises DataError for a query column that does not exist or never says who is what."""
    test, none = np.arange(len(items.keys)), np.arange(0)
    return Splits(none, none, test, *_roles(items, test, query_column, query_values, gallery_values))


def require_pairs(codes: np.ndarray, splits: Splits) -> None:
    """Raises DataError where no two items of a part share a class: nothing could be trained or scored there."""
    for name in ("train", "validation", "test"):
        counts = np.bincount(codes[getattr(splits, name)])
        if len(counts) and counts.max() < 2:
            raise DataError(
                f"Received {counts.sum()} {name} items that are each alone in their class; expected classes that at "
                "least two items share. Check that the labels are classes, not ids of items."
            )


def require_neighbors(splits: Splits) -> None:
    """Raises DataError where a part has too few items for neighbours to be compared there."""
    for name in ("validation", "test"):
        count = len(getattr(splits, name))
        if count < MIN_COMPARED and (count or name == "validation"):  # nothing may test
            raise DataError(
                f"Received {count} {name} items; expected at least {MIN_COMPARED}, or there are no neighbours to "
                "compare. Add data, or change data.split.test."
            )


def _roles(
    items: Items,
    test: np.ndarray,
    query_column: str | None,
    query_values: Sequence[str],
    gallery_values: Sequence[str],
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Which of the test items are queries, and which the gallery."""
    if query_column is None:
        return None, None
    require_column(query_column, items.columns, "the data")
    roles = as_text(items.columns[query_column])[test]
    is_query, is_gallery = (np.isin(roles, list(values)) for values in (query_values, gallery_values))
    if not (is_query.any() and is_gallery.any()):
        raise DataError(
            f"Received query column {query_column!r} with the values {', '.join(np.unique(roles)[:8])} on test "
            f"items; expected one of {', '.join(query_values)} and one of {', '.join(gallery_values)} among them."
        )
    return is_query, is_gallery


def _chosen(wanted: list, names: list, labels: Labels | None) -> list[int]:
    """Positions of the classes of these names or, where the data numbers named classes, of these numbers."""
    numbers = (labels.numbers if labels is not None else None) or []
    known = {str(name): i for each in (numbers, names) for i, name in enumerate(each)}
    for name in wanted:
        if str(name) not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise DataError(f"Received data.split.test with {str(name)!r}, which is no label of the data{hint}")
    return [known[str(name)] for name in wanted]


def _require_apart(classes: list, column: str) -> None:
    """Raises DataError that names the classes which a split column puts on both sides, where it is by class."""
    if classes:
        shown = ", ".join(map(str, classes[:8])) + (", ..." if len(classes) > 8 else "")
        raise DataError(
            f"Received split column {column!r}, which puts items of {len(classes)} classes into both 'train' and "
            f"'test': {shown}; expected each class in one of them, since test classes are not to be seen in training. "
            "Mend the column, or split by item: data.split.by=item."
        )


def _plural(by: str) -> str:
    return "classes" if by == "class" else "items"
