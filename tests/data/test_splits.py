"""Who trains, who validates, who tests."""

import numpy as np
import pytest

from xbm_keras.data.sources import DataError, Items
from xbm_keras.data.splits import Splits, split_items, with_neighborhoods_held_out

LABELS = np.repeat([f"c{i:02d}" for i in range(20)], 3)


def items(**columns):
    return Items(np.arange(60).astype(str), LABELS, columns)


def classes(positions):
    return set(LABELS[positions])


def assert_apart(splits):
    parts = [splits.train, splits.validation, splits.test]
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
    assert not classes(splits.train) & classes(splits.validation)
    assert not classes(splits.test) & (classes(splits.train) | classes(splits.validation))


def test_by_fraction_and_seed():
    splits = split_items(items(), test_fraction=0.5, validation_fraction=0.2, seed=1)
    assert_apart(splits)
    assert [len(classes(p)) for p in (splits.train, splits.validation, splits.test)] == [8, 2, 10]
    again = split_items(items(), test_fraction=0.5, validation_fraction=0.2, seed=1)
    np.testing.assert_array_equal(splits.test, again.test)
    other = split_items(items(), test_fraction=0.5, validation_fraction=0.2, seed=2)
    assert classes(other.test) != classes(splits.test)


def test_by_column():
    column = np.where(LABELS < "c10", "train", np.where(LABELS < "c18", "test", "unused"))
    splits = split_items(items(part=column), column="part", validation_fraction=0.3)
    assert_apart(splits)
    assert classes(splits.test) == {f"c{i}" for i in range(10, 18)}
    assert len(classes(splits.validation)) == 3


def test_by_list_and_by_number_of_training_classes():
    splits = split_items(items(), test_classes=["c03", "c07"])
    assert classes(splits.test) == {"c03", "c07"}
    splits = split_items(items(), num_train_classes=15)
    assert classes(splits.test) == {f"c{i}" for i in range(15, 20)}


def test_validation_does_not_depend_on_the_test_items():
    column = np.where(LABELS < "c10", "train", "test")
    fewer = column.copy()
    fewer[-9:] = "unused"
    a, b = (split_items(items(part=c), column="part") for c in (column, fewer))
    np.testing.assert_array_equal(a.validation, b.validation)


def test_by_item():
    splits = split_items(items(), by="item", test_fraction=0.5)
    assert len(splits.test) == 30
    assert classes(splits.test) & classes(splits.train)


def test_query_and_gallery():
    column = np.where(LABELS < "c10", "train", "test")
    role = np.array(["train", "val", "test"] * 20)
    splits = split_items(items(part=column, role=role), column="part", query_column="role")
    assert splits.is_query.sum() == splits.is_gallery.sum() == 10
    assert (role[splits.test][splits.is_query] == "test").all()


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({}, {"column": "part"}, "column 'part', which the data does not have"),
        ({"parts": LABELS}, {"column": "part"}, "did you mean 'parts'"),
        ({"part": LABELS}, {"column": "part"}, "expected both 'train' and 'test'"),
        ({}, {"test_classes": ["nope"]}, "'nope', which is no label"),
        ({}, {"num_train_classes": 2}, "2 training and 18 test classes"),
        ({}, {"num_train_classes": 20}, "20 training and 0 test classes"),
        ({"role": LABELS}, {"query_column": "role"}, "expected one of query, test"),
    ],
)
def test_what_cannot_be_split_is_told(columns, arguments, message):
    with pytest.raises(DataError, match=message):
        split_items(items(**columns), **arguments)


def test_no_labels():
    with pytest.raises(DataError, match="without labels"):
        split_items(Items(np.array(["a", "b"]), None, {}))


def test_neighbourhoods_are_held_out_whole(monkeypatch):
    monkeypatch.setattr("xbm_keras.data.splits.BLOCK_ROWS", 150)
    random = np.random.default_rng(0)
    clusters = random.permutation(np.repeat(np.arange(20), 20))
    features = random.normal(size=(20, 16))[clusters] + 0.01 * random.normal(size=(400, 16))
    splits = Splits(np.arange(40, 360), np.arange(40), np.arange(360, 400))
    held = with_neighborhoods_held_out(splits, features * random.uniform(1, 9, (400, 1)), seed=0)
    assert held.test is splits.test
    np.testing.assert_array_equal(np.union1d(held.train, held.validation), np.arange(360))
    assert len(held.validation) == 40
    sizes = np.bincount(clusters[:360], minlength=20)
    of_validation = np.bincount(clusters[held.validation], minlength=20)
    assert (of_validation == sizes).sum() - (sizes == 0).sum() >= 2  # two neighbourhoods, and next to nothing of others
    assert np.count_nonzero(of_validation) <= 4
    others = [with_neighborhoods_held_out(splits, features, 0, fold).validation for fold in (0, 0, 1)]
    np.testing.assert_array_equal(others[0], held.validation)  # the length of a row says nothing
    np.testing.assert_array_equal(others[0], others[1])
    assert len(np.intersect1d(others[0], others[2])) < 40
    few = with_neighborhoods_held_out(Splits(np.arange(3, 30), np.arange(3), np.arange(30, 40)), features, seed=1)
    assert (len(few.train), len(few.validation)) == (27, 3)
