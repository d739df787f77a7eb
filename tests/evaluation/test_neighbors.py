"""What is kept of the frozen neighbourhoods, against a full sort."""

import keras
import numpy as np
import pytest
import scipy.stats

from xbm_keras import CircularMemory, Head, NeighborTopK, SimilarityAlignmentLoss, XBMModel
from xbm_keras.evaluation.metrics import neighbor_overlap
from xbm_keras.evaluation.neighbors import FrozenNeighbors, NeighborEvaluation


def make_vectors(n=60, width=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype("float32")


def similarities_of(vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def overlap_by_hand(vectors, features, k):
    shares = []
    for rows in zip(similarities_of(vectors), similarities_of(features), strict=True):
        i = len(shares)
        found, expected = (set(sorted(set(range(len(row))) - {i}, key=row.__getitem__)[-k:]) for row in rows)
        shares.append(len(found & expected) / k)
    return np.mean(shares)


def test_overlap_equals_the_oracle():
    features = make_vectors()
    scores = FrozenNeighbors(features, ks=(1, 5)).score(features[:, :4])
    for k in (1, 5):
        assert scores[f"neighbor_overlap_at_{k}"] == pytest.approx(overlap_by_hand(features[:, :4], features, k))


def test_rank_correlation_is_that_of_the_similarities():
    features = make_vectors(8)
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    before, after = ([similarities_of(x)[pair] for pair in pairs] for x in (features, features[:, :4]))
    frozen = FrozenNeighbors(features, ks=(2,), num_pairs=20_000)
    assert (frozen.pairs[0] != frozen.pairs[1]).all()
    expected = scipy.stats.spearmanr(before, after).statistic
    assert frozen.score(features[:, :4])["similarity_rank_correlation"] == pytest.approx(expected, abs=0.02)


def test_nothing_is_lost_by_a_rotation_and_much_by_noise():
    features = make_vectors()
    turned = features @ np.linalg.qr(make_vectors(8, 8, seed=1))[0]
    frozen = FrozenNeighbors(features)
    assert all(value == pytest.approx(1, abs=1e-3) for value in frozen.score(3 * turned).values())
    assert all(abs(value) < 0.35 for value in frozen.score(make_vectors(seed=2)).values())


def test_fewer_queries_still_search_among_all():
    features = make_vectors(80)
    some = FrozenNeighbors(features, ks=(5,), max_queries=30)
    assert len(some.queries) == 30
    full = np.argsort(-similarities_of(features) + 9 * np.eye(80), axis=1)[:, :5]
    np.testing.assert_array_equal(np.sort(some.nearest), np.sort(full[some.queries]))


def test_few_items():
    scores = FrozenNeighbors(make_vectors(3)).score(make_vectors(3, seed=1))
    assert scores["neighbor_overlap_at_10"] == 1
    with pytest.raises(ValueError, match="expected at least 3"):
        FrozenNeighbors(make_vectors(2))
    with pytest.raises(ValueError, match="expected 3, one for each item"):
        FrozenNeighbors(make_vectors(3)).score(make_vectors(4))


def test_metric_by_hand():
    found, expected = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 9, 1], [6, 5, 4]])
    np.testing.assert_allclose(neighbor_overlap(found, expected, 2), [0, 0.5])
    np.testing.assert_allclose(neighbor_overlap(found, expected, 9), [2 / 3, 1])
    with pytest.raises(ValueError, match="expected k of 1 or more"):
        neighbor_overlap(found, expected, 0)


def test_callback_logs_means_over_widths():
    features = make_vectors()
    model = XBMModel(None, Head(4, widths=[2, 4]), CircularMemory(60), NeighborTopK(5, 5), SimilarityAlignmentLoss())
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    evaluation = NeighborEvaluation(features)
    history = model.fit(
        {"features": features, "sample_id": np.arange(60)}, epochs=1, callbacks=[evaluation], verbose=0
    ).history
    vectors = model.encoder.predict(features, verbose=0)
    by_hand = np.mean([overlap_by_hand(vectors[:, :width], features, 10) for width in (2, 4)])
    assert history["val_neighbor_overlap_at_10"][0] == pytest.approx(by_hand)
    assert history["val_neighbor_overlap_at_100"][0] == 1  # of 59 others: all of them
    assert evaluation.baseline.keys() == {name for name in history if name.startswith("val_")}
