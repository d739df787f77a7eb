"""Which class each item is in: the one place where the labels of any source become numbers, names, or none."""

import collections
import dataclasses
import datetime
import decimal
import math
import re
import uuid
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from xbm_keras.data.errors import DataError

NO_LABEL = -1
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)
Name = str | int | float | bool


@dataclasses.dataclass(frozen=True)
class Labels:
    """The classes of N items. Iterated, or as a list or an array, each item's name, None where it has no label."""

    codes: np.ndarray
    """[N] int64, positions in `names`; -1 for an item without a label."""
    names: list
    """Of the classes that occur, in their order: str, int, float or bool."""
    numbers: list[int] | None = None
    """What the data numbers the classes by, where it names them as well."""

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[Name | None]:
        return iter(self.tolist())

    def __getitem__(self, index):
        """Names at an index, or at many, as of an array."""
        return np.asarray(self)[index]

    def __array__(self, dtype=None, copy=None):
        return np.array(self.tolist(), dtype)

    @property
    def is_labelled(self) -> np.ndarray:
        """[N] bool, whether an item has a label."""
        return self.codes != NO_LABEL

    def tolist(self) -> list[Name | None]:
        """Each item's name, None where it has no label."""
        return [None if code == NO_LABEL else self.names[code] for code in self.codes.tolist()]

    def take(self, positions: np.ndarray) -> "Labels":
        """Of some of the items; classes that do not occur among them are left out."""
        codes = self.codes[positions]
        present = np.unique(codes[codes != NO_LABEL])
        codes = np.where(codes == NO_LABEL, NO_LABEL, np.searchsorted(present, codes)).astype(np.int64)
        names, numbers = self.names, self.numbers
        return Labels(codes, [names[i] for i in present], None if numbers is None else [numbers[i] for i in present])

    @staticmethod
    def concatenate(parts: Sequence["Labels"]) -> "Labels":
        """One after the other; classes of one name are one class."""
        return encode([name for part in parts for name in part], "data whose label")


def encode(values, what: str, *, none: int | None = None, in_numeric_order: bool = False) -> Labels:
    """Labels in any form as classes, in the order of their names or numbers.

    Strings and bytes of UTF-8 are names as they are, to the letter: "007" is not "7". Integers and booleans stay what
    they are; floats that are all whole are integers, such as 7.0 in a column where others are missing. Times, decimal
    numbers and UUIDs are named by their text. No label have: None, NaN and the like, the empty string, and the integer
    `none`.

    Args:
        values: [N] or [N, 1], an array or a list.
        what: they are, for messages: "x.npz, whose 'y'".
        none: an integer that says "no label", for sources that have no other way to say so: -1 in arrays and in TFDS.
        in_numeric_order: sort names by value where all are numbers, instead of letter by letter: for text that may
            hold numbers, as in a CSV.

    Raises:
        DataError: for another shape, for names and numbers in one, or for what is neither.
    """
    array = values if isinstance(values, np.ndarray) else as_objects(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(
            f"Received {what} has the shape {array.shape}; expected one label per item, [N]. Of scores or "
            "one-hot rows give the number of the largest (argmax); of several labels choose one."
        )
    plain = [_plain(value) for value in array.tolist()] if array.dtype.kind in "OSU" else _plain_array(array, what)
    kinds = {type(value) for value in plain} - {type(None)}
    if kinds == {int, float} or kinds == {float}:
        plain = _numbers(plain, what)
    elif len(kinds) > 1 or not kinds <= {str, int, bool}:
        shown = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"Received {what} holds {shown}; expected strings, or integers, alone.")
    if none is not None and bool not in kinds:
        plain = [None if value == none else value for value in plain]
    names = sorted({value for value in plain if value is not None})
    if in_numeric_order and all(isinstance(name, str) and NUMBER.fullmatch(name) for name in names):
        names.sort(key=decimal.Decimal)  # stable: "1.1" stays before "1.10"
    code_of = {name: code for code, name in enumerate(names)}
    codes = np.fromiter((NO_LABEL if value is None else code_of[value] for value in plain), np.int64, len(plain))
    return Labels(codes, names)


