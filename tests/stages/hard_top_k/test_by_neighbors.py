"""The picks without labels against a sort. pitfalls.md: own copies, masks before picking, k larger than the memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import MODES, in_mode
from tests.reference_pairs import cosine
from xbm_keras import CircularMemory, NeighborTopK, Rows
from xbm_keras.stages.cosine_scores import BlockSize


def make_case(num_anchors=5, num_rows=12, seed=0):
    """Unit vectors; some rows carry an anchor's own id, some are not valid."""
    random = np.random.default_rng(seed)
    features, row_features = (random.normal(size=(n, 3)).astype("float32") for n in (num_anchors, num_rows))
    return {
        "features": features / np.linalg.norm(features, axis=1, keepdims=True),
        "row_features": row_features / np.linalg.norm(row_features, axis=1, keepdims=True),
        "ids": 2**62 + random.permutation(num_rows + 3)[:num_anchors],
        "row_labels": random.integers(0, 3, num_rows),
        "row_ids": 2**62 + random.permutation(num_rows),
        "row_is_valid": random.random(num_rows) < 0.8,
    }


def pick(top_k, case, mode="eager"):
    rows = Rows(*(tf.constant(case[name]) for name in ("row_features", "row_labels", "row_ids", "row_is_valid")))
    if not top_k.built:
        top_k.build((None, 3))
    labels = tf.constant(np.arange(len(case["ids"])))
    return in_mode(top_k.call, mode)(tf.constant(case["features"]), rows, labels, tf.constant(case["ids"]))


def allowed(case, anchor):
    return np.flatnonzero(case["row_is_valid"] & (case["row_ids"] != case["ids"][anchor]))


@pytest.mark.parametrize("num_neighbors", [1, 4, 30])
def test_neighbours_are_the_rows_of_highest_score_whatever_their_labels(num_neighbors, mode):
    case = make_case()
    picks = pick(NeighborTopK(num_neighbors, 0), case, mode)
    assert picks.indices.shape == (5, num_neighbors)
    assert picks.is_positive.numpy().all()
    for anchor in range(5):
        scores = case["row_features"] @ case["features"][anchor]
        expected = sorted(allowed(case, anchor), key=lambda row: -scores[row])[:num_neighbors]
        is_valid = picks.is_valid[anchor].numpy()
        assert picks.indices[anchor].numpy()[is_valid].tolist() == expected
        np.testing.assert_allclose(picks.feature_scores[anchor].numpy()[is_valid], scores[expected], atol=1e-6)


@pytest.mark.parametrize("num_random", [3, 40])
def test_random_rows_are_allowed_and_picked_once(num_random, mode):
    case = make_case()
    picks = pick(NeighborTopK(2, num_random), case, mode)
    for anchor in range(5):
        is_valid = picks.is_valid[anchor].numpy()
        picked = picks.indices[anchor].numpy()[is_valid]
        assert len(set(picked.tolist())) == len(picked)
        assert set(picked.tolist()) <= set(allowed(case, anchor).tolist())
        if num_random == 40:  # more than there are: all of them
            assert sorted(picked.tolist()) == allowed(case, anchor).tolist()
        assert picks.is_positive[anchor].numpy().tolist() == [True] * 2 + [False] * num_random
        scores = case["row_features"] @ case["features"][anchor]
        np.testing.assert_allclose(picks.feature_scores[anchor].numpy()[is_valid], scores[picked], atol=1e-6)


def test_random_rows_are_drawn_evenly_and_anew():
    case = make_case(num_anchors=1, num_rows=20)
    rows = Rows(*(tf.constant(case[name]) for name in ("row_features", "row_labels", "row_ids", "row_is_valid")))
    top_k = NeighborTopK(1, 4)
    top_k.build((None, 3))
    step = tf.function(top_k.call)
    counts = np.zeros(20)
    for _ in range(600):
        picks = step(tf.constant(case["features"]), rows, tf.constant([0]), tf.constant(case["ids"]))
        counts[picks.indices[0].numpy()[1:][picks.is_valid[0].numpy()[1:]]] += 1
    valid = np.flatnonzero(case["row_is_valid"] & (case["row_ids"] != case["ids"][0]))
    neighbor = max(valid, key=lambda row: case["row_features"][row] @ case["features"][0])
    drawn = counts[[row for row in valid if row != neighbor]]
    expected = 600 * 4 / 20  # of each slot; one whose row is not valid gives none
    assert counts.sum() == drawn.sum()
    assert np.abs(drawn - expected).max() < 5 * np.sqrt(expected)


