"""Arrays of pictures, and vectors."""

import numpy as np
import pandas as pd
import pytest

from xbm_keras.data import arrays
from xbm_keras.data.sources import DataError


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
    with pytest.raises(DataError, match="3 feature vectors that are NaN, infinite or all zero: 1, 2, 3;"):
        arrays.Features(path)
    np.savez(path, features=np.array([[1.0], ["x"]], object))  # would need pickle, which runs code
    with pytest.raises(DataError, match="cannot be read"):
        arrays.Features(path)
    np.save(tmp_path / "l.npy", np.arange(3))
    np.savez(path, features=np.ones((2, 2)))
    with pytest.raises(DataError, match=r"labels of shape \(3,\) for 2 items"):
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
