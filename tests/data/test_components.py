"""Queries that share documents, held out together."""

import numpy as np
import pytest

from xbm_keras.data.components import components, hold_out
from xbm_keras.data.errors import DataError


def by_hand(query, document, num_queries):
    """Labels spread along the pairs until none changes."""
    labels = np.arange(num_queries)
    for _ in range(num_queries):
        for q, d in zip(query, document, strict=True):
            together = query[document == d]
            labels[together] = labels[[*together, q]].min()
    return np.unique(labels, return_inverse=True)[1]


@pytest.mark.parametrize("num_pairs", [0, 20, 45, 90])
def test_components_equal_those_by_hand(num_pairs):
    random = np.random.default_rng(num_pairs)
    query, document = random.integers(0, 40, num_pairs), random.integers(0, 60, num_pairs)
    found = components(query, document, 40, 60)
    np.testing.assert_array_equal(found, by_hand(query, document, 40))
    assert found.dtype == np.int64


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_held_out_shares_no_document_with_the_rest(seed):
    random = np.random.default_rng(seed)
    query, document = random.integers(0, 300, 330), random.integers(0, 400, 330)
    labels = components(query, document, 300, 400)
    is_held = hold_out(labels, 0.2, seed)
    assert not set(document[is_held[query]]) & set(document[~is_held[query]])
    assert is_held.sum() == 60  # small components fill it up
    np.testing.assert_array_equal(is_held, hold_out(labels, 0.2, seed))
    assert (is_held != hold_out(labels, 0.2, seed + 1)).any()


def test_a_giant_component_is_not_held_out():
    labels = np.array([4] * 90 + [1, 2, 3, 7])
    for seed in range(5):
        np.testing.assert_array_equal(hold_out(labels, 0.3, seed), labels != 4)  # fewer than a share of 0.3
        assert hold_out(labels, 0.01, seed).sum() == 1


def test_of_large_components_the_smallest_is_held_out():
    labels = np.array([0] * 5 + [1] * 4 + [2] * 6)
    np.testing.assert_array_equal(hold_out(labels, 0.1), labels == 1)


def test_something_is_left_to_train():
    assert hold_out(np.array([0, 1, 2]), 1.0).sum() == 2


@pytest.mark.parametrize("labels", [np.zeros(3, int), np.array([5])])
def test_a_single_component_is_refused(labels):
    with pytest.raises(DataError, match=r"connected by the documents.*Give a validation part of your own"):
        hold_out(labels, 0.2)
