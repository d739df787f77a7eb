"""Texts from tables, and what is wrong with them."""

import json

import numpy as np
import pandas as pd
import pytest

from xbm_keras.data.sources import DataError, UnreadableItem
from xbm_keras.data.texts import TextTable

ROWS = [
    {"text": "wie spät ist es", "label": "time", "split": "train"},
    {"text": "007", "label": "NA", "split": "test"},
    {"text": 'say "hi",\nplease', "label": "null", "split": "test"},
]


def written(path, rows):
    """A table in the format that the path's ending names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same(tmp_path, suffix):
    source = TextTable(written(tmp_path / f"x{suffix}", ROWS))
    assert [source.load(i) for i in range(3)] == [row["text"] for row in ROWS]
    assert source.items.keys.tolist() == ["0", "1", "2"]
    assert source.items.labels.tolist() == ["time", "NA", "null"]  # names, not missing values
    assert source.items.columns["split"].tolist() == ["train", "test", "test"]
    assert "text" not in source.items.columns
    assert source.stamp(0) is None


def test_texts_are_read_in_order_and_prepared(tmp_path):
    source = TextTable(written(tmp_path / "x.jsonl", ROWS))
    assert list(source.read([0, 2], len)) == [15, 16]


def test_a_digest_is_that_of_the_text_alone(tmp_path):
    source = TextTable(written(tmp_path / "x.jsonl", ROWS))
    moved = TextTable(written(tmp_path / "y.csv", [{**row, "label": "other"} for row in ROWS[::-1]]))
    assert [source.digest(i) for i in range(3)] == [moved.digest(i) for i in (2, 1, 0)]
    assert len({source.digest(i) for i in range(3)}) == 3


def test_columns_by_name(tmp_path):
    rows = [{"query": "a", "intent": 2**40}, {"query": "b", "intent": -1}]
    source = TextTable(written(tmp_path / "x.jsonl", rows), "query", "intent")
    assert source.items.labels.tolist() == [2**40, -1]
    unlabelled = TextTable(written(tmp_path / "x.jsonl", rows), "query", None)
    assert unlabelled.items.labels is None
    assert unlabelled.load(1) == "b"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "an empty text"),
        (" \n\t", "an empty text"),
        (None, "an empty text"),
        (float("nan"), "an empty text"),
        (17, "no text but int 17"),
        (["a"], "no text but list"),
        ("\ud83d", "half a surrogate pair"),
    ],
)
def test_one_text_that_cannot_be_used(tmp_path, text, reason):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": "a"}) + "\n" for t in ("fine", text)))
    source = TextTable(str(path))
    assert source.load(0) == "fine"
    for read in (source.load, source.digest):
        with pytest.raises(UnreadableItem, match=reason):
            read(1)
    fine, bad = source.read([0, 1], str.upper)
    assert fine == "FINE"
    assert isinstance(bad, UnreadableItem)


def test_an_empty_field_of_a_csv(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\nhello,a\n,b\n")
    with pytest.raises(UnreadableItem, match="an empty text"):
        TextTable(str(tmp_path / "x.csv")).load(1)


def test_windows_files_and_blank_lines(tmp_path):
    (tmp_path / "x.jsonl").write_bytes('\ufeff{"text": "ä", "label": 1}\r\n\r\n{"text": "b", "label": 2}'.encode())
    source = TextTable(str(tmp_path / "x.jsonl"))
    assert source.texts == ["ä", "b"]
    np.testing.assert_array_equal(source.items.labels, [1, 2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"\n', r"x\.jsonl, whose line 2 is no JSON"),
        ("x.jsonl", b'["a", 1]\n', r"""whose line 1 is '\["a", 1\]'; expected a JSON object such as"""),
        ("x.jsonl", b"\xff\xfe", "cannot be read as UTF-8.*Save it as UTF-8"),
        ("x.jsonl", b"\n", "holds no rows; expected at least one"),
        ("x.csv", b"text,label\n", "holds no rows; expected at least one"),
        ("x.csv", b"", "cannot be read"),
        ("x.csv", b'text,label\na,1,2,3\nb,1\n"c', "cannot be read"),
        ("x.parquet", b"PAR1", "cannot be read"),
        ("x.txt", b"a\nb\n", r"'.*x\.txt', which is no such table; expected a table of texts that ends in \.jsonl"),
        ("x.jsonl", b'{"txt": "a", "label": 1}\n', "column 'text', which .* does not have; did you mean 'txt'"),
        ("x.jsonl", b'{"text": "a", "lable": 1}\n', "column 'label', which .* does not have; did you mean 'lable'"),
        (
            "x.jsonl",
            b'{"text": "a", "label": 1}\n{"text": "b", "label": "1"}\n',
            "whose 'label' holds int and str; expected strings, or integers, alone",
        ),
        ("x.jsonl", b'{"text": "a", "label": [1]}\n', "whose 'label' holds list"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        TextTable(str(tmp_path / name))


def test_a_missing_table(tmp_path):
    with pytest.raises(DataError, match=r"nope\.jsonl', which is no file; expected a table of texts"):
        TextTable(str(tmp_path / "nope.jsonl"))


def test_clinc150(data_dir):
    source = TextTable(str(data_dir / "clinc150/clinc150.jsonl"), "text", "intent")
    assert len(source.items.keys) == 22_500
    assert len(np.unique(source.items.labels)) == 150
    assert (source.items.columns["split"] == "train").sum() == 11_250
    assert len({source.digest(i) for i in range(22_500)}) == 22_495  # five texts occur twice
