"""The streamed top-k against a sort of all scores. pitfalls.md: the score matrix is never held whole."""

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from xbm_keras.stages import cosine_scores
from xbm_keras.stages.cosine_scores import Keys
from xbm_keras.stages.hard_top_k import streamed as module
from xbm_keras.stages.hard_top_k.streamed import Search, streamed_top_k


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 24 rows, in groups of 2: the prefilter works where 24 >= 2 * 2 k, and once more where 12 >= 4 k."""
    monkeypatch.setattr(cosine_scores, "CPU", cosine_scores.BlockSize(keys=24 * 3, scores=1 << 20))
    monkeypatch.setattr(cosine_scores, "MIN_BLOCK_ROWS", 24)
    monkeypatch.setattr(cosine_scores, "BLOCK_MULTIPLE", 4)
    monkeypatch.setattr(module, "GROUP", 2)


def make_case(num_rows, seed, num_anchors=5, levels=3):
    """Whole-number keys, so that products are exact and ties are ties; three codes with masks of their own."""
    random = np.random.default_rng(seed)
    anchors = random.integers(-levels, levels + 1, (num_anchors, 3)).astype(np.float32)
    rows = random.integers(-levels, levels + 1, (num_rows, 3)).astype(np.float32)
    codes = random.integers(0, 3, num_rows).astype(np.int64)
    masks = random.random((3, num_anchors)) < 0.6
    return anchors, rows, codes, masks


def keys_of(anchors, rows):
    return Keys(anchors, lambda start, width: tf.slice(rows, [start, 0], [width, -1]))


def masks_of(case):
    """Of the three searches; in the last one code 2 has no penalties."""
    masks = case[3]
    return masks, ~masks, masks | (np.arange(3) == 2)[:, None]


def search(case, k, mode="eager"):
    """Highest first, lowest first, and highest first where few rows have penalties, in one pass."""
    anchors, rows, codes, _ = case

    def both(anchors, rows, codes):
        first, second, third = (tf.where(tf.constant(mask), 0.0, -np.inf) for mask in masks_of(case))
        common = None if mode == "xla" else tf.constant(2, tf.int64)
        searches = [Search(k, 1.0, first), Search(k + 1, -1.0, second), Search(k, 1.0, third, common_code=common)]
        return streamed_top_k(keys_of(anchors, rows), codes, searches)

    return in_mode(both, mode)(*map(tf.constant, (anchors, rows, codes)))


def oracle(case, anchor, sign, mask, k):
    anchors, rows, codes, _ = case
    scores = [sign * float(anchors[anchor] @ row) for row in rows]
    candidates = [row for row in range(len(rows)) if mask[codes[row], anchor]]
    return [(scores[row], row) for row in sorted(candidates, key=lambda row: (-scores[row], row))[:k]]


SIZES = [(num_rows, k) for num_rows in (1, 7, 24, 25, 48, 101) for k in (1, 4, 9)]
COMPILED = [(24, 9), (101, 1), (101, 4)]  # one block, and several; without the prefilter, with it, and with it twice


@pytest.mark.parametrize(
    ("num_rows", "k", "mode"),
    [*((*size, "eager") for size in SIZES), *((*size, "xla") for size in COMPILED)],
)
@pytest.mark.usefixtures("small_blocks")
def test_equals_a_sort_of_all_scores(num_rows, k, mode):
    """One block and several, the last one full or not, with the prefilter and without, many ties, k above M."""
    for seed in range(1 if mode == "xla" else 4):
        case = make_case(num_rows, seed)
        for i, (values, indices) in enumerate(search(case, k, mode)):
            width, sign, mask = ((k, 1, masks_of(case)[0]), (k + 1, -1, masks_of(case)[1]), (k, 1, masks_of(case)[2]))[
                i
            ]
            assert values.shape == indices.shape == (5, width)
            assert ((indices >= 0) & (indices < num_rows)).numpy().all()
            for anchor in range(5):
                expected = oracle(case, anchor, sign, mask, width)
                found = [(v, r) for v, r in zip(values.numpy()[anchor], indices.numpy()[anchor]) if v > -np.inf]  # noqa: B905
                assert found == expected


def test_the_blocks_of_a_real_memory(mode):
    """The sizes in use: several blocks of 4,096 rows of width 1,100, copies of rows among them."""
    random = np.random.default_rng(0)
    rows = random.integers(-2, 3, (9_000, 1_100)).astype(np.float32)
    rows[8_000:8_500] = rows[100:600]
    anchors, codes = rows[[120, 8_900]], np.arange(9_000) % 5
    penalties = tf.constant(np.where(np.arange(5) == 3, -np.inf, 0.0)[:, None] * np.ones(2), tf.float32)

    def call(anchors, rows, codes):  # all of them arguments: constants are copied with what is compiled
        common = None if mode == "xla" else tf.constant(0, tf.int64)
        searches = [Search(33, 1.0, penalties, common_code=common)]
        return streamed_top_k(keys_of(anchors, rows), codes, searches)[0]

    codes = np.where(np.arange(9_000) % 10 < 9, 0, codes).astype(np.int64)  # nearly all rows have the code 0
    codes[120] = 3
    values, indices = in_mode(call, mode)(*map(tf.constant, (anchors, rows, codes)))
    scores = anchors @ rows.T
    scores[:, codes == 3] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :33]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))


@pytest.mark.usefixtures("small_blocks")
def test_the_score_matrix_is_never_held_whole():
    """No tensor in the graph has M rows of scores, nor has the loop more than a block."""
    anchors, rows, codes, masks = make_case(101, seed=0)
    penalties = tf.where(tf.constant(masks), 0.0, -np.inf)

    @tf.function
    def call(anchors, rows, codes):
        return streamed_top_k(keys_of(anchors, rows), codes, [Search(4, 1.0, penalties)])

    outer = call.get_concrete_function(*map(tf.constant, (anchors, rows, codes))).graph
    graphs = [outer, *(f.graph for f in outer._functions.values() if hasattr(f, "graph"))]
    sizes = [t.shape.num_elements() or 0 for graph in graphs for op in graph.get_operations() for t in op.outputs]
    assert max(sizes) <= 101 * 3  # the rows themselves; all scores would be 505


@pytest.mark.usefixtures("small_blocks")
def test_one_trace():
    traces = []
    _, rows, codes, masks = make_case(60, seed=0)
    penalties = tf.where(tf.constant(masks), 0.0, -np.inf)

    @tf.function
    def call(anchors):
        traces.append(1)
        return streamed_top_k(keys_of(anchors, tf.constant(rows)), tf.constant(codes), [Search(4, 1.0, penalties)])

    for seed in range(3):
        call(tf.constant(make_case(1, seed)[0]))
    assert len(traces) == 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("k", "jit_compile"), [(1, False), (4, True), (9, False)])
@pytest.mark.parametrize(("num_anchors", "width"), [(5, 24), (1, 48), (0, 48)])  # by scores, by keys
def test_anchors_of_unknown_number(num_anchors, width, k, jit_compile, monkeypatch):
    """Then blocks follow the number that there is: at most 120 scores, or 24 rows."""
    monkeypatch.setattr(cosine_scores, "CPU", cosine_scores.BlockSize(keys=48 * 3, scores=120))
    case = make_case(101, seed=2, num_anchors=5)
    anchors, rows, codes, masks = case[0][:num_anchors], *case[1:3], case[3][:, :num_anchors]
    penalties = tf.where(tf.constant(masks), 0.0, -np.inf)
    assert int(cosine_scores.block_rows(3, tf.constant(num_anchors))) == width

    @tf.function(input_signature=[tf.TensorSpec([None, 3])], jit_compile=jit_compile)
    def call(anchors):
        keys = keys_of(anchors, tf.constant(rows))
        return streamed_top_k(keys, tf.constant(codes), [Search(k, 1.0, penalties)])[0]

    values, indices = call(tf.constant(anchors))
    assert values.shape == indices.shape == (num_anchors, k)
    for anchor in range(num_anchors):
        found = zip(values[anchor].numpy().tolist(), indices[anchor].numpy().tolist(), strict=True)
        assert [pair for pair in found if pair[0] > -np.inf] == oracle(case, anchor, 1, masks, k)


def test_rows_of_unknown_number():
    """The batch in the role of the memory, its last batch smaller."""
    case = make_case(7, seed=1)
    anchors, rows, codes, masks = case
    penalties = tf.where(tf.constant(masks), 0.0, -np.inf)

    @tf.function(input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.int64)])
    def call(anchors, rows, codes):
        return streamed_top_k(keys_of(anchors, rows), codes, [Search(9, 1.0, penalties)])[0]

    values, indices = call(*map(tf.constant, (anchors, rows, codes)))
    for anchor in range(5):
        found = [r for v, r in zip(values.numpy()[anchor], indices.numpy()[anchor], strict=True) if v > -np.inf]
        assert found == [row for _, row in oracle(case, anchor, 1, masks, 9)]
