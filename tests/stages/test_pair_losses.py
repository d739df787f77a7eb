"""The losses against loops. pitfalls.md: empty sets, loss scale, masks in half precision, the full triplet set."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import reference_pairs
from tests.conftest import in_mode
from tests.reference_pairs import numerical_gradient
from xbm_keras import ContrastiveLoss, InfoNCELoss, Picks, SupConLoss, TripletLoss
from xbm_keras.stages import pair_losses
from xbm_keras.stages.pair_losses import PairLoss

# (loss, its oracle, parameters of the oracle)
LOSSES = {
    "contrastive": (ContrastiveLoss(0.8, 0.3), reference_pairs.contrastive, (0.8, 0.3)),
    "triplet": (TripletLoss(0.25), reference_pairs.triplet, (0.25,)),
    "triplet soft": (TripletLoss(None), reference_pairs.triplet, (None,)),
    "supcon": (SupConLoss(0.2), reference_pairs.supcon, (0.2,)),
    "info_nce": (InfoNCELoss(0.2), reference_pairs.info_nce, (0.2,)),
    "supcon cold": (SupConLoss(0.01), reference_pairs.supcon, (0.01,)),
    "info_nce cold": (InfoNCELoss(0.01), reference_pairs.info_nce, (0.01,)),
}


@pytest.fixture(params=LOSSES)
def each(request):
    return LOSSES[request.param]


def make_case(num_anchors=9, num_picks=6, seed=0):
    """Similarities and masks [B, T]; the first anchors lack positives, negatives, or everything."""
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
    return similarities, is_positive, is_valid


def make_picks(is_positive, is_valid):
    shape = np.shape(is_valid)
    return Picks(tf.zeros(shape, tf.int32), tf.constant(is_positive), tf.constant(is_valid), tf.zeros(shape))


def expected_of(each, similarities, is_positive, is_valid):
    _, oracle, parameters = each
    return [oracle(*row, *parameters) for row in zip(similarities, is_positive, is_valid, strict=True)]


def with_gradient(loss, is_positive, is_valid, upstream, mode):
    picks = make_picks(is_positive, is_valid)

    def value_and_gradient(similarities):
        with tf.GradientTape() as tape:
            tape.watch(similarities)
            per_anchor = loss(similarities, picks)
            total = tf.reduce_sum(per_anchor * tf.constant(upstream, tf.float32))
        return per_anchor, tape.gradient(total, similarities)

    return in_mode(value_and_gradient, mode)


def test_value_and_gradient_equal_the_oracle(each, mode):
    similarities, is_positive, is_valid = make_case()
    upstream = np.linspace(-1, 2, len(similarities))  # each anchor weighs differently, so a mixed-up gradient shows
    per_anchor, slope = with_gradient(each[0], is_positive, is_valid, upstream, mode)(tf.constant(similarities))
    assert per_anchor.dtype == tf.float32
    assert per_anchor.shape == (len(similarities),)
    np.testing.assert_allclose(per_anchor, expected_of(each, similarities, is_positive, is_valid), rtol=1e-5, atol=1e-5)
    expected = numerical_gradient(lambda s: np.dot(upstream, expected_of(each, s, is_positive, is_valid)), similarities)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_gradient_equals_its_own_differences(each):
    """In float32, of the loss itself: independent of the oracle."""
    similarities, is_positive, is_valid = make_case(num_picks=4, seed=3)
    if each[0].get_config().get("temperature") == 0.01:
        pytest.skip("too steep for differences in float32")
    _, slope = with_gradient(each[0], is_positive, is_valid, np.ones(9), "eager")(tf.constant(similarities))
    picks, step = make_picks(is_positive, is_valid), 2e-3
    for column in range(4):
        nudge = step * np.eye(4, dtype="float32")[column]
        up, down = each[0](similarities + nudge, picks), each[0](similarities - nudge, picks)
        np.testing.assert_allclose(slope[:, column], (up - down) / (2 * step), atol=5e-3)


@pytest.mark.parametrize("margin", [0.25, None])
@pytest.mark.parametrize("elements", [1, 9 * 6 * 2, 9 * 6 * 4, 10**9])
def test_triplets_in_blocks(margin, elements, mode, monkeypatch):
    """The full set of triplets is never built (PML #688: more than INT_MAX elements)."""
    monkeypatch.setattr(pair_losses, "TRIPLET_BLOCK", elements)  # 1, 2, 4 and all 6 columns at once
    test_value_and_gradient_equal_the_oracle((TripletLoss(margin), reference_pairs.triplet, (margin,)), mode)


def test_no_tensor_of_the_triplet_loss_exceeds_a_block(monkeypatch):
    monkeypatch.setattr(pair_losses, "TRIPLET_BLOCK", 100)
    similarities, is_positive, is_valid = make_case(num_picks=8)
    function = tf.function(with_gradient(TripletLoss(), is_positive, is_valid, np.ones(9), "eager"))
    graph = function.get_concrete_function(tf.constant(similarities)).graph
    body = next(f for f in graph.as_graph_def(add_shapes=True).library.function if "body" in f.signature.name)
    ranks = {len(shape.dim) for node in body.node_def for shape in node.attr["_output_shapes"].list.shape}
    assert max(ranks) == 3  # [B, block, T]
    sizes = [len(tensor.shape) for op in graph.get_operations() for tensor in op.outputs if tensor.shape.rank]
    assert max(sizes) == 2  # outside the loop [B, T]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_similarities(each, dtype, mode):
    """Losses are float32: -1e9 overflows in float16 (PML #121, #161)."""
    similarities, is_positive, is_valid = make_case()
    rounded = tf.cast(similarities, dtype)
    per_anchor, slope = with_gradient(each[0], is_positive, is_valid, np.ones(9), mode)(rounded)
    assert per_anchor.dtype == tf.float32
    expected = expected_of(each, tf.cast(rounded, tf.float64).numpy(), is_positive, is_valid)
    np.testing.assert_allclose(per_anchor, expected, rtol=1e-5, atol=1e-5)
    assert np.isfinite(tf.cast(slope, tf.float32)).all()


def test_an_anchor_that_lacks_pairs_has_loss_0_and_gradient_0(each, mode):
    """`min` of an empty positive set crashes (research-xbm #15)."""
    similarities, _, _ = make_case(num_anchors=5)
    is_positive, is_valid = np.zeros((5, 6), bool), np.ones((5, 6), bool)
    is_positive[1] = True
    is_valid[2] = False
    is_positive[3], is_valid[3] = True, False
    per_anchor, slope = with_gradient(each[0], is_positive, is_valid, np.ones(5), mode)(tf.constant(similarities))
    lacks = [2, 3] if isinstance(each[0], ContrastiveLoss) else [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(np.asarray(per_anchor)[lacks], 0.0)
    np.testing.assert_array_equal(np.asarray(slope)[lacks], 0.0)
    counted = each[0].valid_anchors(make_picks(is_positive, is_valid)).numpy()
    assert not counted[lacks].any()


def test_which_anchors_count():
    picks = make_picks(
        [[True, False], [True, True], [False, False], [True, False]],
        [[True, True], [True, True], [True, True], [True, False]],
    )
    assert TripletLoss().valid_anchors(picks).numpy().tolist() == [True, False, False, False]
    assert SupConLoss().valid_anchors(picks).numpy().tolist() == [True, False, False, False]
    assert InfoNCELoss().valid_anchors(picks).numpy().tolist() == [True, False, False, False]
    assert ContrastiveLoss().valid_anchors(picks).numpy().tolist() == [True] * 4
    nothing = make_picks([[True, False]], [[False, False]])
    assert not ContrastiveLoss().valid_anchors(nothing).numpy().any()


def test_picks_that_are_not_valid_change_nothing(each, mode):
    """Loss scale depends neither on k nor on what stands in the slots that were filled up."""
    similarities, is_positive, is_valid = make_case()
    value, slope = with_gradient(each[0], is_positive, is_valid, np.ones(9), mode)(tf.constant(similarities))
    garbage = np.array([1.0, -1.0, 30.0, -30.0, 0.0], "float32") + np.zeros((9, 1), "float32")
    padded = [
        np.concatenate([similarities, garbage], axis=1),
        np.concatenate([is_positive, np.arange(45).reshape(9, 5) % 2 == 0], axis=1),
        np.concatenate([is_valid, np.zeros((9, 5), bool)], axis=1),
    ]
    value_padded, slope_padded = with_gradient(each[0], *padded[1:], np.ones(9), mode)(tf.constant(padded[0]))
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


def test_one_pair_by_hand():
    similarities = tf.constant([[0.6, 0.5]])
    picks = make_picks([[True, False]], [[True, True]])
    by_hand = {
        "contrastive": 0.2 + 0.2,
        "triplet": 0.15,
        "triplet soft": math.log(1 + math.exp(-0.1)),
        "supcon": math.log(1 + math.exp(-0.5)),
        "info_nce": math.log(1 + math.exp(-0.5)),
    }
    for name, value in by_hand.items():
        assert float(LOSSES[name][0](similarities, picks)[0]) == pytest.approx(value, abs=1e-6)


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveLoss(positive_margin=1.5), "positive_margin=1.5; expected a cosine"),
        (lambda: ContrastiveLoss(negative_margin=-1.1), "negative_margin=-1.1; expected a cosine"),
        (lambda: TripletLoss(-0.1), r"margin=-0.1; expected 0..2"),
        (lambda: TripletLoss(2.5), r"margin=2.5; expected 0..2"),
        (lambda: SupConLoss(0.0), "temperature=0.0; expected more than 0"),
        (lambda: InfoNCELoss(-1.0), "temperature=-1.0; expected more than 0"),
        (lambda: InfoNCELoss(float("nan")), "temperature=nan; expected more than 0"),
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
