"""Items of the same content, where they should not be."""

import numpy as np

from xbm_keras.data.duplicates import contents_of, find_duplicates
from xbm_keras.data.splits import Splits


def test_contents_are_those_of_equal_rows(monkeypatch):
    monkeypatch.setattr("xbm_keras.data.duplicates.BLOCK_ROWS", 2)
    rows = np.array([[1.0, 2], [3, 4], [1, 2], [2, 1], [3, 4]], np.float32)
    numbers = contents_of(rows)
    assert (numbers[0], numbers[1]) == (numbers[2], numbers[4])
    assert len(set(numbers.tolist())) == 3


def test_what_is_in_two_classes_and_what_on_both_sides():
    #                    a  b  c  d  e  f  g  h  i
    contents = np.array([5, 5, 7, 7, 7, 9, 9, 2, 3])
    labels = np.array([0, 1, 0, 0, 0, 2, -1, 3, 3])
    splits = Splits(np.array([0, 2, 5]), np.array([1, 3]), np.array([4, 6, 7, 8]))
    found = find_duplicates(contents, labels, splits, np.array(list("abcdefghi")))
    several, both = found["in_several_classes"], found["in_train_and_test"]
    assert (several.num_contents, several.num_items, several.examples) == (1, 2, [["a", "b"]])
    assert (both.num_contents, both.num_items, both.examples) == (2, 5, [["c", "d", "e"], ["f", "g"]])


def test_without_labels_no_class_is_meant():
    splits = Splits(np.array([0]), np.array([1]), np.array([2, 3]))
    for labels in (np.full(4, -1), np.zeros(4, int)):
        found = find_duplicates(np.array([1, 1, 1, 2]), labels, splits, np.array(list("abcd")))
        assert found["in_several_classes"].num_contents == 0
        assert found["in_train_and_test"].examples == [["a", "b", "c"]]


def test_of_many_some_are_named():
    contents = np.repeat(np.arange(20), 2)
    splits = Splits(np.arange(0, 40, 2), np.arange(0), np.arange(1, 40, 2))
    found = find_duplicates(contents, np.zeros(40, int), splits, np.arange(40).astype(str))
    assert found["in_several_classes"].num_items == 0
    assert found["in_train_and_test"].num_items == 40
    assert len(found["in_train_and_test"].examples) == 8
