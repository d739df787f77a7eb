"""Sources that are arrays: pictures, and vectors that some model already gave."""

import functools
import hashlib
import logging
import math
import os
import pathlib

import numpy as np

from xbm_keras.data.errors import DataError
from xbm_keras.data.labels import Labels, counted, encode, named
from xbm_keras.data.sources import Items, RandomAccess
from xbm_keras.data.tables import SPREADSHEETS, TABLES, USUAL, Table, require_column, suffix_of

log = logging.getLogger("xbm_keras")


class ImageArray(RandomAccess):
    """Pictures in one array of uint8, [N, H, W] or [N, H, W, 3], in an `.npy` (memory-mapped) or an `.npz`.

    An `.npz` with an array `image_shape` holds pictures of one bit per pixel, packed by `np.packbits` to [N, bytes].

    Args:
        path: the file.
        images: name of the array of pictures.
        labels: name of the array of labels, [N] or [N, 1], or path of an `.npy`, or of a table and its column, such as
            labels.csv:kind; None for none. -1, NaN and the empty string say that an item has no label.
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
        files = [pathlib.Path(os.path.expanduser(file)).resolve() for file in (path, test_path) if file is not None]
        self.root = "\n".join([*map(str, files), images, str(invert)])  # all that decides what a key stands for
        self.parts, self.stamps, parts = [], [], []
        for split, file in (("train", path), ("test", test_path)):
            if file is not None:
                arrays = _Arrays(file)
                pixels, shape = arrays.get(images), _image_shape(arrays, file)
                self._require_pictures(pixels, shape, file)
                self.parts.append((pixels, shape))
                self.stamps.append(arrays.stamp)
                parts.append(arrays.items(len(pixels), labels, label_names, split))
        self.starts = np.cumsum([0, *(len(part.keys) for part in parts)])
        columns = [set(part.columns) for part in parts]
        found = [part.labels for part in parts if part.labels is not None]
        if len(found) not in (0, len(parts)):
            with_labels, without = (path, test_path) if parts[0].labels is not None else (test_path, path)
            raise DataError(
                f"Received {without}, which has no labels {labels!r}, beside {with_labels}, which has; expected "
                "them in both. Add them (-1 for an item without a label), or use neither: data.labels=null."
            )
        self.items = Items(
            np.concatenate([part.keys if i == 0 else np.char.add("test/", part.keys) for i, part in enumerate(parts)]),
            Labels.concatenate(found) if found else None,
            {name: np.concatenate([part.columns[name] for part in parts]) for name in set.intersection(*columns)},
        )

    @staticmethod
    def _require_pictures(pixels: np.ndarray, shape: tuple[int, ...] | None, file: str) -> None:
        is_packed = shape is not None and pixels.ndim == 2 and math.prod(shape) <= 8 * pixels.shape[1]
        is_plain = shape is None and (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3))
        if pixels.dtype != np.uint8 or not (is_packed or is_plain) or 0 in pixels.shape[1:]:
            raise DataError(
                f"Received images of shape {pixels.shape} and dtype {pixels.dtype} in {file}"
                + (f" with image_shape {shape}" if shape else "")
                + "; expected uint8 [N, H, W] or [N, H, W, 3], or packed bits [N, bytes] and their image_shape."
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


def _image_shape(arrays: "_Arrays", file: str) -> tuple[int, ...] | None:
    """Of packed pictures, [H, W] or [H, W, 3]; None where they are not."""
    if "image_shape" not in arrays.arrays:
        return None
    array = arrays.arrays["image_shape"]
    shape = array.tolist() if array.dtype.kind in "iu" and array.ndim == 1 else []
    if len(shape) not in (2, 3) or min(shape) < 1 or shape[2:] not in ([], [3]):
        raise DataError(f"Received image_shape {str(array)[:80]} in {file}; expected integers [H, W] or [H, W, 3].")
    return tuple(shape)


class Vectors:
    """Vectors that some model already gave: no backbone, no cache.

    Args:
        features: [N, D] floats; may be memory-mapped.
        items: of which they are.

    Raises:
        DataError: where they are no such array, or a vector is not finite or all zero in float32.
    """

    modality = "vector"

    def __init__(self, features: np.ndarray, items: Items):
        _require_rows(features)
        self.features, self.items = features, items
        check_vectors(features, items.keys)


class Features(Vectors):
    """Vectors in a file.

    Args:
        path: an `.npy` [N, D] (memory-mapped), an `.npz` with such an array, or a Parquet file with a column of lists.
            Arrays or columns beside it with N entries, such as "split", become columns of the items.
        features: name of the array or column.
        labels: name of the array or column, [N] or [N, 1], or path of an `.npy`, or of a table and its column, such as
            labels.csv:kind; None for none. NaN, the empty string and, in an array, -1 say that an item has no label.

    Raises:
        DataError: if the file, an array or a shape is not as expected, or a vector is not finite or all zero in
            float32.
    """

    def __init__(self, path: str, features: str = "features", labels: str | None = "label"):
        arrays = _Arrays(path)
        found = arrays.get(features, "features")
        _require_rows(found, f" in {path}")
        super().__init__(found, arrays.items(len(found), labels))


def _require_rows(features: np.ndarray, where: str = "") -> None:
    """Raises DataError for what are no vectors."""
    if features.ndim != 2 or features.dtype.kind != "f":
        how = "Give the network's output, pooled to one vector."
        if features.ndim == 1:
            how = "Of one vector make a row: vector[None]."
        if features.ndim == 2 and features.dtype.kind in "iub":
            how = "Make floats of them: features.astype('float32')."
        raise DataError(
            f"Received features of shape {features.shape} and dtype {features.dtype}{where}; expected floats [N, D], "
            f"a row for each item. {how}"
        )


class _Arrays:
    """Named arrays of an `.npz`, a lone `.npy`, or the columns of a Parquet file."""

    def __init__(self, path: str):
        self.path = pathlib.Path(os.path.expanduser(path))
        if not self.path.is_file():
            raise DataError(f"Received data.path {path!r}, which is no file; expected an .npy, .npz or .parquet file.")
        status = self.path.stat()
        self.stamp = status.st_size, status.st_mtime_ns
        self.unusable: dict[str, str] = {}
        suffix = self.path.suffix.lower()
        self.is_lone, self.is_table = suffix == ".npy", suffix not in (".npy", ".npz")
        if self.is_lone:
            self.arrays = {"": load_array(self.path)}
        elif not self.is_table:
            self.arrays, self.unusable = _load_arrays(self.path)
        elif suffix_of(self.path) not in (".parquet", ".jsonl"):
            read = "read_excel" if suffix_of(self.path) in SPREADSHEETS else "read_csv"
            raise DataError(
                f"Received data.path {path!r}; expected an .npy, .npz or .parquet file. Of a table of numbers make an "
                f"array: numpy.save('vectors.npy', pandas.{read}({path!r})[COLUMNS].to_numpy('float32'))"
            )
        else:
            self.arrays = {name: _stacked(column, name) for name, column in Table(self.path).others().items()}

    def get(self, name: str, holds: str | None = None) -> np.ndarray:
        """The array of that name; of an `.npy` the only one. What it `holds` helps to find the one that was meant."""
        if self.is_lone:
            return self.arrays[""]
        if name in self.unusable:
            raise DataError(f"Received {name!r} of {self.path}, which cannot be read: {self.unusable[name]}.")
        require_column(name, self.arrays, str(self.path), holds)
        return self.arrays[name]

    def items(
        self, num_items: int, labels: str | None, label_names: str | None = None, split: str | None = None
    ) -> Items:
        """Items numbered by row, with all other arrays of one value per item as columns."""
        columns = {name: a for name, a in self.arrays.items() if a.ndim == 1 and len(a) == num_items}
        if split is not None:
            columns.setdefault("split", np.full(num_items, split))
        found = None if labels is None else self._labels(labels, label_names, num_items)
        return Items(np.arange(num_items).astype(str), found, columns)

    def _labels(self, name: str, label_names: str | None, num_items: int) -> Labels | None:
        """The labels of that name, or in that file; None for the default name, where there is no such array."""
        file, column = _file_and_column(name)
        if suffix_of(file) in TABLES + SPREADSHEETS:
            found, what = _labels_of_table(Table(file), column), f"{name}, which"
        elif suffix_of(file) == ".npy":
            if not file.is_file():
                raise DataError(f"Received data.labels {name!r}, which is no file; expected an .npy with [N] labels.")
            what = f"{name}, which"
            found = encode(load_array(file), what, none=-1)
        elif name == "label" and name not in {**self.arrays, **self.unusable}:
            if "labels" not in self.arrays:
                return None  # a file without labels needs no setting
            log.info("Labels are those of 'labels'; data.labels=null leaves them out.")
            return self._labels("labels", label_names, num_items)
        elif self.is_lone:
            raise DataError(
                f"Received data.labels {name!r} for {self.path}, which holds one array; expected the path of an .npy "
                "with [N] labels, or of a table, such as labels.csv:kind, or null."
            )
        else:
            what = f"{self.path}, whose {name!r}"
            found = encode(self.get(name, "label"), what, none=None if self.is_table else -1)
        if len(found) != num_items:
            raise DataError(
                f"Received {len(found)} labels for {num_items} items, in {what.partition(', ')[0]}; expected one per "
                "item. Give those of these items."
            )
        if label_names is None:
            return found
        names = self.get(label_names)
        if names.ndim != 1:
            raise DataError(f"Received names {label_names!r} of shape {names.shape}; expected one per class, [C].")
        return named(found, names.tolist(), what)


def _file_and_column(name: str) -> tuple[pathlib.Path, str | None]:
    """Of "labels.csv:kind", or of a file alone."""
    path, colon, column = os.path.expanduser(name).rpartition(":")
    if colon and suffix_of(pathlib.Path(path)) in TABLES + SPREADSHEETS:
        return pathlib.Path(path), column
    return pathlib.Path(os.path.expanduser(name)), None


def _labels_of_table(table: Table, column: str | None) -> Labels:
    """Those of a column; by default of the only one, or of one that is called as labels are."""
    usual = [name for name in table.columns if name in USUAL["label"]] or list(table.columns)
    if column is None and len(usual) > 1:
        likely = min(usual, key=lambda name: len(set(map(str, table.columns[name]))))  # labels repeat, ids do not
        raise DataError(
            f"Received data.labels {table.name!r} with the columns {', '.join(table.columns)}; expected the name of "
            f"one behind the file. Give it, such as --set data.labels={table.name}:{likely}."
        )
    return table.labels(column or usual[0])


def load_array(path: pathlib.Path) -> np.ndarray:
    """The array of an `.npy`, memory-mapped where it can be. Raises DataError."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # whatever NumPy's parser raises on bytes that are no array
        raise _unreadable(path, error) from error


