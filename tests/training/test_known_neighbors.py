"""What is searched before the first step: when, the same training with it, and what a killed search leaves."""

import logging

import numpy as np
import pytest

from tests.small_models import assert_same_training, clusters, compiled
from xbm_keras import HardTopK, Head, InEmbeddings, NeighborTopK, SimilarityAlignmentLoss
from xbm_keras.data.batches import PKSampler, slot_dataset
from xbm_keras.feature_cache.kept_blocks import DESCRIPTION, path_of
from xbm_keras.stages.hard_top_k import neighbor_table
from xbm_keras.training import known_neighbors
from xbm_keras.training.known_neighbors import know_neighbors

ORDER = np.random.default_rng(0).permutation(160)


def prefilled(top_k=None, mode="eager", turned=False, **options):
    x, y = clusters()
    model = compiled(160, top_k or HardTopK(8, 3), head=Head(4), mode=mode, width=16, **{"frozen": True, **options})
    model.build({"features": (None, 16)})
    model.optimizer.build(model.trainable_variables)
    features = x["features"] * np.where(np.arange(16) == 3, -1 if turned else 1, 1)
    model.memory.prefill(features[ORDER], y[ORDER], x["sample_id"][ORDER])
    return model, y


@pytest.mark.parametrize(("has_labels", "mode"), [(True, "graph"), (True, "xla"), (False, "graph")])
def test_training_is_the_same(has_labels, mode):
    models = []
    for num_ahead in (0, 161):
        top_k, loss = (HardTopK(8, 3), None) if has_labels else (NeighborTopK(8, 5), SimilarityAlignmentLoss())
        model, y = prefilled(top_k, mode, loss=loss)
        know_neighbors(model, num_ahead)
        assert (model.top_k.table is not None) == (num_ahead > 160)
        batches = slot_dataset(np.argsort(ORDER), PKSampler(y, 6, 4, 0))
        model.fit(batches, epochs=2, steps_per_epoch=3, verbose=0, shuffle=False)
        models.append(model)
    exact = {} if mode == "graph" and has_labels else {"rtol": 1e-5, "atol": 1e-6}
    assert_same_training(*models, **exact)


def test_where_a_search_would_not_pay_or_not_hold_there_is_none():
    for top_k, num_ahead, options in (
        (HardTopK(8, 3), 160, {}),
        (HardTopK(8, 3), 1000, {"frozen": False}),
        (HardTopK(8, 3, mining=InEmbeddings()), 1000, {}),
        (HardTopK("all", 3), 1000, {}),
        (HardTopK(0, 3), 1000, {}),
    ):
        model, _ = prefilled(top_k, **options)
        know_neighbors(model, num_ahead)
        assert model.top_k.table is None
        assert not model.memory.is_sealed


def test_a_killed_search_goes_on_and_the_next_one_reads(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(neighbor_table, "BLOCK", 50)
    monkeypatch.setattr(known_neighbors, "KEPT_ABOVE", 0)
    whole = prefilled()[0]
    know_neighbors(whole, 1000)  # kept nowhere
    assert not list(tmp_path.iterdir())

    searched, search = [], neighbor_table.NeighborTable.searched

    def killed(table, start):
        if start == 100:
            raise KeyboardInterrupt
        return search(table, start)

    monkeypatch.setattr(neighbor_table.NeighborTable, "searched", killed)
    model = prefilled()[0]
    with pytest.raises(KeyboardInterrupt):
        know_neighbors(model, 1000, str(tmp_path))
    assert model.top_k.table is None
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} >= {DESCRIPTION, path_of(folder, 0).name, path_of(folder, 50).name}
    path_of(folder, 50).write_bytes(b"damaged")

    def counted(table, start):
        searched.append(start)
        return search(table, start)

    monkeypatch.setattr(neighbor_table.NeighborTable, "searched", counted)
    with caplog.at_level(logging.INFO, "xbm_keras"):
        for expected in ([50, 100, 150], []):
            searched.clear()
            model = prefilled()[0]
            know_neighbors(model, 1000, str(tmp_path))
            assert searched == expected
            np.testing.assert_array_equal(model.top_k.table.indices, whole.top_k.table.indices)
    assert "searched once, which takes about 1 s" in caplog.text
    assert f"neighbours of 160 items are read from {folder}" in caplog.text


def test_other_rows_and_other_searches_have_tables_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(known_neighbors, "KEPT_ABOVE", 0)
    for number, (top_k, turned) in enumerate(
        [
            (HardTopK(8, 3), False),
            (HardTopK(8, 3), True),
            (HardTopK(7, 3), False),
            (HardTopK(8, 3, max_score=0.5), False),
        ],
        start=1,
    ):
        know_neighbors(prefilled(top_k, turned=turned)[0], 1000, str(tmp_path))
        assert len(list(tmp_path.iterdir())) == number
    know_neighbors(prefilled(HardTopK(8, 5, seed=3))[0], 1000, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == number


def test_what_cannot_be_kept_is_searched(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(known_neighbors, "KEPT_ABOVE", 0)
    (tmp_path / "file").write_text("no folder")
    model = prefilled()[0]
    know_neighbors(model, 1000, str(tmp_path / "file"))
    assert model.top_k.table is not None
    assert "is computed again by the next run" in caplog.text
