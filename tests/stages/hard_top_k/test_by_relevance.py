"""Picks by relevance against loops: relevant documents are never negatives, whatever the memory holds of them."""

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from xbm_keras import InEmbeddings, RelevantTopK, Rows
from xbm_keras.stages.hard_top_k.candidates import Candidates

B, N, P = 6, 14, 4


def make_case(seed=0):
    """Whole-number keys, so that ties are ties; documents under large ids, of which some are in no memory."""
    random = np.random.default_rng(seed)
    ids = 2**40 + 3 * random.permutation(N)
    relevant = np.full((B, P), -1)
    for query in range(B):
        count = random.integers(0 if query == 3 else 1, P + 1)
        relevant[query, random.permutation(P)[:count]] = random.choice([*ids, 7, 8], count, replace=False)
    return {
        "queries": random.integers(-2, 3, (B, 3)).astype("float32"),
        "documents": random.integers(-2, 3, (N, 3)).astype("float32"),
        "ids": ids,
        "is_valid": random.random(N) < 0.8,
        "relevant": relevant,
    }


def pick(top_k, case, mode="eager"):
    rows = Rows(*map(tf.constant, (case["documents"], np.zeros(N, int), case["ids"], case["is_valid"])))
    queries, relevant = tf.constant(case["queries"]), tf.constant(case["relevant"])
    return in_mode(top_k.call, mode)(queries, rows, relevant, tf.fill([B], tf.constant(-1, tf.int64)))


def positives_of(case, query):
    return {row for row in range(N) if case["is_valid"][row] and case["ids"][row] in case["relevant"][query]}


def negatives_of(case, query, count, scores):
    rows = [row for row in range(N) if case["is_valid"][row] and case["ids"][row] not in case["relevant"][query]]
    return sorted(rows, key=lambda row: (-scores[row], row))[:count]


def chosen(picks, query, positive):
    indices, is_positive, is_valid = (np.asarray(each)[query] for each in picks[:3])
    return indices[is_valid & (is_positive == positive)].tolist()


@pytest.mark.parametrize("num_negatives", [3, 40, "all"])
def test_picks_equal_the_oracle(num_negatives, mode):
    for seed in range(1 if mode == "xla" else 5):
        case = make_case(seed)
        picks = pick(RelevantTopK(num_negatives, 8), case, mode)
        scores = case["queries"] @ case["documents"].T
        for query in range(B):
            assert sorted(chosen(picks, query, True)) == sorted(positives_of(case, query))
            count = N if num_negatives == "all" else num_negatives
            found, expected = chosen(picks, query, False), negatives_of(case, query, count, scores[query])
            assert (sorted(found) == sorted(expected)) if num_negatives == "all" else (found == expected)
        np.testing.assert_array_equal(
            picks.feature_scores, np.take_along_axis(scores, np.asarray(picks.indices), axis=1)
        )


def test_of_many_relevant_documents_some_are_drawn(mode):
    """Each equally often, none twice, and none that the memory does not hold."""
    case = make_case()
    case["relevant"][:] = case["ids"][:P]
    case["is_valid"][:] = True
    case["is_valid"][1] = False
    top_k, counts = RelevantTopK(1, 2), np.zeros(N)
    call = in_mode(lambda: pick(top_k, case), "graph" if mode == "eager" else mode)
    for _ in range(20):
        picks = call()
        for query in range(B):
            found = chosen(picks, query, True)
            assert len(set(found)) == 2
            counts[found] += 1
    assert counts[[0, 2, 3]].sum() == 40 * B
    assert not counts[[1, *range(4, N)]].any()
    assert counts[[0, 2, 3]].min() > 50


def test_guards_look_at_the_relevant_documents():
    """A document that is nearer than what answers the query less a margin is no negative: perhaps nobody judged it."""
    case = make_case()
    case["is_valid"][:] = True
    case["documents"][:] = 0.0
    case["documents"][:5, 0] = [1.0, 0.95, 0.85, 0.5, 0.2]
    case["queries"][:] = [1.0, 0.0, 0.0]
    case["relevant"][:] = -1
    case["relevant"][:, 0] = case["ids"][2]  # 0.85
    picks = pick(RelevantTopK(2, 1, absolute_margin=0.1), case)
    assert chosen(picks, 0, False) == [3, 4]


def test_a_query_without_documents_in_the_memory_has_no_positive():
    case = make_case()
    case["relevant"][:] = [[7, 8, -1, -1]]
    picks = pick(RelevantTopK(2, 2), case)
    assert not any(chosen(picks, query, True) for query in range(B))
    assert all(len(chosen(picks, query, False)) == 2 for query in range(B))


def test_hardest_positives_and_a_space_of_its_own():
    case = make_case(2)
    case["is_valid"][:] = True
    top_k = RelevantTopK(2, 1, "hardest", mining=InEmbeddings())
    rows = Rows(*map(tf.constant, (case["documents"], np.zeros(N, int), case["ids"], case["is_valid"])))
    turned = -case["documents"]
    picks = top_k(
        tf.constant(case["queries"]),
        rows,
        tf.constant(case["relevant"]),
        tf.fill([B], tf.constant(-1, tf.int64)),
        anchors=tf.constant(case["queries"]),
        embed=lambda features: -features,
    )
    scores = case["queries"] @ turned.T
    for query in range(B):
        positives = positives_of(case, query)
        hardest = sorted(positives, key=lambda row: (scores[query][row], row))[:1]
        assert chosen(picks, query, True) == hardest
        assert chosen(picks, query, False) == negatives_of(case, query, 2, scores[query])


def test_candidates_without_anchors():
    """As on a replica that got no queries."""
    rows = Rows(tf.zeros([3, 2]), tf.zeros([3], tf.int64), tf.range(3, dtype=tf.int64), tf.ones([3], tf.bool))
    among = Candidates.of_relevant(rows, tf.zeros([0, 2], tf.int64), tf.zeros([0], tf.int64))
    assert among.own_class.shape == (2, 0)
    assert among.codes.numpy().tolist() == [0, 0, 0]
