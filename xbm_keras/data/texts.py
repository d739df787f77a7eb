"""Texts from a table."""

import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from xbm_keras.data.errors import DataError, UnreadableItem
from xbm_keras.data.sources import Items, RandomAccess
from xbm_keras.data.tables import Table

SUFFIXES = (".jsonl", ".csv", ".parquet")


class Texts(RandomAccess):
    """Texts at hand.

    Args:
        texts: [N], whatever they are: what is no text is told of when it is read.
        items: their ids, labels and columns.
        prefix: put before each.
    """

    modality = "text"

    def __init__(self, texts: Sequence, items: Items, prefix: str = ""):
        self.texts, self.items, self.prefix = texts, items, prefix

    def stamp(self, position: int) -> None:
        """None: the text is at hand, hashing is cheap."""

    def digest(self, position: int) -> str:
        """Hash of the text with its prefix: the same text, in whichever data, passes the network once."""
        return hashlib.sha256(self.load(position).encode()).hexdigest()

    def load(self, position: int) -> str:
        """One text. Raises UnreadableItem."""
        return self.prefix + checked_text(self.texts[position])


class TextTable(Texts):
    """Texts, one per row of a JSONL, CSV or Parquet table, whose other columns may give the split.

    Args:
        path: of the table; in JSONL each line is an object.
        texts: name of their column.
        labels: name of their column; None for no labels. An item whose cell is empty (or null) has none.

    Raises:
        DataError: if the table or a column does not exist, or the table cannot be read as such.
    """

    def __init__(self, path: str, texts: str = "text", labels: str | None = "label"):
        file = pathlib.Path(os.path.expanduser(path))
        if not file.is_file() or file.suffix not in SUFFIXES:
            raise DataError(
                f"Received data.path {path!r}, which is no {'such table' if file.is_file() else 'file'}; expected a "
                f"table of texts that ends in {', '.join(SUFFIXES)}."
            )
        table = Table(file)
        if not len(table):
            raise DataError(f"Received data.path {path!r}, which holds no rows; expected at least one.")
        found = None if labels is None else table.labels(labels)
        items = Items(np.arange(len(table)).astype(str), found, table.others(texts))
        super().__init__(table[texts].tolist(), items)


def is_text(text) -> bool:
    """Whether it is a text that says something."""
    try:
        return bool(checked_text(text))
    except UnreadableItem:
        return False


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
