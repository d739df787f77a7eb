"""Some columns of cached features as the cache of the network that gives these alone."""

import errno

import keras
import numpy as np
import pytest

from tests.feature_cache.small import contents
from xbm_keras.data.errors import DataError
from xbm_keras.data.sources import ImageFolder
from xbm_keras.feature_cache import cache
from xbm_keras.feature_cache.cache import fingerprint, keep_columns
from xbm_keras.stages.backbone.frozen import Backbone

COLUMNS = np.array([5, 6, 7])


@pytest.fixture
def whole():
    """A network of two outputs, [B, 5] and [B, 3], and the one of the second alone."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    maps = [keras.layers.Conv2D(units, 3)(inputs) for units in (5, 3)]
    first, second = (keras.layers.GlobalMaxPooling2D()(each) for each in maps)
    return tuple(Backbone(keras.Model(inputs, each), image_size=(8, 8)) for each in ([first, second], second))


def keep(rows, backbone, tmp_path):
    return keep_columns(rows, COLUMNS, backbone, str(tmp_path / "cache"), "float32", "")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_network_finds_its_columns(whole, compute, tmp_path, dtype):
    both, alone = whole
    cached = compute(both, dtype=dtype)
    decoder = ImageFolder.decoder
    order = np.array([7, 0, 3, 3, 10])
    some = cached.rows.take(order)
    kept = keep_columns(some, COLUMNS, alone, str(tmp_path / "cache"), dtype, decoder)
    assert kept.dtype == dtype
    np.testing.assert_array_equal(kept[:], cached.rows[:][order][:, COLUMNS])
    folder = tmp_path / "cache" / fingerprint(alone, dtype, decoder)[:16]
    before = contents(folder)
    keep_columns(some, COLUMNS, alone, str(tmp_path / "cache"), dtype, decoder)
    assert contents(folder) == before
    every = compute(alone, dtype=dtype)
    assert every.num_computed == 11 - 4  # the others
    raw = every.rows[:].astype(np.float32)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, cached.rows[:][:, COLUMNS], atol=2e-3 if dtype == "float16" else 1e-5)
    kept = keep_columns(cached.rows, COLUMNS, alone, str(tmp_path / "cache"), dtype, decoder)
    np.testing.assert_array_equal(kept[:], every.rows[:])  # as they were there


def test_a_full_disk_is_told(whole, compute, tmp_path, monkeypatch):
    both, alone = whole
    rows = compute(both).rows

    def write_shard(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "write_shard", write_shard)
    with pytest.raises(DataError, match="which is full; free some space"):
        keep(rows, alone, tmp_path)
