"""Which labels may be wrong, against all pairs and a count by hand; and labels that neighbours suggest."""

import numpy as np
import pytest

from tests.reference import cosine
from xbm_keras.evaluation.label_noise import _out_of_place, find_label_noise
from xbm_keras.evaluation.neighbor_labels import NeighborLabels


def clusters(num_classes, per_class, noise, seed=0, width=8):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(num_classes), per_class)
    vectors = rng.normal(size=(num_classes, width))[codes] + noise * rng.normal(size=(len(codes), width))
    return vectors, np.array([f"class {code}" for code in codes], dtype=object)


def as_set(pairs):
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def test_pairs_of_one_label_and_of_two_equal_a_look_at_all_pairs():
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(50, 3)), rng.choice(["a", "b", ""], 50).astype(object)
    vectors[7], vectors[30] = vectors[3], 5 * vectors[3]
    labels[[3, 7, 30]] = "a", "b", "a"
    near = {(i, j) for i in range(50) for j in range(i + 1, 50) if cosine(vectors[i], vectors[j]) >= 0.95}
    other = {(i, j) for i, j in near if labels[i] != labels[j] and labels[i] and labels[j]}
    noise = find_label_noise(vectors, labels, 0.95)
    assert as_set(noise.other_label) == other
    assert as_set(noise.same_label) == near - other
    identical = noise.is_identical(noise.other_label)
    pairs = zip(noise.other_label.first.tolist(), noise.other_label.second.tolist(), identical.tolist(), strict=True)
    assert [(i, j) for i, j, is_equal in pairs if is_equal] == [(3, 7)]


def test_items_among_another_class_are_out_of_place_and_small_classes_are_not():
    vectors, labels = clusters(4, 15, 0.1)
    labels[[5, 20]] = "class 3", "class 3"
    labels[[40, 41]] = "rare"
    labels[50:] = ""
    noise = find_label_noise(vectors, labels, 0.999)
    found = dict(zip(noise.out_of_place.item.tolist(), noise.out_of_place.label.tolist(), strict=True))
    assert found == {5: "class 0", 20: "class 1"}
    assert (noise.out_of_place.share >= 0.7).all()
    assert noise.out_of_place.nearest.shape == (2, 10)
    assert not {5, 20} & set(noise.out_of_place.nearest[0].tolist())


def test_out_of_place_takes_seven_of_ten_for_another_label_and_at_most_one_for_its_own():
    labels = np.repeat(np.array(["a", "b", "c"], dtype=object), 11)
    a, b, c = (np.arange(11) + 11 * i for i in range(3))
    found = np.stack([np.delete(own, i) for own in (a, b, c) for i in range(11)])
    found[0] = [*b[:6], *c[:4]]
    found[1] = [*b[:8], *a[2:4]]
    found[2] = [*b[:7], *a[3:4], *c[:2]]
    out = _out_of_place(found, np.ones(found.shape), labels)
    assert (out.item.tolist(), out.label.tolist(), out.share.tolist()) == ([2], ["b"], [0.7])


def test_suggestions_are_those_of_a_vote_and_nothing_for_what_is_far():
    vectors, labels = clusters(6, 20, 0.15)
    suggest = NeighborLabels(vectors[::2], labels[::2], precision=0.9, min_similarity=0.8)
    found = suggest(np.concatenate([vectors[1::2], -vectors[:3]]))
    np.testing.assert_array_equal(found.label, [*labels[1::2], "", "", ""])
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    best = [max(range(60), key=lambda j: cosine(vector, vectors[2 * j])) for vector in vectors[1:20:2]]
    np.testing.assert_array_equal(found.nearest[:10], best)
    assert suggest.check() == (60, 1.0, 1.0, 1.0)


def test_confidence_is_the_share_of_right_votes_of_such_a_majority():
    """Labels that are drawn at random are right as often as chance has it, and no such suggestion is given."""
    vectors, labels = clusters(5, 120, 0.9, width=4)
    labels[::2] = np.random.default_rng(1).permutation(labels[::2])
    suggest = NeighborLabels(vectors, labels, precision=0.8)
    checked = suggest.check()
    assert checked.accuracy < 0.6
    assert checked.coverage < 0.5
    majority = suggest.votes.majority
    is_right = suggest.votes.label == labels
    own = suggest._calibrated(slice(None))(majority)
    for band in (own < 0.5, own >= 0.5):
        assert own[band].mean() == pytest.approx(is_right[band].mean(), abs=0.02)


def test_too_little_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="expected at least two labels"):
        NeighborLabels(np.eye(3), np.array(["a", "a", "a"]))
    with pytest.raises(ValueError, match="precision=0"):
        NeighborLabels(np.eye(3), np.array(["a", "a", "b"]), precision=0)
