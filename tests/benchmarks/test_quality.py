"""Which model a row of the table is of, and how sure the rows are."""

import types

import numpy as np
import pytest

from benchmarks import quality


@pytest.mark.parametrize("is_by_epoch", [False, True])
def test_classical_rows_are_of_the_classical_model(monkeypatch, is_by_epoch):
    splits = types.SimpleNamespace(train=np.arange(2), validation=np.arange(2, 4), test=np.arange(4, 6), folds=())
    data = types.SimpleNamespace(features=np.eye(6, dtype=np.float32), labels=np.arange(6), splits=splits)
    monkeypatch.setattr(quality.held_out, "HeldOutFolds", lambda dataset: None)
    monkeypatch.setattr(quality, "by_epoch", lambda *args: {"model": quality.build.XBMModel.__name__})
    monkeypatch.setattr(
        quality, "trained", lambda *args: [{quality.build.XBMModel.__name__: 1.0, quality.FOUND: np.ones(2)}]
    )
    options = types.SimpleNamespace(only=[*quality.TRAINED], by_epoch=is_by_epoch, peer_python=None)
    rows = quality.table("default", data, data, None, options)
    assert [row["name"] for row in rows if "ClassicalXBM" in str(row)] == ["classical XBM (stale embeddings)"]
    assert sum("XBMModel" in str(row) for row in rows) == len(quality.TRAINED) - 1
    assert quality.build.XBMModel.__name__ == "XBMModel"


def test_a_row_tells_how_sure_it_is_above_the_start_and_memory_off():
    labels = np.repeat(np.arange(50), 4)
    rng = np.random.default_rng(0)
    start = rng.uniform(0.3, 0.5, 200)
    start[7] = np.nan  # has nothing to find
    runs = {quality.START: [start], quality.OFF: [start + rng.normal(0, 0.1, 200)], "ours": [start + 0.1, start + 0.3]}
    rows = []
    for name, found in runs.items():
        rows.append(quality.summary(name, [{"MAP@R": np.nanmean(each), quality.FOUND: each} for each in found]))
    start_row, off, ours = quality.with_intervals(rows, labels)
    assert not any(quality.FOUND in row for row in rows)
    low, high = (float(end) for end in start_row["95 %"].split(" to "))
    assert low < np.nanmean(start) < high < low + 0.05
    assert ours[f"above {quality.START}"] == "+0.2000 (+0.2000 to +0.2000)"
    low, high = (float(end) for end in off[f"above {quality.START}"].split("(")[1][:-1].split(" to "))
    assert low < 0 < high
    assert f"above {quality.START}" not in start_row
    assert f"above {quality.OFF}" not in off
    assert set(ours) == {"name", "MAP@R", "95 %", f"above {quality.START}", f"above {quality.OFF}"}


def test_expanded_scores_are_of_items_that_have_something_to_find():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])
    vectors = np.eye(3, dtype=np.float32)[labels]
    for both in (False, True):
        np.testing.assert_array_equal(quality.expanded_scores(vectors, labels, both), [1.0] * 8 + [np.nan])
    mixed = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 2, 2, 1, 1, 0]]  # of the first four items two see each other alone
    assert np.nanmean(quality.expanded_scores(mixed, labels, False)) < 0.5


@pytest.mark.parametrize("name", [name for name in quality.TRAINED if name != quality.OFF])  # which picks all there is
def test_a_row_picks_what_its_name_says_whatever_the_config_says(name):
    emoji, grocery = (
        quality.load_config(f"configs/{each}.yaml", quality.TRAINED[name]) for each in ("emoji", "grocery")
    )
    assert emoji.top_k == grocery.top_k