def named(labels: Labels, names: Sequence, what: str, *, by_number: bool = False) -> Labels:
    """Labels that number these names, as the named classes.

    Args:
        labels: integers.
        names: of each number, from 0 on.
        what: the labels are, for messages, as for `encode`.
        by_number: keep the order of the numbers, and the numbers; else the order is that of the names.

    Raises:
        DataError: for a label that numbers no name, or for two numbers in use that have one name.
    """
    numbers = labels.names
    wrong = [number for number in numbers if type(number) is not int or not 0 <= number < len(names)]
    if wrong:
        shown = ", ".join(map(repr, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        raise DataError(
            f"Received {what} holds {shown} for {len(names)} names; expected integers from 0 to {len(names) - 1}, or "
            "-1 for an item without a label. Mend the labels, or leave the names out."
        )
    used = [_plain(names[number]) for number in numbers]
    unusual = sorted({type(name).__name__ for name in used} - {"str", "int", "bool", "NoneType"})
    if unusual:
        raise DataError(f"Received {what} has names that are {' and '.join(unusual)}; expected strings.")
    counts = collections.Counter(str(name) for name in used if name is not None)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        which = ", ".join(str(n) for n, name in zip(numbers, used, strict=True) if str(name) == twice[0])
        raise DataError(
            f"Received {what} holds {which}, which have one name, {twice[0]!r}; expected a name for each. Name "
            "the classes apart, or give them one number."
        )
    if by_number:
        return Labels(labels.codes, [str(name or number) for name, number in zip(used, numbers, strict=True)], numbers)
    return encode([None if code == NO_LABEL else used[code] for code in labels.codes.tolist()], what)


def as_text(values: np.ndarray) -> np.ndarray:
    """A column [N] of any kind as text; empty where a value is missing."""
    plain = map(_plain, values.tolist())
    return np.array(["" if value is None else str(value) for value in plain], dtype=str)


def printable(text: str) -> str:
    """A text that can be written as UTF-8: of file names that cannot, an odd byte becomes `\\udce9` in letters."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def counted(number: int, noun: str) -> str:
    """Such as "1 item", "2,703 items", "3 classes", "2 queries"."""
    if number != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun}"


def as_objects(values: Sequence) -> np.ndarray:
    """An array [N] of the values as they are, also where these are lists."""
    array = np.empty(len(values), object)
    array[:] = list(values)
    return array


def _plain(value):
    """A string, int, float or bool; None for a value that is missing; anything else as it is."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"Received the label {value!r:.60}, which is not UTF-8; expected text in UTF-8.") from error
    if isinstance(value, str):
        return printable(str(value)) or None
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, decimal.Decimal) and value.is_nan():
        return None
    if isinstance(value, decimal.Decimal | datetime.date | datetime.time | datetime.timedelta | uuid.UUID):
        return str(value)
    return value


def _plain_array(array: np.ndarray, what: str) -> list:
    """The same, of an array of one type."""
    kind = array.dtype.kind
    if kind == "f":  # the shortest text that is this number: 0.1 of float32 is not 0.10000000149
        return [None if math.isnan(value) else float(str(value)) for value in array]
    if kind in "mM":
        return [None if is_missing else str(x) for x, is_missing in zip(array, np.isnat(array).tolist(), strict=True)]
    if kind not in "biu":
        raise DataError(
            f"Received {what} has the dtype {array.dtype}; expected strings or integers, one per item. Convert them."
        )
    return array.tolist()


def _numbers(plain: list, what: str) -> list:
    """Floats, some of them maybe integers, as integers where all are whole."""
    given = [value for value in plain if value is not None]
    if any(math.isinf(value) for value in given):
        raise DataError(f"Received {what} holds infinite numbers; expected strings or integers. Mend them.")
    kind = int if all(float(value).is_integer() for value in given) else float
    return [None if value is None else kind(value) for value in plain]
