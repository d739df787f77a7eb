"""CSV, Parquet and JSON lines: each cell is what it says."""

import json
import pathlib

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from xbm_keras.data.errors import DataError
from xbm_keras.data.sources import ImageTable
from xbm_keras.data.tables import Table
from xbm_keras.data.texts import TextTable

NAMES = ["007", "7", "1.10", "1.1", "NA", "null", "None", "nan", "True", "1e5", "0x1F", " a", "a "]


def written(path: pathlib.Path, content: bytes | str) -> pathlib.Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(file, **columns):
    """A Parquet file of Arrow arrays."""
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_names_are_what_they_say_in_every_format(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    rows = [{"path": f"{i:03}", "label": name, "text": name, "part": "007"} for i, name in enumerate(NAMES)]
    if suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pd.DataFrame(rows).to_parquet(path)
    pictures, texts = ImageTable(str(tmp_path), path.name), TextTable(str(path))
    assert pictures.items.keys.tolist() == [f"{i:03}" for i in range(len(NAMES))]
    assert pictures.items.labels.names == sorted(NAMES)
    for source in (pictures, texts):
        assert source.items.labels.tolist() == NAMES
        assert source.items.columns["part"].tolist() == ["007"] * len(NAMES)
    assert texts.texts == NAMES


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_missing_label_is_none_in_every_format(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    cells = ["a", None, "nan", "b", None]
    if suffix == ".csv":
        path.write_text('label,n\na,1\n,2\nnan,3\nb,4\n"",5\n')
    elif suffix == ".jsonl":
        lines = [{"label": "a"}, {"label": None}, {"label": "nan"}, {"label": "b"}, {}]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        parquet(path, label=pyarrow.array(cells))
    assert Table(path).labels("label").tolist() == cells


def test_numbers_of_a_csv_keep_the_order_that_they_have_as_numbers(tmp_path):
    path = written(tmp_path / "x.csv", "label\n10\n9\n100\n")
    assert Table(path).labels("label").names == ["9", "10", "100"]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (pyarrow.array([7, None, 10, 7]), [7, None, 10, 7]),
        (pyarrow.array([7, -1, 10]), [7, -1, 10]),
        (pyarrow.array([7.0, None, float("nan"), 10.0]), [7, None, None, 10]),
        (pyarrow.array(["b", None, "b"]).dictionary_encode(), ["b", None, "b"]),
        (pyarrow.array([3, None, 4]).dictionary_encode(), [3, None, 4]),
        (pyarrow.array([True, None]), [True, None]),
        (pyarrow.array(["é".encode(), None]), ["é", None]),
        (pyarrow.array([None, "a"], pyarrow.large_string()), [None, "a"]),
        (pyarrow.array([None, None]), [None, None]),
        (pyarrow.array(["1.10", None]).cast(pyarrow.decimal128(5, 2)), ["1.10", None]),
        (pyarrow.array([1, None], pyarrow.date32()), ["1970-01-02", None]),
    ],
)
def test_every_type_of_parquet(tmp_path, cells, names):
    assert Table(parquet(tmp_path / "x.parquet", label=cells)).labels("label").tolist() == names


def test_an_index_of_pandas_and_columns_of_categories(tmp_path):
    frame = pd.DataFrame({"path": ["a", "b"], "label": pd.Categorical(["x", None])}).set_index("path")
    frame.to_parquet(tmp_path / "x.parquet")
    table = Table(tmp_path / "x.parquet")
    assert table.texts("path") == ["a", "b"]
    assert table.labels("label").tolist() == ["x", None]


