"""A gallery: items in Arrow, ids of any length, and metadata that may be missing."""

import json

import numpy as np
import pyarrow
import pytest

from tests.index.test_galleries import unit
from xbm_keras.index.galleries import add_items, read_index, write_index
from xbm_keras.index.gallery import Gallery


def test_ids_of_any_length_are_stored_once(tmp_path):
    ids = [f"{i:05}" for i in range(10_000)] + ["ä" * 5000]
    items = Gallery.of(unit(len(ids), 8), ids)
    assert items.items.nbytes < 10_000 * (5 + 4 + 4) + 10_000 + 100
    assert items.ids.nbytes == 8 * len(ids)
    write_index(tmp_path, items, "model")
    stored = sum(path.stat().st_size for path in tmp_path.glob("1/**/*") if path.is_file())
    assert stored < 2_000_000  # of fixed width: 200 MB
    again = read_index(tmp_path)[0]
    assert again.items.equals(items.items)
    assert again.ids[-1] == "ä" * 5000


def test_an_index_of_an_earlier_version_is_read(tmp_path):
    version = tmp_path / "1"
    version.mkdir()
    np.save(version / "vectors.npy", unit(2, 4))
    (version / "items.json").write_text(json.dumps({"ids": ["ä", "b"], "labels": ["x", ""]}))
    (version / "index.json").write_text(json.dumps({"items": 2, "width": 4, "model": "m", "roots": {"": "place"}}))
    gallery, about, approximate = read_index(tmp_path)
    assert gallery.items.to_pylist() == [{"id": "ä", "label": "x"}, {"id": "b", "label": ""}]
    np.testing.assert_array_equal(gallery.vectors, unit(2, 4))
    assert (about["model"], approximate) == ("m", None)


def test_metadata_may_grow_and_be_missing(tmp_path):
    old = Gallery.of(unit(2, 4), ["a", "b"], ["x", None], year=[1999, None])
    more = Gallery.of(unit(2, 4, seed=1), ["b", "c"], place=["here", None])
    write_index(tmp_path, old, "m")
    add_items(tmp_path, more, "m")
    assert read_index(tmp_path)[0].items.to_pylist() == [
        {"id": "a", "label": "x", "year": 1999, "place": None},
        {"id": "b", "label": "", "year": None, "place": "here"},
        {"id": "c", "label": "", "year": None, "place": None},
    ]
    with pytest.raises(ValueError, match=r"year: int64.* and .*year: string.*expected each column of one type"):
        add_items(tmp_path, Gallery.of(unit(1, 4), ["d"], year=["MM"]), "m")


@pytest.mark.parametrize(
    "columns", [{"id": ["a"]}, {"id": ["a"], "label": [""], "similarity": [1.0]}, {"id": [None], "label": [""]}]
)
def test_items_without_an_id_or_with_a_name_of_hits_are_refused(columns):
    with pytest.raises(ValueError, match=r"^Received .*; expected .*"):
        Gallery(unit(1, 4), pyarrow.table(columns))
