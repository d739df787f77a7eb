"""Near-duplicates with different labels, against all pairs."""

import numpy as np
import pytest

from tests.reference import cosine
from xbm_keras.evaluation.near_duplicates import near_duplicates


def test_equals_a_look_at_all_pairs():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(50, 3)), random.integers(0, 3, 50)
    features[7], features[30] = 5 * features[3], features[3]  # copies; two of the three labels differ
    labels[[3, 7, 30]] = 0, 1, 1
    expected = {
        (i, j): cosine(features[i], features[j])
        for i in range(50)
        for j in range(i + 1, 50)
        if labels[i] != labels[j] and cosine(features[i], features[j]) >= 0.95
    }
    pairs = near_duplicates(features, labels, 0.95)
    found = dict(zip(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True), pairs.score, strict=True))
    assert set(found) == set(expected)
    assert {(3, 7), (3, 30)} <= set(found)
    assert (7, 30) not in found
    for pair, score in found.items():
        assert score == pytest.approx(expected[pair], abs=1e-5)
    assert (np.diff(pairs.score) <= 0).all()


def test_none_and_refused():
    assert near_duplicates(np.eye(3), np.arange(3)).first.size == 0
    with pytest.raises(ValueError, match="min_score=2; expected a cosine"):
        near_duplicates(np.eye(3), np.arange(3), 2)
