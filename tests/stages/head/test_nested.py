"""Heads whose embeddings can be cut: each beginning is compared and trained beside the whole."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from tests.reference_pairs import cosine
from xbm_keras import Head, Picks, Rows

WIDTHS = [2, 3, 6]
INDICES = np.array([[0, 4, 4], [6, 0, 1]])


def make_features(n, seed=0):
    features = np.random.default_rng(seed).normal(size=(n, 8)).astype("float32")
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def make_head(**options):
    head = Head(6, widths=WIDTHS, **options)
    head.build((None, 8))
    head.bias.assign(np.linspace(-0.3, 0.4, 6))
    return head


def make_picks():
    is_valid = tf.ones(INDICES.shape, tf.bool)
    return Picks(tf.constant(INDICES, tf.int32), is_valid, is_valid, tf.zeros(INDICES.shape))


def make_rows(features):
    n = len(features)
    return Rows(tf.constant(features), tf.zeros(n, tf.int64), tf.range(n, dtype=tf.int64), tf.ones(n, tf.bool))


@pytest.mark.parametrize("path", ["all rows", "picks"])
def test_similarities_of_each_width_equal_the_cosines_of_the_beginnings(path, mode):
    head, features, row_features = make_head(), make_features(2), make_features(7, seed=1)
    rows = make_rows(row_features)

    def compare(features):
        embeddings = head.embed_rows(rows) if path == "all rows" else None
        return head.compare(head(features), rows._replace(embeddings=embeddings), make_picks())

    similarities = in_mode(compare, mode)(tf.constant(features))
    kernel, bias = head.kernel.numpy(), head.bias.numpy()
    anchors, others = features @ kernel + bias, row_features @ kernel + bias
    for width, found in zip(WIDTHS, similarities, strict=True):
        expected = [
            [cosine(a[:width], others[i][:width]) for i in picked] for a, picked in zip(anchors, INDICES, strict=True)
        ]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_of_the_widths():
    losses = [tf.constant([1.0, 0.0]), tf.constant([0.0, 2.0]), tf.constant([3.0, 0.0])]
    np.testing.assert_allclose(make_head().weighted_mean(losses), [(2 * 1 + 6 * 3) / 11, 3 * 2 / 11], rtol=1e-6)
    np.testing.assert_allclose(make_head(width_weights=[1, 2, 1]).weighted_mean(losses), [1, 1], rtol=1e-6)
    np.testing.assert_allclose(Head(6).weighted_mean(losses[:1]), losses[0], rtol=1e-6)


def test_config_round_trip():
    head = Head(6, widths=WIDTHS, width_weights=[1, 2, 3])
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    assert (copy.widths, copy.width_weights) == ((2, 3, 6), (1.0, 2.0, 3.0))
    plain = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Head(6)))
    assert plain.widths == (6,)


@pytest.mark.parametrize("widths", [[2, 4], [4, 2, 6], [0, 6], [2, 2, 6], [2, 8]])
def test_widths_that_are_refused(widths):
    expected = "each a whole number in 1" if 0 in widths else "ascending whole numbers, the last of which is 6"
    with pytest.raises(ValueError, match=expected):
        Head(6, widths=widths)


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, 2, 3]])
def test_weights_that_are_refused(weights):
    expected = "each a number above 0" if 0 in weights else "expected one for each width"
    with pytest.raises(ValueError, match=expected):
        Head(6, widths=[3, 6], width_weights=weights)
    with pytest.raises(ValueError, match=expected):
        Head(6, width_weights=weights)


@pytest.mark.parametrize("kind", ["linear", "residual"])
def test_a_head_that_was_trained_in_sequence_loads_without_its_stage(kind):
    head, store = make_head(kind=kind), {}
    head.save_own_variables(store)
    store[str(len(store))] = np.array(1)  # behind the other weights, as it was saved
    loaded = Head.from_config({**head.get_config(), "nesting": "sequential"})
    loaded.build((None, head.kernel.shape[0]))
    loaded.load_own_variables(store)
    assert len(loaded.get_weights()) == len(head.get_weights())
    for found, expected in zip(loaded.get_weights(), head.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
