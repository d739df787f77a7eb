"""The score matrix. pitfalls.md: scores are float32 under any dtype; a zero row has a finite gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from tests.reference_pairs import cosine
from xbm_keras import cosine_scores
from xbm_keras.stages.cosine_scores import l2_normalize


def unit_rows(n, seed):
    rows = np.random.default_rng(seed).normal(size=(n, 5))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_scores_are_cosines_in_float32(policy, dtype, tolerance, mode):
    keras.config.set_dtype_policy(policy)
    anchors, rows = unit_rows(3, seed=0), unit_rows(4, seed=1)
    scores = in_mode(cosine_scores, mode)(tf.constant(anchors, tf.float32), tf.cast(rows, dtype))
    assert scores.dtype == tf.float32
    expected = [[cosine(anchor, row) for row in rows] for anchor in anchors]
    np.testing.assert_allclose(scores, expected, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_normalised_rows_have_unit_length(dtype, mode):
    rows = tf.cast(300.0 * unit_rows(4, seed=2), dtype)  # the square of a length of 300 overflows in float16
    normalised = in_mode(l2_normalize, mode)(rows)
    assert normalised.dtype == tf.float32
    np.testing.assert_allclose(np.linalg.norm(normalised, axis=1), 1.0, rtol=1e-6)


def test_a_zero_row_stays_zero_with_a_finite_gradient(mode):
    """Else NaN gradients under XLA though the loss looks finite."""

    def gradient(rows):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            normalised = l2_normalize(rows)
            total = tf.reduce_sum(normalised * tf.constant([1.0, 2.0, 3.0]))
        return normalised, tape.gradient(total, rows)

    normalised, slope = in_mode(gradient, mode)(tf.constant([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]]))
    np.testing.assert_array_equal(normalised[0], 0.0)
    assert np.isfinite(slope).all()
