"""Arrays of pictures, and vectors."""

import numpy as np
import pandas as pd
import pytest

from xbm_keras.data import arrays
from xbm_keras.data.sources import DataError, ImageFolder


def test_image_array(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (4, 6, 5), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, label=[3, 3, 5, 2**40], part=["train"] * 4)
    source = arrays.ImageArray(str(tmp_path / "x.npz"))
    assert source.items.labels.tolist() == [3, 3, 5, 2**40]
    assert source.items.columns["part"].tolist() == ["train"] * 4
    np.testing.assert_array_equal(source.load(1), np.stack([images[1]] * 3, axis=-1))
    np.save(tmp_path / "y.npy", np.stack([images] * 3, axis=-1))
    np.save(tmp_path / "l.npy", np.arange(4))
    source = arrays.ImageArray(str(tmp_path / "y.npy"), labels=str(tmp_path / "l.npy"))
    np.testing.assert_array_equal(source.load(2)[..., 1], images[2])
    np.savez(tmp_path / "z.npz", images=images.astype(np.float32))
    with pytest.raises(DataError, match=r"dtype float32"):
        arrays.ImageArray(str(tmp_path / "z.npz"))


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_suffixes_in_upper_case(tmp_path, suffix):
    f = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    np.savez(tmp_path / "x.npz", features=f, label=["a", "b"])
    np.save(tmp_path / "x.npy", f)
    np.save(tmp_path / "l.npy", ["a", "b"])
    for file in tmp_path.iterdir():
        file.rename(file.with_suffix(file.suffix.upper()))
    labels = "label" if suffix == ".npz" else str(tmp_path / "l.NPY")
    source = arrays.Features(str(tmp_path / f"x{suffix.upper()}"), labels=labels)
    np.testing.assert_array_equal(source.features, f)
    assert source.items.labels.tolist() == ["a", "b"]


def test_vectors_are_as_long_as_float32_holds(tmp_path):
    f = np.eye(5) * [[1], [1e20], [1e-20], [1e-45], [1]]
    np.save(tmp_path / "x.npy", f.astype(np.float32))
    with pytest.raises(DataError, match=r"1 feature vector .*: 3;"):
        arrays.Features(str(tmp_path / "x.npy"))


def test_a_home_that_there_is_not(tmp_path):
    path = "~no_such_user/x.npz"
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    for make in (arrays.Features, arrays.ImageArray):
        with pytest.raises(DataError, match=r"'~no_such_user/x.npz', which is no file"):
            make(path)
    with pytest.raises(DataError, match=r"'~no_such_user/y.npy', which is no file"):
        arrays.Features(str(tmp_path / "x.npy"), labels="~no_such_user/y.npy")
    with pytest.raises(DataError, match=r"'~no_such_user', which is no folder"):
        ImageFolder("~no_such_user")


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_features(tmp_path, suffix):
    f = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npz":
        np.savez(path, features=f, label=list("aabbc"))
    elif suffix == ".npy":
        np.save(path, f)
    else:
        pd.DataFrame({"features": list(f.astype(np.float32)), "label": list("aabbc")}).to_parquet(path)
    source = arrays.Features(str(path))
    np.testing.assert_array_equal(source.features, f)
    if suffix == ".npy":
        assert isinstance(source.features, np.memmap)
        assert source.items.labels is None
    else:
        assert source.items.labels.tolist() == list("aabbc")


def test_features_errors(tmp_path):
    path = str(tmp_path / "x.npz")
    with pytest.raises(DataError, match="which is no file"):
        arrays.Features(path)
    np.savez(path, feature=np.ones((2, 2)), label=[1, 2])
    with pytest.raises(DataError, match="did you mean 'feature'"):
        arrays.Features(path)
    np.savez(path, features=np.arange(4), label=[1, 2])
    with pytest.raises(DataError, match=r"shape \(4,\) and dtype int64"):
        arrays.Features(path)
    np.savez(path, features=[[1.0, 2], [np.nan, 1], [0, 0], [np.inf, 3]])
    with pytest.raises(DataError, match="3 feature vectors of NaN, infinite or all zero values: 1, 2, 3;"):
        arrays.Features(path)
    for wrong, how in (
        (np.arange(4.0), r"Of one vector make a row: vector\[None\]"),
        (np.arange(4).reshape(2, 2), "Make floats of them: features.astype"),
        (np.ones((2, 2, 2)), "pooled to one vector"),
    ):
        np.savez(path, features=wrong)
        with pytest.raises(DataError, match=how):
            arrays.Features(path)
    np.savez(path, features=np.array([[1.0], ["x"]], object))  # would need pickle, which runs code
    with pytest.raises(DataError, match="cannot be read: it holds Python objects; expected text or numbers"):
        arrays.Features(path)
    for name, message in (
        ("x.csv", "Of a table of numbers make an array: numpy.save"),
        ("x.xlsx", "expected an .npy, .npz or .parquet file"),
    ):
        (tmp_path / name).write_text("a,b\n1,2\n")
        with pytest.raises(DataError, match=message):
            arrays.Features(str(tmp_path / name))
    np.save(tmp_path / "x.npy", np.ones((2, 2)))
    with pytest.raises(DataError, match="is a spreadsheet; expected a"):
        arrays.Features(str(tmp_path / "x.npy"), labels=str(tmp_path / "x.xlsx:kind"))
    np.save(tmp_path / "l.npy", np.arange(3))
    np.savez(path, features=np.ones((2, 2)))
    with pytest.raises(DataError, match=r"3 labels for 2 items, in .*l\.npy"):
        arrays.Features(path, labels=str(tmp_path / "l.npy"))


