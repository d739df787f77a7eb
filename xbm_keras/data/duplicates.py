"""Items of the same content: where they are in two classes, or on both sides of the test."""

import dataclasses

import numpy as np

from xbm_keras.data.splits import Splits

BLOCK_ROWS = 65_536
SHOWN = 8  # contents that are named, and items of each


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Contents that several items share, in a way that makes training or its scores doubtful."""

    num_contents: int
    num_items: int
    examples: list[list[str]]
    """Keys of some of the items of some of them."""


def contents_of(features) -> np.ndarray:
    """A number [N] for each row of features [N, D], the same for equal rows."""
    numbers = np.empty(len(features), np.int64)
    for start in range(0, len(features), BLOCK_ROWS):
        block = np.ascontiguousarray(features[start : start + BLOCK_ROWS])
        numbers[start : start + len(block)] = [hash(row.tobytes()) for row in block]
    return numbers


def find_duplicates(
    contents: np.ndarray, labels: np.ndarray, splits: Splits, keys: np.ndarray
) -> dict[str, Duplicates]:
    """What is `in_several_classes`, and what `in_train_and_test`, validation counted as training.

    Args:
        contents: [N], a number for each content.
        labels: [N], negative for none.
        splits: of the items.
        keys: [N] names of the items.
    """
    _, contents = np.unique(contents, return_inverse=True)
    num_contents, num_classes = int(contents.max(initial=-1)) + 1, int(labels.max(initial=-1)) + 1
    pairs = np.unique((contents * num_classes + labels)[labels >= 0])  # of a content and a class
    several = np.bincount(pairs // max(num_classes, 1), minlength=num_contents) > 1
    sides = [
        np.isin(np.arange(num_contents), contents[part]) for part in (splits.train, splits.validation, splits.test)
    ]
    found = {"in_several_classes": several, "in_train_and_test": (sides[0] | sides[1]) & sides[2]}
    return {name: _described(contents, is_meant, keys) for name, is_meant in found.items()}


def _described(contents: np.ndarray, is_meant: np.ndarray, keys: np.ndarray) -> Duplicates:
    chosen = np.flatnonzero(is_meant)
    positions = np.flatnonzero(is_meant[contents])
    examples = [keys[positions[contents[positions] == each]][:SHOWN].tolist() for each in chosen[:SHOWN]]
    return Duplicates(len(chosen), len(positions), examples)
