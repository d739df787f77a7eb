"""What a search is to keep."""

import numpy as np
import pytest

from xbm_keras.evaluation.intervals import bootstrap_interval, lower_bound
from xbm_keras.evaluation.promises import PromisedItems, PromisedPairs, parse_promises


def test_promises_are_read_as_they_are_written():
    one, other = parse_promises("overlap@10 >= 0.95 and map_at_r>0.6")
    assert (one.metric, one.k, one.least, one.is_strict) == ("overlap", 10, 0.95, False)
    assert (other.name, str(other)) == ("map_at_r", "map_at_r > 0.6")
    assert one.is_kept_by(0.95)
    assert not other.is_kept_by(0.6)


@pytest.mark.parametrize(
    "text", ["", "overlap >= 0.9", "overlap@10 = 0.9", "overlap@10 >= 95", "recall@0 > 0.1", "ndcg > 0.3"]
)
def test_what_is_no_promise_is_refused(text):
    with pytest.raises(ValueError, match=r"expected overlap@K.*Write it as .overlap@10 >= 0\.95"):
        parse_promises(text)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3, -1], 6)
    return rng.normal(size=(30, 5)).astype("float32"), labels, rng.permuted(np.tile(np.arange(30), (30, 1)), axis=1)


def test_values_are_what_counting_gives(data):
    features, labels, orders = data
    items = PromisedItems(features, labels, parse_promises("overlap@3 > 0.1 and recall@2 > 0.1 and map_at_r > 0.1"), 12)
    assert items.own.tolist() == list(range(12))  # those that ask, and have a class
    np.testing.assert_array_equal(items.queries, features[:12])
    assert items.num_found == 6  # with itself, which may be anywhere
    with_own = orders[:12, :6]
    found = [[j for j in row if j != i][:5] for i, row in enumerate(with_own)]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    overlap, recall, precision = [], [], []
    for i, hits in zip(items.own, found, strict=True):
        near = sorted((j for j in range(30) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:3]
        overlap.append(len(set(near) & set(hits[:3])) / 3)
        right = [labels[j] == labels[i] for j in hits]
        recall.append(float(any(right[:2])))
        precision.append(sum(sum(right[: r + 1]) / (r + 1) for r in range(5) if right[r]) / 5)
    for values, expected in zip(items.values(with_own), (overlap, recall, precision), strict=True):
        np.testing.assert_allclose(values, expected)


def test_bounds_draw_classes_where_all_queries_have_one(data):
    features, labels, _ = data
    values = np.repeat([0.2, 0.9, 0.5, 0.7], 6)
    items = PromisedItems(features[:24], labels[:24], parse_promises("overlap@3 > 0.1"))
    assert items.bounds([values]) == [lower_bound(values, labels[:24])]
    assert PromisedItems(features, labels, items.promises).bounds([values]) == [lower_bound(values)]
    assert PromisedItems(features, None, items.promises).bounds([values]) == [lower_bound(values)]
    low = lower_bound(values)
    assert bootstrap_interval(values)[0] < low < values.mean()  # one-sided is nearer than two-sided
    assert lower_bound(values, labels[:24]) < low


def test_a_promise_of_classes_needs_some(data):
    for labels in (None, np.full(30, -1), np.arange(30)):
        with pytest.raises(ValueError, match="of which 0 can be asked"):
            PromisedItems(data[0], labels, parse_promises("recall@1 > 0.5"))


def test_values_of_pairs_are_what_counting_gives():
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(2, 4)), rng.normal(size=(10, 4))
    promises = parse_promises("ndcg@3 > 0.1 and mrr@3 > 0.1 and recall@2 > 0.1 and overlap@2 > 0.1 and recall@4 > 0.1")
    trial = PromisedPairs(queries, documents, np.array([[3, 5], [0, -1]]), np.array([[2.0, 1], [1, 0]]), promises)
    assert trial.num_found == 4
    cosines = (queries @ documents.T) / np.linalg.norm(documents, axis=1)
    second = np.argsort(-cosines[1])
    found = np.array([[5, 9, 3, 1], [second[1], *[j for j in second[2:] if j][:2], 0]])
    ndcg, mrr, recall, overlap, more = trial.values(found)
    np.testing.assert_allclose(ndcg, [(1 + 2 / 2) / (2 + 1 / np.log2(3)), 0])
    assert (mrr.tolist(), recall.tolist(), more.tolist()) == ([1, 0], [0.5, 0], [1, 1])
    nearest = set(np.argsort(-cosines[0])[:2].tolist())
    np.testing.assert_allclose(overlap, [len(nearest & {5, 9}) / 2, 0.5])
    assert trial.bounds([np.array([0.2, 0.9])]) == [lower_bound(np.array([0.2, 0.9]))]


def test_a_promise_is_of_its_kind_of_data(data):
    for metric in ("ndcg@10", "mrr@10"):
        with pytest.raises(ValueError, match=f"target {metric} > 0.5 for a run on items; expected overlap@K"):
            PromisedItems(data[0], data[1], parse_promises(f"recall@1 > 0.5 and {metric} > 0.5"))
    for metric in ("map_at_r", "r_precision"):
        with pytest.raises(
            ValueError, match=f"target {metric} > 0.5 for a run on queries and documents; expected ndcg"
        ):
            PromisedPairs(data[0], data[0], np.zeros((30, 1), int), np.ones((30, 1)), parse_promises(f"{metric} > 0.5"))
    with pytest.raises(ValueError, match="with 1 queries; expected two"):
        PromisedPairs(data[0][:1], data[0], np.zeros((1, 1), int), np.ones((1, 1)), parse_promises("mrr@3 > 0.5"))
