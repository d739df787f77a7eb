"""P x K batches."""

import collections
import concurrent.futures
import sys

import numpy as np
import pytest

from xbm_keras.data import batches
from xbm_keras.data.batches import PKSampler, ShuffledSampler, alone_in_class, batch_dataset
from xbm_keras.data.generators import generators
from xbm_keras.data.sources import DataError


def labels_of(counts, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 10, counts))


@pytest.mark.parametrize(("num_classes", "p"), [(5, 5), (7, 3), (8, 4), (11, 10), (3, 1)])
def test_each_batch_holds_p_different_classes_with_k_items(num_classes, p):
    labels = labels_of([6] * num_classes)
    sampler = PKSampler(labels, p, 3, seed=1)
    for step in range(40):
        drawn = labels[sampler(step)].reshape(p, 3)
        assert (drawn == drawn[:, :1]).all()
        assert len(set(drawn[:, 0])) == p


def test_classes_are_drawn_equally_often_though_their_sizes_differ():
    labels = labels_of([2, 50, 9, 4, 30])
    sampler = PKSampler(labels, 3, 2, seed=1)
    drawn = collections.Counter(label for step in range(50) for label in labels[sampler(step)])
    assert set(drawn.values()) == {50 * 3 * 2 // 5}


def test_every_item_is_met_before_any_is_met_again():
    labels = labels_of([6, 6, 6, 6])
    sampler = PKSampler(labels, 2, 3, seed=1)
    epoch = np.concatenate([sampler(step) for step in range(4)])  # 24 items
    assert sorted(epoch) == list(range(24))


def test_a_small_class_repeats_its_items():
    labels = np.array([0, 1, 1, 1, 1])
    drawn = PKSampler(labels, 2, 4, seed=0)(0)
    assert (labels[drawn] == 0).sum() == 4


def test_items_that_are_left_out_are_never_drawn():
    labels = labels_of([6, 1, 5, 4, 3], seed=2)
    is_left_out = labels == 10
    is_left_out[np.flatnonzero(labels == 20)[3]] = True
    some = np.flatnonzero(~is_left_out)
    all_of, without = PKSampler(labels, 3, 2, 5, is_left_out), PKSampler(labels[some], 3, 2, 5)
    for step in range(20):
        np.testing.assert_array_equal(all_of(step), some[without(step)])
    assert all_of.num_items == len(some) == 17


def test_an_item_with_views_alone_is_alone_in_its_class():
    labels = np.array([4, 9, 4, 7, 9, 7, 1, 5, 5])
    ids = np.array([1, 2, 1, 3, 6, 3, 8, 2**62, 0])
    assert alone_in_class(labels, ids).tolist() == [True, False, True, True, False, True, True, False, False]


def test_batches_are_a_function_of_seed_and_step():
    labels = labels_of([5, 7, 3, 9, 4])
    in_order = [PKSampler(labels, 3, 2, seed=5)(step) for step in range(30)]
    one = PKSampler(labels, 3, 2, seed=5)
    for step in (29, 3, 17, 0, 28, 29):  # as a resumed run asks for them
        np.testing.assert_array_equal(one(step), in_order[step])
    other = [PKSampler(labels, 3, 2, seed=6)(step) for step in range(30)]
    assert any((a != b).any() for a, b in zip(in_order, other, strict=True))


def test_too_few_classes_are_told():
    with pytest.raises(DataError, match="classes_per_batch=3 with 2 training classes"):
        PKSampler(np.array([0, 0, 1, 1]), 3, 2)


def test_the_dataset_gives_static_shapes_and_resumes_at_a_step():
    labels = labels_of([5, 7, 3, 9])
    features = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
    ids = np.arange(24) + 2**60
    sampler = PKSampler(labels, 2, 3, seed=5)
    dataset = batch_dataset(features, labels, ids, sampler, first_step=4)
    assert dataset.element_spec[0]["features"].shape == (6, 6)
    for step, (x, y) in zip(range(4, 7), dataset, strict=False):
        positions = sampler(step)
        np.testing.assert_array_equal(x["features"], features[positions])
        np.testing.assert_array_equal(x["sample_id"], ids[positions])
        np.testing.assert_array_equal(y, labels[positions])


def test_shuffled_batches_meet_every_item_once_a_round():
    sampler = ShuffledSampler(10, 4, seed=3)
    drawn = np.concatenate([sampler(step) for step in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    np.testing.assert_array_equal(ShuffledSampler(10, 4, seed=3)(4), drawn[16:])
    assert (ShuffledSampler(10, 4, seed=4)(0) != drawn[:4]).any()
    with pytest.raises(DataError, match="batch size of 11 with 10 items"):
        ShuffledSampler(10, 11)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10])
def test_shuffled_batches_are_a_function_of_seed_and_step(batch_size):
    endless = [item for r in range(20) for item in np.random.default_rng([3, r]).permutation(10).tolist()]
    sampler = ShuffledSampler(10, batch_size, seed=3)
    for step in (*range(15), 3, 14, 0, 0):
        assert sampler(step).tolist() == endless[step * batch_size :][:batch_size]


def test_a_round_of_all_items_is_shuffled_once(monkeypatch):
    made, rng = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: made.append(seed) or rng(seed))
    sampler = ShuffledSampler(100, 8, seed=3)
    for step in range(25):
        sampler(step)
    assert made == [[3, 0], [3, 1]]


