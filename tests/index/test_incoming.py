"""What is to enter an index: the columns of its items."""

import json

from xbm_keras.data.texts import TextTable
from xbm_keras.index.incoming import items_of


def test_a_text_is_metadata_unless_a_column_is_called_so(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"query": "what time is it", "text": "of a clock", "year": 2020}))
    assert items_of(TextTable(str(path), "query", None), "").column("text").to_pylist() == ["of a clock"]
    assert items_of(TextTable(str(path), "text", None), "").to_pylist() == [
        {"id": "0", "label": "", "query": "what time is it", "year": 2020, "text": "of a clock"}
    ]
