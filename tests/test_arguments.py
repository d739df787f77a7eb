"""What constructors say of their arguments, and what is said of an argument that is none of that."""

import doctest
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pytest
from annotated_types import Ge, Le, Lt, MaxLen, MinLen

from xbm_keras import arguments
from xbm_keras.arguments import Positive, Share, arguments_of, checked


class Thing:
    """Anything.

    Args:
        size: of the thing, in rows; such as 3,
            or more: as you like.
        share: 0 or more.

    Raises:
        ValueError: for a size below 1.
    """

    @checked
    def __init__(
        self,
        size: Positive,
        share: Share | Literal["auto"] | None = 0.5,
        kind: Literal["a", "b", 1] = "a",
        sizes: Annotated[Sequence[Annotated[int, Ge(0), Lt(9)]], MinLen(2), MaxLen(3)] = (1, 2),
        is_large: bool = False,
        path: str = "x",
        other=None,
        low: Annotated[int, Le(3)] = 3,
        **options,
    ):
        self.all = {k: v for k, v in locals().items() if k != "self"}


class Part(Thing):
    """A thing that says nothing of its arguments."""


def test_the_example():
    assert doctest.testmod(arguments).failed == 0


def test_annotation_default_and_sentence_of_each_argument():
    found = arguments_of(Thing)
    assert list(found) == ["size", "share", "kind", "sizes", "is_large", "path", "other", "low"]
    assert found["size"] == (
        Positive,
        arguments.inspect.Parameter.empty,
        "of the thing, in rows; such as 3, or more: as you like.",
    )
    assert found["share"].default == 0.5
    assert [argument.description for argument in found.values()][1:] == ["0 or more.", "", "", "", "", "", ""]
    assert list(arguments_of(Thing(1).__init__)) == list(found)


@pytest.mark.parametrize(
    "given",
    [
        {"size": 1},
        {"size": 2**31 - 1, "share": 1, "kind": 1, "sizes": [0, 8, 3], "is_large": True, "low": -5},
        {"size": 3, "share": "auto", "other": object(), "name": "n"},
        {"size": 3, "share": None},
    ],
)
def test_what_is_taken(given):
    thing = Thing(**given)
    options = {key: value for key, value in given.items() if key == "name"}
    assert thing.all["options"] == options
    assert {key: thing.all[key] for key in given.keys() - options.keys()} == {
        key: value for key, value in given.items() if key not in options
    }


def test_paths_become_texts(tmp_path):
    assert taking(tmp_path / "x", tmp_path) == (str(tmp_path / "x"), tmp_path)


@checked
def taking(text: str | None, path: pathlib.Path) -> tuple:
    """A function of a text, and of a path, which stays one."""
    return text, path


def test_numbers_of_numpy_become_plain_ones():
    taken = Thing(np.int64(3), np.float32(0.5), sizes=np.array([1, 2])).all
    assert (type(taken["size"]), type(taken["share"])) == (int, float)
    assert Thing(np.float64(3.0).astype(int), share=np.int8(1)).all["share"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"size": 0},
            "size=0; expected a whole number, 1 or more, below 2147483648. Of the thing, in rows; such as 3, or more",
        ),
        ({"size": True}, "size=True; expected a whole number"),
        ({"size": 1.0}, "size=1.0; expected a whole number"),
        ({"size": np.float32(1)}, "size=1.0; expected a whole number"),
        ({"size": "1"}, "size='1'; expected a whole number"),
        ({"size": 1, "share": 1.5}, "share=1.5; expected a number in 0..1, 'auto', or None. 0 or more."),
        ({"size": 1, "share": False}, "share=False; expected a number"),
        ({"size": 1, "share": float("nan")}, "share=nan; expected a number"),
        ({"size": 1, "share": "car"}, "share='car'; expected a number in 0..1, 'auto', or None."),
        ({"size": 1, "kind": "c"}, "kind='c'; expected one of 'a', 'b', 1."),
        ({"size": 1, "kind": True}, "kind=True; expected one of"),
        ({"size": 1, "sizes": [1]}, "sizes=[1]; expected a list of 2 or more of at most 3, each a whole number"),
        ({"size": 1, "sizes": [1, 2, 3, 4]}, "sizes=[1, 2, 3, 4]; expected a list"),
        ({"size": 1, "sizes": [1, 9]}, "sizes=[1, 9]; expected a list"),
        ({"size": 1, "sizes": "12"}, "sizes='12'; expected a list"),
        ({"size": 1, "sizes": 3}, "sizes=3; expected a list"),
        ({"size": 1, "is_large": 1}, "is_large=1; expected True or False."),
        ({"size": 1, "path": None}, "path=None; expected a text."),
        ({"size": 1, "low": 4}, "low=4; expected a whole number, at most 3."),
    ],
)
@pytest.mark.parametrize("kind", [Thing, Part])
def test_what_is_refused(kind, given, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        kind(**given)
    assert str(raised.value).startswith(f"Received {message}")


def test_calls_that_do_not_fit_say_whose_they_are():
    with pytest.raises(TypeError, match=r"Thing\.__init__\(\) missing 1 required positional argument: 'size'"):
        Thing()


def test_functions_are_checked_by_name_and_by_place():
    @checked
    def resize(size: Positive, name: str = "x"):
        """Resize.

        Args:
            size: of all.
        """
        return size, name

    @checked
    def undescribed(size: Positive):
        return size

    assert resize(3) == resize(size=3) == (3, "x")
    with pytest.raises(ValueError, match=r"size=0; expected a whole number, 1 or more, below 2147483648\. Of all\."):
        resize(size=0)
    with pytest.raises(ValueError, match=r"size=0; expected a whole number, 1 or more, below 2147483648\.$"):
        undescribed(size=0)