def slow_deal(labels, p, k, seed, num_steps):
    """The rule of the docstring, item by item: a generator for each pile, in plain lists."""
    names = sorted(set(labels.tolist()))
    members = [np.flatnonzero(labels == name) for name in names]
    drawn = [[] for _ in names]
    orders = []
    for r in range(num_steps * p // len(names) + 2):
        order = np.random.default_rng([seed, 0, r]).permutation(len(names)).tolist()
        if r:
            taken = orders[-1][len(names) - r * len(names) % p :] if r * len(names) % p else []
            order = [c for c in order if c not in taken] + [c for c in order if c in taken]
        orders.append(order)
        for code, items in enumerate(members):
            while len(drawn[code]) < (r + 1) * k:
                pile = len(drawn[code]) // len(items)
                drawn[code] += np.random.default_rng([seed, 1, code, pile]).permutation(items).tolist()
    slots = [(r, code) for r, order in enumerate(orders) for code in order]
    steps = [slots[step * p : (step + 1) * p] for step in range(num_steps)]
    return [[item for r, code in step for item in drawn[code][r * k : (r + 1) * k]] for step in steps]


@pytest.mark.parametrize(("counts", "p", "k"), [([5, 1, 8, 3], 3, 4), ([2, 2, 2], 3, 7), ([40, 7, 12, 9, 1, 6], 4, 2)])
def test_items_are_dealt_by_the_rule_wherever_a_run_begins(counts, p, k):
    labels = labels_of(counts)
    expected = slow_deal(labels, p, k, 7, 25)
    sampler = PKSampler(labels, p, k, seed=7)
    for step in (*range(25), 3, 24, 2, 2):
        assert sampler(step).tolist() == expected[step]
    assert PKSampler(labels, p, k, seed=7)(19).tolist() == expected[19]


def test_a_generator_is_made_for_each_pile_not_for_each_class_of_each_batch(monkeypatch):
    made = []
    monkeypatch.setattr(batches, "generators", lambda seeds: made.extend(seeds) or generators(seeds))
    sampler = PKSampler(labels_of([40] * 16), 8, 4, seed=5)
    for step in range(20):  # 10 rounds: the 40 items of each class once
        sampler(step)
    assert sorted(made) == [[5, 1, code, 0] for code in range(16)]


def test_generators_are_those_of_numpy():
    rng = np.random.default_rng(0)
    seeds = [[0, 0, 0, 0], [2**32 - 1] * 4, *rng.integers(0, 2**32, (50, 4)).tolist(), [0, 1, 17, 4]]
    for four, found in zip(seeds, generators(seeds), strict=True):
        expected = np.random.default_rng(four)
        assert found.bit_generator.state == expected.bit_generator.state
        np.testing.assert_array_equal(found.permutation(9), expected.permutation(9))
        found.integers(5, dtype=np.uint32)  # leaves half a draw behind, which the next one must not see
    assert list(generators([])) == []
    large = [[2**40, 1, 2, 3], [2**70, 1, 2, 3]]
    for four, found in zip(large, generators(large), strict=True):
        assert found.bit_generator.state == np.random.default_rng(four).bit_generator.state
    with pytest.raises(ValueError, match="non-negative"):
        next(generators([[-1, 0, 0, 0]]))


@pytest.mark.parametrize(
    "make", [lambda: PKSampler(np.arange(3000) % 40, 16, 4, seed=5), lambda: ShuffledSampler(3000, 64, seed=5)]
)
def test_threads_that_share_a_sampler_draw_as_one(make):
    """As `fit` does, which looks at the shapes of its data while it trains on them."""
    shared, alone, steps = make(), make(), [*range(150), *range(60)] * 6
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)  # so that threads take turns within a call
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            drawn = list(pool.map(shared, steps))
    finally:
        sys.setswitchinterval(interval)
    for step, positions in zip(steps, drawn, strict=True):
        np.testing.assert_array_equal(positions, alone(step))
