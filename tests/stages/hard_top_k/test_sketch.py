"""The frozen sketch: closed form of the inner products."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from xbm_keras.stages.hard_top_k import sketch as module
from xbm_keras.stages.hard_top_k.sketch import Sketch, principal_directions


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def low_rank_features(n=60, width=9, rank=3):
    random = np.random.default_rng(0)
    return unit(
        random.normal(size=(n, rank)) @ random.normal(size=(rank, width)) + 0.01 * random.normal(size=(n, width))
    )


def test_principal_directions_are_the_best_low_rank_inner_products(monkeypatch):
    """Eckart and Young: no projection of this rank leaves a smaller error; against NumPy's SVD."""
    monkeypatch.setattr(module, "BLOCK_ROWS", 13)
    features = low_rank_features()
    projection = principal_directions(features, 4)
    assert projection.shape == (9, 4)
    assert projection.dtype == np.float32
    best = np.linalg.svd(features, full_matrices=False)[2][:4].T
    np.testing.assert_allclose(projection @ projection.T, best @ best.T, atol=1e-5)
    with pytest.raises(ValueError, match="sketch_dim=10 for features of width 9; expected at most 9"):
        principal_directions(features, 10)


def test_sketches_are_unit_vectors_that_keep_the_cosines():
    features = low_rank_features().astype("float32")
    layer = Sketch(3)
    sketches = layer(features)
    np.testing.assert_allclose(np.linalg.norm(sketches, axis=1), 1, rtol=1e-5)
    layer.projection.assign(principal_directions(features, 3))
    sketches = layer(features).numpy()
    np.testing.assert_allclose(sketches @ sketches.T, features @ features.T, atol=0.01)
    assert layer.trainable_variables == []
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Sketch(5, seed=2, name="s")))
    assert (again.sketch_dim, again.seed, again.name) == (5, 2, "s")
    with pytest.raises(ValueError, match="sketch_dim=0; expected a whole number"):
        Sketch(0)
    assert tf.is_tensor(layer(tf.zeros([1, 9])))
