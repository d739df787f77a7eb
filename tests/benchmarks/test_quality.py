"""Which model a row of the table is of."""

import types

import numpy as np
import pytest

from benchmarks import quality


@pytest.mark.parametrize("is_by_epoch", [False, True])
def test_classical_rows_are_of_the_classical_model(monkeypatch, is_by_epoch):
    splits = types.SimpleNamespace(train=np.arange(2), validation=np.arange(2, 4), test=np.arange(4, 6), folds=())
    data = types.SimpleNamespace(features=np.eye(6, dtype=np.float32), splits=splits)
    monkeypatch.setattr(quality.held_out, "HeldOutFolds", lambda dataset: None)
    monkeypatch.setattr(quality, "by_epoch", lambda *args: {"model": quality.build.XBMModel.__name__})
    monkeypatch.setattr(quality, "trained", lambda *args: [{quality.build.XBMModel.__name__: 1.0}])
    options = types.SimpleNamespace(only=[*quality.TRAINED], by_epoch=is_by_epoch, peer_python=None)
    rows = quality.table("default", data, data, None, options)
    assert [row["name"] for row in rows if "ClassicalXBM" in str(row)] == ["classical XBM (stale embeddings)"]
    assert sum("XBMModel" in str(row) for row in rows) == len(quality.TRAINED) - 1
    assert quality.build.XBMModel.__name__ == "XBMModel"
