"""What a constructor says of its arguments: types and bounds in annotations, a sentence for each in the docstring.

They stand there alone. `checked` holds calls to them, and the sections of a config are made of them.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

Positive = Annotated[int, Ge(1), Lt(2**31)]
Natural = Annotated[int, Ge(0), Lt(2**31)]
AboveZero = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Cosine = Annotated[float, Ge(-1), Le(1)]
UpTo2 = Annotated[float, Ge(0), Le(2)]
"""A distance of unit vectors, or a difference of cosines."""
F = TypeVar("F", bound=Callable)
COUNTS = {int: numbers.Integral, float: numbers.Real}
NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}
NAMES[dict] = "names and values"
BOUNDS: dict[type, Callable[[Any, Any], bool]] = {
    Ge: lambda value, bound: value >= bound.ge,
    Gt: lambda value, bound: value > bound.gt,
    Le: lambda value, bound: value <= bound.le,
    Lt: lambda value, bound: value < bound.lt,
    MinLen: lambda value, bound: len(value) >= bound.min_length,
    MaxLen: lambda value, bound: len(value) <= bound.max_length,
}
WORDS = {
    Ge: ", {} or more",
    Gt: " above {}",
    Le: ", at most {}",
    Lt: ", below {}",
    MinLen: " of {} or more",
    MaxLen: " of at most {}",
}


class Argument(NamedTuple):
    """One argument of a constructor."""

    annotation: Any
    default: Any
    """`inspect.Parameter.empty` where there is none."""
    description: str
    """Of the docstring; empty where it says nothing."""


def arguments_of(constructor: Callable) -> dict[str, Argument]:
    """The arguments of a class or function, without `self` and what is passed on as `**kwargs`."""
    function = constructor.__init__ if isinstance(constructor, type) else constructor  # type: ignore[misc]
    hints = _hints_of(function)
    described = _described(inspect.getdoc(constructor) or "")
    return {
        name: Argument(hints.get(name, Any), parameter.default, described.get(name, ""))
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def arguments_in(made: Any) -> dict[str, Any]:
    """The arguments of an object that keeps them as attributes: what Keras is to save of it."""
    return {name: getattr(made, name) for name in arguments_of(type(made))}


class Saved:
    """Base of what Keras saves by the arguments of its constructor, kept as attributes."""

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return arguments_in(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]):
        """The object that `get_config` described."""
        return cls(**config)


def checked(init: F) -> F:
    """A constructor, or a function, that refuses what its annotations do not allow.

    Numbers of NumPy become Python's, and paths texts where one is asked for. A bool is no number, a whole number is
    one, NaN and infinity are none. Types other than numbers, texts, lists of them, `Literal` and None all pass.

    Raises:
        ValueError: by the constructor, for an argument of another type or out of bounds.

    Example:
        >>> class Loss:
        ...     @checked
        ...     def __init__(self, margin: Annotated[float, Ge(0), Le(2)] | None = 0.1): ...
        >>> Loss(3)
        Traceback (most recent call last):
        ValueError: Received margin=3; expected a number in 0..2, or None.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checking(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return init(*args, **kwargs)  # says whose arguments they are
        hints = _hints_of(init)
        for name, value in bound.arguments.items():
            is_path = isinstance(value, os.PathLike) and str in union_of(hints.get(name))
            bound.arguments[name] = value = os.fspath(value) if is_path else _plain(value)
            if name in hints and not _is(value, hints[name]):
                doc = inspect.cleandoc(init.__doc__ or _owner(args, checking).__doc__ or "")
                hint = _described(doc).get(name, "")
                raise ValueError(
                    f"Received {name}={value!r}; expected {expected(hints[name])}."
                    + (f" {hint[0].upper()}{hint[1:]}" if hint else "")
                )
        return init(*bound.args, **bound.kwargs)

    checking.__signature__ = signature  # type: ignore[attr-defined]  # Keras looks for the arguments here
    return checking  # type: ignore[return-value]


@functools.cache
def _hints_of(function: Callable) -> dict[str, Any]:
    """When it is called, not before: a class method may name its class."""
    return typing.get_type_hints(function, include_extras=True)


def _owner(args: tuple, init: Callable) -> Any:
    """The class that a constructor stands in; a function itself."""
    return next((each for arg in args[:1] for each in type(arg).__mro__ if vars(each).get("__init__") is init), init)


def union_of(annotation: Any) -> list[Any]:
    """The types of a union, or the one that it is."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [m for each in typing.get_args(annotation) for m in union_of(each)] if is_union else [annotation]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _is(value: Any, annotation: Any) -> bool:
    """Whether a value is of a type, and within its bounds."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, member) for member in inside)
    if origin is Annotated:
        return _is(value, inside[0]) and all(BOUNDS[type(b)](value, b) for b in inside[1:] if type(b) in BOUNDS)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in inside)
    if origin is tuple:
        return isinstance(value, Sequence) and len(value) == len(inside) and all(map(_is, map(_plain, value), inside))
    if origin in (Sequence, list):
        is_list = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
        return is_list and all(_is(_plain(each), inside[0]) for each in value)
    if annotation in COUNTS:
        return isinstance(value, COUNTS[annotation]) and not isinstance(value, bool) and math.isfinite(value)
    return not isinstance(annotation, type) or annotation not in NAMES or isinstance(value, annotation)


def expected(annotation: Any) -> str:
    """What a type asks for, in words."""
    members = [_expected_member(each) for each in union_of(annotation)]
    return f"{', '.join(members[:-1])}, or {members[-1]}" if len(members) > 1 else members[0]


def _expected_member(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _expected_member(inside[0], inside[1:])
    if origin is Literal:
        return ("one of " if len(inside) > 1 else "") + ", ".join(map(repr, inside))
    within = {type(bound): dataclasses.astuple(bound)[0] for bound in bounds if type(bound) in BOUNDS}
    if Ge in within and Le in within:
        said = f" in {_short(within[Ge])}..{_short(within[Le])}"
    elif MinLen in within and within[MinLen] == within.get(MaxLen):
        said = f" of {within[MinLen]}"
    else:
        said = "".join(WORDS[kind].format(_short(value)) for kind, value in within.items())
    if origin is tuple:
        return f"{len(inside)} of {expected(inside[0])}"
    if origin in (Sequence, list):
        return f"a list{said}, each {expected(inside[0])}"
    return NAMES.get(origin or annotation, getattr(annotation, "__name__", str(annotation))) + said


def _short(bound: float) -> str:
    return f"{bound:.6g}" if isinstance(bound, float) else str(bound)


def _described(docstring: str) -> dict[str, str]:
    """The sentences of a docstring's `Args:`, each on one line."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    if not section:
        return {}
    parts = re.split(r"^ {4}(\w+): ", section[1], flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}
