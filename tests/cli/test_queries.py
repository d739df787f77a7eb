"""What an index is asked for."""

import argparse
import os
import types

import numpy as np
import pytest

from xbm_keras.cli import queries

OPTIONS = {"text": None, "features": None, "model": "a model"}


class LengthModel:
    """Embeds bytes as their number; of a picture there are some."""

    fingerprint = "one"

    def __init__(self, version, kind):
        pass

    def embed(self, contents):
        lengths = np.array([[len(content)] for content in contents])
        return lengths, lengths[:, 0] > 0


@pytest.fixture
def read(monkeypatch):
    monkeypatch.setattr(queries, "exported_by", lambda model: None)
    monkeypatch.setattr(queries, "ExportedModel", LengthModel)
    opened = types.SimpleNamespace(model="one")
    return lambda *paths: queries.read_queries(argparse.Namespace(picture=[*map(str, paths)], **OPTIONS), opened)


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="pipes have no path")
@pytest.mark.parametrize(("content", "error"), [(b"12345", None), (b"", "no picture that can be read")])
def test_a_picture_may_come_from_a_pipe(read, content, error):
    """As `<(curl URL)` of a shell."""
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    try:
        found = read(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
    assert found.vectors.tolist() == [[len(content)]]
    assert found.errors == [error]


def test_where_no_path_is_a_file_the_first_is_told(read, tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match=r"which is no file; expected a picture"):
            read(path)
