"""The picks against loops. pitfalls.md: own copies, masks before picking, k larger than the memory, half precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import MODES, in_mode
from tests.reference_pairs import picks_of_anchor
from xbm_keras import CircularMemory, HardTopK, Head, Rows, SupConLoss, XBMModel
from xbm_keras.stages.cosine_scores import Keys
from xbm_keras.stages.hard_top_k.mining import Mining

ORDERS = {"hardest": "lowest", "easiest": "highest"}  # which positives come first


def make_case(num_anchors=5, num_rows=12, seed=0, valid=0.8):
    """Whole-number keys: their products are exact, so ties are ties; some rows carry an anchor's own id."""
    random = np.random.default_rng(seed)
    return {
        "anchor_keys": random.integers(-2, 3, (num_anchors, 3)).astype("float32"),
        "row_keys": random.integers(-2, 3, (num_rows, 3)).astype("float32"),
        "labels": random.integers(0, 3, num_anchors),
        "ids": 2**62 + random.permutation(num_rows + 3)[:num_anchors],
        "row_labels": random.integers(0, 3, num_rows),
        "row_ids": 2**62 + random.permutation(num_rows),
        "row_is_valid": random.random(num_rows) < valid,
    }


def arguments(case):
    rows = Rows(*(tf.constant(case[name]) for name in ("row_keys", "row_labels", "row_ids", "row_is_valid")))
    return tf.constant(case["anchor_keys"]), rows, tf.constant(case["labels"]), tf.constant(case["ids"])


def pick(top_k, case, mode="eager"):
    return in_mode(top_k.call, mode)(*arguments(case))


def oracle(case, anchor, **how):
    return picks_of_anchor(
        case["anchor_keys"][anchor] @ case["row_keys"].T,
        case["labels"][anchor],
        case["ids"][anchor],
        *(case[name] for name in ("row_labels", "row_ids", "row_is_valid")),
        **how,
    )


def chosen(picks, anchor, positive):
    indices, is_positive, is_valid = (np.asarray(x)[anchor] for x in picks[:3])
    return indices[is_valid & (is_positive == positive)].tolist()


COUNTS = [(2, 3), (0, 4), (4, 0), (1, 1), (40, 30), ("all", 3), (3, "all"), ("all", "all"), ("all", 0)]


PICKED = {
    "eager": [(*counts, positives) for counts in COUNTS for positives in ("hardest", "easiest")],
    "graph": [(2, 3, "hardest"), ("all", 3, "easiest")],
    "xla": [*((*counts, "hardest") for counts in COUNTS), (2, 3, "easiest")],
}


@pytest.mark.parametrize(
    ("num_positives", "num_negatives", "positives", "mode"),
    [(*picked, mode) for mode, each in PICKED.items() for picked in each],
)
def test_picks_equal_the_oracle(num_positives, num_negatives, positives, mode):
    """Ties, partially filled memories, own ids, k above what there is, memories smaller than k."""
    top_k = HardTopK(num_negatives, num_positives, positives)
    for seed in range(2 if mode == "xla" else 6):
        case = make_case(seed=seed)
        picks = pick(top_k, case, mode)
        num_rows = len(case["row_ids"])
        counts = [num_rows if count == "all" else count for count in (num_positives, num_negatives)]
        is_all = num_positives == num_negatives == "all"
        assert picks.indices.shape == (5, num_rows if is_all else sum(counts))
        assert picks.indices.dtype == tf.int64
        assert picks.feature_scores.dtype == tf.float32
        assert ((picks.indices >= 0) & (picks.indices < num_rows)).numpy().all()
        scores = case["anchor_keys"] @ case["row_keys"].T
        np.testing.assert_array_equal(picks.feature_scores, np.take_along_axis(scores, picks.indices.numpy(), axis=1))
        for anchor in range(5):
            expected = oracle(case, anchor, positive=True, order=ORDERS[positives], count=num_positives)
            assert chosen(picks, anchor, positive=True) == expected
            expected = oracle(case, anchor, positive=False, order="highest", count=num_negatives)
            assert chosen(picks, anchor, positive=False) == expected


@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_an_easy_positive_is_not_the_anchor_itself(mode):
    """PML removes self pairs after mining, so that "easy" miners find nothing."""
    case = make_case(num_rows=6, valid=1.1)
    case["labels"][:], case["row_labels"][:] = 0, 0
    case["ids"][0] = case["row_ids"][2]
    case["row_keys"][:], case["row_keys"][2], case["anchor_keys"][0] = 0, 9, 9  # the own row has by far the best score
    case["row_keys"][4] = 1
    picks = pick(HardTopK(0, 1, "easiest"), case, mode)
    assert chosen(picks, 0, positive=True) == [4]


