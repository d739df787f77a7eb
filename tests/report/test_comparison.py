"""Rankings, pairs and maps of a report, against slow obvious numpy."""

import numpy as np
import pytest

from xbm_keras.evaluation.exact_search import pair_similarities
from xbm_keras.report import comparison


def clustered(num_classes=7, seed=0):
    """Vectors [N, 5] in noisy clusters of unequal size, and their labels; the last class has one item."""
    rng = np.random.default_rng(seed)
    sizes = [*range(2, num_classes + 1), 1]
    labels = rng.permutation(np.repeat(np.arange(num_classes), sizes))
    return rng.normal(size=(num_classes, 5))[labels] + 0.8 * rng.normal(size=(len(labels), 5)), labels


def slow_ranking(vectors, labels, query, gallery):
    """Positions of the gallery, nearest first, and MAP@R, of one query."""
    cosine = vectors @ vectors[query] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[query])
    order = sorted((i for i in gallery if i != query), key=lambda i: -cosine[i])
    r = sum(labels[i] == labels[query] for i in order)
    precisions = [
        np.mean([labels[j] == labels[query] for j in order[: i + 1]]) * (labels[order[i]] == labels[query])
        for i in range(r)
    ]
    return order, sum(precisions) / r


@pytest.mark.parametrize("has_gallery", [False, True])
def test_rankings_equal_a_full_sort(has_gallery):
    vectors, labels = clustered()
    is_query = np.arange(len(labels)) % 3 == 0 if has_gallery else None
    is_gallery = np.arange(len(labels)) % 3 == 1 if has_gallery else None
    protocol = comparison.make_protocol(labels, is_query, is_gallery)
    found = comparison.rank(vectors, labels, protocol, shown=4)
    everyone = np.arange(len(labels))
    gallery = everyone[is_gallery] if has_gallery else everyone
    queries = everyone[is_query] if has_gallery else everyone
    wanted = [q for q in queries if sum(labels[i] == labels[q] for i in gallery if i != q)]
    assert protocol.queries.tolist() == wanted
    assert protocol.num_all == len(wanted)
    for row, query in enumerate(wanted):
        order, score = slow_ranking(vectors, labels, query, gallery)
        assert found.nearest[row].tolist() == order[:4]
        assert found.hits[row].tolist() == [labels[i] == labels[query] for i in order[:4]]
        assert found.map_at_r[row] == pytest.approx(score)


def test_many_queries_are_sampled(monkeypatch):
    monkeypatch.setattr(comparison, "MAX_QUERIES", 10)
    vectors, labels = clustered()
    protocol = comparison.make_protocol(labels)
    assert len(protocol.queries) == len(set(protocol.queries.tolist())) == 10
    assert protocol.num_all == np.sum(np.bincount(labels)[labels] > 1)
    found = comparison.rank(vectors, labels, protocol, shown=100)
    assert found.nearest.shape == (10, len(labels) - 1)  # cut to what there is


def ranking(hits, scores):
    hits = np.array(hits, bool)
    return comparison.Rankings(np.zeros(hits.shape, int), hits, np.array(scores))


def test_gains_are_what_a_reader_sees_one_per_class():
    before = ranking([[0, 0], [0, 0], [0, 1], [1, 1], [1, 0]], [0.1, 0.1, 0.3, 0.9, 0.5])
    after = ranking([[1, 1], [1, 0], [1, 1], [1, 0], [1, 0]], [0.7, 0.9, 0.4, 0.5, 0.4])
    gains, losses = comparison.gains_and_losses(before, after, np.array([0, 0, 1, 2, 3]), count=5)
    assert gains == [0, 2]  # row 1 gained, too, but is of the class of row 0
    assert losses == [3, 4]  # row 4 lost in MAP@R alone
    assert comparison.gains_and_losses(before, after, np.array([0, 1, 2, 3, 4]), count=1) == ([0], [3])
    assert comparison.gains_and_losses(before, before, np.arange(5), count=3) == ([], [])


def test_pairs_are_of_the_kind_they_say():
    _, labels = clustered()
    same, different = comparison.draw_pairs(labels)
    assert (labels[same[:, 0]] == labels[same[:, 1]]).all()
    assert (same[:, 0] != same[:, 1]).all()
    assert (labels[different[:, 0]] != labels[different[:, 1]]).all()
    firsts = {tuple(pair) for pair in same.tolist()}
    largest = np.flatnonzero(labels == 5)
    assert len({pair for pair in firsts if pair[0] in largest}) > len(largest)  # partners vary
    alone, others = comparison.draw_pairs(np.arange(4))
    assert len(alone) == 0 < len(others)
    assert len(comparison.draw_pairs(np.zeros(4, int))[1]) == 0


def test_similarities_and_their_order():
    vectors, labels = clustered()
    same, different = comparison.draw_pairs(labels)
    found = pair_similarities(vectors, *same.T)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found, [unit[i] @ unit[j] for i, j in same], atol=1e-6)
    other = pair_similarities(vectors, *different.T)[:200]
    found = found[:50]
    expected = np.mean([(a > b) + 0.5 * (a == b) for a in found for b in other])
    assert comparison.order_rate(found, other) == pytest.approx(expected)
    assert comparison.order_rate(np.ones(3), np.ones(2)) == 0.5


def test_the_map_is_of_the_largest_variance_and_lies_as_the_other_one():
    vectors, _ = clustered()
    plane, share = comparison.to_plane(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    variances = np.sort(np.linalg.eigvalsh(np.cov(unit.T)))[::-1]
    np.testing.assert_allclose(plane.var(axis=0, ddof=1), variances[:2], rtol=1e-5)
    assert share == pytest.approx(variances[:2].sum() / variances.sum(), rel=1e-5)
    turned = plane @ np.array([[0.6, 0.8], [0.8, -0.6]])
    np.testing.assert_allclose(comparison.to_plane(vectors, like=turned)[0], turned, atol=1e-5)
    assert comparison.to_plane(np.ones((3, 1)))[0].tolist() == [[0, 0]] * 3
    two, share = comparison.to_plane(vectors[:, :2])
    assert (two.shape, share) == ((len(vectors), 2), pytest.approx(1))
