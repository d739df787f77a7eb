"""Heads side by side on queries and documents: protocols, widths, intervals, and sides that differ."""

import numpy as np
import pytest

from xbm_keras import Head, Start
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.evaluation.pair_scores import compare_pairs
from xbm_keras.evaluation.pairs import evaluate_pairs

D, N, Q = 6, 40, 25


def data():
    random = np.random.default_rng(0)
    documents = random.normal(size=(N, D)).astype(np.float32)
    relevant = np.stack([np.arange(Q), np.where(np.arange(Q) % 2, -1, np.arange(Q) + 10)], axis=1)
    queries = documents[:Q] + 0.8 * random.normal(size=(Q, D)).astype(np.float32)
    return queries, documents, relevant, np.where(relevant >= 0, [[1.0, 2.0]], 0.0)


def head_of(kernel, **options):
    head = Head(kernel.shape[1], **options)
    head.build((None, D))
    head.set_start(Start(kernel.astype("float32"), np.zeros(kernel.shape[1], "float32")))
    return head


def test_numbers_are_those_of_the_parts():
    queries, documents, relevant, grades = data()
    is_unseen = np.arange(Q) < 15
    heads = {"frozen": None, "trained": head_of(np.eye(D, 4), widths=[2, 4])}
    scores = compare_pairs(queries, documents, relevant, grades, heads, is_unseen, codes=["int8"])
    assert list(scores) == ["pairs", "pairs_unseen_documents"]
    assert list(scores["pairs"]) == ["frozen", "trained@2", "trained_int8@2", "trained", "trained_int8"]
    frozen = evaluate_pairs(queries, documents, relevant, grades)
    for width, name in ((2, "trained@2"), (4, "trained")):
        found = evaluate_pairs(queries[:, :width], documents[:, :width], relevant, grades)
        for protocol, mask in (("pairs", slice(None)), ("pairs_unseen_documents", is_unseen)):
            for metric, values in found.items():
                assert scores[protocol][name][metric] == pytest.approx(values[mask].mean(), abs=1e-6)
                expected = bootstrap_interval(values[mask])
                assert scores[protocol][name][f"{metric}_interval"] == pytest.approx(expected, abs=1e-6)
            above = (found["ndcg_at_10"] - frozen["ndcg_at_10"])[mask]
            assert scores[protocol][name]["ndcg_at_10_above_frozen"] == pytest.approx(above.mean(), abs=1e-6)
            low, high = scores[protocol][name]["ndcg_at_10_above_frozen_interval"]
            assert low < above.mean() < high
    assert "ndcg_at_10_above_frozen" not in scores["pairs"]["frozen"]


def test_a_query_head_is_scored_against_documents_as_they_are():
    """A reversal of the queries alone turns the order around, one of both changes nothing."""
    queries, documents, relevant, grades = data()
    heads = {"frozen": None, "turned": head_of(-np.eye(D), sides="query"), "both": head_of(-np.eye(D))}
    scores = compare_pairs(queries, documents, relevant, grades, heads)["pairs"]
    assert scores["both"]["mrr_at_10"] == scores["frozen"]["mrr_at_10"] > 0.5
    assert scores["turned"]["mrr_at_10"] < 0.1


def test_without_unseen_queries_there_is_one_protocol():
    assert list(compare_pairs(*data(), {"frozen": None}, np.zeros(Q, bool))) == ["pairs"]
