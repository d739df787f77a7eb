"""Random negatives beside the hardest ones: of other classes alone, none twice, the same rows for all anchors."""

import numpy as np
import pytest

from tests.conftest import MODES, in_mode
from tests.stages.hard_top_k import test_by_label as by_label
from tests.stages.hard_top_k import test_by_relevance as by_relevance
from xbm_keras import HardTopK, RelevantTopK


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
    draws = np.concatenate([by_label.pick(top_k, case).indices.numpy()[0] for _ in range(400)])
    counts = np.bincount(draws, minlength=20)
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(case["row_is_valid"]))
    expected = len(draws) / case["row_is_valid"].sum()
    assert np.abs(counts[case["row_is_valid"]] - expected).max() < 5 * np.sqrt(expected)


def test_they_are_the_same_in_every_mode():
    case, drawn = by_label.make_case(num_rows=30), {}
    for mode in MODES:
        call = in_mode(HardTopK(2, 3, num_random=7, seed=5).call, mode)
        drawn[mode] = [call(*by_label.arguments(case)).indices.numpy().tolist() for _ in range(3)]
    assert drawn["eager"] == drawn["graph"] == drawn["xla"]
    assert drawn["eager"][0] != drawn["eager"][1]


def test_beside_all_rows_they_are_refused():
    for counts in (("all", 2), (2, "all")):
        with pytest.raises(ValueError, match=r"Received num_random=4 with .* Leave num_random out, or give numbers"):
            HardTopK(*counts, num_random=4)
    assert HardTopK(0, 0, num_random=3).num_picks(100) == 3
    assert HardTopK(2, 1, num_random=3).num_picks(100) == 6