def test_modes_and_equal_seeds_draw_the_same():
    case = make_case()
    first, *others = (pick(NeighborTopK(2, 3, seed=4), case, mode) for mode in MODES)
    for other in others:
        np.testing.assert_array_equal(first.indices, other.indices)
    assert (pick(NeighborTopK(2, 3, seed=5), case).indices.numpy() != first.indices.numpy()).any()


def test_scores_are_of_features_less_a_share_of_their_mean(mode):
    case = make_case()
    for name in ("features", "row_features"):
        case[name][:, 0] += 2
        case[name] /= np.linalg.norm(case[name], axis=1, keepdims=True)
    top_k = NeighborTopK(4, 2, centring=0.75)
    top_k.adapt(case["row_features"])
    picks = pick(top_k, case, mode)
    offset = 0.75 * case["row_features"].mean(axis=0)
    for anchor in range(5):
        scores = np.array([cosine(row - offset, case["features"][anchor] - offset) for row in case["row_features"]])
        expected = sorted(allowed(case, anchor), key=lambda row, s=scores: -s[row])[:4]
        assert picks.indices[anchor, :4].numpy().tolist() == expected
        found = picks.feature_scores[anchor].numpy()
        np.testing.assert_allclose(found, scores[picks.indices[anchor].numpy()], atol=1e-5)
    with pytest.raises(ValueError, match=r"centring=1\.5; expected a number in 0\.\.1"):
        NeighborTopK(centring=1.5)


def test_an_empty_memory_gives_no_valid_pick(mode):
    case = make_case()
    case["row_is_valid"][:] = False
    assert not pick(NeighborTopK(3, 3), case, mode).is_valid.numpy().any()


def test_a_memory_of_several_blocks(monkeypatch):
    monkeypatch.setattr("xbm_keras.stages.cosine_scores.MIN_BLOCK_ROWS", 32)
    monkeypatch.setattr("xbm_keras.stages.cosine_scores.CPU", BlockSize(keys=96, scores=1 << 20))
    case = make_case(num_rows=100)
    picks = pick(NeighborTopK(4, 2), case, "graph")
    for anchor in range(5):
        scores = case["row_features"] @ case["features"][anchor]
        expected = sorted(allowed(case, anchor), key=lambda row: -scores[row])[:4]
        assert picks.indices[anchor, :4].numpy().tolist() == expected


def test_rows_in_int8():
    memory = CircularMemory(8, "int8")
    memory.build((None, 3))
    case = make_case(num_rows=8)
    rows = memory.enqueue(case["row_features"], np.zeros(8, int), case["row_ids"])
    picks = NeighborTopK(2, 2)(tf.constant(case["features"]), rows, None, tf.constant(case["ids"]))
    assert picks.feature_scores.dtype == tf.float32


def test_the_state_of_the_random_rows_is_saved(tmp_path):
    case, top_k, other = make_case(), NeighborTopK(1, 3), NeighborTopK(1, 3)
    top_k.adapt(case["row_features"])
    pick(top_k, case)
    other.build((None, 3))
    store = {}
    top_k.save_own_variables(store)
    other.load_own_variables(store)
    picks, others = pick(top_k, case), pick(other, case)
    np.testing.assert_array_equal(picks.indices, others.indices)
    np.testing.assert_array_equal(picks.feature_scores, others.feature_scores)


def test_config_round_trip():
    top_k = NeighborTopK(7, 9, 0.25, seed=3, name="n")
    config = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(top_k)).get_config()
    assert (config["num_neighbors"], config["num_random"], config["centring"], config["seed"]) == (7, 9, 0.25, 3)


@pytest.mark.parametrize("arguments", [(0, 4), (-1, 4), (4, -1), (2.5, 4), ("all", 0)])
def test_counts_that_are_refused(arguments):
    with pytest.raises(ValueError, match="expected a whole number"):
        NeighborTopK(*arguments)
