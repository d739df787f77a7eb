"""Views of pictures: augmented, turned, mirrored, and their centres."""

import numpy as np
import pytest
import tensorflow as tf

from xbm_keras.data.arrays import ImageArray
from xbm_keras.data.views import augment, augmented, averaged, centre, mirror, turn, turned


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


def test_views_of_some_pictures_are_a_source_with_digests_of_its_own(source):
    some = np.array([1, 3, 4])
    views = [augmented(source, some, 1), augmented(source, some, 2), augmented(source, some, 1, flip=False)]
    views += [turned(source, some, quarters) for quarters in (1, 2, 3)]
    assert len({source.digest(3), *(view.digest(1) for view in views)}) == 7
    assert views[0].digest(1) == augmented(source, np.array([3]), 1).digest(0)  # whatever others are wanted
    assert [view.items.keys.tolist() for view in views] == [source.items.keys[some].tolist()] * 6
    for view, change in ((views[0], lambda x: augment(x, 1)), (views[3], lambda x: turn(x, 1))):
        for picture, position in zip(view.read([0, 2], lambda picture: picture), (1, 4), strict=True):
            np.testing.assert_array_equal(picture, change(source.load(position)))


def test_a_turn_is_by_a_quarter_and_keeps_every_pixel():
    picture = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    once = turn(picture, 1)
    assert once.shape == (6, 4, 3)
    np.testing.assert_array_equal(once[0, 0], picture[0, -1])
    np.testing.assert_array_equal(turn(once, 1), picture[::-1, ::-1])
    np.testing.assert_array_equal(turn(turn(picture, 3), 1), picture)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 40, 3), (2, 2, 3)])
def test_tiny_pictures(shape):
    assert augment(np.full(shape, 7, np.uint8), 1).size >= 3


@pytest.mark.parametrize(
    ("eighths", "shape", "rows", "columns"),
    [
        (7, (20, 16), (1, 19), (1, 15)),  # 17.5 is rounded up
        (6, (20, 16), (2, 17), (2, 14)),
        (6, (9, 5), (1, 8), (0, 4)),
        (7, (1, 3), (0, 1), (0, 3)),
    ],
)
def test_a_centre_is_the_same_of_arrays_and_tensors(eighths, shape, rows, columns):
    pictures = np.random.default_rng(0).integers(0, 255, (2, *shape, 3), np.uint8)
    expected = pictures[:, slice(*rows), slice(*columns)]
    graph = tf.function(lambda x: centre(x, eighths), input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])
    for found in (centre(pictures, eighths), centre(tf.constant(pictures), eighths), graph(pictures)):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(centre(pictures[1], eighths), expected[1])


def test_mirrored_pictures_are_the_same_of_arrays_and_tensors():
    pictures = np.random.default_rng(0).integers(0, 255, (2, 4, 6, 3), np.uint8)
    for found in (mirror(pictures), mirror(tf.constant(pictures)), np.stack([mirror(each) for each in pictures])):
        np.testing.assert_array_equal(found, np.flip(pictures, axis=2))


def test_views_that_are_averaged_are_sources_whose_order_no_name_decides(source):
    some = np.array([1, 3, 4])
    views = averaged(source, some, ["crops", "flip"])
    assert [view.name for view in views] == ["mirrored", "centre of 7 eighths", "centre of 6 eighths"]
    assert [view.name for view in averaged(source, some, ["flip", "crops"])] == [view.name for view in views]
    assert [view.name for view in averaged(source, some, ["crops"])] == [view.name for view in views[1:]]
    others = [augmented(source, some, 1), turned(source, some, 1)]
    assert len({source.digest(3), *(view.digest(1) for view in (*views, *others))}) == 6
    plain = source.load(4)
    for view, expected in zip(views, (plain[:, ::-1], plain[1:19, 1:15], plain[2:17, 2:14]), strict=True):
        (prepared,) = view.read([2], tf.constant)  # as a backbone takes them
        np.testing.assert_array_equal(prepared, expected)
