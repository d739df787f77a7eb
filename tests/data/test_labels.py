"""Labels in any form: which class an item is in, what the classes are called, and who has none."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest

from xbm_keras.data.errors import DataError
from xbm_keras.data.labels import Labels, as_text, encode, named, printable


@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        (["7", "007", "7", "07"], ["007", "07", "7"], [2, 0, 2, 1]),
        (["1.1", "1.10"], ["1.1", "1.10"], [0, 1]),
        (["NA", "nan", "null", "None"], ["NA", "None", "nan", "null"], [0, 2, 3, 1]),
        (["b", "", None, "a"], ["a", "b"], [1, -1, -1, 0]),
        (np.array(["b", "", "a"]), ["a", "b"], [1, -1, 0]),
        (np.array(["é".encode(), b"", b"a"]), ["a", "é"], [1, -1, 0]),
        ([b"b", b"a", None], ["a", "b"], [1, 0, -1]),
        (np.array([10, 9, 10]), [9, 10], [1, 0, 1]),
        (np.array([[10], [9]]), [9, 10], [1, 0]),
        (np.array([2**63, 0], np.uint64), [0, 2**63], [1, 0]),
        ([2**80, -1, None], [-1, 2**80], [1, 0, -1]),
        (np.array([7.0, np.nan, 3.0]), [3, 7], [1, -1, 0]),
        ([7, None, float("nan"), 3.0], [3, 7], [1, -1, -1, 0]),
        (np.array([0.1, 2.5], np.float32), [0.1, 2.5], [0, 1]),
        (np.array([True, False]), [False, True], [1, 0]),
        ([True, pd.NA], [True], [0, -1]),
        ([decimal.Decimal("1.10"), decimal.Decimal("1.1"), decimal.Decimal("NaN")], ["1.1", "1.10"], [1, 0, -1]),
        ([datetime.date(2024, 1, 2), pd.NaT], ["2024-01-02"], [0, -1]),
        (np.array(["2024-01-02", "NaT"], "M8[D]"), ["2024-01-02"], [0, -1]),
        ([], [], []),
    ],
)
def test_names_and_who_has_none(values, names, codes):
    labels = encode(values, "x, whose 'y'")
    assert labels.names == names
    assert [type(name) for name in labels.names] == [type(name) for name in names]
    assert labels.codes.tolist() == codes
    assert labels.codes.dtype == np.int64
    assert labels.tolist() == [None if code < 0 else names[code] for code in codes]
    assert labels.is_labelled.tolist() == [code >= 0 for code in codes]
    assert len(labels) == len(codes)


def test_an_integer_can_say_that_there_is_none():
    assert encode(np.array([-1, 0, 3]), "x", none=-1).tolist() == [None, 0, 3]
    assert encode(np.array([-1.0, np.nan, 3.0]), "x", none=-1).tolist() == [None, None, 3]
    assert encode(["-1", "0"], "x", none=-1).tolist() == ["-1", "0"]  # text is a name


def test_numbers_of_a_text_are_in_numeric_order_where_all_are_numbers():
    given = ["10", "9", "-2", "09", "1.10", "1.1"]
    assert encode(given, "x", in_numeric_order=True).names == ["-2", "1.1", "1.10", "09", "9", "10"]
    assert encode([*given, "a"], "x", in_numeric_order=True).names == sorted([*given, "a"])
    assert encode(given, "x").names == sorted(given)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 2)), r"x, whose 'y' has the shape \(3, 2\); expected one label per item.*argmax"),
        (np.array(3), r"has the shape \(\)"),
        ([1, "1"], "x, whose 'y' holds int and str; expected strings, or integers, alone"),
        ([True, 1], "holds bool and int"),
        ([[1], [2]], "holds list"),
        ([{"a": 1}], "holds dict"),
        ([b"\xff"], "not UTF-8"),
        (np.array([b"\xff"]), "not UTF-8"),
        (np.array([np.inf, 1.0]), "holds infinite numbers"),
        ([float("inf"), 1.0], "holds infinite numbers"),
        (np.array([1j]), "dtype complex128"),
        (np.zeros(2, [("a", int)]), "has the dtype"),
    ],
)
def test_what_is_no_label_is_told(values, message):
    with pytest.raises(DataError, match=message):
        encode(values, "x, whose 'y'")


def test_labels_that_number_names():
    numbers = encode(np.array([2, -1, 0, 2]), "x", none=-1)
    assert named(numbers, ["b", "unused", "a"], "x").tolist() == ["a", None, "b", "a"]
    assert named(numbers, ["b", "unused", "a"], "x").names == ["a", "b"]  # by name
    by_number = named(numbers, ["b", "unused", "a"], "x", by_number=True)
    assert (by_number.names, by_number.numbers) == (["b", "a"], [0, 2])
    assert by_number.codes.tolist() == [1, -1, 0, 1]
    assert named(numbers, ["", "", "a"], "x").tolist() == ["a", None, None, "a"]


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([0, 3], ["a", "b", "c"], "holds 3 for 3 names; expected integers from 0 to 2, or -1"),
        ([0, -2], ["a"], "holds -2 for 1 names"),
        (["a"], ["a"], "holds 'a' for 1 names"),
        ([True], ["a", "b"], "holds True"),
        ([0, 1], ["a", "a"], "holds 0, 1, which have one name, 'a'"),
        ([0], [["a"]], "has names that are list"),
    ],
)
def test_names_that_do_not_fit_are_told(values, names, message):
    with pytest.raises(DataError, match=message):
        named(encode(values, "x"), names, "x")


def test_some_items_have_the_classes_that_occur():
    labels = Labels(np.array([2, 0, -1, 2]), ["a", "b", "c"], [5, 6, 7])
    some = labels.take(np.array([0, 2, 3]))
    assert (some.codes.tolist(), some.names, some.numbers) == ([0, -1, 0], ["c"], [7])
    both = Labels.concatenate([some, encode(["b", "c"], "x")])
    assert both.tolist() == ["c", None, "c", "b", "c"]
    assert both.names == ["b", "c"]


def test_text_of_a_column():
    values = np.array(["train", b"test", None, float("nan"), 7], object)
    assert as_text(values).tolist() == ["train", "test", "", "", "7"]
    assert as_text(np.array([b"train", b"test"])).tolist() == ["train", "test"]


def test_names_can_be_written_as_utf8():
    assert printable("caf\udce9 é") == "caf\\udce9 é"
    assert encode(["\ud83d", "a"], "x").names == ["\\ud83d", "a"]
