"""The losses against loops. pitfalls.md: empty sets, loss scale, masks in half precision, the full triplet set."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import reference_pairs
from tests.conftest import in_mode
from tests.reference_pairs import numerical_gradient
from xbm_keras import (
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    LiftedStructureLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    PairLoss,
    Picks,
    RecallSurrogateLoss,
    SemiHardTripletLoss,
    SmoothAPLoss,
    SupConLoss,
    TripletLoss,
    TupletLoss,
)
from xbm_keras.stages.pair_losses import ranking

# (loss, its oracle, parameters of the oracle); those that end in "steep" are too steep for differences in float32
LOSSES = {
    "contrastive": (ContrastiveLoss(0.8, 0.3), reference_pairs.contrastive, (0.8, 0.3)),
    "triplet": (TripletLoss(0.25), reference_pairs.triplet, (0.25,)),
    "triplet soft": (TripletLoss(None), reference_pairs.triplet, (None,)),
    "semi_hard": (SemiHardTripletLoss(0.75), reference_pairs.semi_hard_triplet, (0.75,)),
    "supcon": (SupConLoss(0.2), reference_pairs.supcon, (0.2,)),
    "info_nce": (InfoNCELoss(0.2), reference_pairs.info_nce, (0.2,)),
    "nt_xent": (NTXentLoss(0.2), reference_pairs.nt_xent, (0.2,)),
    "supcon steep": (SupConLoss(0.01), reference_pairs.supcon, (0.01,)),
    "info_nce steep": (InfoNCELoss(0.01), reference_pairs.info_nce, (0.01,)),
    "nt_xent steep": (NTXentLoss(0.01), reference_pairs.nt_xent, (0.01,)),
    "margin": (MarginLoss(0.3, 1.1), reference_pairs.margin, (0.3, 1.1)),
    "multi_similarity": (MultiSimilarityLoss(2.5, 20, 0.4, 0.2), reference_pairs.multi_similarity, (2.5, 20, 0.4, 0.2)),
    "multi_similarity all": (
        MultiSimilarityLoss(2, 50, 0.5, None),
        reference_pairs.multi_similarity,
        (2, 50, 0.5, None),
    ),
    "tuplet": (TupletLoss(0.2, 8), reference_pairs.tuplet, (0.2, 8)),
    "n-pair": (TupletLoss(0, 5), reference_pairs.tuplet, (0, 5)),
    "circle": (CircleLoss(0.3, 10), reference_pairs.circle, (0.3, 10)),
    "circle steep": (CircleLoss(0.4, 80), reference_pairs.circle, (0.4, 80)),
    "lifted": (LiftedStructureLoss(1.0, 1.0), reference_pairs.lifted_structure, (1.0, 1.0)),
    "lifted steep": (LiftedStructureLoss(0.5, 0.02), reference_pairs.lifted_structure, (0.5, 0.02)),
    "smooth_ap": (SmoothAPLoss(0.1), reference_pairs.smooth_ap, (0.1,)),
    "smooth_ap steep": (SmoothAPLoss(0.01), reference_pairs.smooth_ap, (0.01,)),
    "recall": (RecallSurrogateLoss((1, 2, 4), 0.1, 0.5), reference_pairs.recall_surrogate, ([1, 2, 4], 0.1, 0.5)),
    "recall steep": (RecallSurrogateLoss((1, 8), 0.01, 1.0), reference_pairs.recall_surrogate, ([1, 8], 0.01, 1.0)),
}
SIGMOID_OF_MINUS_1 = 1 / (1 + math.e)
BLOCKED = ["triplet", "semi_hard", "smooth_ap", "recall"]
CHOSEN = {reference_pairs.circle: "weights_of", reference_pairs.semi_hard_triplet: "chosen_by"}  # constant to the slope
ONE_OF_EACH_CLASS = list({type(loss): name for name, (loss, _, _) in reversed(LOSSES.items())}.values())
NEED_ANY_PICK = (ContrastiveLoss, MarginLoss)  # all others need a positive and a negative


@pytest.fixture(params=LOSSES)
def each(request):
    return LOSSES[request.param]


@pytest.fixture(params=ONE_OF_EACH_CLASS)
def one(request):
    """For what depends on the parameters less."""
    return LOSSES[request.param]


def make_case(num_anchors=9, num_picks=6, seed=0):
    """Similarities and masks [B, T]; the first anchors lack positives, negatives, or everything.

    Where there is no pick stands garbage, so that it meets each loss in each mode.
    """
    random = np.random.default_rng(seed)
    similarities = random.uniform(-0.95, 0.95, (num_anchors, num_picks)).astype("float32")
    is_positive = random.random((num_anchors, num_picks)) < 0.4
    is_valid = random.random((num_anchors, num_picks)) < 0.8
    is_positive[0], is_valid[0] = False, True
    is_positive[1], is_valid[1] = True, True
    is_valid[2] = False
    is_positive[3, :2], is_valid[3] = [True, False], True
    similarities[3] = 0.5  # all the same
    is_positive[4] = [True, False] + [True] * (num_picks - 2)
    is_valid[4] = [True, True] + [False] * (num_picks - 2)
    similarities[4, :2] = -0.99, 0.99  # one pair, as bad as can be
    similarities[5:] = np.where(is_valid, similarities, 30 * np.sign(similarities))[5:]
    return similarities, is_positive, is_valid


def make_picks(is_positive, is_valid):
    shape = np.shape(is_valid)
    return Picks(tf.zeros(shape, tf.int32), tf.constant(is_positive), tf.constant(is_valid), tf.zeros(shape))


def expected_of(each, similarities, is_positive, is_valid, start=None):
    """Of each anchor; `start` are the similarities from which what is constant to the gradient is computed."""
    _, oracle, parameters = each
    rows = list(zip(similarities, is_positive, is_valid, strict=True))
    if oracle in CHOSEN and start is not None:
        return [oracle(*row, *parameters, **{CHOSEN[oracle]: s}) for row, s in zip(rows, start, strict=True)]
    return [oracle(*row, *parameters) for row in rows]


def with_gradient(loss, is_positive, is_valid, upstream, mode="eager"):
    picks = make_picks(is_positive, is_valid)

    def value_and_gradient(similarities):
        with tf.GradientTape() as tape:
            tape.watch(similarities)
            per_anchor = loss(similarities, picks)
            total = tf.reduce_sum(per_anchor * tf.constant(upstream, tf.float32))
        return per_anchor, tape.gradient(total, similarities)

    return in_mode(value_and_gradient, mode)


def one_of_each_with_gradient(is_positive, is_valid, similarities, mode):
    """Name -> value and gradient of a loss of each class, in one function, which is compiled once."""
    functions = {
        name: with_gradient(LOSSES[name][0], is_positive, is_valid, np.ones(len(is_valid)))
        for name in ONE_OF_EACH_CLASS
    }
    return in_mode(lambda s: {name: each(s) for name, each in functions.items()}, mode)(tf.constant(similarities))


IN_XLA = [name for name in LOSSES if f"{name} steep" not in LOSSES and name != "n-pair"]  # one of the same operations


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for mode, names in (("eager", LOSSES), ("graph", BLOCKED), ("xla", IN_XLA)) for name in names],
)
def test_value_and_gradient_equal_the_oracle(name, mode):
    each = LOSSES[name]
    similarities, is_positive, is_valid = make_case()
    upstream = np.linspace(-1, 2, len(similarities))  # each anchor weighs differently, so a mixed-up gradient shows
    per_anchor, slope = with_gradient(each[0], is_positive, is_valid, upstream, mode)(tf.constant(similarities))
    assert per_anchor.dtype == tf.float32
    assert per_anchor.shape == (len(similarities),)
    np.testing.assert_allclose(per_anchor, expected_of(each, similarities, is_positive, is_valid), rtol=1e-5, atol=1e-5)
    expected = numerical_gradient(
        lambda s: np.dot(upstream, expected_of(each, s, is_positive, is_valid, start=similarities)), similarities
    )
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name", [name for name, each in LOSSES.items() if not name.endswith("steep") and each[1] not in CHOSEN]
)
def test_gradient_equals_its_own_differences(name):
    """In float32, of the loss itself: independent of the oracle. Not where something is a constant to it."""
    each = LOSSES[name]
    similarities, is_positive, is_valid = make_case(num_picks=4, seed=3)
    _, slope = with_gradient(each[0], is_positive, is_valid, np.ones(9), "eager")(tf.constant(similarities))
    picks, step = make_picks(is_positive, is_valid), 2e-3
    for column in range(4):
        nudge = step * np.eye(4, dtype="float32")[column]
        up, down = each[0](similarities + nudge, picks), each[0](similarities - nudge, picks)
        np.testing.assert_allclose(slope[:, column], (up - down) / (2 * step), rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("name", BLOCKED)
@pytest.mark.parametrize(("elements", "mode"), [(1, "eager"), (9 * 6 * 4, "eager"), (9 * 6 * 4, "xla")])
def test_positives_in_blocks(name, elements, mode, monkeypatch):
    """The full set of triplets is never built (PML #688: more than INT_MAX elements)."""
    monkeypatch.setattr(ranking, "BLOCK_ELEMENTS", elements)  # 1 or 4 columns at once; all 6 in the test above
    test_value_and_gradient_equal_the_oracle(name, mode)


@pytest.mark.parametrize("name", BLOCKED)
def test_no_tensor_exceeds_a_block(name, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_ELEMENTS", 100)
    similarities, is_positive, is_valid = make_case(num_picks=8)
    function = tf.function(with_gradient(LOSSES[name][0], is_positive, is_valid, np.ones(9), "eager"))
    graph = function.get_concrete_function(tf.constant(similarities)).graph
    body = next(f for f in graph.as_graph_def(add_shapes=True).library.function if "body" in f.signature.name)
    ranks = {len(shape.dim) for node in body.node_def for shape in node.attr["_output_shapes"].list.shape}
    assert max(ranks) == 3  # [B, block, T]
    sizes = [len(tensor.shape) for op in graph.get_operations() for tensor in op.outputs if tensor.shape.rank]
    assert max(sizes) == 2  # outside the loop [B, T]


@pytest.mark.parametrize(("dtype", "mode"), [("float16", "xla"), ("bfloat16", "graph")])
def test_half_precision_similarities(dtype, mode):
    """Losses are float32: -1e9 overflows in float16 (PML #121, #161)."""
    similarities, is_positive, is_valid = make_case()
    rounded = tf.cast(similarities, dtype)
    for name, (per_anchor, slope) in one_of_each_with_gradient(is_positive, is_valid, rounded, mode).items():
        assert per_anchor.dtype == tf.float32
        expected = expected_of(LOSSES[name], tf.cast(rounded, tf.float64).numpy(), is_positive, is_valid)
        np.testing.assert_allclose(per_anchor, expected, rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.isfinite(tf.cast(slope, tf.float32)).all(), name


def test_an_anchor_that_lacks_pairs_has_loss_0_and_gradient_0(one):
    """`min` of an empty positive set crashes (research-xbm #15)."""
    similarities, _, _ = make_case(num_anchors=5)
    is_positive, is_valid = np.zeros((5, 6), bool), np.ones((5, 6), bool)
    is_positive[1] = True
    is_valid[2] = False
    is_positive[3], is_valid[3] = True, False
    per_anchor, slope = with_gradient(one[0], is_positive, is_valid, np.ones(5), "eager")(tf.constant(similarities))
    lacks = [2, 3] if isinstance(one[0], NEED_ANY_PICK) else [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(np.asarray(per_anchor)[lacks], 0.0)
    np.testing.assert_array_equal(np.asarray(slope)[lacks], 0.0)
    counted = one[0].valid_anchors(make_picks(is_positive, is_valid)).numpy()
    assert not counted[lacks].any()


@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_similarities_at_the_ends_of_their_range(mode):
    """Duplicates and opposites, and what rounding makes of them: no root or arc cosine has an infinite slope there."""
    above = np.nextafter(np.float32(1), np.float32(2))
    similarities = np.array([[1, 1, 1, 1], [-1, 1, -1, 1], [above, -above, above, -above]], "float32")
    is_positive, is_valid = np.array([[True, True, False, False]] * 3), np.ones((3, 4), bool)
    for name, (value, slope) in one_of_each_with_gradient(is_positive, is_valid, similarities, mode).items():
        assert np.isfinite(value).all(), name
        assert np.isfinite(slope).all(), name
        expected = expected_of(LOSSES[name], np.clip(similarities, -1, 1), is_positive, is_valid)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-3, err_msg=name)  # distances of at least 1e-3


def test_which_anchors_count(one):
    picks = make_picks(
        [[True, False], [True, True], [False, False], [True, False]],
        [[True, True], [True, True], [True, True], [True, False]],
    )
    expected = [True] * 4 if isinstance(one[0], NEED_ANY_PICK) else [True, False, False, False]
    assert one[0].valid_anchors(picks).numpy().tolist() == expected
    nothing = make_picks([[True, False]], [[False, False]])
    assert not one[0].valid_anchors(nothing).numpy().any()


def test_picks_that_are_not_valid_change_nothing(one):
    """Loss scale depends neither on k nor on what stands in the slots that were filled up."""
    similarities, is_positive, is_valid = make_case()
    value, slope = with_gradient(one[0], is_positive, is_valid, np.ones(9), "eager")(tf.constant(similarities))
    garbage = np.array([1.0, -1.0, 30.0, -30.0, 0.0], "float32") + np.zeros((9, 1), "float32")
    padded = [
        np.concatenate([similarities, garbage], axis=1),
        np.concatenate([is_positive, np.arange(45).reshape(9, 5) % 2 == 0], axis=1),
        np.concatenate([is_valid, np.zeros((9, 5), bool)], axis=1),
    ]
    value_padded, slope_padded = with_gradient(one[0], *padded[1:], np.ones(9), "eager")(tf.constant(padded[0]))
    np.testing.assert_allclose(value_padded, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope_padded[:, :6], slope, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(slope_padded[:, 6:], 0.0)


def test_order_of_picks_and_of_anchors_does_not_matter(each):
    random = np.random.default_rng(5)
    similarities, is_positive, is_valid = make_case()
    value = each[0](tf.constant(similarities), make_picks(is_positive, is_valid)).numpy()
    picks_order, anchors_order = random.permutation(6), random.permutation(9)
    s, p, v = (x[anchors_order][:, picks_order] for x in (similarities, is_positive, is_valid))
    np.testing.assert_allclose(each[0](tf.constant(s), make_picks(p, v)), value[anchors_order], rtol=2e-5, atol=1e-6)


def test_nan_in_a_pair_shows(each):
    similarities, is_positive, is_valid = make_case()
    is_positive[5], is_valid[5] = [True, False, True, False, True, False], True
    for column in (0, 1):
        broken = similarities.copy()
        broken[5, column] = np.nan
        value = each[0](tf.constant(broken), make_picks(is_positive, is_valid)).numpy()
        assert np.isnan(value[5])
        assert np.isfinite(np.delete(value, 5)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveLoss(positive_margin=1.5), r"positive_margin=1.5; expected a number in -1..1\. A cosine"),
        (lambda: ContrastiveLoss(negative_margin=-1.1), "negative_margin=-1.1; expected a number in -1..1"),
        (
            lambda: TripletLoss(-0.1),
            r"margin=-0.1; expected a number in 0..2, or None\. A difference of cosines; None is",
        ),
        (lambda: TripletLoss(2.5), r"margin=2.5; expected a number in 0..2"),
        (lambda: SemiHardTripletLoss(0), r"margin=0; expected a number above 0, at most 2\. A difference of cosines"),
        (lambda: SupConLoss(0.0), r"temperature=0.0; expected a number above 0\. T, of similarities; 0.05 to 0.2"),
        (lambda: InfoNCELoss(-1.0), "temperature=-1.0; expected a number above 0"),
        (lambda: InfoNCELoss(float("nan")), "temperature=nan; expected a number above 0"),
        (lambda: NTXentLoss(0), "temperature=0; expected a number above 0"),
        (lambda: MarginLoss(-0.1), "margin=-0.1; expected a number in 0..2. A distance"),
        (lambda: MarginLoss(beta=2.1), "beta=2.1; expected a number in 0..2"),
        (lambda: MultiSimilarityLoss(alpha=0), "alpha=0; expected a number above 0. Steepness"),
        (lambda: MultiSimilarityLoss(beta=-1), "beta=-1; expected a number above 0"),
        (lambda: MultiSimilarityLoss(base=1.1), "base=1.1; expected a number in -1..1"),
        (lambda: MultiSimilarityLoss(epsilon=-0.1), "epsilon=-0.1; expected a number in 0..2, or None"),
        (lambda: TupletLoss(margin=5.73), "margin=5.73; expected a number in 0..1.5708. An angle in radians"),
        (lambda: TupletLoss(scale=0), "scale=0; expected a number above 0"),
        (lambda: CircleLoss(margin=1.5), "margin=1.5; expected a number in 0..1. A difference of cosines"),
        (lambda: CircleLoss(gamma=0), "gamma=0; expected a number above 0"),
        (lambda: LiftedStructureLoss(margin=3), "margin=3; expected a number in 0..2. A distance"),
        (lambda: LiftedStructureLoss(temperature=0), "temperature=0; expected a number above 0"),
        (lambda: SmoothAPLoss(0), "temperature=0; expected a number above 0"),
        (
            lambda: RecallSurrogateLoss(ks=()),
            r"ks=\(\); expected a list of 1 or more, each a whole number, 1 or more",
        ),
        (lambda: RecallSurrogateLoss(ks=(0, 1)), r"ks=\(0, 1\); expected a list.* such as \(1, 2, 4\)"),
        (lambda: RecallSurrogateLoss(temperature=0), "temperature=0; expected a number above 0"),
        (lambda: RecallSurrogateLoss(rank_temperature=0), "rank_temperature=0; expected a number above 0"),
    ],
)
def test_parameters_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match=r"PairLoss is abstract; define __call__"):
        PairLoss()(tf.zeros([1, 1]), make_picks([[True]], [[True]]))


def test_config_round_trip(each):
    """keras-rs layers lose arguments in get_config."""
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(each[0]))
    assert type(again) is type(each[0])
    assert again.get_config() == each[0].get_config()
    assert tuple(again.get_config().values()) == each[2]
    assert again.name == each[0].name
