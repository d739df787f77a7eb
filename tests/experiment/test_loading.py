"""From a config to items with features: what is left out is counted; what is wrong is told before the network runs."""

import contextlib
import logging
import os

import keras
import numpy as np
import PIL.Image
import pytest

from xbm_keras.config.yaml_files import ConfigError, check_config
from xbm_keras.data.errors import DataError
from xbm_keras.data.sources import ImageFolder
from xbm_keras.experiment import build, loading

LABELS = [f"c{i % 8}" for i in range(32)]
HEADER = "path,label,part,role\n"


@pytest.fixture
def values(tmp_path):
    """A config of a table of pictures, four of each of eight classes."""
    rng = np.random.default_rng(0)
    for i in range(32):
        PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{i:03}.png")
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalMaxPooling2D()])
    network.save(tmp_path / "net.keras")
    write(tmp_path, LABELS)
    return {
        "data": {"source": "image_table", "root": str(tmp_path), "table": "items.csv"},
        "backbone": {"kind": "file", "path": f"{tmp_path}/net.keras", "image_size": [8, 8]},
        "cache": {"dir": f"{tmp_path}/cache"},
    }


def write(folder, labels, part="train"):
    rows = [f"{i:03}.png,{label},{part},query\n" for i, label in enumerate(labels)]
    (folder / "items.csv").write_text(HEADER + "".join(rows))


def load(values, all_test=False, **sections):
    config = check_config({**values, **sections}, "x.yaml")
    return loading.load_dataset(config, build.make_backbone(config), all_test)


WITHOUT = {"loss": {"name": "similarity_alignment"}, "head": {"embedding_dim": 2}}


def test_items_without_a_label_are_left_out_and_counted(values, tmp_path, caplog, monkeypatch):
    seen = []
    compute = loading.compute_features
    monkeypatch.setattr(
        loading, "compute_features", lambda source, *a, **k: seen.extend(source.items.keys) or compute(source, *a, **k)
    )
    write(tmp_path, ["" if i in (3, 17) else label for i, label in enumerate(LABELS)])
    with caplog.at_level(logging.WARNING):
        dataset = load(values)
    kept = [f"{i:03}.png" for i in range(32) if i not in (3, 17)]
    assert dataset.keys.tolist() == seen == kept
    assert dataset.label_names == [f"c{i}" for i in range(8)]
    assert (dataset.labels >= 0).all()
    assert dataset.num_unlabelled == 2
    assert "2 of 32 items have no label and are left out" in caplog.text
    (shown,) = dataset.preview(np.array([3]), np.asarray)  # the fourth that is kept is the fifth of the table
    np.testing.assert_array_equal(shown, np.asarray(PIL.Image.open(tmp_path / "004.png")))


def test_where_labels_are_not_needed_all_items_stay(values, tmp_path, caplog, monkeypatch):
    write(tmp_path, ["" if i in (3, 17) else label for i, label in enumerate(LABELS)])
    monkeypatch.setattr(loading, "VALIDATION_WITHOUT_LABELS", 0.5)  # 3 items or more
    for dataset in (load(values, **WITHOUT), load(values, all_test=True)):
        assert len(dataset.keys) == 32
        assert dataset.num_unlabelled == 2
        assert np.flatnonzero(dataset.labels < 0).tolist() == [3, 17]
        assert dataset.names_of(np.array([2, 3, 4])).tolist() == ["c2", "", "c4"]
        assert dataset.labelled(np.array([2, 3, 4])).tolist() == [2, 4]
    with caplog.at_level(logging.INFO):
        load(values, **WITHOUT)
    assert "Training uses no labels: those of 30 items serve the evaluation alone" in caplog.text


def test_vectors_without_a_label_are_left_out(tmp_path):
    features = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    labels = np.arange(32) % 8
    labels[[0, 9]] = -1
    np.savez(tmp_path / "x.npz", features=features, label=labels)
    values = {"data": {"source": "features", "path": f"{tmp_path}/x.npz"}, "backbone": {"kind": "none"}}
    dataset = load(values, head={"embedding_dim": 2})
    kept = np.setdiff1d(np.arange(32), [0, 9])
    np.testing.assert_array_equal(dataset.keys, kept.astype(str))
    np.testing.assert_array_equal(np.asarray(dataset.features), features[kept])
    np.testing.assert_array_equal(dataset.features[[1, 8]], features[kept[[1, 8]]])
    np.testing.assert_array_equal(dataset.labels, labels[kept])


