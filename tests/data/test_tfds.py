"""The TFDS source on a data set that TFDS' own builder prepared locally."""

import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.fresh_processes import run_fresh
from xbm_keras.data.sources import DataError, UnreadableItem
from xbm_keras.data.tfds import TFDS


class TinyThings(tfds.core.GeneratorBasedBuilder):
    """Ten pictures a split, five classes, with the keys that Stanford Online Products has."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "class_id": tfds.features.ClassLabel(num_classes=5),
            "kind": tfds.features.ClassLabel(names=["pear", "apple", "fig"]),
            "super_class_id": np.int64,
            "name": tfds.features.Text(),
            "box": tfds.features.BBoxFeature(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0), "test": self._generate_examples(1)}

    def _generate_examples(self, seed):
        rng = np.random.default_rng(seed)
        for i in range(10):
            picture = rng.integers(0, 255, (7, 9, 3), np.uint8)
            box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
            kind = -1 if seed and i < 4 else i % 3
            yield (
                i,
                {"image": picture, "class_id": i % 5, "kind": kind, "super_class_id": 7, "name": f"n{i}", "box": box},
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = TinyThings(data_dir=folder)
    builder.download_and_prepare()
    return str(folder), builder


@pytest.fixture(scope="module")
def source(prepared):
    return TFDS("tiny_things", prepared[0], labels="class_id")


def test_items_are_those_of_the_builder(prepared, source):
    expected = [
        (split, example["class_id"], example["name"].decode())
        for split in ("test", "train")
        for example in tfds.as_numpy(prepared[1].as_dataset(split, shuffle_files=False))
    ]
    columns = source.items.columns
    assert set(columns) == {"tfds_split", "super_class_id", "name", "kind"}
    found = zip(columns["tfds_split"], source.items.labels, columns["name"], strict=True)
    assert [tuple(map(str, f)) for f in found] == [tuple(map(str, e)) for e in expected]
    assert source.items.keys[[0, 10]].tolist() == ["test/00000000", "train/00000000"]


def test_classes_have_their_names_in_the_order_of_their_numbers(prepared):
    labels = TFDS("tiny_things", prepared[0], labels="kind").items.labels
    assert labels.names == ["pear", "apple", "fig"]
    assert labels.numbers == [0, 1, 2]
    kinds = ["pear", "apple", "fig"]
    train = [kinds[i % 3] for i in range(10)]
    assert sorted(map(str, labels.tolist()[10:])) == sorted(train)
    test = labels.tolist()[:10]  # the first four are not labelled
    assert test.count(None) == 4
    assert sorted(name for name in test if name) == sorted(kinds[i % 3] for i in range(4, 10))


def test_numbers_and_texts_as_labels(prepared):
    assert TFDS("tiny_things", prepared[0], labels="super_class_id").items.labels.names == [7]
    texts = TFDS("tiny_things", prepared[0], labels="name").items.labels
    assert texts.names == [f"n{i}" for i in range(10)]


@pytest.mark.parametrize("positions", [range(20), [0], [9, 10], [3, 4, 17], [15], []])
def test_pictures_are_read_where_they_are_wanted(prepared, source, positions):
    expected = [
        example["image"]
        for split in ("test", "train")
        for example in tfds.as_numpy(prepared[1].as_dataset(split, shuffle_files=False))
    ]
    read = list(source.read(positions, lambda picture: picture))
    assert len(read) == len(positions)
    for picture, position in zip(read, positions, strict=True):
        np.testing.assert_array_equal(picture, expected[position])


def test_digests_tell_items_and_versions_apart(prepared, source):
    digests = [source.digest(i) for i in range(20)]
    assert len(set(digests)) == 20
    assert [TFDS("tiny_things", prepared[0], labels="class_id").digest(i) for i in range(20)] == digests


def test_a_process_without_the_builder_reads_it(prepared):
    code = (
        "import sys; from xbm_keras.data.tfds import TFDS as T; print(len(T('tiny_things', *sys.argv[1:]).items.keys))"
    )
    assert run_fresh(code, prepared[0], "image", "class_id").strip() == "20"


def test_texts_are_read_where_they_are_wanted(prepared):
    texts = TFDS("tiny_things", prepared[0], labels="class_id", texts="name")
    assert set(texts.items.columns) == {"tfds_split", "super_class_id", "kind"}
    expected = [
        example["name"].decode()
        for split in ("test", "train")
        for example in tfds.as_numpy(prepared[1].as_dataset(split, shuffle_files=False))
    ]
    assert list(texts.read([3, 4, 17], str.upper)) == [expected[i].upper() for i in (3, 4, 17)]


def test_texts_that_say_nothing_are_named(prepared, monkeypatch):
    texts = TFDS("tiny_things", prepared[0], labels="class_id", texts="name")
    examples = texts._examples
    broken = {"n0": b" ", "n1": b"\xff\xfe"}
    monkeypatch.setattr(
        texts, "_examples", lambda *a: ({"name": broken.get(e["name"].decode(), e["name"])} for e in examples(*a))
    )
    found = [str(x) for x in texts.read(range(20), lambda text: text) if isinstance(x, UnreadableItem)]
    assert sum("an empty text" in reason for reason in found) == 2
    assert sum("not UTF-8" in reason for reason in found) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "no_such_things"}, "'no_such_things', which TFDS cannot give"),
        ({"labels": "label"}, "column 'label', which tiny_things does not have"),
        ({"labels": "class_idd"}, "did you mean 'class_id'"),
        ({"labels": "box"}, "expected a scalar"),
        ({"labels": "class_id", "images": "name"}, "expected an image"),
        ({"labels": "class_id", "texts": "image"}, "expected a text"),
    ],
)
def test_errors(prepared, arguments, message):
    with pytest.raises(DataError, match=message):
        TFDS(**{"name": "tiny_things", "data_dir": prepared[0], **arguments})


def test_a_copy_in_another_process_needs_no_builder_code(source):
    packed = pickle.dumps(source)
    assert b"TinyThings" not in packed
    copy, wanted = pickle.loads(packed), [3, 11, 17]
    assert [copy.digest(i) for i in wanted] == [source.digest(i) for i in wanted]
    everything = list(source.read(range(20), lambda x: x))
    for i, picture in zip(wanted, copy.read(wanted, lambda x: x), strict=True):
        np.testing.assert_array_equal(picture, everything[i])
