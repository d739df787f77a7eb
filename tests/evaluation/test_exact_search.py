import numpy as np
import pytest

from xbm_keras.evaluation import exact_search
from xbm_keras.evaluation.exact_search import first_columns
from xbm_keras.stages.hard_top_k.sampled import sample_of

random = np.random.default_rng(0)
SCORES = {
    "random": random.normal(size=(5, 2000)),
    "with ties": random.normal(size=(5, 2000)).round(2),
    "half of them 0": np.maximum(random.normal(size=(5, 2000)), 0.0),
    "by class, side by side": np.repeat(random.normal(size=(5, 40)), 50, axis=1) + random.normal(size=(5, 2000)) / 9,
    "by class, in turn": np.tile(random.normal(size=(5, 40)), 50) + random.normal(size=(5, 2000)) / 9,
    "few": random.normal(size=(5, 20)),
    "one of them taken out": np.where(np.arange(2000) == 1234, -np.inf, random.normal(size=(5, 2000))),
}


@pytest.mark.parametrize("k", [1, 2, 15, 100, 600])
@pytest.mark.parametrize("name", SCORES)
def test_first_columns_are_those_of_a_stable_sort(name, k):
    scores = SCORES[name].astype(np.float32)
    k = min(k, scores.shape[1])
    found = first_columns(scores, k)
    if found is None:
        assert name in ("with ties", "half of them 0")
    else:
        np.testing.assert_array_equal(found, np.argsort(-scores, axis=1, kind="stable")[:, :k])


@pytest.mark.parametrize(("width", "k"), [(2000, 100), (2000, 600), (20, 20)])
def test_no_rows_have_no_columns(width, k):
    assert first_columns(np.empty((0, width), np.float32), k).shape == (0, k)


@pytest.mark.parametrize("name", ["random", "with ties", "by class, side by side", "by class, in turn"])
def test_a_sample_finds_the_few_that_are_sorted(name):
    assert exact_search._first_of_few(SCORES[name].astype(np.float32), 100) is not None


def test_no_sample_is_asked_for_a_large_part():
    """Which takes as long to sort as the partition of all."""
    assert exact_search._first_of_few(SCORES["random"].astype(np.float32), 250) is None


def test_what_the_sample_misses_is_found_by_all():
    """The best of one row are all in the sample, so that what it tells leaves too few of that row."""
    scores = random.normal(size=(3, 2000)).astype(np.float32)
    sample = sample_of(2000)
    scores[1, sample] += 20
    assert exact_search._first_of_few(scores, 100) is None
    np.testing.assert_array_equal(first_columns(scores, 100), np.argsort(-scores, axis=1, kind="stable")[:, :100])
