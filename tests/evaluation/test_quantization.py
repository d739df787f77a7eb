"""int8 and binary codes of embeddings."""

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from xbm_keras.evaluation.quantization import decoded, to_binary, to_int8


def make_embeddings(n=5, width=11):
    return np.random.default_rng(0).normal(size=(n, width)).astype("float32")


def test_int8_is_rounded_in_127ths_of_the_largest(mode):
    z = make_embeddings()
    codes = in_mode(to_int8, mode)(tf.constant(z)).numpy()
    expected = [[round(127 * value / max(abs(v) for v in row)) for value in row] for row in z.astype(float)]
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, expected)
    assert not to_int8(tf.zeros([1, 4])).numpy().any()


@pytest.mark.parametrize("width", [8, 11, 3])
def test_binary_is_packed_as_numpy_does(width, mode):
    z = make_embeddings(width=width)
    codes = in_mode(to_binary, mode)(tf.constant(z)).numpy()
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, np.packbits(z > 0, axis=1))


def test_decoded_vectors_compare_as_the_codes_do():
    z = make_embeddings()
    np.testing.assert_array_equal(decoded("binary", z), np.where(z > 0, 1, -1))
    cosines = z @ z.T / np.outer(*[np.linalg.norm(z, axis=1)] * 2)
    close = decoded("int8", z)
    close /= np.linalg.norm(close, axis=1, keepdims=True)
    np.testing.assert_allclose(close @ close.T, cosines, atol=0.02)