def _load_arrays(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of an `.npz`, and why others of it cannot be used, by name. Raises DataError."""
    arrays: dict[str, np.ndarray] = {}
    unusable: dict[str, str] = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            for name in loaded.files:
                try:
                    array = loaded[name]
                except Exception as error:  # of bytes that are no array, or of objects, which could be code
                    unusable[name] = f"{type(error).__name__}: {error}"
                    if "Object arrays" in str(error):
                        unusable[name] = "it holds Python objects; expected text or numbers: save array.astype(str)"
                    continue
                if isinstance(array, np.ndarray):
                    arrays[name] = array
    except Exception as error:  # whatever the parsers of NumPy and of zip files raise on bytes that are no such file
        raise _unreadable(path, error) from error
    return arrays, unusable


def _unreadable(path: pathlib.Path, error: Exception) -> DataError:
    about = f"{error}" or type(error).__name__
    return DataError(f"Received data.path {str(path)!r}, which cannot be read: {about}. Write it anew by numpy.save.")


def _stacked(values: np.ndarray, name: str) -> np.ndarray:
    """A column of lists as an array [N, D]. Raises DataError for lists of unequal length."""
    if values.dtype != object or not len(values) or not isinstance(values[0], list | np.ndarray):
        return values
    try:
        return np.stack(values.tolist())
    except (ValueError, TypeError) as error:
        raise DataError(f"Received lists in {name!r} that make no array: {error}; expected equal lengths.") from error


def check_vectors(features: np.ndarray, keys: np.ndarray) -> None:
    """Raises DataError that names the items whose vectors have no direction in float32."""
    is_bad = np.zeros(len(features), bool)
    for start in range(0, len(features), 65_536):
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite there
            largest = np.abs(np.asarray(features[start : start + 65_536], np.float32)).max(axis=1, initial=0)
        is_bad[start : start + len(largest)] = ~((largest >= np.finfo(np.float32).tiny) & np.isfinite(largest))
    if is_bad.any():
        shown = ", ".join(map(str, keys[is_bad][:8])) + (", ..." if is_bad.sum() > 8 else "")
        raise DataError(
            f"Received {counted(int(is_bad.sum()), 'feature vector')} of NaN, infinite or all zero values: {shown}; "
            "expected finite ones with a direction, in float32. Remove these items, scale them, or compute them again."
        )
