"""Random negatives beside the hardest ones: of other classes alone, none twice, the same rows for all anchors."""

import numpy as np
import tensorflow as tf

from tests.conftest import MODES, in_mode
from tests.stages.hard_top_k import test_by_label as by_label
from tests.stages.hard_top_k import test_by_relevance as by_relevance
from xbm_keras import CircularMemory, HardTopK, Head, RelevantTopK


def negatives_of_class(case, anchor):
    is_other = (case["row_labels"] != case["labels"][anchor]) & (case["row_ids"] != case["ids"][anchor])
    return set(np.flatnonzero(case["row_is_valid"] & is_other).tolist())


def test_as_many_as_there_are_rows_are_all_negatives_once(mode):
    for seed in range(1 if mode == "xla" else 5):
        case = by_label.make_case(seed=seed)
        picks = by_label.pick(HardTopK(2, 3, "hardest", num_random=15), case, mode)
        assert picks.indices.shape == (5, 20)
        for anchor in range(5):
            found = by_label.chosen(picks, anchor, positive=False)
            assert len(found) == len(set(found))
            assert set(found) == negatives_of_class(case, anchor)
            hardest = by_label.oracle(case, anchor, positive=False, order="highest", count=2)
            assert found[: len(hardest)] == hardest


def test_rows_that_answer_a_query_are_none(mode):
    case = by_relevance.make_case()
    picks = by_relevance.pick(RelevantTopK(2, 8, num_random=20), case, mode)
    scores = case["queries"] @ case["documents"].T
    for query in range(by_relevance.B):
        found = by_relevance.chosen(picks, query, positive=False)
        assert len(found) == len(set(found))
        assert set(found) == set(by_relevance.negatives_of(case, query, by_relevance.N, scores[query]))


def test_they_alone_take_no_search():
    case = by_label.make_case(num_rows=40)
    top_k = HardTopK(0, 2, num_random=8)
    top_k._negatives = None  # nothing is searched
    picks = by_label.pick(top_k, case)
    drawn = picks.indices.numpy()[:, 2:]
    assert (drawn == drawn[0]).all()
    assert len(set(drawn[0])) == 8
    for anchor in range(5):
        expected = [row for row in drawn[anchor] if row in negatives_of_class(case, anchor)]
        assert by_label.chosen(picks, anchor, positive=False) == expected


def test_all_valid_rows_are_equally_likely():
    case = by_label.make_case(num_rows=20)
    top_k = HardTopK(0, 0, num_random=6)
    rows = by_label.arguments(case)[1]
    drawn = [tuple(map(np.asarray, top_k.some_rows(rows, 6))) for _ in range(400)]
    counts = np.bincount(np.concatenate([indices[is_valid] for indices, is_valid in drawn]), minlength=20)
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(case["row_is_valid"]))
    expected = 400 * 6 / 20  # of each slot, of which some hold no valid row
    assert np.abs(counts[case["row_is_valid"]] - expected).max() < 5 * np.sqrt(expected)


def test_a_memory_that_is_not_full_gives_of_its_rows_alone():
    memory = CircularMemory(1000)
    memory.build((None, 2))
    memory.prefill(np.ones((30, 2), "float32"), np.zeros(30, int), np.arange(30))
    for count in (7, 30, 64):
        indices, is_valid = map(np.asarray, HardTopK().some_rows(memory.read(), count))
        assert len(set(indices[is_valid])) == is_valid.sum() == min(count, 30)
        assert indices[is_valid].max() < 30
    memory.enqueue(np.ones((2, 2), "float32"), np.zeros(2, int), np.array([3, 8]))  # their first rows count no more
    rows = memory.read()
    assert np.asarray(rows.valid_at(tf.range(40, dtype=tf.int64))).tolist() == np.asarray(rows.is_valid)[:40].tolist()
    assert np.flatnonzero(np.asarray(rows.is_valid)[:40]).tolist() == [*range(3), *range(4, 8), *range(9, 32)]


def test_they_are_the_same_in_every_mode():
    case, drawn = by_label.make_case(num_rows=30), {}
    for mode in MODES:
        call = in_mode(HardTopK(2, 3, num_random=7, seed=5).call, mode)
        drawn[mode] = [call(*by_label.arguments(case)).indices.numpy().tolist() for _ in range(3)]
    assert drawn["eager"] == drawn["graph"] == drawn["xla"]
    assert drawn["eager"][0] != drawn["eager"][1]


def test_none_is_picked_twice_beside_all_rows():
    case = by_label.make_case(num_rows=12)
    for counts in (("all", 2), ("all", "all"), (0, "all"), (3, "all")):
        picks = by_label.pick(HardTopK(*counts, num_random=12), case)
        for anchor in range(5):
            found = by_label.chosen(picks, anchor, positive=False)
            assert len(found) == len(set(found))
            assert set(found) == negatives_of_class(case, anchor)
    assert by_label.pick(HardTopK("all", 2, num_random=12), case).indices.shape == (5, 14)


def test_the_most_rows_that_they_can_be():
    assert HardTopK(0, 0, num_random=3).most_rows(5, 100) == 3
    assert HardTopK(2, 1, num_random=3).most_rows(5, 100) == 18


def test_similarities_to_them_are_those_of_all_picks_one_by_one(mode):
    """They pass the head once, and not once for each anchor."""
    case = by_label.make_case(num_rows=30)
    head = Head(2, widths=[1, 2])
    head.build((None, 3))
    top_k = HardTopK(2, 3, num_random=7, seed=5)

    def compare(features, rows, labels, ids):
        picks = top_k(features, rows, labels, ids)
        return [head.compare(head(features), rows, each) for each in (picks, picks._replace(shared=None))]

    for shared, one_by_one in zip(*in_mode(compare, mode)(*by_label.arguments(case)), strict=True):
        assert shared.shape == (5, 12)
        np.testing.assert_allclose(shared, one_by_one, atol=1e-6)
