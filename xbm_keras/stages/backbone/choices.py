"""Some parts of a network's features, where it gives more of them than are needed: what a run may choose among."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Choice(NamedTuple):
    """Some parts of the features of a network."""

    parts: tuple[str, ...]
    """Names of outputs, side by side in this order."""
    columns: np.ndarray
    """[d] where they are among the features of the whole network."""
    make: Callable[[], Any]
    """Gives the backbone that computes these alone, with the same weights; its features are those columns, made of unit
    length where there is a single part."""


def choices_of(
    names: Sequence[str],
    widths: Sequence[int],
    wanted: Sequence[Sequence[str]],
    make: Callable[[tuple[str, ...]], Any],
) -> tuple[Choice, ...]:
    """Choices among the outputs of a network, the narrowest first.

    Args:
        names: of all outputs, in the order in which they are side by side.
        widths: of each.
        wanted: names of those of each choice.
        make: from these to the backbone of them alone.

    Example:
        >>> found = choices_of(["a", "b"], [2, 1], [("b", "a"), ("b",)], print)
        >>> [(each.parts, each.columns.tolist()) for each in found]
        [(('b',), [2]), (('b', 'a'), [2, 0, 1])]
    """
    ends = np.cumsum(widths)
    columns = {name: np.arange(end - width, end) for name, width, end in zip(names, widths, ends, strict=True)}
    found = [
        Choice(tuple(parts), np.concatenate([columns[name] for name in parts]), functools.partial(make, tuple(parts)))
        for parts in wanted
    ]
    return tuple(sorted(found, key=lambda choice: len(choice.columns)))
