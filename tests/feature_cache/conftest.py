"""Folders of small photos."""

import numpy as np
import PIL.Image
import pytest

from tests.feature_cache.small import small_backbone
from xbm_keras.data.sources import ImageFolder
from xbm_keras.feature_cache.cache import compute_features


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(11):
        path = tmp_path / f"photos/class{i % 3}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 255, (9, 7, 3), np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def compute(photos, tmp_path):
    def run(backbone=None, root=photos, **options):
        options = {"shard_rows": 4, "batch_size": 3, **options}
        return compute_features(
            ImageFolder(str(root)), backbone or small_backbone(), **{"cache_dir": str(tmp_path / "cache"), **options}
        )

    return run


@pytest.fixture
def many_photos(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "many/a").mkdir(parents=True)
    for i in range(160):
        PIL.Image.fromarray(rng.integers(0, 255, (9, 7, 3), np.uint8)).save(tmp_path / f"many/a/{i:03d}.png")
    return tmp_path / "many"
