"""Tables of items: CSV, TSV, Parquet and JSON lines, also packed by gzip, read without a guess at what a cell means."""

import collections
import csv
import difflib
import gzip
import io
import json
import pathlib
import re
import zlib
from collections.abc import Iterable

import numpy as np
import pyarrow
import pyarrow.parquet

from xbm_keras.data.errors import DataError
from xbm_keras.data.labels import Labels, as_objects, as_text, encode

TABLES = (".jsonl", ".parquet", ".csv", ".tsv")  # suffixes
SPREADSHEETS = (".xlsx", ".xls", ".ods")
MAX_FIELD = 1 << 30  # characters of a cell
MAX_NAMED = 20  # columns in a message
MAX_HEADER = 1 << 20  # characters that are looked at for what parts the names
SIGNS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""What may part the cells of a text, and what it is called."""
QUOTED = re.compile(r'(?<![^,;\t\r\n])"[^"]*(""[^"]*)*"')
"""A cell in quotes."""
USUAL = {
    "label": ("label", "labels", "class", "classes", "category", "target", "y"),
    "text": ("text", "texts", "sentence", "content", "body"),
    "path": ("path", "file", "filename", "file_name", "image"),
    "features": ("features", "feature", "embedding", "embeddings", "vector", "vectors"),
}
"""What columns are called, by what they hold."""


class Table:
    """A table whose columns are arrays [N], under names that are each there once.

    Cells of a CSV are text, to the letter: "007", "1.10", "NA", "null" and "nan" are what they say, and only an empty
    cell is missing. Cells of JSON lines and Parquet are what is stored there, integers beside a null included; a key
    that a line of JSON does not have is missing.

    Args:
        path: of the table; `.parquet`, `.jsonl` and `.tsv` (without quotes: a cell holds no tab) are what they say, all
            else is read as a CSV in UTF-8 with commas, semicolons or tabs. A further `.gz` says that a text is packed.
        name: of the table, for messages; by default its path.

    Raises:
        DataError: where it cannot be read as such.
    """

    def __init__(self, path: pathlib.Path, name: str | None = None):
        self.path, self.name = path, name or str(path)
        if not path.is_file():
            raise DataError(f"Received table {str(path)!r}, which is no file; expected a .csv or .parquet file.")
        suffix = suffix_of(path)
        if suffix in SPREADSHEETS:
            raise DataError(
                f"Received table {str(path)!r}, which is a spreadsheet; expected a .csv or .parquet file. Save it as "
                "CSV, in UTF-8."
            )
        self.is_text = suffix not in (".parquet", ".jsonl")
        read = read_csv if self.is_text else read_parquet if suffix == ".parquet" else read_jsonl
        try:
            names, columns = read(path)
        except DataError:
            raise
        except (
            OSError,
            EOFError,
            zlib.error,
            ValueError,
            csv.Error,
            RecursionError,
            MemoryError,
            pyarrow.ArrowException,
        ) as error:
            raise DataError(
                f"Received table {str(path)!r}, which cannot be read: {error or type(error).__name__}. Mend it, or "
                "write it anew."
            ) from error
        self.twice = {name for name in names if names.count(name) > 1}
        self.columns = dict(zip(names, columns, strict=True))

    def __len__(self) -> int:
        return max(map(len, self.columns.values()), default=0)

    def __getitem__(self, name: str) -> np.ndarray:
        """A column. Raises DataError with the near match where there is none, or where two have the name."""
        require_column(name, self.columns, self.name)
        if name in self.twice:
            raise DataError(
                f"Received table {self.name} with several columns {name!r}; expected one. Rename the others."
            )
        return self.columns[name]

    def texts(self, name: str) -> list[str]:
        """A column as text. Raises DataError that names the first row without."""
        cells = as_text(self[name])
        wrong = np.flatnonzero(cells == "")
        if len(wrong):
            raise DataError(
                f"Received table {self.name}, where {len(wrong)} rows have no {name!r}, such as row {wrong[0]}; "
                "expected one in each. Mend these rows, or remove them."
            )
        return cells.tolist()

    def labels(self, name: str) -> Labels:
        """A column as classes; see `encode`."""
        require_column(name, self.columns, self.name, "label")
        return encode(self[name], f"{self.name}, whose {name!r}", in_numeric_order=self.is_text)

    def others(self, *names: str | None) -> dict[str, np.ndarray]:
        """All other columns, but those whose name is there twice."""
        return {name: column for name, column in self.columns.items() if name not in self.twice | set(names)}


def require_column(name: str, known: Iterable, where: str, holds: str | None = None) -> None:
    """Raises DataError with the near match where a column does not exist.

    Args:
        name: of the column.
        known: those that there are.
        where: they are, for the message.
        holds: what it is to hold, a key of `USUAL`, by default that under which its name is: a column that is called as
            such are is the near match, before one whose letters are alike, and one that is called as others is none.
    """
    if name not in known:
        known = [str(column) for column in known]
        holds = holds or next((what for what, names in USUAL.items() if name in names), None)
        of_others = {other for what, names in USUAL.items() if holds and what != holds for other in names}
        alike = difflib.get_close_matches(name, [each for each in known if each not in of_others], n=1, cutoff=0.5)
        near = [*alike, *(each for each in USUAL.get(holds or "", ()) if each in known)]
        hint = f"did you mean {near[0]!r}? " if near else ""
        named = [*known[:MAX_NAMED], *(["..."] if len(known) > MAX_NAMED else [])]  # of bare numbers there are hundreds
        raise DataError(f"Received column {name!r}, which {where} does not have; {hint}it has {', '.join(named)}.")


def suffix_of(path: pathlib.Path) -> str:
    """In lower case, and without the `.gz` of a packed file."""
    return pathlib.Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _text(path: pathlib.Path) -> str:
    data = path.read_bytes()
    try:
        return (gzip.decompress(data) if path.suffix.lower() == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"Received table {str(path)!r}, which cannot be read as UTF-8: {error}. Save it as UTF-8."
        ) from error


def read_csv(path: pathlib.Path) -> tuple[list[str], list[np.ndarray]]:
    """Names and columns of a CSV or TSV: text, None where a cell is empty. Spaces around the names are left out.

    Raises:
        DataError: for a row of another length than the first one, which holds the names, or for zero bytes.
    """
    text = _text(path)
    if "\0" in text:
        raise DataError(
            f"Received table {str(path)!r}, which cannot be read: it holds zero bytes; expected text. Save it as UTF-8."
        )
    columns: list[list[str | None]] = []
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        is_tsv = suffix_of(path) == ".tsv"
        form = {"quoting": csv.QUOTE_NONE} if is_tsv else {"strict": True}
        delimiter = "\t" if is_tsv else _delimiter(text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **form)
        for row in filter(None, reader):  # a blank line is no row
            columns = columns or [[] for _ in row]
            if len(row) != len(columns):
                raise DataError(
                    f"Received table {str(path)!r}, which cannot be read: line {reader.line_num} has {len(row)} cells, "
                    f"the first one has {len(columns)}; expected as many in each row. Put cells with "
                    f"{SIGNS[delimiter]} in quotes{', in a .csv' if is_tsv else ''}."
                )
            for column, cell in zip(columns, row, strict=True):
                column.append(cell or None)
    finally:
        csv.field_size_limit(limit)
    if not columns:
        raise DataError(f"Received table {str(path)!r}, which cannot be read: it is empty; expected names of columns.")
    return [(column[0] or "").strip() for column in columns], [as_objects(column[1:]) for column in columns]


def _delimiter(text: str) -> str:
    """A comma; but a semicolon, as spreadsheets write it in much of Europe, or a tab, where no comma parts names."""
    unquoted = QUOTED.sub("", text[:MAX_HEADER].lstrip("\r\n"))
    names = re.split("[\r\n]", unquoted, maxsplit=1)[0]
    return next((sign for sign in SIGNS if sign in names), ",")


def read_jsonl(path: pathlib.Path) -> tuple[list[str], list[np.ndarray]]:
    """Names and columns of JSON objects, one per line; blank lines are none. Raises DataError that names the line."""
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_Object)
        except (ValueError, RecursionError) as error:  # a number of too many digits is no JSONDecodeError
            raise DataError(
                f"Received {path}, whose line {number} is no JSON: {error}. Expected an object such as "
                '{"text": "...", "label": "..."} on each line; rewrite a file that is one JSON array as lines.'
            ) from error
        if not isinstance(row, _Object):
            raise DataError(
                f"Received {path}, whose line {number} is {line.strip()[:60]!r}; expected a JSON object such as "
                '{"text": "...", "label": "..."} on each line.'
            )
        rows.append(row)
    twice = sorted({key for row in rows for key in row.twice})
    names = dict.fromkeys(name for row in rows for name in row)
    return [*names, *twice], [as_objects([row.get(name) for row in rows]) for name in (*names, *twice)]


def read_parquet(path: pathlib.Path) -> tuple[list[str], list[np.ndarray]]:
    """Names and columns of a Parquet file; an index that pandas wrote is a column like others."""
    table = pyarrow.parquet.ParquetFile(path).read()
    return table.column_names, [_of_arrow(column) for column in table.columns]


class _Object(dict):
    """A JSON object, and which keys it has twice."""

    def __init__(self, pairs: list[tuple[str, object]]):
        super().__init__(pairs)
        self.twice = [key for key, count in collections.Counter(key for key, _ in pairs).items() if count > 1]


def _of_arrow(column: pyarrow.ChunkedArray) -> np.ndarray:
    """Values as numpy holds them where none is missing, else objects and None."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.to_pandas(integer_object_nulls=True).to_numpy()