def test_packed_images_in_two_files(tmp_path):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (5, 6, 7), np.uint8)
    for name, rows in (("a.npz", slice(0, 3)), ("b.npz", slice(3, 5))):
        packed = np.packbits(bits[rows].reshape(-1, 42), axis=1)
        names = np.array([f"{name} 0", f"{name} 1"])
        np.savez(tmp_path / name, ink=packed, image_shape=[6, 7], y=[0, 1, 1][: len(packed)], names=names)
    paths = {"path": str(tmp_path / "a.npz"), "test_path": str(tmp_path / "b.npz")}
    source = arrays.ImageArray(**paths, images="ink", labels="y", label_names="names", invert=True)
    assert source.items.labels.tolist() == ["a.npz 0", "a.npz 1", "a.npz 1", "b.npz 0", "b.npz 1"]
    assert source.items.columns["split"].tolist() == ["train"] * 3 + ["test"] * 2
    assert source.items.keys.tolist() == ["0", "1", "2", "test/0", "test/1"]
    for i in range(5):
        np.testing.assert_array_equal(source.load(i), np.stack([255 - 255 * bits[i]] * 3, axis=-1))
    with pytest.raises(DataError, match="uint8"):
        arrays.ImageArray(str(tmp_path / "a.npz"), images="y")


GOOD = np.arange(12, dtype=np.float32).reshape(6, 2) + 1


def features_with(path, labels, **others):
    np.savez(path, features=GOOD, label=labels, **others)
    return arrays.Features(str(path)).items.labels.tolist()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, -1, 0, 0, 2, -1], [2, None, 0, 0, 2, None]),
        ([2.0, np.nan, 0, 0, 2, np.nan], [2, None, 0, 0, 2, None]),
        (["b", "", "a", "a", "b", ""], ["b", None, "a", "a", "b", None]),
        ([[2], [2], [0], [0], [1], [1]], [2, 2, 0, 0, 1, 1]),
        (np.array(["007", "7", "a", "a", "7", "7"], "S"), ["007", "7", "a", "a", "7", "7"]),
    ],
)
def test_labels_and_who_has_none(tmp_path, labels, expected):
    assert features_with(tmp_path / "x.npz", labels) == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(5), "5 labels for 6 items"),
        (np.zeros((6, 3)), r"shape \(6, 3\); expected one label per item.*argmax"),
        (np.zeros((2, 3)), r"shape \(2, 3\)"),
        (
            np.array(["a", None] * 3, object),
            "'label' of .*, which cannot be read: it holds Python objects; expected text",
        ),
        (np.zeros(6, complex), "complex128"),
    ],
)
def test_labels_that_cannot_be_used_are_told_and_not_dropped(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        features_with(tmp_path / "x.npz", labels)
    np.save(tmp_path / "l.npy", labels)
    np.save(tmp_path / "x.npy", GOOD)
    with pytest.raises(DataError):
        arrays.Features(str(tmp_path / "x.npy"), labels=str(tmp_path / "l.npy"))


def test_another_array_of_objects_does_no_harm(tmp_path):
    assert features_with(tmp_path / "x.npz", [1] * 6, notes=np.array([None, "a"], object)) == [1] * 6


@pytest.mark.parametrize(
    ("name", "message"),
    [("nope.npy", "'nope.npy', which is no file"), ("y", "holds one array; expected the path of an .npy")],
)
def test_labels_beside_an_npy(tmp_path, name, message):
    np.save(tmp_path / "x.npy", GOOD)
    with pytest.raises(DataError, match=message):
        arrays.Features(str(tmp_path / "x.npy"), labels=name)


def picture_array(path, labels, names=None, **arguments):
    named = {} if names is None else {"names": names}
    np.savez(path, images=np.zeros((4, 3, 3), np.uint8), **({} if labels is None else {"label": labels}), **named)
    return arrays.ImageArray(str(path), label_names=None if names is None else "names", **arguments)


def test_minus_one_has_no_name(tmp_path):
    source = picture_array(tmp_path / "x.npz", [1, -1, 0, -1], ["pear", "apple"])
    assert source.items.labels.tolist() == ["apple", None, "pear", None]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 2, 1], ["a", "b"], "holds 2 for 2 names; expected integers from 0 to 1"),
        ([0, -2, 1, 1], ["a", "b"], "holds -2 for 2 names"),
        ([0.5, 0, 1, 1], ["a", "b"], "holds 0.0, 0.5, 1.0 for 2 names"),
        (["0", "0", "1", "1"], ["a", "b"], "holds '0', '1'"),
        ([0, 0, 1, 1], [["a", "b"]], r"names 'names' of shape \(1, 2\)"),
        ([0, 0, 1, 1], ["a", "a"], "0, 1, which have one name, 'a'"),
    ],
)
def test_numbers_without_a_name_are_told(tmp_path, labels, names, message):
    with pytest.raises(DataError, match=message):
        picture_array(tmp_path / "x.npz", labels, names)


