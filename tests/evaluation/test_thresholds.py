"""The table of matches, held against counting by hand."""

import numpy as np
import pytest

from xbm_keras.evaluation import thresholds
from xbm_keras.evaluation.thresholds import measure_thresholds, read_thresholds, require_thresholds


@pytest.fixture(scope="module")
def items():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(12), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 30])
    return rng.normal(size=(12, 6))[labels] + 0.4 * rng.normal(size=(len(labels), 6)), labels


@pytest.fixture(scope="module")
def table(items):
    return measure_thresholds(*items)


def test_measures_are_what_counting_gives(items, table):
    vectors, labels = items
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in (0, 40, len(table.similarities) - 1):
        threshold, passed, right, room, unknown = table.similarities[row], 0, 0, 0, 0
        for i in range(len(labels)):
            others = sorted(((float(unit[i] @ unit[j]), j) for j in range(len(labels)) if j != i), reverse=True)
            hits = [j for similarity, j in others[:10] if similarity >= threshold - 1e-6]
            passed += len(hits)
            right += sum(labels[j] == labels[i] for j in hits)
            room += min(10, (labels == labels[i]).sum() - 1)
            unknown += max(s for s, j in others if labels[j] != labels[i]) >= threshold - 1e-6
        np.testing.assert_allclose(table.precision[row, 0], right / passed)
        np.testing.assert_allclose(table.recall[row, 0], right / room)
        np.testing.assert_allclose(table.unknown[row, 0], unknown / len(labels))
    assert (table.precision[:, 1] < table.precision[:, 2]).any()


def test_intervals_draw_classes_not_hits(items, table):
    """Ten copies of each item: ten times the hits, and as sure as before."""
    vectors, labels = items
    half = len(table.similarities) // 2
    rng = np.random.default_rng(0)
    # The rate among drawn classes, one class at a time.
    rates = []
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -1)
    nearest = np.argsort(-scores, axis=1)[:, :10]
    passes = np.take_along_axis(scores, nearest, 1) >= table.similarities[half] - 1e-6
    right = passes & (labels[nearest] == labels[:, None])
    for _ in range(4000):
        drawn = rng.integers(0, 12, 12)
        rates.append(
            sum(right[labels == c].sum() for c in drawn) / max(1, sum(passes[labels == c].sum() for c in drawn))
        )
    np.testing.assert_allclose(table.precision[half, 1:], np.percentile(rates, (5, 95)), atol=0.02)


def test_the_threshold_is_the_lowest_that_is_surely_right_so_often(table):
    threshold = table.threshold_for(0.7)
    at = table.similarities.tolist().index(threshold)
    assert table.precision[at, 1] >= 0.7
    assert at > 0
    assert (table.precision[:at, 1] < 0.7).all()
    assert table.is_match(np.array([[threshold, threshold - 0.01]]), 0.7).tolist() == [[True, False]]
    assert f"{threshold:.3f} or more" in table.told(0.7)


def test_what_is_not_reached_is_said_and_matches_nothing(items):
    vectors, labels = items
    confused = measure_thresholds(vectors, np.random.default_rng(0).permutation(labels))
    assert confused.threshold_for(0.9) is None
    assert not confused.is_match(np.ones(3), 0.9).any()
    assert "0.9 is not reached" in confused.told(0.9)
    with pytest.raises(ValueError, match=r"Received precision=1\.5"):
        confused.threshold_for(1.5)


def test_a_table_is_stored_beside_a_model_and_read_again(table, tmp_path):
    assert read_thresholds(tmp_path) is None
    with pytest.raises(ValueError, match=r"has no thresholds\.json"):
        require_thresholds(tmp_path)
    table.write(tmp_path)
    back = require_thresholds(tmp_path)
    np.testing.assert_allclose(back.precision, table.precision, atol=1e-6)
    assert (back.num_items, back.num_classes) == (107, 12)
    (tmp_path / thresholds.FILE).write_text('{"similarities": [1]}')
    with pytest.raises(ValueError, match="damaged"):
        read_thresholds(tmp_path)


def test_labels_that_say_nothing_give_no_table():
    assert measure_thresholds(np.eye(4), np.arange(4)) is None
    assert measure_thresholds(np.eye(4), np.zeros(4)) is None
    with pytest.raises(ValueError, match="one label for each"):
        measure_thresholds(np.eye(4), np.zeros(3))
