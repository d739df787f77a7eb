"""Data sets of TensorFlow Datasets: any builder with an image, or a text, and a label."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from xbm_keras.data.errors import DataError, UnreadableItem
from xbm_keras.data.labels import encode, named
from xbm_keras.data.pictures import DECODER, decode_picture
from xbm_keras.data.sources import Items, map_in_threads
from xbm_keras.data.tables import require_column
from xbm_keras.data.texts import checked_text


class TFDS:
    """Items of all splits of a TFDS builder, in its own order; the column `tfds_split` says which split.

    Further scalar features of the builder become columns. A data set that is not there yet is downloaded and prepared.

    Args:
        name: such as cars196, or my_dataset/config:1.0.0.
        data_dir: where TFDS keeps its data; None for its default.
        images: name of the image feature; by default "image", or that of the only one.
        labels: name of the label feature. Its classes have the names that the builder gives, in the order of its
            numbers; items of -1, as in a split that is not labelled, have no label.
        texts: name of a text feature, which makes the items texts instead of pictures; they take a backbone of
            keras_hub.
        allow_community: also take names with a namespace, such as "huggingface:mnist" or "user:things". Their builders
            are programs that anybody may have written, and that are downloaded and run.

    Raises:
        DataError: if the builder is unknown, of a namespace, cannot be prepared, or has no such feature.
    """

    modality = "image"

    def __init__(
        self,
        name: str,
        data_dir: str | None = None,
        images: str | None = None,
        labels: str = "label",
        texts: str | None = None,
        allow_community: bool = False,
    ):
        if not allow_community:
            _require_own(name)
        try:
            self.builder = tfds.builder(name, data_dir=data_dir)
            if not self.builder.is_prepared():
                self.builder.download_and_prepare()
        except Exception as error:  # whatever a builder's own code raises: unknown names, downloads, manual steps
            raise DataError(
                f"Received data.name {name!r}, which TFDS cannot give: {error}\nExpected a data set that can be "
                f"downloaded, or is prepared in {data_dir or tfds.core.constants.DATA_DIR}. Set "
                "TFDS_DATA_DIR where it is in another folder."
            ) from error
        self.is_text = texts is not None
        self.modality = "text" if self.is_text else "image"
        self.decoder = "" if self.is_text else DECODER
        features = self.builder.info.features
        self.item_key = texts or images or _image_of(features)
        for key in (self.item_key, labels):
            require_column(key, features, name)
        wanted, kind = ("texts", tfds.features.Text) if self.is_text else ("images", tfds.features.Image)
        if not isinstance(features[self.item_key], kind):
            raise DataError(
                f"Received {wanted} {self.item_key!r}, which is {features[self.item_key]} in {name}; expected "
                f"{'a text' if self.is_text else 'an image'}."
            )
        scalars = {
            key: True
            for key, feature in features.items()
            if key != self.item_key and feature.shape == () and feature.dtype
        }
        if labels not in scalars:
            raise DataError(f"Received labels {labels!r}, which is {features[labels]} in {name}; expected a scalar.")
        self.splits = sorted(self.builder.info.splits)
        rows: dict[str, list] = {key: [] for key in scalars}
        keys, of_split = [], []
        for split in self.splits:
            examples = self._examples(split, tfds.decode.PartialDecoding(scalars))
            for i, example in enumerate(examples):
                keys.append(f"{split}/{i:08d}")
                of_split.append(split)
                for key in scalars:
                    value = example[key]
                    rows[key].append(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value)
        columns = {key: np.array(values) for key, values in rows.items()}
        found = encode(columns.pop(labels), f"{name}, whose {labels!r}", none=-1)
        names = getattr(features[labels], "names", None)  # of the classes, where the builder gives them
        if names is not None:
            found = named(found, names, f"{name}, whose {labels!r}", by_number=True)
        self.items = Items(np.array(keys), found, {**columns, "tfds_split": np.array(of_split)})

    def __getstate__(self):
        """What a worker needs: the builder as a folder, which is read without the builder's own code."""
        return {**self.__dict__, "builder": str(self.builder.data_path)}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.builder = tfds.builder_from_directory(state["builder"])

    def _examples(self, split: str, decoders) -> Iterator[dict]:
        """Examples of a split, always in the same order."""
        one_file_at_a_time = tfds.ReadConfig(interleave_cycle_length=1)
        return iter(
            tfds.as_numpy(
                self.builder.as_dataset(
                    split=split, decoders=decoders, shuffle_files=False, read_config=one_file_at_a_time
                )
            )
        )

    def stamp(self, position: int) -> None:
        """None: a digest costs no reading."""

    def digest(self, position: int) -> str:
        """Hash of builder, config, version, the split's size on disk, and the place in it."""
        info, key = self.builder.info, self.items.keys[position]
        split = info.splits[key.split("/")[0]]
        return hashlib.sha256(repr((info.full_name, split.shard_lengths, split.num_bytes, key)).encode()).hexdigest()

    def read(self, positions: Sequence[int], prepare: Callable) -> Iterator:
        """Items at increasing positions; splits are read from the first to the last one, decoded where wanted."""

        def wanted() -> Iterator[bytes]:
            left = iter(positions)
            next_position, position = next(left, None), 0
            for split in self.splits:
                size = int((self.items.columns["tfds_split"] == split).sum())
                if next_position is None or next_position >= position + size:
                    position += size
                    continue
                decoders = None if self.is_text else {self.item_key: tfds.decode.SkipDecoding()}
                start, end = position, position + size
                position = next_position
                for example in self._examples(f"{split}[{position - start}:]", decoders):
                    if position == next_position:
                        yield example[self.item_key]
                        next_position = next(left, None)
                    position += 1
                    if next_position is None or next_position >= end:
                        break
                position = end

        decode = _decode_text if self.is_text else decode_picture
        return map_in_threads(lambda data: prepare(decode(data)), wanted())


def _image_of(features) -> str:
    """The feature "image", or the only image; else "image", which is told to be missing."""
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    return images[0] if len(images) == 1 else "image"


def _decode_text(data: bytes) -> str:
    """A text of UTF-8. Raises UnreadableItem."""
    try:
        return checked_text(data.decode())
    except UnicodeDecodeError as error:
        raise UnreadableItem(f"a text that is not UTF-8: {error}") from error


def _require_own(name: str) -> None:
    """Raises DataError for a data set that is not TFDS' own."""
    try:
        namespace = tfds.core.naming.parse_builder_name_kwargs(name)[0].namespace
    except ValueError:  # no name at all, which the builder tells of
        return
    if namespace:
        raise DataError(
            f"Received data.name {name!r}, of the namespace {namespace!r}, whose data sets are programs that TFDS "
            "downloads and runs; expected one of its own, without a namespace. Where you trust who wrote it, set "
            "data.allow_community=true."
        )
