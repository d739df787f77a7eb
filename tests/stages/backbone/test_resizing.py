"""Resizing by products against TensorFlow's own operation, with which features were cached."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import MODES, in_mode
from tests.small_models import compiled, images, small_backbone
from xbm_keras.stages.backbone.resizing import interpolation, resize_by_products

SIZES = [
    ((13, 9), (8, 8)),
    ((5, 6), (8, 9)),
    ((1, 1), (7, 5)),
    ((300, 1), (64, 32)),
    ((401, 1203), (224, 160)),
    ((223, 225), (224, 224)),
    ((37, 37), (37, 37)),
]


def pictures(height, width, n=2):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3))


@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
def test_equals_the_operation_of_tensorflow(before, after):
    x = pictures(*before).astype(np.float32)
    found = resize_by_products(x, after)
    assert found.shape == (2, *after, 3)
    np.testing.assert_allclose(found, tf.image.resize(x, after, antialias=True), atol=3e-4)  # of 255


@pytest.mark.parametrize("mode", MODES)
def test_of_integers_of_any_size_in_all_modes(mode):
    x = pictures(13, 9).astype(np.uint8)
    resize = in_mode(lambda images: resize_by_products(images, (8, 6)), mode)
    np.testing.assert_allclose(resize(x), tf.image.resize(x, (8, 6), antialias=True), atol=3e-4)
    if mode == "graph":
        anything = tf.TensorSpec((None, None, None, 3), tf.float32)
        resize = tf.function(lambda images: resize_by_products(images, (8, 6)), input_signature=[anything])
        for size in ((4, 11), (16, 3)):
            x = pictures(*size).astype(np.float32)
            np.testing.assert_allclose(resize(x), tf.image.resize(x, (8, 6), antialias=True), atol=3e-4)


def test_weights_by_hand():
    # 4 pixels to 2: triangles of width 4 around 1 and 3, that is [3, 3, 1, 0] / 7 of the distances .5, .5, 1.5, 2.5.
    np.testing.assert_allclose(interpolation(4, 2), np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7, rtol=1e-6)
    # 2 to 4: between the two, and the ends repeated.
    np.testing.assert_allclose(interpolation(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], rtol=1e-6)


def test_a_live_backbone_that_resizes_trains_under_xla():
    x, y = images(16)
    x["inputs"] = pictures(9, 7, 16).astype(np.float32)
    runs = []
    for mode in ("graph", "xla"):
        model = compiled(20, backbone=small_backbone(), mode=mode)
        assert keras.src.trainers.trainer.model_supports_jit(model)
        assert model.jit_compile == (mode == "xla")
        runs.append(model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"])
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)


def test_a_batch_and_a_single_picture_are_resized_alike():
    backbone = small_backbone()
    x = pictures(11, 17)
    np.testing.assert_allclose(backbone.resize_batch(tf.constant(x)), [backbone.prepare(each) for each in x], atol=3e-4)
