"""Search and metrics over whole sets against loops; what must not matter; the callback inside `fit`."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.fresh_processes import run_fresh
from tests.reference import ranking, retrieval_metrics
from xbm_keras.evaluation import exact_search
from xbm_keras.evaluation.retrieval import evaluate_retrieval, score_queries

SMALLEST = 1e-6  # megabytes: the narrowest blocks that there are


def signs(random, num_items, width=4):
    """Vectors of +1 and -1: of length 2 or 4, so cosines are exact in any order of summation, and ties are many."""
    return random.choice([-1.0, 1.0], (num_items, width))


def make_sets():
    """Vectors and labels of many kinds, by name."""
    random = np.random.default_rng(0)
    normal = random.normal
    return {
        "random": (normal(size=(150, 6)), random.integers(0, 12, 150)),
        "many ties": (signs(random, 150), random.integers(0, 9, 150)),
        "all equal": (np.ones((40, 5)), random.integers(0, 4, 40)),
        "zero rows": (np.where(random.random((60, 1)) < 0.3, 0, signs(random, 60)), random.integers(0, 5, 60)),
        "imbalanced": (normal(size=(160, 5)), np.concatenate([np.zeros(100), np.arange(60) // 3 + 1]).astype(int)),
        "singletons": (normal(size=(90, 5)), np.concatenate([np.arange(60), np.repeat([70, 71], 15)])),
        "one class": (normal(size=(30, 5)), np.zeros(30, int)),
        "two items": (normal(size=(2, 3)), np.array([5, 5])),
        "three items": (normal(size=(3, 3)), np.array([5, 5, 6])),
        "one dimension": (normal(size=(50, 1)), random.integers(0, 5, 50)),
    }


SETS = make_sets()


@pytest.mark.parametrize("name", SETS)
def test_leave_one_out_against_loops(name):
    vectors, labels = SETS[name]
    found = evaluate_retrieval(vectors, labels, counts=True)
    assert found == pytest.approx(retrieval_metrics(vectors, labels), abs=1e-9)
    assert all(type(value) in (int, float) for value in found.values())


@pytest.mark.parametrize("name", SETS)
def test_query_and_gallery_against_loops(name):
    vectors, labels = SETS[name]
    is_query = np.arange(len(labels)) % 3 == 0
    parts = (vectors[is_query], labels[is_query], vectors[~is_query], labels[~is_query])
    ks = (2, 7)
    assert evaluate_retrieval(*parts, ks, counts=True) == pytest.approx(retrieval_metrics(*parts, ks), abs=1e-9)


@pytest.mark.parametrize(("class_size", "ks"), [(3, (1,)), (3, (1, 5, 10)), (200, (1, 10))], ids=str)
def test_several_blocks_against_loops(class_size, ks):
    """Three blocks of the gallery: with groups, where lists are short, and without."""
    random = np.random.default_rng(1)
    gallery, queries = signs(random, 1500, 16), signs(random, 130, 16)
    labels, query_labels = np.arange(1500) // class_size, random.integers(0, 1500 // class_size, 130)
    parts = (queries, query_labels, gallery, labels, ks)
    assert evaluate_retrieval(*parts, memory_mb=SMALLEST) == pytest.approx(
        {name: value for name, value in retrieval_metrics(*parts).items() if not name.startswith("num_")}
    )


@pytest.mark.parametrize(
    ("num_rows", "k", "block"), [(1, 1, 9), (700, 5, 512), (1600, 5, 512), (1600, 5, 9999), (1600, 1600, 512)]
)
@pytest.mark.parametrize("width", [4, 16])
def test_positions_against_loops(num_rows, k, block, width):
    """Among ties, inside groups and across them; and among items that score below the zeros at the end of a block."""
    random = np.random.default_rng(2)
    gallery, queries = signs(random, num_rows, width), signs(random, 11, width)
    gallery[-3:], queries[0] = 1, -1
    found = exact_search.search_blocks(queries, exact_search.to_blocks(gallery, block), num_rows, k)
    np.testing.assert_array_equal(found, [ranking(query, gallery)[:k] for query in queries])


@pytest.mark.parametrize(("num_rows", "width"), [(9217, 513), (23_401, 600)])
@pytest.mark.parametrize("k", [3, 20])
def test_no_block_lies_past_the_end(num_rows, width, k):
    """Of so many blocks that rounding their width up saves one. All scores are below the zeros at the end."""
    random = np.random.default_rng(8)
    gallery, queries = random.integers(1, 4, (num_rows, 5)), -random.integers(1, 4, (11, 5))
    blocks, whole = exact_search.to_blocks(gallery, width), exact_search.to_blocks(gallery, 1 << 20)
    assert (blocks.shape[0] - 1) * blocks.shape[2] < num_rows <= blocks.shape[0] * blocks.shape[2]
    expected = exact_search.search_blocks(queries, whole, num_rows, k)
    np.testing.assert_array_equal(exact_search.search_blocks(queries, blocks, num_rows, k), expected)


def test_what_the_counts_count():
    vectors, labels = SETS["singletons"]
    found = evaluate_retrieval(vectors, labels, counts=True)
    assert (found["num_queries"], found["num_without_match"]) == (30, 60)
    assert set(evaluate_retrieval(vectors, labels)) == set(found) - {"num_queries", "num_without_match"}


def test_items_without_a_match_stay_in_the_gallery_of_others():
    vectors = np.array([[1, 0], [1, 0.2], [1, 0.1]])  # the third lies between the first two
    assert evaluate_retrieval(vectors, ["a", "a", "b"], ks=[1])["recall_at_1"] == 0


def test_the_item_itself_is_left_out_by_position():
    """Its copy of another class is found first, though both score 1; and a query need not be its own nearest."""
    vectors = np.array([[3.0, 4], [3, 4], [1, 0], [0, 0], [0, 0]])
    labels = np.array([0, 1, 0, 2, 2])
    # Item 0 ranks 1 2 3 4; item 2 ranks 0 1 3 4; items 3 and 4 score 0 with all: 0 1 2 and the other.
    expected = {"recall_at_1": (0 + 1 + 0 + 0) / 4, "recall_at_2": (1 + 1 + 0 + 0) / 4, "map_at_r": (0 + 1 + 0 + 0) / 4}
    found = evaluate_retrieval(vectors, labels, ks=(1, 2), counts=True)
    assert {name: found[name] for name in expected} == expected
    assert found["num_without_match"] == 1


@pytest.mark.parametrize("width", [3, 33, 64, 100, 384, 1280])
def test_copies_tie_wherever_they_stand(width):
    """The first item is of another class, then they alternate; a copy that scored a bit higher would come first."""
    random = np.random.default_rng(width)
    for num_copies in (5, 97, 1003, 20_011):
        copies = np.repeat(random.normal(size=(1, width)).astype("float32"), num_copies, axis=0)
        labels = np.arange(num_copies) % 2
        queries = np.repeat(random.normal(size=(1, width)), 5, axis=0)
        blocks = exact_search.to_blocks(copies, 1 << 20)
        k = min(50, num_copies)
        np.testing.assert_array_equal(exact_search.search_blocks(queries, blocks, num_copies, k), [np.arange(k)] * 5)
        found = evaluate_retrieval(queries, [1] * 5, copies[:97], labels[:97], ks=(1, 2))
        assert (found["recall_at_1"], found["recall_at_2"]) == (0, 1)


@pytest.mark.parametrize("width", [16, 100])
def test_how_the_work_is_divided_does_not_matter(width):
    """Not by a single bit: blocks of the gallery, lists with and without groups, and whoever shares the chunk."""
    random = np.random.default_rng(3)
    vectors = np.repeat(random.normal(size=(1100, width)).astype("float32"), 2, axis=0)
    labels = np.concatenate([random.integers(0, 700, 1400), np.full(800, 999)])
    random.shuffle(labels)
    first = evaluate_retrieval(vectors, labels)
    assert 0 < first["map_at_r"] < 1
    for memory_mb in (SMALLEST, 4, 8, 1000):
        assert evaluate_retrieval(vectors, labels, memory_mb=memory_mb) == first
    chosen = np.arange(0, 1200, 10)
    together = evaluate_retrieval(vectors[chosen], labels[chosen], vectors, labels)
    alone = [evaluate_retrieval(vectors[[i]], labels[[i]], vectors, labels)["map_at_r"] for i in chosen]
    assert np.mean(alone) == pytest.approx(together["map_at_r"], abs=1e-12)


def test_the_order_of_items_does_not_matter_without_ties():
    vectors, labels = SETS["random"]
    order = np.random.default_rng(4).permutation(len(labels))
    assert evaluate_retrieval(vectors[order], labels[order]) == pytest.approx(evaluate_retrieval(vectors, labels))


def test_the_order_of_queries_never_matters_that_of_the_gallery_breaks_ties():
    random = np.random.default_rng(5)
    queries, query_labels, gallery = signs(random, 100), random.integers(0, 5, 100), signs(random, 200)
    labels = random.integers(0, 5, 200)
    expected = evaluate_retrieval(queries, query_labels, gallery, labels)
    order = random.permutation(100)
    assert evaluate_retrieval(queries[order], query_labels[order], gallery, labels) == pytest.approx(expected)
    assert evaluate_retrieval(queries, query_labels, gallery[::-1], labels[::-1]) != pytest.approx(expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_lengths_and_dtypes_do_not_matter(dtype):
    random = np.random.default_rng(6)
    vectors, labels = random.integers(-9, 10, (80, 8)), random.integers(0, 8, 80)
    expected = evaluate_retrieval(vectors.astype("float64"), labels)
    assert evaluate_retrieval(vectors.astype(dtype), labels) == pytest.approx(expected)
    for scale in (1e-300, 1e-30, 1e-6, 1e30, 1e300):
        lengths = scale * random.uniform(1, 5, (80, 1))
        assert evaluate_retrieval(vectors * lengths, labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    "labels_of",
    [
        lambda numbers: numbers.astype("uint8"),
        lambda numbers: numbers - 5,
        lambda numbers: numbers + 2**62,
        lambda numbers: numbers.tolist(),
        lambda numbers: np.array([f"Käse {n}" for n in numbers]),
        lambda numbers: np.array([f"Käse {n}" for n in numbers], dtype=object),
        lambda numbers: [f"{n}" for n in numbers],
        lambda numbers: np.array([b"%d" % n for n in numbers]),
        lambda numbers: [f"class {'x' * n}" for n in numbers],
    ],
)
def test_labels_of_any_type(labels_of):
    vectors, numbers = SETS["random"]
    labels = labels_of(numbers)
    assert evaluate_retrieval(vectors, labels) == pytest.approx(evaluate_retrieval(vectors, numbers))
    half = (vectors[:75], labels[:75], vectors[75:], labels[75:])
    expected = evaluate_retrieval(vectors[:75], numbers[:75], vectors[75:], numbers[75:])
    assert evaluate_retrieval(*half) == pytest.approx(expected)


X, Y = np.eye(4), np.array([0, 0, 1, 1])
NAN = np.where(np.arange(4)[:, None] > 1, np.nan, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, Y[:3]), r"queries of shape \(4, 4\) with labels of shape \(3,\); expected \[N, E\].*Give"),
        ((X, Y[:, None]), r"labels of shape \(4, 1\)"),
        ((X[0], Y), r"queries of shape \(4,\)"),
        ((X[None], Y), r"queries of shape \(1, 4, 4\)"),
        ((X[:0], Y[:0]), r"queries of shape \(0, 4\)"),
        ((X[:, :0], Y), r"queries of shape \(4, 0\)"),
        ((X, Y, X[:0], Y[:0]), r"gallery of shape \(0, 4\)"),
        ((X, Y, X, Y[:2]), r"gallery of shape \(4, 4\) with labels of shape \(2,\)"),
        ((X, Y, X[:, :3], Y), "queries of width 4 and a gallery of width 3; expected one width. Embed"),
        ((X, Y, X), "gallery without gallery_labels; expected both"),
        ((X, Y, None, Y), "gallery_labels without gallery; expected both"),
        ((NAN, Y), "queries with NaN or infinite values in 2 of 4 rows: 2, 3; expected finite vectors. Leave"),
        ((X, Y, np.full((12, 4), np.inf), np.arange(12)), r"gallery .* 12 of 12 rows: 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.;"),
        ((X, np.arange(4)), "4 queries none of which has a match among 4 items; expected labels .* Check"),
        ((X, Y, X, Y + 2), "4 queries none of which has a match"),
        ((X, Y, X, Y.astype(str)), "labels of dtype int64 and <U21; expected integers for all, or strings for all"),
        ((X, np.array([0, 0, np.nan, 1])), "labels of dtype float64 .* leave out items without a label"),
        ((X, np.array(["a", "a", None, "b"])), "labels of dtype object"),
        ((X, Y, X, Y.astype("uint64")), "labels of dtype int64 and uint64"),  # NumPy would make floats of them
        ((X, Y, None, None, ()), r"ks=\(\)"),
        ((X, Y, None, None, (0, 1)), r"ks=\(0, 1\) .* expected ks of 1 or more"),
    ],
)
def test_what_cannot_be_evaluated_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(*arguments)


def test_one_trace_for_all_sizes():
    evaluate_retrieval(*SETS["random"])
    traces = exact_search._nearest.experimental_get_tracing_count()
    for name in ("many ties", "imbalanced", "two items"):
        evaluate_retrieval(*SETS[name], ks=(3,), memory_mb=SMALLEST)
    assert exact_search._nearest.experimental_get_tracing_count() == traces == 1


def test_nearest_is_the_ranking_of_the_oracle():
    random = np.random.default_rng(3)
    queries, gallery = random.normal(size=(101, 5)) * 9, random.normal(size=(230, 5))
    positions, similarities = exact_search.nearest(queries, gallery, k=7)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery)]
    scores = unit[0] @ unit[1].T
    np.testing.assert_array_equal(positions, np.argsort(-scores, axis=1)[:, :7])
    np.testing.assert_allclose(similarities, -np.sort(-scores, axis=1)[:, :7], atol=1e-6)
    positions, _ = exact_search.nearest(gallery, k=1000)
    assert positions.shape == (230, 229)
    assert not (positions == np.arange(230)[:, None]).any()


@pytest.mark.parametrize("setting", [True, False])
def test_all_bits_of_float32_are_used_and_the_setting_comes_back(monkeypatch, setting):
    config, search, during = tf.config.experimental, exact_search._nearest, []
    read, write = config.tensor_float_32_execution_enabled, config.enable_tensor_float_32_execution
    monkeypatch.setattr(exact_search, "first_columns", lambda *a: during.append(read()))  # and leaves it to the next
    monkeypatch.setattr(exact_search, "_nearest", lambda *a: during.append(read()) or search(*a))
    before = read()
    try:
        write(setting)
        evaluate_retrieval(*SETS["random"])
        assert (during, read()) == ([False] * 4, setting)
    finally:
        write(before)


def test_the_score_matrix_is_never_held():
    """Of 12,000 items it would take 576 MB."""
    code = """
        import resource
        import numpy as np
        from xbm_keras.evaluation.retrieval import evaluate_retrieval

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        x, y = np.random.default_rng(0).normal(size=(12_000, 8)).astype("float32"), np.arange(12_000) // 5
        evaluate_retrieval(x[:200], y[:200])
        before = peak()
        evaluate_retrieval(x, y)
        print(peak() - before)
    """
    assert float(run_fresh(re.sub("^ {8}", "", code, flags=re.M))) < 150


def test_frozen_sentence_features(data_dir):
    """The number of an independent implementation, on the test intents of CLINC150."""
    with np.load(data_dir / "clinc150/minilm_features.npz") as data:
        is_test = data["split"] == "test"
        found = evaluate_retrieval(data["features"][is_test], data["label"][is_test], counts=True)
    assert found["map_at_r"] == pytest.approx(0.652, abs=0.001)
    assert found["num_queries"] == 11_250


def test_a_sample_of_the_queries_scores_as_among_all():
    vectors, labels = np.random.default_rng(3).normal(size=(300, 8)), np.arange(300) % 7
    order, scores = score_queries(vectors, labels)
    chosen = np.array([290, 3, 17, 44])
    some, of_some = score_queries(vectors, labels, chosen=chosen)
    assert sorted(some) == sorted(chosen)
    for name, values in of_some.items():
        np.testing.assert_allclose(values, scores[name][[list(order).index(each) for each in some]], err_msg=name)
