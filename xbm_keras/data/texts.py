"""Texts from a table."""

import hashlib
import json
import pathlib

import numpy as np
import pandas as pd

from xbm_keras.data.sources import DataError, Items, RandomAccess, UnreadableItem, read_table, require_column

SUFFIXES = (".jsonl", ".csv", ".parquet")


class TextTable(RandomAccess):
    """Texts, one per row of a JSONL, CSV or Parquet table, whose other columns may give the split.

    Args:
        path: of the table; in JSONL each line is an object.
        text_column: its name.
        label_column: its name; None for no labels.

    Raises:
        DataError: if the table or a column does not exist, a line of JSONL is no object, or a row has no label.
    """

    def __init__(self, path: str, text_column: str = "text", label_column: str | None = "label"):
        file = pathlib.Path(path).expanduser()
        if not file.is_file() or file.suffix not in SUFFIXES:
            raise DataError(
                f"Received data.path {path!r}, which is no {'such table' if file.is_file() else 'file'}; expected a "
                f"table of texts that ends in {', '.join(SUFFIXES)}."
            )
        frame = read_jsonl(file) if file.suffix == ".jsonl" else read_table(file, as_text=[text_column])
        if frame.empty:
            raise DataError(f"Received data.path {path!r}, which holds no rows; expected at least one.")
        for column in (text_column, label_column):
            if column is not None:
                require_column(column, frame.columns, path)
        self.texts = frame[text_column].tolist()
        columns = {str(name): frame[name].to_numpy() for name in frame.columns if name != text_column}
        labels = None if label_column is None else _checked_labels(frame[label_column], path)
        self.items = Items(np.arange(len(frame)).astype(str), labels, columns)

    def stamp(self, position: int) -> None:
        """None: the text is at hand, hashing is cheap."""

    def digest(self, position: int) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.load(position).encode()).hexdigest()

    def load(self, position: int) -> str:
        """One text. Raises UnreadableItem."""
        return checked_text(self.texts[position])


def checked_text(text) -> str:
    """A text that says something. Raises UnreadableItem for anything else."""
    if text is None or text != text or (isinstance(text, str) and not text.strip()):  # NaN is not itself
        raise UnreadableItem("an empty text")
    if not isinstance(text, str):
        raise UnreadableItem(f"no text but {type(text).__name__} {text!r:.40}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnreadableItem("a text with half a surrogate pair, which is no Unicode") from error
    return text


def read_jsonl(path: pathlib.Path) -> pd.DataFrame:
    """A table of JSON objects, one per line; blank lines are left out. Raises DataError that names the line."""
    rows = []
    try:
        for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(
                        f"Received {path}, whose line {number} is {line.strip()[:60]!r}; expected a JSON object such "
                        'as {"text": "...", "label": "..."} on each line.'
                    )
                rows.append(row)
    except json.JSONDecodeError as error:
        raise DataError(
            f"Received {path}, whose line {number} is no JSON: {error}. Expected an object such as "
            '{"text": "...", "label": "..."} on each line; a file that is one JSON array must be rewritten as lines.'
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Received {path}, which cannot be read: {error}; expected JSON lines in UTF-8.") from error
    # Objects as they are: pandas would make numbers of texts such as "007", and floats of integers beside a null.
    names = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})


def _checked_labels(labels: pd.Series, path: str) -> np.ndarray:
    """Labels [N], all strings or all integers. Raises DataError with the first rows that have none."""
    missing = np.flatnonzero(labels.isna())
    if len(missing):
        raise DataError(
            f"Received {path}, where {len(missing)} rows have no {labels.name!r}, such as row {missing[0]}; expected a "
            "label in each. Remove these rows, or give them a label."
        )
    kinds = sorted({type(label).__name__ for label in labels.tolist()})
    if kinds not in (["str"], ["int"], ["bool"]):
        raise DataError(
            f"Received {path}, whose {labels.name!r} holds {' and '.join(kinds)}; expected strings, or integers, alone."
        )
    return labels.to_numpy()
