"""The score matrix. pitfalls.md: scores are float32 under any dtype."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from tests.reference_pairs import cosine
from xbm_keras import cosine_scores


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
