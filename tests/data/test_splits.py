"""Who trains, who validates, who tests."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from tests.conftest import ROOT
from xbm_keras.config.yaml_files import load_config
from xbm_keras.data.arrays import Features
from xbm_keras.data.labels import Labels
from xbm_keras.data.sources import DataError, ImageTable, Items
from xbm_keras.data.splits import Splits, only_test, split_items, with_neighborhoods_held_out
from xbm_keras.experiment import build, loading

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
    splits = split_items(items(), test=0.5, validation_fraction=0.2, seed=1)
    assert_apart(splits)
    assert [len(classes(p)) for p in (splits.train, splits.validation, splits.test)] == [8, 2, 10]
    again = split_items(items(), test=0.5, validation_fraction=0.2, seed=1)
    np.testing.assert_array_equal(splits.test, again.test)
    other = split_items(items(), test=0.5, validation_fraction=0.2, seed=2)
    assert classes(other.test) != classes(splits.test)


def test_by_column():
    column = np.where(LABELS < "c10", "train", np.where(LABELS < "c18", "test", "unused"))
    splits = split_items(items(part=column), column="part", validation_fraction=0.3)
    assert_apart(splits)
    assert classes(splits.test) == {f"c{i}" for i in range(10, 18)}
    assert len(classes(splits.validation)) == 3


def test_by_list_and_by_number_of_training_classes():
    splits = split_items(items(), test=["c03", "c07"])
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
    splits = split_items(items(), by="item", test=0.5)
    assert len(splits.test) == 30
    assert classes(splits.test) & classes(splits.train)


def test_query_and_gallery():
    column = np.where(LABELS < "c10", "train", "test")
    role = np.array(["train", "val", "test"] * 20)
    splits = split_items(items(part=column, role=role), column="part", query_column="role")
    assert splits.is_query.sum() == splits.is_gallery.sum() == 10
    assert (role[splits.test][splits.is_query] == "test").all()
    named = {"query_values": ["train", "val"], "gallery_values": ["test"]}
    splits = split_items(items(part=column, role=role), column="part", query_column="role", **named)
    np.testing.assert_array_equal(splits.is_query, role[splits.test] != "test")
    np.testing.assert_array_equal(splits.is_gallery, role[splits.test] == "test")
    np.testing.assert_array_equal(only_test(items(role=role), "role", **named).is_gallery, role == "test")


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({}, {"column": "part"}, "column 'part', which the data does not have"),
        ({"parts": LABELS}, {"column": "part"}, "did you mean 'parts'"),
        ({"part": LABELS}, {"column": "part"}, "expected both 'train' and 'test'"),
        ({}, {"test": ["nope"]}, "'nope', which is no label"),
        ({}, {"num_train_classes": 2}, "2 training and 18 test classes.* change data.split.num_train_classes, which"),
        ({}, {"test": 0.9}, "2 training and 18 test classes.* --set data.split.test=0.2"),
        (
            {"part": np.where(np.arange(60) < 6, "train", "test")},
            {"column": "part", "num_train_classes": 9},
            "2 training and 18 test classes.* let others test by the column 'part'",
        ),
        ({}, {"num_train_classes": 20}, "20 training and 0 test classes"),
        ({"role": LABELS}, {"query_column": "role"}, "expected one of query, test"),
        ({}, {"test": ["c033"]}, "'c033', which is no label of the data; did you mean 'c03'"),
        (
            {"part": np.where(np.arange(60) < 31, "train", "test")},
            {"column": "part"},
            "column 'part', which puts items of 1 classes into both 'train' and 'test': c10; .*data.split.by=item",
        ),
        (
            {"part": np.array(["train", "test", "val"] * 20)},
            {"column": "part"},
            "of 20 classes into both.*: c00, c01, c02, c03, c04, c05, c06, c07, ...;",
        ),
    ],
)
def test_what_cannot_be_split_is_told(columns, arguments, message):
    with pytest.raises(DataError, match=message):
        split_items(items(**columns), **arguments)


def test_by_item_a_class_may_be_on_both_sides():
    part = np.array(["train", "test", "val"] * 20)
    splits = split_items(items(part=part), column="part", by="item")
    np.testing.assert_array_equal(splits.test, np.arange(1, 60, 3))


@pytest.mark.parametrize("part", [np.array([b"train", b"test"], object), np.array([b"train", b"test"]), None])
def test_a_column_of_bytes_or_with_gaps(part):
    values = np.array(["train", None, "test"], object) if part is None else part[[0, 0, 1]]
    column = values[np.repeat([0, 1, 2], [30, 3, 27])]
    splits = split_items(items(part=column), column="part")
    np.testing.assert_array_equal(splits.test, np.arange(33, 60))
    assert len(splits.train) + len(splits.validation) == (33 if part is not None else 30)


def test_items_without_a_label_are_in_no_class():
    names = LABELS.astype(object)
    names[::3] = None
    splits = split_items(Items(np.arange(60).astype(str), names, {}))
    assert_apart(splits)
    together = np.concatenate([splits.train, splits.validation, splits.test])
    np.testing.assert_array_equal(np.sort(together), np.flatnonzero(np.arange(60) % 3))


def test_named_classes_are_chosen_by_name_or_number():
    codes = np.repeat(np.arange(20), 3)
    labels = Labels(codes, [f"c{i:02d}" for i in range(20)], list(range(100, 120)))
    numbered = Items(np.arange(60).astype(str), labels, {})
    for chosen in (["c03", "c07"], [103, "107"]):
        assert classes(split_items(numbered, test=chosen).test) == {"c03", "c07"}


def digest(splits):
    parts = (splits.train, splits.validation, splits.test)
    return hashlib.sha256(b"".join(part.astype(np.int64).tobytes() + b"|" for part in parts)).hexdigest()[:16]


@pytest.mark.parametrize(
    ("name", "by_column", "by_seed"),
    [
        ("clinc150", "453d3d115b48659f", "3ed34bf819b5818a"),
        ("clinc150_text", "f2102ee807d76e57", "20452eb9d1e38ce1"),
        ("grocery", "454d6d0180a7129c", "8e3a4d1028284a08"),
        ("omniglot", "1b0b1cece7d3767c", "2c5c61be290888bf"),
        ("compress_clinc150", "6895de3ba37c0c87", "df3737d9021dc404"),
        ("compress_grocery", "d5e51bd7e6ad4ead", "202a5e7b8f29062c"),
    ],
)
def test_configs_are_split_as_ever(data_dir, monkeypatch, name, by_column, by_seed):
    """As version 0.1.0 split them: the documented results are of these items."""
    monkeypatch.setenv("XBM_KERAS_DATA", str(data_dir))
    config = load_config(str(ROOT / f"configs/{name}.yaml"))
    found = build.make_source(config).items
    arguments = config.data.split.model_dump()
    if config.is_without_labels:
        arguments["validation_fraction"] = loading.VALIDATION_WITHOUT_LABELS
    assert digest(split_items(found, **arguments)) == by_column
    assert digest(split_items(found, **{**arguments, "column": None, "query_column": None})) == by_seed


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_numbers_are_split_as_ever(tmp_path, suffix):
    """As version 0.1.0 split them: in the order of the numbers, of which a CSV has text."""
    numbers = np.arange(60) // 3 + 90
    path = tmp_path / f"x{suffix}"
    if suffix == ".npz":
        np.savez(path, features=np.ones((60, 2)), label=numbers)
        found = Features(str(path)).items
    else:
        frame = pd.DataFrame({"path": [f"{i:03}.jpg" for i in range(60)], "label": numbers})
        frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
        found = ImageTable(str(tmp_path), path.name).items
    assert digest(split_items(found)) == "3d0eae3ea236413b"
    assert set(numbers[split_items(found, num_train_classes=15).test]) == set(range(105, 110))


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
    others = [with_neighborhoods_held_out(splits, features, seed).validation for seed in (0, 0, 1)]
    np.testing.assert_array_equal(others[0], held.validation)  # the length of a row says nothing
    np.testing.assert_array_equal(others[0], others[1])
    assert len(np.intersect1d(others[0], others[2])) < 40
    few = with_neighborhoods_held_out(Splits(np.arange(3, 30), np.arange(3), np.arange(30, 40)), features, seed=1)
    assert (len(few.train), len(few.validation)) == (27, 3)