def test_folders_called_as_parts_are_no_classes_to_train_on(values, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "VALIDATION_WITHOUT_LABELS", 0.5)  # 3 items or more
    for i in range(32):
        file = tmp_path / f"parts/{('train', 'test')[i % 2]}/{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.name).rename(file)
    values["data"] = {"source": "image_folder", "root": f"{tmp_path}/parts", "split": {"by": "item"}}
    with pytest.raises(DataError, match="test and train: parts, and no classes"):
        load(values)
    config = check_config(values, "x.yaml")
    assert len(loading.load_dataset(config, build.make_backbone(config), is_training=False).keys) == 32
    assert len(load(values, **WITHOUT).keys) == 32


def never(*args, **kwargs):
    raise AssertionError("the network ran")


@pytest.mark.parametrize(
    ("labels", "part", "split", "message"),
    [
        ([""] * 32, "train", {}, r"without labels; .*--set loss\.name=similarity_alignment"),
        (LABELS, "train", {"column": "parts"}, "column 'parts', which the data does not have; did you mean 'part'"),
        (LABELS, "train", {"column": "part"}, "expected both 'train' and 'test'"),
        (LABELS, "train", {"query_column": "roles"}, "column 'roles', which the data does not have"),
        (LABELS, "train", {"query_column": "role"}, "expected one of query, test and one of gallery, train"),
        (LABELS, "train", {"test": ["C1"]}, "'C1', which is no label"),
        (["a", "b"] * 16, "train", {}, "1 training and 1 test classes; expected at least 4"),
        ([str(i) for i in range(32)], "train", {}, "train items that are each alone in their class"),
        ([*LABELS[:30], "", ""], "train", {"num_train_classes": 3}, "3 training and 5 test classes"),
    ],
)
def test_what_is_wrong_without_a_feature_is_told_before_the_network_runs(
    values, tmp_path, monkeypatch, labels, part, split, message
):
    write(tmp_path, labels, part)
    monkeypatch.setattr(loading, "compute_features", never)
    with pytest.raises(DataError, match=message):
        load({**values, "data": {**values["data"], "split": split}})


@pytest.mark.parametrize(("width", "start", "is_told"), [(4, "lda", True), (3, "lda", False), (4, "random", False)])
def test_a_head_wider_than_the_features_is_told_before_the_network_runs(values, width, start, is_told):
    config = check_config({**values, "head": {"embedding_dim": width, "start": start}}, "x.yaml")
    backbone = build.make_backbone(config)
    told = pytest.raises(ConfigError, match="embedding_dim=4 for features of width 3; expected at most 3")
    with told if is_told else contextlib.nullcontext():
        build.sized(config, build.width_of(build.make_source(config), backbone))


def test_what_cannot_be_read_is_checked_again(values, tmp_path):
    for i in range(8, 32):
        (tmp_path / f"{i:03}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="each alone in their class"):
        load(values)


def test_the_same_content_is_counted_and_kept(values, tmp_path):
    first = (tmp_path / "000.png").read_bytes()  # of c0
    for i in (1, 9):  # of c1
        (tmp_path / f"{i:03}.png").write_bytes(first)
    for number in range(8):  # c0 and c1 are on one side, or on two
        dataset = load({**values, "data": {**values["data"], "split": {"seed": number}}})
        assert len(dataset.keys) == 32
        several, both = dataset.duplicates["in_several_classes"], dataset.duplicates["in_train_and_test"]
        assert several.examples == [["000.png", "001.png", "009.png"]]
        assert several.num_items == 3
        is_split = np.isin([0, 1], dataset.splits.test).sum() == 1
        assert both.num_contents == int(is_split)
    vectors = np.random.default_rng(0).normal(size=(32, 4))
    vectors[5] = vectors[4]
    np.savez(tmp_path / "x.npz", features=vectors, label=np.arange(32) % 8)
    values = {"data": {"source": "features", "path": f"{tmp_path}/x.npz"}, "backbone": {"kind": "none"}}
    assert load(values).duplicates["in_several_classes"].examples == [["4", "5"]]


def test_file_names_that_are_not_utf8(values, tmp_path):
    names = [b"p\xe9ar", b"\xff", *(f"c{i}".encode() for i in range(6))]
    for number, name in enumerate(names):
        folder = os.path.join(os.fsencode(tmp_path / "photos"), name)
        os.makedirs(folder)
        for i in range(3):
            os.link(tmp_path / f"{number * 3 + i:03}.png", os.path.join(folder, b"caf\xe9 %d.png" % i))
    dataset = load({**values, "data": {"source": "image_folder", "root": str(tmp_path / "photos")}})
    assert not dataset.skipped
    assert "p\\udce9ar/caf\\udce9 0.png" in dataset.keys.tolist()
    assert "p\\udce9ar" in dataset.label_names
    for text in (*dataset.keys, *dataset.label_names):
        text.encode("utf-8")
    source = ImageFolder(str(tmp_path / "photos"))
    assert source.stamp(0) is not None
    assert len(source.digest(0)) == 64
