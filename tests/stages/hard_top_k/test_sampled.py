"""The top-k that a sample leads against the streamed one: the same rows, ties included."""

import numpy as np
import pytest
import tensorflow as tf

from xbm_keras import CircularMemory, HardTopK, NeighborTopK
from xbm_keras.stages import cosine_scores
from xbm_keras.stages.cosine_scores import Keys
from xbm_keras.stages.hard_top_k import candidates, neighbor_table, sampled
from xbm_keras.stages.hard_top_k.neighbor_table import IN_VAIN, NeighborTable
from xbm_keras.stages.hard_top_k.sampled import bounds_of, first_of_lists, is_quicker, ranks, sample_of, sampled_top_k
from xbm_keras.stages.hard_top_k.streamed import Search, streamed_top_k

M, B, K = 3000, 20, 70


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 1,300 rows, in parts of 500; the last one reaches back into the one before it."""
    monkeypatch.setattr(cosine_scores, "MIN_BLOCK_ROWS", 1300)
    monkeypatch.setattr(cosine_scores, "CPU", cosine_scores.BlockSize(keys=1, scores=1))
    monkeypatch.setattr(sampled, "PART", 500)


def keys_of(rows, anchors):
    rows = tf.constant(rows, tf.float32)
    block, take = lambda start, width: tf.slice(rows, [start, 0], [width, -1]), lambda which: tf.gather(rows, which)
    return Keys(tf.constant(anchors, tf.float32), block, take)


def make_case(seed, num_codes=5, common=None, num_rows=M):
    """Whole numbers, so that products are exact and many are equal; masks of rows, by code and anchor."""
    random = np.random.default_rng(seed)
    rows, anchors = random.integers(-6, 7, (num_rows, 8)), random.integers(-6, 7, (B, 8))
    codes = tf.constant(random.integers(0, num_codes, num_rows))
    masks = (random.random((num_codes, B)) < 0.5) | (np.arange(num_codes) == common)[:, None]
    code = None if common is None else tf.constant(common, tf.int64)
    return keys_of(rows, anchors), codes, Search(K, 1.0, tf.where(masks, 0.0, -np.inf), None, code)


def assert_same(found, expected):
    """Where there are fewer than k, some row stands."""
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(*(np.where(expected[0] > -np.inf, each, 0) for each in (a, b)))
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("common", [None, 2])
@pytest.mark.parametrize(("seed", "num_rows"), [*((seed, M) for seed in range(4)), (4, 20_000)])
def test_the_same_rows(seed, num_rows, common):
    keys, codes, search = make_case(seed, common=common, num_rows=num_rows)
    values, rows = streamed_top_k(keys, codes, [search])[0]
    assert ((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -np.inf)).numpy().any()
    assert_same(sampled_top_k(keys, codes, search), (values, rows))


@pytest.mark.parametrize(("num_rows", "rank"), [(4096, 23), (4099, 23), (300, 23), (300, 300)])
def test_a_bound_is_the_score_at_a_rank_or_little_below(num_rows, rank):
    scores = np.random.default_rng(0).standard_normal((num_rows, B)).astype(np.float32)
    bounds = bounds_of(tf.constant(scores), rank)
    places = (scores >= bounds).sum(axis=0)  # its rank, from 1
    assert places.min() >= rank
    assert places.max() <= 1.3 * rank
    assert (bounds_of(tf.constant(scores - np.inf), rank) == -np.inf).all()


def test_fewer_candidates_than_k():
    """An anchor with no row, and one with seven."""
    keys, codes, search = make_case(0)
    few = np.where(np.arange(M) % 400 == 0, 6, np.where(codes.numpy() == 4, 3, codes))
    masks = np.pad(search.penalties.numpy() == 0, [(0, 2), (0, 0)])
    masks[:, :2] = False
    masks[[5, 6], 1] = True
    search = search._replace(penalties=tf.where(masks, 0.0, -np.inf))
    found = sampled_top_k(keys, tf.constant(few), search)
    assert (found[0] > -np.inf).numpy().sum(axis=1)[:3].tolist() == [0, 8, K]
    assert_same(found, streamed_top_k(keys, tf.constant(few), [search])[0])


@pytest.mark.parametrize("what", ["all are equal", "the best are all in the sample", "one anchor is unlike the others"])
def test_a_sample_that_does_not_tell(what):
    """Too many candidates, or too few."""
    random = np.random.default_rng(0)
    rows, anchors = random.standard_normal((M, 8)), random.standard_normal((B, 8))
    if what == "all are equal":
        rows[:] = rows[0]
    elif what == "one anchor is unlike the others":
        anchors[3] = 0
    else:
        rows[sample_of(M)] = 20 * anchors[0]
    keys = keys_of(rows, anchors)
    search = Search(K, 1.0, tf.zeros([1, B]))
    codes = tf.zeros([M], tf.int64)
    assert sampled_top_k(keys, codes, search) is None


def test_no_anchors_and_rows_that_are_had_in_blocks_alone():
    keys, codes, search = make_case(0)
    none = search._replace(penalties=search.penalties[:, :0])
    assert sampled_top_k(keys._replace(anchors=keys.anchors[:0]), codes, none) is None
    assert sampled_top_k(keys._replace(take=None), codes, search) is None


def test_where_it_pays():
    assert is_quicker(K, M)
    assert not is_quicker(sampled.MIN_K - 1, M)
    assert not is_quicker(K, 150)  # where nearly all would be candidates
    assert not is_quicker(K, 0)


def table_of(top_k, num_rows=M, are_equal=False):
    """Of rows at random, or all the same."""
    random = np.random.default_rng(0)
    rows = np.ones((num_rows, 16)) if are_equal else random.standard_normal((num_rows, 16))
    memory = CircularMemory(num_rows, frozen=True)
    memory.build((None, 16))
    memory.prefill(rows, random.integers(0, 30, num_rows), np.arange(num_rows))
    if isinstance(top_k, NeighborTopK):
        top_k.adapt(memory.features.numpy())
    return NeighborTable(memory, top_k.search, top_k.num_known)


@pytest.fixture
def told(monkeypatch):
    """Of each time that a sample was asked, whether it told; the graph is traced, so its search is not eager."""
    asked = []

    def ask(*args):
        found = sampled_top_k(*args)
        asked.append(found is not None)
        return found

    def stream(*args):
        assert not tf.executing_eagerly()
        return streamed_top_k(*args)

    monkeypatch.setattr(candidates, "sampled_top_k", ask)
    monkeypatch.setattr(candidates, "streamed_top_k", stream)
    return asked


@pytest.mark.parametrize("make", [lambda: HardTopK(K, 0), lambda: NeighborTopK(K, 0, centring=0.3)])
def test_a_table_is_of_the_rows_that_a_step_finds(make, told, monkeypatch):
    """All by their own products of float32: where two scores differ in the last bit, so might their order."""
    table = table_of(make())
    found = [table.searched(start) for start in table.starts[-2:]]
    assert told == [True, True]
    assert "_searched" not in vars(table)  # no graph was made
    monkeypatch.setattr(candidates, "is_quicker", lambda k, num_rows: False)
    for start, block in zip(table.starts[-2:], found, strict=True):
        np.testing.assert_array_equal(block, table.searched(start))
    assert told == [True, True]
    assert "_searched" in vars(table)


GUARDS = {"max_score": 0.9}, {"absolute_margin": 0.1}, {"relative_margin": 0.1}
EDGE_K, EDGE = 71, 960  # of so many rows a sample is asked for 71, but not for 72


@pytest.mark.parametrize(
    ("top_k", "rows", "asked"),
    [
        *((lambda guard=guard: HardTopK(K, 0, **guard), {}, 0) for guard in GUARDS),
        (lambda: HardTopK(sampled.MIN_K - 2, 0), {}, 0),
        (lambda: HardTopK(EDGE_K, 0), {"num_rows": EDGE}, 0),
        (lambda: NeighborTopK(EDGE_K, 0), {"num_rows": EDGE}, 0),
        (lambda: HardTopK(K, 0), {"are_equal": True}, IN_VAIN),
        (lambda: NeighborTopK(K, 0, centring=0.0), {"are_equal": True}, IN_VAIN),
    ],
)
def test_a_table_is_searched_by_its_graph_where_a_sample_does_not_tell(top_k, rows, asked, told, monkeypatch):
    monkeypatch.setattr(neighbor_table, "BLOCK", 100)
    table = table_of(top_k(), **rows)
    for start in table.starts[:4]:
        assert (table.searched(start) >= 0).any()
    assert told == [False] * asked
    assert "_searched" in vars(table)


def test_a_sample_is_asked_again_after_a_block_of_which_it_does_not_tell(monkeypatch, told):
    """Anchors without a direction: all rows are as near."""
    monkeypatch.setattr(neighbor_table, "BLOCK", 100)
    table = table_of(HardTopK(K, 0))
    read = table.read
    monkeypatch.setattr(table, "read", lambda start: (read(start)[0] * float(start != 100), *read(start)[1:]))
    for start in table.starts[:4]:
        table.searched(start)
    assert told == [True, False, True, True]


def test_the_edge_of_a_sample_counts_the_own_row():
    assert is_quicker(EDGE_K, EDGE)
    assert not is_quicker(EDGE_K + 1, EDGE)


def test_first_of_lists():
    values = np.float32([0.5, 3, -0.0, 0.0, -1, -np.inf, 1e-40, np.inf, -2.5, -2.5])
    numbers = np.array([9, 8, 7, 6, 5, 4, 2**31 + 3, 2, 1, 0])
    best, which = first_of_lists(ranks(values, numbers), np.array([4, 0, 6]), 3)
    assert which.tolist() == [[8, 9, 6], [0, 0, 0], [2, 2**31 + 3, 5]]
    assert best.tolist() == [[3, 0.5, 0], [-np.inf] * 3, [np.inf, values[6], -1]]
    assert [each.shape for each in first_of_lists(np.zeros(0, int), np.zeros(0, int), 2)] == [(0, 2)] * 2
