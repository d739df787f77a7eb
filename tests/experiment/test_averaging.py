"""Embeddings averaged over views: what is left out, and how much is held."""

import tracemalloc
import types

import numpy as np
import pytest

from xbm_keras.config.schema import Config
from xbm_keras.data.sources import Items
from xbm_keras.data.views import changes_of
from xbm_keras.experiment import averaging

AVERAGE = ("flip", "crops")
GONE = 5  # the one picture whose second view cannot be read


@pytest.fixture
def rows(monkeypatch):
    """Embeddings [1 + views, n, E] of the pictures and their views, in the cache but for one."""
    rows = np.random.default_rng(0).normal(size=(1 + len(changes_of(AVERAGE)), 4096, 64)).astype(np.float32)
    names = list(changes_of(AVERAGE))

    def cached(view, *_, **__):
        at = 1 + names.index(view.name)
        positions = np.arange(len(rows[0]))
        if at == 2:
            positions = np.delete(positions, GONE)
        return types.SimpleNamespace(rows=rows[at][positions], positions=positions, skipped={str(GONE): "it is gone"})

    monkeypatch.setattr(averaging, "compute_features", cached)
    return rows


def averages(rows, average=AVERAGE):
    source = types.SimpleNamespace(items=Items(np.arange(len(rows[0])).astype(str), None, {}), decoder="")
    config = Config.model_validate(
        {"data": {"source": "image_folder", "root": "photos"}, "backbone": {"kind": "file", "path": "net.keras"}}
    )
    positions = np.arange(len(rows[0]))
    return averaging.with_views(rows[0], source, positions, average, config, None, lambda features, at: features[at])


def test_a_picture_without_one_of_its_views_is_left_out(rows):
    plain = rows[0].copy()
    found, positions, reasons = averages(rows)
    mean = np.delete(rows, GONE, axis=1).mean(axis=0)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    assert positions.tolist() == np.delete(np.arange(len(plain)), GONE).tolist()
    assert reasons == {GONE: "it is gone"}
    np.testing.assert_array_equal(rows[0], plain)  # the caller's


def test_what_is_held_does_not_grow_with_the_number_of_views(rows):
    peaks = []
    for average in (["crops"], ["flip", "crops"]):
        averages(rows, average)  # what is allocated once
        tracemalloc.start()
        averages(rows, average)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + rows[0].nbytes / 2
