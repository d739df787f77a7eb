"""Augmented views."""

import numpy as np
import pytest

from xbm_keras.data.arrays import ImageArray
from xbm_keras.data.views import View, augment


@pytest.fixture
def source(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (6, 20, 16, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, label=np.arange(6) % 2)
    return ImageArray(str(tmp_path / "x.npz"))


def test_a_view_is_always_the_same_and_differs_from_the_others(source):
    picture = source.load(0)
    first = augment(picture, 1)
    np.testing.assert_array_equal(first, augment(picture, 1))
    assert first.dtype == np.uint8
    assert first.shape != augment(picture, 2).shape or (first != augment(picture, 2)).any()
    assert augment(source.load(1), 1).shape[2] == 3


def test_views_keep_at_least_about_half_of_the_picture(source):
    sizes = [np.prod(augment(source.load(0), number).shape[:2]) / (20 * 16) for number in range(1, 60)]
    assert 0.4 < min(sizes) < 0.65
    assert max(sizes) > 0.85


def test_without_flips_nothing_is_mirrored():
    ramp = np.tile(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], (30, 1, 3))
    rises = {bool(v[:, -1].mean() > v[:, 0].mean()) for v in (augment(ramp, n, flip=False) for n in range(1, 40))}
    assert rises == {True}
    assert {bool(v[:, -1].mean() > v[:, 0].mean()) for v in (augment(ramp, n) for n in range(1, 40))} == {True, False}


def test_a_view_is_a_source_with_digests_of_its_own(source):
    views = [source, View(source, 1), View(source, 2), View(source, 1, flip=False)]
    assert len({view.digest(3) for view in views}) == 4
    (picture,) = views[1].read([3], lambda picture: picture)
    np.testing.assert_array_equal(picture, augment(source.load(3), 1))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 40, 3), (2, 2, 3)])
def test_tiny_pictures(shape):
    assert augment(np.full(shape, 7, np.uint8), 1).size >= 3
