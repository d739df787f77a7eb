"""Random rows of a class: each at most once, all sets equally likely, the same in every mode."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import MODES, in_mode
from xbm_keras.stages.hard_top_k import random_rows as random_rows_of_code
from xbm_keras.stages.hard_top_k.random_rows import RowsByLabel, random_rows


def draw(codes, wanted, k, seed=(1, 2), mode="eager"):
    def call(codes, wanted, seed):
        return random_rows(codes, tf.constant(int(np.max(codes_given)) + 1, tf.int64), wanted, k, seed)

    codes_given = [*codes, *wanted]
    arguments = tf.constant(codes, tf.int64), tf.constant(wanted, tf.int64), tf.constant(seed, tf.int64)
    rows, is_valid = in_mode(call, mode)(*arguments)
    return rows.numpy(), is_valid.numpy()


@pytest.mark.parametrize("num_rows", [1, 2, 13, 64, 500])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_different_rows_of_the_code_as_many_as_there_are(num_rows, k, mode):
    codes = np.random.default_rng(num_rows).integers(0, 6, num_rows)
    wanted = [0, 3, 3, 5, 7]  # 7: a code that no row bears
    rows, is_valid = draw(codes, wanted, k, mode=mode)
    assert rows.shape == is_valid.shape == (5, k)
    assert (rows[~is_valid] == 0).all()
    for anchor, code in enumerate(wanted):
        of_code = np.flatnonzero(codes == code).tolist()
        drawn = rows[anchor][is_valid[anchor]].tolist()
        assert len(set(drawn)) == len(drawn) == min(k, len(of_code))
        assert set(drawn) <= set(of_code)
        assert not is_valid[anchor, : k - len(drawn)].any()


def test_all_sets_are_equally_likely():
    codes = [4, 1, 4, 4, 2, 4, 4]
    of_code, num_anchors = [0, 2, 3, 5, 6], 4_000
    rows, is_valid = draw(codes, [4] * num_anchors, 3)
    assert is_valid.all()
    counts = dict.fromkeys(itertools.combinations(of_code, 3), 0)
    for drawn in np.sort(rows, axis=1).tolist():
        counts[tuple(drawn)] += 1
    share = np.array(list(counts.values())) / num_anchors
    np.testing.assert_allclose(share, 0.1, atol=0.024)  # five standard deviations


def test_the_same_in_every_mode_and_another_with_another_seed():
    codes = np.arange(300) % 3
    drawn = [draw(codes, [0, 1, 2, 1], 5, mode=mode)[0].tolist() for mode in MODES]
    assert drawn[0] == drawn[1] == drawn[2]
    assert draw(codes, [0, 1, 2, 1], 5, seed=(1, 3))[0].tolist() != drawn[0]


@pytest.mark.parametrize("k", [random_rows_of_code.UNROLLED, random_rows_of_code.UNROLLED + 1, 30])
def test_a_loop_draws_what_a_graph_without_one_does(k, mode, monkeypatch):
    codes = np.arange(100) % 4  # 25 of each
    drawn = []
    for unrolled in (0, 100):
        monkeypatch.setattr(random_rows_of_code, "UNROLLED", unrolled)
        drawn.append(draw(codes, [0, 1, 3, 9], k, mode=mode))
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_a_large_memory_is_reached_to_its_end():
    codes = np.zeros(100_000, np.int64)
    rows, _ = draw(codes, [0] * 64, 40)
    assert rows.max() > 99_000
    assert rows.min() < 1_000
    np.testing.assert_allclose(rows.mean(), 50_000, atol=3_000)


@pytest.mark.parametrize("num_valid", [0, 1, 40, 60])
def test_rows_that_are_sorted_once_are_drawn_as_rows_of_any_order(num_valid):
    random = np.random.default_rng(num_valid)
    labels = random.choice([2**40, 7, -3, 9], 60)
    is_valid = random.permutation(60) < num_valid
    codes = np.where(is_valid, np.unique(labels, return_inverse=True)[1], 4)
    rows = random.integers(0, 60, 30)
    for seed in range(3):
        seeds = tf.constant([seed, 5])
        wanted = np.unique(labels, return_inverse=True)[1][rows]
        searched = random_rows(tf.constant(codes), tf.constant(5, tf.int64), tf.constant(wanted), 6, seeds)
        drawn = RowsByLabel(labels, is_valid).random_rows(tf.constant(rows), 6, seeds)
        for a, b in zip(drawn, searched, strict=True):
            np.testing.assert_array_equal(a, b)
        assert drawn[1].numpy().any() == (num_valid > 0)
