"""What a search is to keep."""

import numpy as np
import pytest

from xbm_keras.evaluation.intervals import bootstrap_interval, lower_bound
from xbm_keras.evaluation.promises import PromisedItems, parse_promises


def test_promises_are_read_as_they_are_written():
    one, other = parse_promises("overlap@10 >= 0.95 and map_at_r>0.6")
    assert (one.metric, one.k, one.least, one.is_strict) == ("overlap", 10, 0.95, False)
    assert (other.name, str(other)) == ("map_at_r", "map_at_r > 0.6")
    assert one.is_kept_by(0.95)
    assert not other.is_kept_by(0.6)


@pytest.mark.parametrize(
    "text", ["", "overlap >= 0.9", "overlap@10 = 0.9", "overlap@10 >= 95", "recall@0 > 0.1", "ndcg@10 > 0.3"]
)
def test_what_is_no_promise_is_refused(text):
    with pytest.raises(ValueError, match=r"expected overlap@K.* such as .overlap@10 >= 0\.95"):
        parse_promises(text)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3, -1], 6)
    return rng.normal(size=(30, 5)).astype("float32"), labels, rng.permuted(np.tile(np.arange(30), (30, 1)), axis=1)


def test_values_are_what_counting_gives(data):
    features, labels, orders = data
    items = PromisedItems(features, labels, parse_promises("overlap@3 > 0.1 and recall@2 > 0.1 and map_at_r > 0.1"), 12)
    assert items.queries.tolist() == list(range(12))  # those that ask, and have a class
    found = np.stack([[j for j in orders[i] if j != i] for i in items.queries])[:, : items.num_found]
    assert items.num_found == 5
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    overlap, recall, precision = [], [], []
    for i, hits in zip(items.queries, found, strict=True):
        near = sorted((j for j in range(30) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:3]
        overlap.append(len(set(near) & set(hits[:3])) / 3)
        right = [labels[j] == labels[i] for j in hits]
        recall.append(float(any(right[:2])))
        precision.append(sum(sum(right[: r + 1]) / (r + 1) for r in range(5) if right[r]) / 5)
    for values, expected in zip(items.values(found), (overlap, recall, precision), strict=True):
        np.testing.assert_allclose(values, expected)


def test_bounds_draw_classes_where_all_queries_have_one(data):
    features, labels, _ = data
    values = np.repeat([0.2, 0.9, 0.5, 0.7], 6)
    items = PromisedItems(features[:24], labels[:24], parse_promises("overlap@3 > 0.1"))
    assert items.bounds([values]) == [lower_bound(values, labels[:24])]
    assert PromisedItems(features, labels, items.promises).units is None
    assert PromisedItems(features, None, items.promises).bounds([values]) == [lower_bound(values)]
    low = lower_bound(values)
    assert bootstrap_interval(values)[0] < low < values.mean()  # one-sided is nearer than two-sided
    assert lower_bound(values, labels[:24]) < low


def test_a_promise_of_classes_needs_some(data):
    for labels in (None, np.full(30, -1), np.arange(30)):
        with pytest.raises(ValueError, match="of which 0 can be asked"):
            PromisedItems(data[0], labels, parse_promises("recall@1 > 0.5"))
