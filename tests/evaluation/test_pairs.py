"""Retrieval of documents that answer queries: against a full sort, against trec_eval, and what is refused."""

import numpy as np
import pytest

from xbm_keras.evaluation import graded_metrics
from xbm_keras.evaluation.exact_search import CHUNK, MIN_BLOCK
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.evaluation.pairs import evaluate_pairs, ranks_of_relevant


def judged(num_queries, num_documents, most, seed=0, width=8, copies=0):
    """Vectors, relevant documents [Q, P] and grades 1 to 3; the last documents are copies of the first ones."""
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(num_documents, width)).astype(np.float32)
    if copies:
        documents[-copies:] = documents[:copies]
    relevant = np.full((num_queries, most), -1)
    for row in relevant:
        count = rng.integers(1, most + 1)
        row[:count] = rng.choice(num_documents, count, replace=False)
    grades = np.where(relevant >= 0, rng.integers(1, 4, relevant.shape), 0)
    return rng.normal(size=(num_queries, width)).astype(np.float32), documents, relevant, grades


def full_sort(queries, documents):
    """Positions of all documents, best first, for each query; in float64, equal vectors by position."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries.astype(float), documents.astype(float))]
    return np.argsort(-(unit[0] @ unit[1].T).round(9), axis=1, kind="stable")


@pytest.mark.parametrize("memory_mb", [0.001, 64], ids=["many blocks", "one block"])
def test_ranks_are_those_of_a_full_sort(memory_mb):
    queries, documents, relevant, _ = judged(CHUNK + 7, 2 * MIN_BLOCK + 33, 4, copies=40)
    relevant[:20, 0] = np.arange(20)  # each has a copy at the end
    relevant[20:40, 0] = len(documents) - 40 + np.arange(20)
    relevant[:40, 1:] = -1
    expected = np.zeros_like(relevant)
    for q, order in enumerate(full_sort(queries, documents)):
        for p, document in enumerate(relevant[q]):
            if document >= 0:
                expected[q, p] = 1 + order.tolist().index(document)
    np.testing.assert_array_equal(ranks_of_relevant(queries, documents, relevant, memory_mb=memory_mb), expected)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_those_of_trec_eval(seed):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    queries, documents, relevant, grades = judged(50, 300, 6, seed, width=2, copies=60)
    found = evaluate_pairs(queries, documents, relevant, grades)
    qrels, run = {}, {}
    for q, order in enumerate(full_sort(queries, documents)):
        qrels[f"q{q}"] = {f"d{d}": int(g) for d, g in zip(relevant[q], grades[q], strict=True) if d >= 0} | {
            f"judged{q}": 0
        }  # judged and not relevant, and not in the corpus
        run[f"q{q}"] = {f"d{d}": float(-rank) for rank, d in enumerate(order)}
    names = {
        "ndcg_cut_10": "ndcg_at_10", "recall_10": "recall_at_10", "recall_100": "recall_at_100", "map": "map",
        "success_10": "hit_rate_at_10",
    }  # fmt: skip
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut", "recall", "map", "success", "recip_rank"}).evaluate(run)
    for q in range(len(queries)):
        for their_name, name in names.items():
            assert found[name][q] == pytest.approx(theirs[f"q{q}"][their_name], abs=1e-6), name
        reciprocal = theirs[f"q{q}"]["recip_rank"]
        assert found["mrr_at_10"][q] == pytest.approx(reciprocal if reciprocal >= 0.1 - 1e-9 else 0.0, abs=1e-6)


def test_metrics_by_hand():
    ranks, grades = np.array([[3, 1, 0], [12, 0, 0]]), np.array([[1, 2, 0], [2, 0, 0]])
    gain = (2 + 1 / 2) / (2 + 1 / np.log2(3))
    np.testing.assert_allclose(graded_metrics.ndcg_at_k(ranks, grades), [gain, 0])
    np.testing.assert_allclose(graded_metrics.ndcg_at_k(ranks, grades, 1), [1, 0])
    np.testing.assert_allclose(graded_metrics.mrr_at_k(ranks, grades), [1, 0])
    np.testing.assert_allclose(graded_metrics.mrr_at_k(ranks, grades, 12), [1, 1 / 12])
    np.testing.assert_allclose(graded_metrics.found_at_k(ranks, grades, 2), [1 / 2, 0])
    np.testing.assert_allclose(graded_metrics.hit_rate_at_k(ranks, grades, 12), [1, 1])
    np.testing.assert_allclose(graded_metrics.average_precision(ranks, grades), [(1 + 2 / 3) / 2, 1 / 12])
    lost = graded_metrics.average_precision(np.array([[1, 0]]), np.array([[1, 1]]))  # relevant, and not ranked at all
    np.testing.assert_allclose(lost, [1 / 2])


def test_what_is_refused():
    queries, documents, relevant, grades = judged(3, 20, 2)
    broken = documents.copy()
    broken[7, 0] = np.nan
    for arguments, message in [
        ((queries[:, :5], documents, relevant), "of one width"),
        ((queries, broken, relevant), "documents in 1 rows, such as row 7"),
        ((queries, documents, relevant[:2]), "for 3 queries"),
        ((queries, documents, relevant + 20), "in a corpus of 20"),
        ((queries, documents, np.array([[1, 2], [3, 3], [4, -1]])), "twice for 1 queries, such as number 1"),
        ((queries, documents, np.array([[1, 2], [-1, -1], [4, -1]])), "without a relevant document, such as number 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate_pairs(*arguments)
    with pytest.raises(ValueError, match="k=0"):
        graded_metrics.mrr_at_k(relevant, grades, 0)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.exponential(size=60), seed=seed)
        covered += low <= 1 <= high
    assert 0.88 <= covered / 200 <= 0.98  # 0.95, a little less for so skewed and few numbers


def test_queries_of_one_class_count_as_one():
    rng = np.random.default_rng(0)
    of_class = rng.normal(size=30)
    values, units = np.repeat(of_class, 20), np.repeat(np.arange(30), 20)
    alone, together = bootstrap_interval(values), bootstrap_interval(values, units)
    assert together[1] - together[0] == pytest.approx(np.sqrt(20) * (alone[1] - alone[0]), rel=0.15)
    assert bootstrap_interval(values, units) == bootstrap_interval(values, units)
    assert bootstrap_interval(values[:20], units[:20]) == (of_class[0], of_class[0])
    with pytest.raises(ValueError, match=r"units \(3,\)"):
        bootstrap_interval(values, units[:3])
