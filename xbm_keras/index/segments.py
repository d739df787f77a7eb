"""The parts that a version of an index is made of, so that an added item does not write all others again.

A segment holds the items that were written at one time, and its files never change: the next version links them. What
is gone from a segment is told by a mask of its own. On disk, beside the SavedModel of a version:

- `segments/<name>.arrow`: the items, those that are gone included
- `segments/<name>.index`: what is where in the file of its tensors, as a checkpoint of TensorFlow
- `variables/variables.data-<place>-of-<count>`: its tensors, a shard of the SavedModel's own variables

Letters: n rows of a segment, E embedding width.
"""

import dataclasses
import pathlib
import secrets
from collections.abc import Sequence

import numpy as np
import pyarrow
import tensorflow as tf

from xbm_keras.atomic_files import link_or_copy
from xbm_keras.index.gallery import Gallery, joined, read_items, write_items

MAX_SEGMENTS = 8
MAX_GONE = 0.25  # of all rows; more are written anew without them
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # TensorFlow's name for what says which variable is which tensor


@dataclasses.dataclass(frozen=True)
class Segment:
    """Items that were written at one time."""

    name: str
    items: pyarrow.Table
    """n rows."""
    kept: np.ndarray
    """[n] bool: which are not gone."""
    tensors: dict[str, np.ndarray]
    """`vectors` [n, E], those that are searched, and `plain` where these are others; none yet of one on disk."""
    version: pathlib.Path | None = None
    """The folder of a version that holds it."""
    shard: str = ""
    """The file of its tensors there."""

    @staticmethod
    def of(gallery: Gallery, searched: np.ndarray | None = None) -> "Segment":
        """A new one of all items of a gallery; `searched` are the vectors to search where these are others."""
        vectors = {"vectors": gallery.vectors} if searched is None else {"vectors": searched, "plain": gallery.vectors}
        return Segment(secrets.token_hex(8), gallery.items, np.ones(len(gallery.items), bool), vectors)

    def read(self, what: str = "vectors") -> np.ndarray:
        """Vectors [n, E]: those that are searched, or the `plain` ones."""
        if self.version is None:
            return self.tensors.get(what, self.tensors["vectors"])
        reader = tf.train.load_checkpoint(str(self.version / "variables/variables"))
        key = key_of(self.name, what)
        return reader.get_tensor(key if reader.has_tensor(key) else key_of(self.name, "vectors"))

    def gallery(self) -> Gallery:
        """The items that are not gone, with their plain vectors."""
        kept = Gallery(self.read("plain"), self.items)
        return kept if self.kept.all() else kept.take(self.kept)

    def without(self, is_gone: np.ndarray) -> "Segment":
        """The same, where more rows are gone, by a mask [n]."""
        return dataclasses.replace(self, kept=self.kept & ~is_gone)


def key_of(name: str, what: str) -> str:
    """The tensor of a segment in a checkpoint."""
    return f"segment_{name}/{what}/.ATTRIBUTES/VARIABLE_VALUE"


def gallery_of(segments: Sequence[Segment]) -> Gallery:
    """All items that are not gone, in their order."""
    parts = [segment.gallery() for segment in segments]
    return Gallery(np.concatenate([part.vectors for part in parts]), joined([part.items for part in parts]))


def compacted(segments: Sequence[Segment]) -> list[Segment]:
    """The same items in not too many segments, of which not too much is gone.

    Where there are too many, the last ones become one, with each before them that is not twice as large: so a row is
    written again a few times at most, however often few are added.
    """
    segments = [segment for segment in segments if segment.kept.any()] or list(segments[:1])
    rows = [len(segment.kept) for segment in segments]
    start = len(segments)
    if sum(int(segment.kept.sum()) for segment in segments) < (1 - MAX_GONE) * sum(rows):
        start = 0
    elif len(segments) > MAX_SEGMENTS:
        start -= 2
        while start and rows[start - 1] < 2 * sum(rows[start:]):
            start -= 1
    return [*segments[:start], *([Segment.of(gallery_of(segments[start:]))] if start < len(segments) else [])]


def write_segments(version: pathlib.Path, segments: Sequence[Segment]) -> None:
    """Give the SavedModel of a version that is being written the variables of these segments.

    Its own variables are empty ones of the same names: see `ExactSearch`.
    """
    variables, folder = version / "variables", version / "segments"
    graph = tf.train.load_checkpoint(str(variables / "variables")).get_tensor(GRAPH)
    for path in variables.iterdir():
        path.unlink()
    folder.mkdir()
    prefixes = []
    for segment in segments:
        prefixes.append(str(variables / segment.name))
        index, items = f"{segment.name}.index", f"{segment.name}.arrow"
        if segment.version is None:
            ids, labels = (segment.items[name].to_pylist() for name in ("id", "label"))
            tensors = {**segment.tensors, "ids": tf.constant(ids, tf.string), "labels": tf.constant(labels, tf.string)}
            _save(prefixes[-1], {key_of(segment.name, what): tensor for what, tensor in tensors.items()})
            write_items(folder / items, segment.items)
            link_or_copy(variables / index, folder / index)
        else:
            link_or_copy(segment.version / segment.shard, pathlib.Path(f"{prefixes[-1]}.data-00000-of-00001"))
            link_or_copy(segment.version / "segments" / index, variables / index)
            for name in (index, items):
                link_or_copy(segment.version / "segments" / name, folder / name)
    kept = {key_of(segment.name, "kept"): segment.kept for segment in segments}
    prefixes.append(str(variables / "state"))
    _save(prefixes[-1], {**kept, GRAPH: tf.constant(graph)})
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=str(variables / "variables"), delete_old_dirs=False
    )


def read_segments(version: pathlib.Path, names: Sequence[str] | None) -> list[Segment]:
    """The segments of a version; of one that an earlier release wrote, one, which is to be written anew.

    Args:
        version: its folder.
        names: of the segments, in their order, as `index.json` has them.

    Raises:
        OSError, ValueError, LookupError, pyarrow.ArrowException, tf.errors.OpError: where a file is damaged.
    """
    if names is None:
        with (version / "vectors.npy").open("rb") as file:
            vectors = np.lib.format.read_array(file, allow_pickle=False)
        return [Segment.of(Gallery(vectors, read_items(version / "items.json")))]
    if not names or not all(isinstance(name, str) and name.isalnum() for name in names):
        raise ValueError(f"Received the segments {names}; expected their names.")
    reader = tf.train.load_checkpoint(str(version / "variables/variables"))
    count = len(names) + 1  # the last one is of the masks
    return [
        Segment(
            name,
            read_items(version / "segments" / f"{name}.arrow"),
            reader.get_tensor(key_of(name, "kept")),
            {},
            version,
            f"variables/variables.data-{i:05}-of-{count:05}",
        )
        for i, name in enumerate(names)
    ]


def _save(prefix: str, tensors: dict) -> None:
    names = list(tensors)
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=[tensors[name] for name in names]
    )
