"""Sources that are arrays: pictures, and vectors that some model already gave."""

import functools
import hashlib
import pathlib

import numpy as np
import pandas as pd

from xbm_keras.data.sources import DataError, Items, RandomAccess, read_table, require_column


class ImageArray(RandomAccess):
    """Pictures in one array of uint8, [N, H, W] or [N, H, W, 3], in an `.npy` (memory-mapped) or an `.npz`.

    An `.npz` with an array `image_shape` holds pictures of one bit per pixel, packed by `np.packbits` to [N, bytes].

    Args:
        path: the file.
        images: name of the array of pictures.
        labels: name of the array of labels, or path of an `.npy`; None for none.
        label_names: name of an array of names, which the labels number.
        invert: black for white.
        test_path: a second file of the same form. The column `split` says "train" for items of the first one and
            "test" for items of this one.

    Raises:
        DataError: if a file, an array or a shape is not as expected.
    """

    def __init__(
        self,
        path: str,
        images: str = "images",
        labels: str | None = "label",
        label_names: str | None = None,
        invert: bool = False,
        test_path: str | None = None,
    ):
        self.remake = functools.partial(ImageArray, path, images, None, None, invert, test_path)
        self.invert = invert
        files = [pathlib.Path(file).expanduser().resolve() for file in (path, test_path) if file is not None]
        self.root = "\n".join([*map(str, files), images, str(invert)])  # all that decides what a key stands for
        self.parts, self.stamps, parts = [], [], []
        for split, file in (("train", path), ("test", test_path)):
            if file is not None:
                arrays = _Arrays(file)
                pixels = arrays.get(images)
                shape = tuple(arrays.arrays["image_shape"]) if "image_shape" in arrays.arrays else None
                if pixels.dtype != np.uint8 or pixels.ndim not in ((2,) if shape else (3, 4)):
                    raise DataError(
                        f"Received images of shape {pixels.shape} and dtype {pixels.dtype} in {file}; expected uint8 "
                        "[N, H, W] or [N, H, W, 3], or packed bits [N, bytes] and their image_shape."
                    )
                self.parts.append((pixels, shape))
                self.stamps.append(arrays.stamp)
                parts.append(arrays.items(len(pixels), labels, label_names, split))
        self.starts = np.cumsum([0, *(len(part.keys) for part in parts)])
        columns = [set(part.columns) for part in parts]
        self.items = Items(
            np.concatenate([part.keys if i == 0 else np.char.add("test/", part.keys) for i, part in enumerate(parts)]),
            None if parts[0].labels is None else np.concatenate([part.labels for part in parts]),
            {name: np.concatenate([part.columns[name] for part in parts]) for name in set.intersection(*columns)},
        )

    def __reduce__(self):
        """A worker opens the files itself, and needs no labels: a memory map would be pickled with all it maps."""
        return self.remake, ()

    def stamp(self, position):
        """Of the file that the picture is in."""
        return self.stamps[self._part(position)]

    def digest(self, position):
        """Hash of the pixels and their shape."""
        picture = self.load(position)
        return hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()

    def load(self, position):
        """The picture as RGB, uint8 [H, W, 3]."""
        part = self._part(position)
        pixels, shape = self.parts[part]
        picture = np.asarray(pixels[position - self.starts[part]])
        if shape is not None:
            picture = np.unpackbits(picture, count=int(np.prod(shape))).reshape(shape) * np.uint8(255)
        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, axis=2)
        return np.ascontiguousarray(255 - picture if self.invert else picture)

    def _part(self, position) -> int:
        return int(np.searchsorted(self.starts, position, side="right")) - 1


