"""The loss without labels against loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from tests.reference_pairs import numerical_gradient
from xbm_keras import Picks, SimilarityAlignmentLoss

LOSSES = {
    "listwise": SimilarityAlignmentLoss("listwise", 0.2, 0.15),
    "absolute": SimilarityAlignmentLoss("absolute"),
    "squared": SimilarityAlignmentLoss("squared"),
}


def oracle(form, similarities, scores, is_valid):
    """Of one anchor, in float64."""
    pairs = [(float(s), float(f)) for s, f, valid in zip(similarities, scores, is_valid, strict=True) if valid]
    if not pairs:
        return 0.0
    if form == "absolute":
        return sum(abs(s - f) for s, f in pairs) / len(pairs)
    if form == "squared":
        return sum((s - f) ** 2 for s, f in pairs) / len(pairs)
    after = [np.exp(s / 0.15) for s, _ in pairs]
    before = [np.exp(f / 0.2) for _, f in pairs]
    return sum(b / sum(before) * np.log(b / sum(before) / (a / sum(after))) for a, b in zip(after, before, strict=True))


def make_case(num_anchors=6, num_picks=5):
    """The first anchor has no pick, the second one; where there is none stands garbage."""
    random = np.random.default_rng(0)
    similarities, scores = random.uniform(-0.9, 0.9, (2, num_anchors, num_picks)).astype("float32")
    is_valid = random.random((num_anchors, num_picks)) < 0.7
    is_valid[0], is_valid[1], is_valid[2] = False, [True] + [False] * 4, True
    similarities = np.where(is_valid, similarities, 1e30)
    return similarities.astype("float32"), np.where(is_valid, scores, -1e30).astype("float32"), is_valid


def make_picks(scores, is_valid):
    return Picks(tf.zeros(is_valid.shape, tf.int32), tf.constant(is_valid), tf.constant(is_valid), tf.constant(scores))


@pytest.mark.parametrize("form", LOSSES)
def test_value_and_gradient_equal_the_oracle(form, mode):
    similarities, scores, is_valid = make_case()
    upstream = np.linspace(-1, 2, len(similarities))

    def value_and_gradient(similarities):
        with tf.GradientTape() as tape:
            tape.watch(similarities)
            per_anchor = LOSSES[form](similarities, make_picks(scores, is_valid))
            total = tf.reduce_sum(per_anchor * tf.constant(upstream, tf.float32))
        return per_anchor, tape.gradient(total, similarities)

    def expected_of(similarities):
        rows = zip(similarities, scores, is_valid, strict=True)
        return np.array([oracle(form, *row) for row in rows])

    per_anchor, slope = in_mode(value_and_gradient, mode)(tf.constant(similarities))
    np.testing.assert_allclose(per_anchor, expected_of(similarities), rtol=1e-5, atol=1e-6)
    finite = np.where(is_valid, similarities, 0)
    expected = numerical_gradient(lambda s: np.dot(upstream, expected_of(s)), finite)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-4)


def test_no_loss_where_nothing_changed():
    _, scores, is_valid = make_case()
    for loss in (LOSSES["absolute"], LOSSES["squared"], SimilarityAlignmentLoss("listwise", 0.1, 0.1)):
        np.testing.assert_allclose(loss(tf.constant(scores), make_picks(scores, is_valid)), 0, atol=1e-6)


def test_listwise_asks_for_the_order_of_the_near_alone():
    """A far pick may move, a near one may not."""
    scores = np.array([[0.9, 0.8, 0.0]], "float32")
    picks = make_picks(scores, np.ones((1, 3), bool))
    loss = SimilarityAlignmentLoss("listwise", 0.05, 0.05)
    far, near = (float(loss(tf.constant(scores) + tf.constant([d]), picks)[0]) for d in ([0, 0, -0.3], [0, -0.3, 0]))
    assert far < 1e-5
    assert near > 0.1


def test_anchors_with_any_pick_count():
    _, scores, is_valid = make_case()
    assert LOSSES["listwise"].valid_anchors(make_picks(scores, is_valid)).numpy().tolist() == [False] + [True] * 5


def test_nan_shows():
    similarities, scores, is_valid = make_case()
    similarities[2, 0] = np.nan
    for loss in LOSSES.values():
        value = loss(tf.constant(similarities), make_picks(scores, is_valid)).numpy()
        assert np.isnan(value).tolist() == [False, False, True, False, False, False]


def test_config_round_trip_and_what_is_refused():
    for loss in LOSSES.values():
        config = keras.saving.serialize_keras_object(loss)
        assert keras.saving.deserialize_keras_object(config).get_config() == loss.get_config()
    with pytest.raises(ValueError, match="expected one of 'listwise'"):
        SimilarityAlignmentLoss("pairwise")
    for temperatures in ((0.0, 0.1), (0.1, -1.0)):
        with pytest.raises(ValueError, match="expected a number above 0"):
            SimilarityAlignmentLoss("listwise", *temperatures)