@pytest.mark.parametrize("row_is_valid", [False, True])
def test_nothing_to_pick(row_is_valid, mode):
    """An empty memory, and one that holds the anchor alone."""
    case = make_case(num_anchors=1, num_rows=1)
    case["row_is_valid"][:], case["row_ids"][:] = row_is_valid, case["ids"]
    for top_k in (HardTopK(3, 2), HardTopK("all", "all")) if mode == "eager" else (HardTopK(3, 2, "hardest"),):
        picks = pick(top_k, case, mode)
        assert not picks.is_valid.numpy().any()
        assert (picks.indices.numpy() == 0).all()


def test_the_copy_that_the_last_epoch_left_is_never_picked():
    """With frozen features it scores exactly 1.0, wherever it stands: also when memory exceeds the data set."""
    random = np.random.default_rng(0)
    features = tf.math.l2_normalize(tf.constant(random.normal(size=(6, 4)), tf.float32), axis=1)
    labels, ids = tf.constant([0, 0, 1, 1, 2, 2], tf.int64), tf.constant(2**62 + np.arange(6))
    memory = CircularMemory(20)
    memory.build((None, 4))
    for _ in range(5):
        rows = memory.enqueue(features, labels, ids)
        for top_k in (HardTopK(18, 18, "easiest"), HardTopK("all", "all"), HardTopK(9, 9, "random")):
            picks = top_k(features, rows, labels, ids)
            is_own = tf.gather(rows.sample_ids, picks.indices) == ids[:, None]
            assert not (is_own & picks.is_valid).numpy().any()
            assert tf.boolean_mask(picks.feature_scores, picks.is_valid).numpy().max() < 0.9999
            assert tf.reduce_sum(tf.cast(picks.is_valid, tf.int32), axis=1).numpy().tolist() == [5] * 6


def test_all_is_refused_above_a_stated_number_of_rows():
    case = make_case(num_rows=12)
    for counts in (("all", "all"), ("all", 2), (2, "all")):
        pick(HardTopK(*counts, max_rows_for_all=12), case)
        with pytest.raises(ValueError, match=r"'all' with a memory of 12 rows; expected at most 11.*number of picks"):
            pick(HardTopK(*counts, max_rows_for_all=11), case)


def test_the_most_rows_that_picks_can_be():
    assert HardTopK(3, 2).most_rows(1, 10) == 5
    assert HardTopK("all", "all").most_rows(1, 10) == 10
    assert HardTopK(3, 2).most_rows(4, 10) == 10


def test_random_positives_are_the_same_in_every_mode():
    """TensorFlow's random floats differ between graph and XLA for one seed."""
    case = make_case(num_rows=30)
    drawn = {}
    for mode in MODES:
        top_k = HardTopK(2, 3, "random", seed=5)
        call = in_mode(top_k.call, mode)
        drawn[mode] = [call(*arguments(case)).indices.numpy().tolist() for _ in range(3)]
    assert drawn["eager"] == drawn["graph"] == drawn["xla"]
    assert drawn["eager"][0] != drawn["eager"][1] != drawn["eager"][2]


