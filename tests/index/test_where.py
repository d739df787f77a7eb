"""Conditions on items: each against what Python says of each row, and against SQL's rules for what is missing."""

import datetime

import pyarrow
import pytest

from xbm_keras.index.where import meets

ROWS = {
    "id": ["a", "b", "c", "d", "e"],
    "style": ["flat", "it's", None, "flat", "and"],
    "year": [2018, 2020, 2021, None, 2020],
    "price": [1.5, None, -2.0, 1e3, 0.0],
    "weight": [float("nan"), 1.5, None, 2.5, float("inf")],
    "sold": [True, False, None, True, False],
    "made": [datetime.datetime(2020, m, 1) for m in (1, 2, 3, 4, 5)],
    "two words": ["x", "y", "x", "y", ""],
}
ITEMS = pyarrow.table(ROWS).set_column(1, "style", pyarrow.array(ROWS["style"]).dictionary_encode())


CONDITIONS = {
    "style = 'flat'": "ad",
    "style = 'it''s'": "b",
    "style <> 'flat'": "be",  # what is missing is not another
    "not style = 'flat'": "be",
    "STYLE_ = 1": None,
    "style = 'flat' AND year > 2017": "a",
    "year > 2019 and style = 'flat' or id = 'c'": "c",
    "year > 2019 and (style = 'and' or id = 'c')": "ce",
    "year is null": "d",
    "year is not null": "abce",
    "not (year is null or style is null)": "abe",
    "year = 2020 or style = 'flat'": "abde",  # unknown or true is true
    "not (year = 2020 and price = 0)": "acd",  # unknown and false is false
    "year in (2018, 2021)": "ac",
    "year not in (2018, 2021)": "be",
    "style in ('and', 'flat')": "ade",
    "price < 0": "c",
    "price>=-2.0 and price<=1.5": "ace",
    "price = 1e3": "d",
    "year > 2019.5": "bce",
    "weight > 2": "de",  # what is no number is missing
    "not weight > 2": "b",
    "weight is null": "ac",
    "weight is not null and weight <> 2.5": "be",
    "sold = true": "ad",
    "sold != true": "be",
    "made >= '2020-03-01'": "cde",
    "made < '2020-02-01T00:00:01'": "ab",
    "\"two words\" = 'x'": "ac",
    "\"id\" == 'a'": "a",
}
"""And the ids of the items that meet them, None where a column is not there."""


@pytest.mark.parametrize(("condition", "expected"), CONDITIONS.items())
def test_conditions(condition, expected):
    if expected is None:
        with pytest.raises(ValueError, match="condition on 'STYLE_'; expected one of the items' columns, id, style"):
            meets(ITEMS, condition)
        return
    found = meets(ITEMS, condition)
    assert found.dtype == bool
    assert "".join(each for each, kept in zip(ROWS["id"], found, strict=True) if kept) == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    {
        "": "with its end .* expected the name of a column",
        "style": "with its end .* expected a comparison, in, or is",
        "style = flat": "with 'flat' .* text in single quotes",
        "'flat' = style": "with 'flat' .* expected the name of a column",
        "style = 'flat": 'with "\'flat" .* expected names',
        "style = 'flat' year": "with 'year' .* expected and, or, or the end",
        "(year = 1": r"with its end .* expected '\)'",
        "year not 3": "with '3' .* expected in",
        "year is 3": "with '3' .* expected 'null'",
        "year = 'flat'": "compares 'year', of the type int64, with 'flat'",
        "year > 99999999999999999999": "compares 'year', of the type int64, with '99999999999999999999'",
        "style = 3": "compares 'style', of the type string, with '3'",
        "made > 'soon'": "compares 'made', of the type timestamp",
        "(" * 100_000: "nested too deeply",
        "year; drop": "with '; drop'",
    }.items(),
)
def test_what_cannot_be_read_is_said(condition, message):
    with pytest.raises(ValueError, match=message) as caught:
        meets(ITEMS, condition)
    assert str(caught.value).startswith("Received ")


def test_of_no_items_none_meet_it():
    assert meets(ITEMS.slice(0, 0), "year > 3").tolist() == []