@pytest.mark.parametrize(
    "content",
    [
        '\ufeffpath,label\r\n"a, ""b""\nc",x\r\n\r\nd,y\r\n',
        ' path ,label \n"a, ""b""\nc",x\nd,y',
        'path,label\r"a, ""b""\nc",x\rd,y\r',
    ],
    ids=["Windows", "spaces", "old Macintosh"],
)
def test_csv_of_every_origin(tmp_path, content):
    table = Table(written(tmp_path / "x.csv", content))
    assert table.texts("path") == ['a, "b"\nc', "d"]
    assert table.texts("label") == ["x", "y"]
    assert len(table) == 2


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_cells_are_parted_as_the_names_are(tmp_path, sign):
    """Spreadsheets write semicolons in much of Europe."""
    rows = [["id", "kind"], ["1", '"a,b;c\td"'], ["2", '"two\nlines"']]
    table = Table(written(tmp_path / "x.csv", "\r\n".join(map(sign.join, rows)) + "\r\n"))
    assert (table.texts("id"), table.texts("kind")) == (["1", "2"], ["a,b;c\td", "two\nlines"])


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("\tkind\n0\tcat\n", ["", "kind"]),
        ("\r\n\n;kind\n0;cat\n", ["", "kind"]),
        ('"a,b";kind\n1;cat\n', ["a,b", "kind"]),
        ('kind;"a ""x"",\nb"\rcat;1\r', ["kind", 'a "x",\nb']),
        ('5" pipe\tkind\n1\tcat\n', ['5" pipe', "kind"]),
        ('kind\n"cat"\n"a;b"\n', ["kind"]),
    ],
)
def test_what_parts_the_names_is_found_outside_of_quotes(tmp_path, content, names):
    table = Table(written(tmp_path / "x.csv", content))
    assert list(table.columns) == names
    assert table["kind"][0] == "cat"


def test_a_long_cell_is_read(tmp_path):
    assert Table(written(tmp_path / "x.csv", "text\n" + 200_000 * "a")).texts("text") == [200_000 * "a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "is empty"),
        ("x.xlsx", b"PK", "is a spreadsheet; expected a .csv or .parquet file. Save it as CSV"),
        ("x.csv", "label\nä\n".encode("latin-1"), "cannot be read as UTF-8.*Save it as UTF-8"),
        ("x.csv", "label\na\n".encode("utf-16"), "cannot be read as UTF-8"),
        ("x.csv", b"label\na\0\n", "zero bytes"),
        ("x.csv", b"label,other\na,b\nc\n", "line 3 has 1 cells, the first one has 2"),
        ("x.csv", b"label\na,b\n", "line 2 has 2 cells, the first one has 1.* Put cells with commas in quotes"),
        ("x.csv", b"label;other\na;b\nc\n", "Put cells with semicolons in quotes"),
        ("x.tsv", b"label\na\tb\n", "Put cells with tabs in quotes, in a .csv"),
        ("x.csv", b'label\n"a\nb', "cannot be read"),
        ("x.csv", b'label\n"a"b\n', "cannot be read"),
        ("x.csv", b"label,label\na,b\n", "several columns 'label'"),
        ("x.csv", b"label, label\na,b\n", "several columns 'label'"),
        ("x.csv", b"lable\na\n", "did you mean 'lable'"),
        ("x.jsonl", b'{"label": 1, "label": 2}\n', "several columns 'label'"),
        ("x.jsonl", b'{"label": ' + 5000 * b"9" + b"}", "line 1 is no JSON"),
        ("x.jsonl", b'{"label": ' + 100_000 * b"[", "line 1 is no JSON"),
        ("x.jsonl", b'{"label": {"a": 1}}\n', "holds _?[Oo]bject|holds dict"),
        ("x.parquet", b"PAR1PAR1", "cannot be read"),
        ("x.parquet", b"", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        Table(written(tmp_path / name, content)).labels("label")


def test_a_column_that_is_there_twice_does_no_harm_where_it_is_not_used(tmp_path):
    table = Table(written(tmp_path / "x.csv", "path,note,note\na,1,2\n"))
    assert table.texts("path") == ["a"]
    assert set(table.others()) == {"path"}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["a", None], "1 rows have no 'path', such as row 1"),
        (["", "a"], "1 rows have no 'path', such as row 0"),
        ([1.5, float("nan")], "1 rows have no 'path', such as row 1"),
    ],
)
def test_a_path_is_in_each_row(tmp_path, cells, message):
    parquet(tmp_path / "x.parquet", path=pyarrow.array(cells), label=pyarrow.array(["a", "b"]))
    with pytest.raises(DataError, match=message):
        ImageTable(str(tmp_path), "x.parquet")


def test_labels_of_lists_in_parquet(tmp_path):
    path = parquet(tmp_path / "x.parquet", label=pyarrow.array([[1], [2, 3]]))
    with pytest.raises(DataError, match="expected strings, or integers, alone"):
        Table(path).labels("label")
    assert np.asarray(Table(path)["label"]).shape == (2,)


def test_of_hundreds_of_columns_some_are_named(tmp_path):
    table = Table(written(tmp_path / "numbers.csv", ",".join(f"{i}.5" for i in range(300)) + "\n"))
    with pytest.raises(DataError, match=r"it has 0\.5, 1\.5, .*, 19\.5, \.\.\.\.$"):
        table["features"]