def test_random_positives_depend_on_the_seed():
    case = make_case(num_rows=30)
    first, same, other = (
        pick(HardTopK(2, 3, "random", seed=seed), case).indices.numpy().tolist() for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_random_positives_are_uniform_over_the_candidates(mode):
    num_anchors, num_rows = 600, 12
    case = make_case(num_anchors, num_rows, valid=1.1)
    case["labels"][:], case["row_labels"][:] = 1, [1, 2] * 6
    case["row_is_valid"][2] = False
    case["ids"] = np.where(np.arange(num_anchors) % 2, case["row_ids"][0], -1)
    picks = pick(HardTopK(1, 2, "random"), case, mode)
    of_anchor = [chosen(picks, anchor, positive=True) for anchor in range(num_anchors)]
    assert all(len(set(rows)) == 2 for rows in of_anchor)  # without replacement
    for is_odd, candidates in ((0, [0, 4, 6, 8, 10]), (1, [4, 6, 8, 10])):
        drawn = np.concatenate(of_anchor[is_odd::2])
        assert set(drawn.tolist()) == set(candidates)  # never invalid, never the anchor itself
        share = np.array([np.mean(drawn == row) for row in candidates])
        np.testing.assert_allclose(share, 1 / len(candidates), atol=0.09)  # five standard deviations


def test_the_state_of_the_random_positives_is_saved(tmp_path):
    """Keras by itself does not save seed generators, so that a resumed run would differ."""
    model = XBMModel(None, Head(2), CircularMemory(8), HardTopK(2, 3, "random", seed=4), SupConLoss())
    model.build({"features": (None, 3)})
    case = make_case(num_rows=30)
    for _ in range(3):
        pick(model.top_k, case)
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    again = keras.saving.load_model(tmp_path / "m.keras")
    other = keras.models.clone_model(again)
    other.build({"features": (None, 3)})
    other.load_weights(tmp_path / "m.weights.h5")
    draws = [pick(m.top_k, case).indices.numpy().tolist() for m in (model, again, other)]
    assert draws[0] == draws[1] == draws[2]
    assert draws[0] != pick(HardTopK(2, 3, "random", seed=4), case).indices.numpy().tolist()


@pytest.mark.parametrize("counts", [(2, 2), ("all", "all")])
def test_no_gradient_passes(counts):
    features, rows, *rest = arguments(make_case())
    with tf.GradientTape() as tape:
        tape.watch([features, rows.features])
        total = tf.reduce_sum(HardTopK(*counts)(features, rows, *rest).feature_scores)
    assert tape.gradient(total, [features, rows.features]) == [None, None]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("policy", "mode"), [("mixed_float16", "xla"), ("mixed_bfloat16", "eager"), ("mixed_float16", "graph")]
)
def test_half_precision_keys(dtype, policy, mode):
    """A mask of -1e9 overflows in float16 (PML #121, TF Similarity #364)."""
    keras.config.set_dtype_policy(policy)
    case = make_case()
    features, rows, *rest = arguments(case)
    rows = rows._replace(features=tf.cast(rows.features, dtype))
    picks = in_mode(HardTopK(3, 2, "hardest").__call__, mode)(tf.cast(features, dtype), rows, *rest)
    assert picks.feature_scores.dtype == tf.float32
    assert np.isfinite(picks.feature_scores).all()
    for anchor in range(5):
        assert chosen(picks, anchor, positive=True) == oracle(case, anchor, positive=True, order="lowest", count=2)
        assert chosen(picks, anchor, positive=False) == oracle(case, anchor, positive=False, order="highest", count=3)


class ByKeys(Mining):
    """Keys that are given."""

    def __init__(self, anchor_keys, row_keys, rerank=0):
        self.given, self.rerank = Keys(anchor_keys, row_keys), rerank

    def keys(self, in_features, rows, anchors, embed):
        return self.given


def test_keys_of_another_space_than_the_features():
    """Hardness is measured by the keys that are given, not by the rows' features."""
    case = make_case()
    features, rows, *rest = arguments(case)
    others = rows._replace(features=tf.random.normal([12, 9]))
    given = HardTopK(3, 2, "hardest", ByKeys(features, rows.block))(tf.ones([5, 9]), others, *rest)
    np.testing.assert_array_equal(given.indices, pick(HardTopK(3, 2, "hardest"), case).indices)
    scores = tf.gather(tf.reduce_sum(others.features, axis=1), given.indices)
    np.testing.assert_allclose(given.feature_scores, scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("received", "message"),
    [
        ({"num_negatives": -1}, "num_negatives=-1; expected a whole number"),
        ({"num_positives": 1.5}, r"num_positives=1.5; expected a whole number in 0\.\.1048576, or 'all'"),
        ({"num_positives": "some"}, "num_positives='some'"),
        ({"num_negatives": 0, "num_positives": 0}, "leaves no pairs; make at least one"),
        ({"max_score": 1.5}, r"max_score=1.5; expected a number in -1\.\.1, or None. Guard, a cosine"),
        ({"absolute_margin": -0.1}, "absolute_margin=-0.1; expected a number, 0 or more, or None"),
        ({"relative_margin": -1}, "relative_margin=-1; expected a number, 0 or more, or None"),
        ({"positives": "hard"}, "positives='hard'; expected one of 'hardest', 'easiest', 'random'"),
    ],
)
def test_parameters_that_are_refused(received, message):
    with pytest.raises(ValueError, match=message):
        HardTopK(**received)


def test_config_round_trip():
    """keras-rs layers lose arguments in get_config."""
    arguments = {"num_negatives": "all", "num_positives": 3, "positives": "easiest", "max_rows_for_all": 7, "seed": 9}
    arguments |= {"max_score": 0.9, "absolute_margin": 0.1, "relative_margin": 0.2}
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(HardTopK(**arguments, name="k")))
    assert {name: getattr(again, name) for name in arguments} == arguments
    assert again.name == "k"
