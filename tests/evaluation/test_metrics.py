"""The metrics of ranked lists, against sums written out by hand and against loops."""

import numpy as np
import pytest

from tests.reference import metrics_of_list
from xbm_keras.evaluation.metrics import map_at_r, r_precision, recall_at_k


def hits_of(*lists):
    """One row per query: "x" is a relevant item, "." another."""
    return np.array([[mark == "x" for mark in marks] for marks in lists])


@pytest.mark.parametrize(
    ("marks", "num_relevant", "expected"),
    [
        ("x", 1, 1),
        (".x", 1, 0),  # found, but beyond R
        ("xx.", 2, 1),
        ("x.x", 2, (1 / 1) / 2),
        (".xx", 2, (1 / 2) / 2),
        ("x.xx.", 3, (1 / 1 + 2 / 3) / 3),
        (".x.x.xx", 4, (1 / 2 + 2 / 4) / 4),
        ("..x.x", 5, (1 / 3 + 2 / 5) / 5),
        ("xxxx.", 5, (1 / 1 + 2 / 2 + 3 / 3 + 4 / 4) / 5),
        (".....", 5, 0),
    ],
)
def test_map_at_r_by_hand(marks, num_relevant, expected):
    assert map_at_r(hits_of(marks), np.array([num_relevant])) == pytest.approx([expected])


@pytest.mark.parametrize(
    ("marks", "num_relevant", "expected"), [("x.x", 2, 1 / 2), (".xx", 2, 1 / 2), ("x.xx.", 3, 2 / 3), ("..x", 2, 0)]
)
def test_r_precision_by_hand(marks, num_relevant, expected):
    assert r_precision(hits_of(marks), np.array([num_relevant])) == pytest.approx([expected])


def test_the_paper_s_point():
    """Arrangements that Recall@1 and R-Precision cannot tell apart, best first (arXiv 2003.08505, table 3)."""
    hits = hits_of("xxx.......", "x.x.......", "x........x")
    relevant = np.array([3, 3, 3])
    assert recall_at_k(hits, 1).tolist() == [1, 1, 1]
    assert map_at_r(hits, relevant) == pytest.approx([1, (1 + 2 / 3) / 3, (1 / 1) / 3])


def test_recall_by_hand():
    hits = hits_of("x..", ".x.", "...")
    assert recall_at_k(hits, 1).tolist() == [1, 0, 0]
    assert recall_at_k(hits, 2).tolist() == [1, 1, 0]


def test_where_the_gallery_is_smaller_than_k_all_of_it_counts():
    assert recall_at_k(hits_of("..x", "..."), 10).tolist() == [1, 0]


def test_ranks_beyond_r_do_not_count():
    short, long = hits_of("x.", ".x"), hits_of("x.xxxx", ".x.xxx")
    relevant = np.array([2, 2])
    np.testing.assert_array_equal(map_at_r(long, relevant), map_at_r(short, relevant))
    np.testing.assert_array_equal(r_precision(long, relevant), r_precision(short, relevant))


@pytest.mark.parametrize("seed", range(4))
def test_against_loops(seed):
    random = np.random.default_rng(seed)
    hits = random.random((40, 17)) < random.random((40, 1))
    num_relevant = random.integers(1, 18, 40)  # another one for each query
    expected = [metrics_of_list(h.tolist(), r, ks=(1, 3, 30)) for h, r in zip(hits, num_relevant, strict=True)]
    for k in (1, 3, 30):
        np.testing.assert_array_equal(recall_at_k(hits, k), [e[f"recall_at_{k}"] for e in expected])
    np.testing.assert_allclose(map_at_r(hits, num_relevant), [e["map_at_r"] for e in expected], rtol=1e-12)
    np.testing.assert_allclose(r_precision(hits, num_relevant), [e["r_precision"] for e in expected], rtol=1e-12)


def test_no_queries_give_no_values():
    none, hits = np.zeros(0, int), np.zeros((0, 3), bool)
    assert map_at_r(hits, none).shape == r_precision(hits, none).shape == recall_at_k(hits, 1).shape == (0,)


@pytest.mark.parametrize("metric", [map_at_r, r_precision])
@pytest.mark.parametrize(
    ("num_relevant", "message"),
    [
        ([2, 0], "Received num_relevant from 0 to 2 .* Leave out queries without a match"),
        ([1, 4], "Received num_relevant from 1 to 4 with lists of 3 items; expected 1 to 3"),
        ([1, -1], "from -1 to 1"),
        ([1], r"shape \(1,\) with hits of shape \(2, 3\); expected one number per query"),
        ([[1, 1]], r"shape \(1, 2\)"),
    ],
)
def test_what_has_no_value_is_refused(metric, num_relevant, message):
    with pytest.raises(ValueError, match=message):
        metric(hits_of("x..", "..."), np.array(num_relevant))


@pytest.mark.parametrize("hits", [np.ones(3, bool), np.ones((2, 3)), np.ones((2, 3), int)])
def test_hits_are_lists_of_bool(hits):
    for metric in (map_at_r, r_precision, recall_at_k):
        with pytest.raises(ValueError, match=r"Received hits of shape .* expected \[Q, K\] bool"):
            metric(hits, 1 if metric is recall_at_k else np.ones(len(hits), int))


def test_recall_at_nothing():
    with pytest.raises(ValueError, match="Received k=0; expected 1 or more"):
        recall_at_k(hits_of("x"), 0)
