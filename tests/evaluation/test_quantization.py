"""Codes of embeddings, and what they stand for."""

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from xbm_keras.evaluation.quantization import CODES


def make_embeddings(n=5, width=11):
    return np.random.default_rng(0).normal(size=(n, width)).astype("float32")


def test_int8_is_rounded_in_127ths_of_the_largest(mode):
    z = make_embeddings()
    codes = in_mode(CODES["int8"].encode, mode)(tf.constant(z)).numpy()
    expected = [[round(127 * value / max(abs(v) for v in row)) for value in row] for row in z.astype(float)]
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, expected)
    assert not CODES["int8"].rounded(np.zeros((1, 4))).any()


@pytest.mark.parametrize("width", [11, 8, 1])
def test_four_bits_are_sixteen_steps_of_the_root_mean_square(width, mode):
    z = make_embeddings(width=width)
    z[0, 0] = 9.0  # beyond the last step of a wide row
    code = CODES["int4"]
    expected = []
    for row in z.astype(float):
        step = 0.335 * (sum(value**2 for value in row) / width) ** 0.5
        expected.append([min(7.5, max(-7.5, value // step + 0.5)) for value in row])
    codes = in_mode(code.encode, mode)(tf.constant(z)).numpy()
    np.testing.assert_array_equal(code.decode(codes, width), expected)
    assert codes.nbytes == len(z) * code.bytes_per_item(width)


def test_four_bits_lie_two_to_a_byte_the_first_one_high():
    assert CODES["int4"].of(np.array([[1.0, -1.0, 0.1]])).tolist() == [[(3 + 8) * 16 + 4, 8 * 16]]


@pytest.mark.parametrize("width", [8, 11, 3])
def test_binary_is_packed_as_numpy_does(width, mode):
    z = make_embeddings(width=width)
    codes = in_mode(CODES["binary"].encode, mode)(tf.constant(z)).numpy()
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, np.packbits(z > 0, axis=1))
    np.testing.assert_array_equal(CODES["binary"].rounded(z), np.where(z > 0, 1, -1))


@pytest.mark.parametrize("name", CODES)
def test_decoded_vectors_point_where_the_embeddings_do(name):
    z, code = make_embeddings(40, 64), CODES[name]
    decoded = code.rounded(z)
    assert decoded.dtype == np.float32
    cosines = (z * decoded).sum(axis=1) / np.linalg.norm(z, axis=1) / np.linalg.norm(decoded, axis=1)
    assert (
        cosines.min()
        > {
            "float32": 1 - 1e-6,
            "float16": 1 - 1e-5,
            "int8": 0.9999,
            "int4": 0.98,
            "trellis": 0.9,
            "layers": 0.9,
            "binary": 0.7,
        }[name]
    )
    assert code.of(z).nbytes == 40 * code.bytes_per_item(64)


def test_codes_go_from_fine_to_coarse():
    assert [code.bytes_per_item(12) for code in CODES.values()] == [48, 24, 12, 6, 10, 20, 2]
