"""Mutated tables and arrays: they are read, or one DataError says why not."""

import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest

from xbm_keras.data.arrays import Features, ImageArray
from xbm_keras.data.errors import DataError, UnreadableItem
from xbm_keras.data.sources import ImageTable
from xbm_keras.data.splits import split_items
from xbm_keras.data.texts import TextTable

PER_FORMAT = 400
LABELS = ["007", "7", "NA", 'say "hi",\nplease', "ä", "", "b", "c"] * 3
ROWS = [
    {"path": f"{i:03}.png", "text": f"text {i}", "label": label, "split": "train" if i % 8 < 5 else "test"}
    for i, label in enumerate(LABELS)
]
FLOATS = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
TOKENS = [
    b"",
    b"\0",
    b'"',
    b",",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\xef\xbb\xbf",
    b"{",
    b"]",
    b"null",
    b"-1",
    b"NaN",
    b"\\ud83d",
    b"\xed\xa0\x80",
]


def csv():
    return pd.DataFrame(ROWS).to_csv(index=False).encode()


def jsonl():
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def parquet():
    file = io.BytesIO()
    number = [None if i % 5 == 0 else i % 4 for i in range(24)]
    pd.DataFrame(ROWS).assign(features=list(FLOATS), number=number).to_parquet(file)
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, FLOATS)
    return file.getvalue()


def npz():
    file = io.BytesIO()
    images = np.arange(24 * 12, dtype=np.uint8).reshape(24, 4, 3)
    np.savez(file, features=FLOATS, images=images, label=np.arange(24) % 6, names=list("abcdef"), split=["train"] * 24)
    return file.getvalue()


def mutated(content, rng):
    """Some bytes changed, put in, left out, moved or cut off."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(data) + 1))
        length = int(rng.integers(1, 9))
        kind = rng.integers(6)
        if kind == 0:
            data[at : at + 1] = rng.bytes(1)
        elif kind == 1:
            data[at:at] = TOKENS[rng.integers(len(TOKENS))]
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at : at + length] = rng.bytes(length)
        elif kind == 4:
            data[at:at] = data[at : at + 8 * length]
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)


SOURCES = {
    "csv": [lambda path: ImageTable(str(path.parent), path.name), lambda path: TextTable(str(path))],
    "jsonl": [lambda path: ImageTable(str(path.parent), path.name), lambda path: TextTable(str(path))],
    "parquet": [
        lambda path: ImageTable(str(path.parent), path.name),
        lambda path: TextTable(str(path), labels="number"),
        lambda path: Features(str(path)),
    ],
    "npy": [lambda path: Features(str(path)), lambda path: Features(str(path), labels=str(path))],
    "npz": [lambda path: Features(str(path)), lambda path: ImageArray(str(path), label_names="names")],
}


def use(source):
    """All that is done with items before a network sees them."""
    source.items.sample_ids()
    "".join([*source.items.keys, *map(str, source.items.labels or [])]).encode("utf-8")
    for position in range(0 if isinstance(source, Features) else len(source.items.keys)):
        for read in (source.digest, source.load, source.stamp):
            with contextlib.suppress(UnreadableItem):
                read(position)
    split_items(source.items, by="item", test=0.3)
    split_items(source.items, column="split")


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.parametrize("make", [csv, jsonl, parquet, npy, npz], ids=lambda make: make.__name__)
def test_a_mutated_table_is_read_or_told(tmp_path, make):
    """2,000 files in five formats; whatever is raised, warnings included, but DataError, fails."""
    rng, outcomes, told = np.random.default_rng(0), {"read": 0, "told": 0}, set()
    path = tmp_path / f"x.{make.__name__}"
    for _ in range(PER_FORMAT):
        path.write_bytes(mutated(make(), rng))
        for open_source in SOURCES[make.__name__]:
            try:
                source = open_source(path)
                outcomes["read"] += 1
                use(source)
            except DataError as error:
                outcomes["told"] += 1
                told.add(str(error).partition(" ")[0])
    assert min(outcomes.values()) > 0
    assert told == {"Received"}
