"""What one loss does and others do not, by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.stages.pair_losses.test_pair_losses import LOSSES, SIGMOID_OF_MINUS_1, make_case, make_picks
from xbm_keras import (
    InfoNCELoss,
    MultiSimilarityLoss,
    NTXentLoss,
    RecallSurrogateLoss,
    SemiHardTripletLoss,
    SmoothAPLoss,
    SupConLoss,
    TupletLoss,
)


def test_one_pair_by_hand():
    similarities = tf.constant([[0.6, 0.5]])
    picks = make_picks([[True, False]], [[True, True]])
    by_hand = {
        "contrastive": 0.2 + 0.2,
        "triplet": 0.15,
        "semi_hard": 0.65,
        "triplet soft": math.log(1 + math.exp(-0.1)),
        "supcon": math.log(1 + math.exp(-0.5)),
        "info_nce": math.log(1 + math.exp(-0.5)),
        "nt_xent": math.log(1 + math.exp(-0.5)),
        "margin": (0.3 + math.sqrt(0.8) - 1.1) + (0.3 + 1.1 - 1.0),
        "multi_similarity": math.log(1 + math.exp(-2.5 * 0.2)) / 2.5 + math.log(1 + math.exp(20 * 0.1)) / 20,
        "tuplet": math.log(1 + math.exp(8 * (0.5 - 0.6 * math.cos(0.2) - 0.8 * math.sin(0.2)))),
        "n-pair": math.log(1 + math.exp(-0.5)),
        "circle": math.log(1 + math.exp(10 * 0.8 * 0.2) * math.exp(10 * 0.7 * 0.1)),
        "lifted": math.sqrt(0.8) + 1.0 - 1.0,
        "smooth_ap": 1 - 1 / (1 + SIGMOID_OF_MINUS_1),
        "recall": 1 - sum(1 / (1 + math.exp(-(k - 1 - SIGMOID_OF_MINUS_1) / 0.5)) for k in (1, 2, 4)) / 3,
    }
    for name, value in by_hand.items():
        assert float(LOSSES[name][0](similarities, picks)[0]) == pytest.approx(value, abs=1e-6)


def test_softmax_losses_differ_in_what_stands_in_the_denominator():
    """Two positives of logits 4 and 3, and a negative of logit 2."""
    similarities, temperature = tf.constant([[0.8, 0.6, 0.4]]), 0.2
    picks = make_picks([[True, True, False]], [[True, True, True]])
    near, far, negative = (math.exp(logit) for logit in (4, 3, 2))
    everything = near + far + negative
    by_hand = {
        SupConLoss: -(math.log(near / everything) + math.log(far / everything)) / 2,
        InfoNCELoss: -(math.log(near / (near + negative)) + math.log(far / (far + negative))) / 2,
        NTXentLoss: -math.log((near + far) / 2 / everything),
    }
    for loss, value in by_hand.items():
        assert float(loss(temperature)(similarities, picks)[0]) == pytest.approx(value, abs=1e-6)
    assert len({round(value, 2) for value in by_hand.values()}) == 3


def test_softmax_losses_are_the_same_for_one_positive():
    similarities, is_positive, is_valid = make_case()
    is_positive[5:], is_valid[5:] = [False, True, False, False, False, False], True
    picks = make_picks(is_positive, is_valid)
    values = [loss(tf.constant(similarities), picks)[5:] for loss in (SupConLoss(0.2), InfoNCELoss(0.2))]
    values += [loss(tf.constant(similarities), picks)[5:] for loss in (NTXentLoss(0.2), TupletLoss(0, 5))]
    for value in values[1:]:
        np.testing.assert_allclose(value, values[0], rtol=1e-5)


def test_smooth_ap_of_a_low_temperature_is_average_precision():
    similarities = tf.constant([[0.9, 0.8, 0.7, 0.6, 0.5]])
    picks = make_picks([[True, False, True, False, True]], [[True] * 5])
    precisions = [1 / 1, 2 / 3, 3 / 5]
    assert float(SmoothAPLoss(1e-3)(similarities, picks)[0]) == pytest.approx(1 - sum(precisions) / 3, abs=1e-6)


def test_recall_surrogate_of_low_temperatures_is_recall():
    similarities = tf.constant([[0.9, 0.8, 0.7, 0.6, 0.5]])
    picks = make_picks([[True, False, True, False, True]], [[True] * 5])
    # Half of a positive whose rank is k: at 0 a sigmoid is 1/2.
    recalls = [0.5 / 1, 1 / 2, 1.5 / 3, 2 / 3, 2.5 / 3]
    loss = RecallSurrogateLoss((1, 2, 3, 4, 5), 1e-3, 1e-3)
    assert float(loss(similarities, picks)[0]) == pytest.approx(1 - sum(recalls) / 5, abs=1e-6)


def test_multi_similarity_drops_pairs_that_say_nothing():
    """A positive nearer than all negatives by epsilon, and a negative farther than all positives by epsilon."""
    similarities = tf.Variable([[0.9, 0.5, 0.6, 0.3]])
    picks = make_picks([[True, True, False, False]], [[True] * 4])
    with tf.GradientTape() as tape:
        value = MultiSimilarityLoss(epsilon=0.1)(similarities, picks)
    assert tf.not_equal(tape.gradient(value, similarities), 0)[0].numpy().tolist() == [False, True, True, False]


def test_tuplet_pulls_no_positive_within_the_margin():
    similarities = tf.Variable([[math.cos(0.09), math.cos(0.11), 0.9]])
    picks = make_picks([[True, True, False]], [[True] * 3])
    with tf.GradientTape() as tape:
        value = TupletLoss(margin=0.1)(similarities, picks)
    slope = tape.gradient(value, similarities)[0].numpy()
    assert slope[0] == 0
    assert slope[1] < 0


def test_info_nce_leaves_the_other_positives_out_and_supcon_does_not():
    picks = make_picks([[True, True, False]], [[True, True, True]])
    near, far = tf.constant([[0.9, 0.9, 0.1]]), tf.constant([[0.9, -0.9, 0.1]])
    slopes = []
    for loss in (SupConLoss(0.2), InfoNCELoss(0.2)):
        terms = [loss(s, picks) for s in (near, far)]
        assert terms[0] < terms[1]
        with tf.GradientTape() as tape:
            tape.watch(near)
            value = loss(near, picks)
        slopes.append(tape.gradient(value, near).numpy())
    assert np.abs(slopes[0][0, :2]).max() < 0.1 * np.abs(near[0, 2] * 10)
    assert float(InfoNCELoss(0.2)(near, picks)[0]) == pytest.approx(math.log(1 + math.exp(-4.0)), abs=1e-6)
    assert float(SupConLoss(0.2)(near, picks)[0]) == pytest.approx(math.log(2 + math.exp(-4.0)), abs=1e-6)


def test_semi_hard_triplets_are_those_between_the_positive_and_the_margin():
    """Of three negatives one is nearer than the positive and one is farther by more than the margin."""
    similarities = tf.Variable([[0.5, 0.55, 0.47, 0.39], [0.5, 0.55, 0.51, 0.39]])
    picks = make_picks([[True, False, False, False]] * 2, [[True] * 4] * 2)
    loss = SemiHardTripletLoss(0.1)
    with tf.GradientTape() as tape:
        value = loss(similarities, picks)
    np.testing.assert_allclose(value, [0.07, 0], atol=1e-6)
    np.testing.assert_array_equal(tape.gradient(value, similarities), [[-1, 0, 1, 0], [0, 0, 0, 0]])
    assert loss.valid_anchors(picks).numpy().tolist() == [True, True]