def test_labels_in_one_of_two_files(tmp_path):
    for first, second in (("a", "b"), ("b", "a")):
        picture_array(tmp_path / "a.npz", [0, 0, 1, 1])
        picture_array(tmp_path / "b.npz", None)
        paths = {"path": str(tmp_path / f"{first}.npz"), "test_path": str(tmp_path / f"{second}.npz")}
        with pytest.raises(
            DataError, match=r"b\.npz, which has no labels 'label', beside .*a\.npz, which has;.*data\.labels=null"
        ):
            arrays.ImageArray(**paths)
        assert arrays.ImageArray(**paths, labels=None).items.labels is None


def test_numbers_that_float32_cannot_hold(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[1e300, 1], [1, 2]]))
    with pytest.raises(DataError, match="1 feature vector of NaN, infinite or all zero values: 0;"):
        arrays.Features(str(tmp_path / "x.npy"))


@pytest.mark.parametrize("shape", [[0, 3], [3], [3, 3, 4], [2.5, 3], [9, 9], "ab"])
def test_shapes_of_packed_pictures_that_cannot_be(tmp_path, shape):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 2), np.uint8), image_shape=shape)
    with pytest.raises(DataError, match="image_shape"):
        arrays.ImageArray(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("shape", [(4, 3, 3, 4), (4, 3, 3, 1), (4, 0, 3), (4,), (4, 3, 3, 3, 3)])
def test_shapes_of_pictures_that_cannot_be(tmp_path, shape):
    np.savez(tmp_path / "x.npz", images=np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match="expected uint8"):
        arrays.ImageArray(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00\x10\x00{'descr': 'O"])
def test_files_that_are_none_are_told(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        arrays.Features(str(tmp_path / name))


def test_labels_in_a_table_beside_the_vectors(tmp_path):
    np.save(tmp_path / "x.npy", GOOD)
    (tmp_path / "one.csv").write_text("kind\n007\n7\na\n\na\n7\n".replace("\n\n", '\n""\n'))
    (tmp_path / "two.csv").write_text("id,kind\n" + "".join(f"{i},{kind}\n" for i, kind in enumerate("aabbcc")))
    (tmp_path / "named.csv").write_text("id,class\n" + "".join(f"{i},{kind}\n" for i, kind in enumerate("aabbcc")))

    def labels(name):
        return arrays.Features(str(tmp_path / "x.npy"), labels=str(tmp_path / name)).items.labels.tolist()

    assert labels("one.csv") == ["007", "7", "a", None, "a", "7"]
    assert labels("two.csv:kind") == labels("named.csv") == list("aabbcc")
    with pytest.raises(DataError, match=r"columns id, kind; expected the name of one .*two\.csv:kind\."):
        labels("two.csv")
    with pytest.raises(DataError, match=r"'kin', which .* does not have; did you mean 'kind'"):
        labels("two.csv:kin")
    (tmp_path / "one.csv").write_text("kind\na\n")
    with pytest.raises(DataError, match="1 labels for 6 items"):
        labels("one.csv")
    with pytest.raises(DataError, match="no file"):
        labels("none.csv")


def test_labels_under_a_usual_name_are_found(tmp_path, caplog):
    path = tmp_path / "x.npz"
    np.savez(path, features=GOOD, labels=list("aabbcc"))
    with caplog.at_level("INFO", "xbm_keras"):
        assert arrays.Features(str(path)).items.labels.tolist() == list("aabbcc")
    assert "Labels are those of 'labels'" in caplog.text
    assert arrays.Features(str(path), labels=None).items.labels is None
    np.savez(path, features=GOOD, labels=list("aabbcc"), text=list("aabbcc"))
    with pytest.raises(DataError, match=r"'intent', which .* does not have; did you mean 'labels'"):
        arrays.Features(str(path), labels="intent")