class Features:
    """Vectors that some model already gave: no backbone, no cache.

    Args:
        path: an `.npy` [N, D] (memory-mapped), an `.npz` with such an array, or a Parquet file with a column of lists.
            Arrays or columns beside it with N entries, such as "split", become columns of the items.
        features: name of the array or column.
        labels: name of the array or column, or path of an `.npy`; None for none.

    Raises:
        DataError: if the file, an array or a shape is not as expected, or a vector is not finite or all zero.
    """

    def __init__(self, path: str, features: str = "features", labels: str | None = "label"):
        arrays = _Arrays(path)
        self.features = arrays.get(features)
        if self.features.ndim != 2 or self.features.dtype.kind != "f":
            raise DataError(
                f"Received features of shape {self.features.shape} and dtype {self.features.dtype} in {path}; expected "
                "floats [N, D]."
            )
        self.items = arrays.items(len(self.features), labels)
        check_features(self.features, self.items.keys)


class _Arrays:
    """Named arrays of an `.npz`, a lone `.npy`, or the columns of a Parquet file."""

    def __init__(self, path: str):
        self.path = pathlib.Path(path).expanduser()
        if not self.path.is_file():
            raise DataError(f"Received data.path {path!r}, which is no file; expected an .npy, .npz or .parquet file.")
        try:
            status = self.path.stat()
            self.stamp = status.st_size, status.st_mtime_ns
            if self.path.suffix == ".npz":
                with np.load(self.path, allow_pickle=False) as loaded:
                    self.arrays = {name: loaded[name] for name in loaded.files}
            elif self.path.suffix == ".npy":
                self.arrays = {"": np.load(self.path, mmap_mode="r", allow_pickle=False)}
            else:
                frame = read_table(self.path)
                self.arrays = {str(name): _column(frame[name]) for name in frame.columns}
        except (OSError, ValueError) as error:
            raise DataError(f"Received data.path {path!r}, which cannot be read: {error}") from error

    def get(self, name: str) -> np.ndarray:
        """The array of that name; of an `.npy` the only one."""
        if self.path.suffix == ".npy":
            return self.arrays[""]
        require_column(name, self.arrays, str(self.path))
        return self.arrays[name]

    def items(
        self, num_items: int, labels: str | None, label_names: str | None = None, split: str | None = None
    ) -> Items:
        """Items numbered by row, with all other arrays of one value per item as columns."""
        columns = {name: a for name, a in self.arrays.items() if a.ndim == 1 and len(a) == num_items}
        if labels is None or (labels not in columns and labels == "label"):
            found = None  # a file without labels needs no setting
        elif labels.endswith(".npy"):
            found = np.load(labels, allow_pickle=False)
        else:
            require_column(labels, columns, str(self.path))
            found = columns[labels]
        if found is not None and found.shape != (num_items,):
            raise DataError(f"Received labels of shape {found.shape} for {num_items} items; expected one per item.")
        if found is not None and label_names is not None:
            found = self.get(label_names)[found]
        if split is not None:
            columns.setdefault("split", np.full(num_items, split))
        return Items(np.arange(num_items).astype(str), found, columns)


def _column(series: pd.Series) -> np.ndarray:
    values = series.to_numpy()
    if values.dtype == object and len(values) and isinstance(values[0], list | np.ndarray):
        return np.stack(values)  # lists of unequal length end in a ValueError that names the shapes
    return values


def check_features(features: np.ndarray, keys: np.ndarray) -> None:
    """Raises DataError that names the items whose vectors are not finite or all zero."""
    is_bad = np.zeros(len(features), bool)
    for start in range(0, len(features), 65_536):
        block = np.asarray(features[start : start + 65_536], np.float32)
        is_bad[start : start + len(block)] = ~np.isfinite(block).all(axis=1) | ~block.any(axis=1)
    if is_bad.any():
        shown = ", ".join(map(str, keys[is_bad][:8])) + (", ..." if is_bad.sum() > 8 else "")
        raise DataError(
            f"Received {is_bad.sum()} feature vectors that are NaN, infinite or all zero: {shown}; expected finite "
            "vectors with a direction. Remove these items or compute them again."
        )
