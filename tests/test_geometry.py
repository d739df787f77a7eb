"""Unit length and the signed power: tensors and arrays by one rule, however long or short the rows are."""

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from xbm_keras.geometry import all_finite, signed_power, unit_length, unit_rows

LENGTHS = (1e-37, 1e-30, 1e-16, 1e-7, 1.0, 300.0, 1e16, 1e30, 1e37)


def make_rows(dtype="float32"):
    """Rows of these lengths, three of each; of float16 those that it holds; a unit row and a zero row at the end."""
    lengths = [length for length in LENGTHS if dtype != "float16" or 1e-3 < length < 1e3]
    rows = np.random.default_rng(0).normal(size=(3 * len(lengths), 7)) * np.repeat(lengths, 3)[:, None] / 3
    return np.concatenate([rows, np.eye(2, 7) * [[1], [0]]])


def directions(rows):
    """In float64, which holds the squares of float32."""
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.sqrt(np.sum(rows**2, axis=-1, keepdims=True)), 1e-300)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_of_any_length_get_unit_length_as_tensors_and_as_arrays(dtype, mode):
    rows = tf.cast(make_rows(dtype), dtype)
    found = in_mode(unit_length, mode)(rows)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, directions(rows.numpy().astype("float64")), atol=1e-6)
    as_array = unit_rows(rows.numpy())
    assert as_array.dtype == np.float32
    np.testing.assert_allclose(as_array, found, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_an_array_may_hold_what_float32_does_not(scale):
    rows = make_rows()[12:15]
    np.testing.assert_allclose(unit_rows(scale * rows), directions(rows), atol=1e-6)
    np.testing.assert_array_equal(unit_rows(rows[0]), unit_rows(rows)[0])
    np.testing.assert_allclose(unit_rows(np.array([[3, -4]])), [[0.6, -0.8]], atol=1e-7)


def test_the_layout_of_an_array_does_not_matter():
    rows = np.random.default_rng(0).normal(size=(50, 300)).astype("float32")
    np.testing.assert_array_equal(unit_rows(np.asfortranarray(rows)), unit_rows(rows))


def test_an_array_that_has_unit_length_stays_bit_by_bit():
    once = unit_rows(np.random.default_rng(0).normal(size=(500, 64)))
    np.testing.assert_array_equal(unit_rows(once), once)
    assert (once / np.linalg.norm(once, axis=1, keepdims=True) != once).any()  # which a second division would not leave
    longer = np.float32(1 + 1e-5) * once
    assert np.abs(np.linalg.norm(unit_rows(longer).astype("float64"), axis=1) - 1).max() < 3e-7


def test_the_gradient_is_that_of_the_direction_and_none_for_a_zero_row(mode):
    """A careless normalisation gives NaN for a zero row under XLA, though the loss looks finite."""

    def gradient(rows):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            total = tf.reduce_sum(unit_length(rows) * tf.constant([1.0, 2.0, 3.0]))
        return tape.gradient(total, rows)

    rows = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0], [3e20, 0.0, 4e20], [3e-20, 0.0, 4e-20]])
    slope = in_mode(gradient, mode)(tf.constant(rows, tf.float32)).numpy()
    np.testing.assert_array_equal(slope[0], 0)
    expected = np.array([1 - 0.6 * 3, 2, 3 - 0.8 * 3]) / 5  # (g - u (u g)) / length
    np.testing.assert_allclose(slope[1:] * [[1], [1e20], [1e-20]], [expected] * 3, rtol=1e-5)


@pytest.mark.parametrize("power", [0.5, 0.9, 1])
def test_a_power_keeps_the_signs(power, mode):
    x = np.array([[-4.0, 0.0, 9.0], [1.0, -1.0, -0.25]], np.float32)
    expected = [[-(4**power), 0, 9**power], [1, -1, -(0.25**power)]]
    np.testing.assert_allclose(signed_power(x, power), expected, rtol=1e-6)
    np.testing.assert_allclose(in_mode(lambda x: signed_power(x, power), mode)(tf.constant(x)), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite_tells_one_bad_number_and_the_largest_good_ones(dtype, bad, mode):
    largest = float(tf.as_dtype(dtype).max)
    good = tf.cast([[largest, largest, largest], [-largest, 0, 1e-7]], dtype)
    one_bad = tf.where([[False, False, False], [True, False, False]], tf.cast(bad, dtype), good)
    both_signs = tf.cast([[np.inf, -np.inf, 1], [1, 1, 1]], dtype)
    rows = in_mode(lambda x: all_finite(x, axis=1), mode)
    assert rows(good).numpy().tolist() == [True, True]
    assert rows(one_bad).numpy().tolist() == [True, False]
    assert rows(both_signs).numpy().tolist() == [False, True]
    assert bool(in_mode(all_finite, mode)(good))
    assert not in_mode(all_finite, mode)(one_bad)


def test_rows_that_were_made_unit_stay_bit_by_bit(mode):
    made = unit_rows(np.random.default_rng(1).normal(size=(500, 1280)).astype(np.float32))
    np.testing.assert_array_equal(in_mode(unit_length, mode)(made), made)
    assert np.isnan(in_mode(unit_length, mode)(tf.constant([[1.0, np.nan], [3.0, 4.0]]))[0]).all()


@pytest.mark.parametrize("length", [1.0, 1.0 + 1e-6, 3.0])
def test_the_gradient_has_no_part_along_the_row(length, mode):
    row, slope = directions(np.random.default_rng(0).normal(size=(2, 9)))
    x = tf.constant(length * row[None], tf.float32)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(unit_length(x) * tf.constant(slope, tf.float32))
        return tape.gradient(y, x)

    expected = (slope - np.dot(slope, row) * row) / length
    np.testing.assert_allclose(in_mode(gradient, mode)(x)[0], expected, atol=1e-6)
