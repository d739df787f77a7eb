"""The parts that a version of an index is made of, so that an added item does not write all others again.

A segment holds the items that were written at one time, and its files never change: the next version links them. What
is gone from a segment is told by a mask of its own. On disk, beside the SavedModel of a version:

- `segments/<name>.arrow`: the items, those that are gone included
- `variables/variables.data-<place>-of-<count>`: of each segment the codes that are searched, those that rank
  candidates again, those of plain vectors where neighbours are mixed into the searched ones, and the texts of ids and
  labels: shards of the SavedModel's own variables, of which all but the texts hold one array and nothing else, so that
  they can be mapped into memory
- `segments/<name>.<what>.index`: what is where in such a shard, as a checkpoint of TensorFlow

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
from xbm_keras.index.coded_search import SearchForm
from xbm_keras.index.gallery import Gallery, joined, read_items, write_items

MAX_SEGMENTS = 8
MAX_GONE = 0.25  # of all rows; more are written anew without them
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # TensorFlow's name for what says which variable is which tensor
TEXTS = "texts"  # the shard of ids and labels


@dataclasses.dataclass(frozen=True)
class Segment:
    """Items that were written at one time."""

    name: str
    items: pyarrow.Table
    """n rows."""
    kept: np.ndarray
    """[n] bool: which are not gone."""
    form: SearchForm
    """How they are held."""
    codes: dict[str, np.ndarray]
    """[n, columns] those of the form, by their `codes`, and the finest ones of `plain` vectors where others are
    searched; none yet of a segment on disk."""
    version: pathlib.Path | None = None
    """The folder of a version that holds it."""
    shards: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    """The files of its codes and texts there."""

    @staticmethod
    def of(gallery: Gallery, form: SearchForm) -> "Segment":
        """A new one of all items of a gallery."""
        return Segment.new(gallery.items, form, form.encode(gallery.vectors))

    @staticmethod
    def new(items: pyarrow.Table, form: SearchForm, codes: dict[str, np.ndarray]) -> "Segment":
        """A new one of these items, none of which is gone."""
        return Segment(secrets.token_hex(8), items, np.ones(len(items), bool), form, codes)

    @property
    def names(self) -> list[str]:
        """Of its codes."""
        return list(self.codes) if self.version is None else [what for what in self.shards if what != TEXTS]

    @property
    def plain(self) -> str:
        """The name of the codes of plain vectors."""
        return "plain" if "plain" in self.names else self.form.finest

    def read(self, what: str) -> np.ndarray:
        """Codes [n, columns] in memory. Raises tf.errors.OpError where they are damaged on the disk."""
        if self.version is None:
            return self.codes[what]
        return tf.train.load_checkpoint(str(self.version / "variables/variables")).get_tensor(key_of(self.name, what))

    def mapped(self, what: str) -> np.ndarray:
        """The same mapped into memory: only what is used is read. Raises ValueError for a file of another size."""
        if self.version is None:
            return self.codes[what]
        code = self.form.codes[self.form.finest if what == "plain" else what]
        shape, path = (len(self.items), code.columns(self.form.width)), self.shards[what]
        if path.stat().st_size != len(self.items) * code.bytes_per_item(self.form.width):
            raise ValueError(f"{path.stat().st_size} bytes of {shape} {code.dtype}")
        return np.memmap(path, code.dtype, "r", shape=shape) if len(self.items) else np.empty(shape, code.dtype)

    def gallery(self) -> Gallery:
        """The items that are not gone, with what the finest codes of their plain vectors stand for."""
        codes = self.read(self.plain)
        return Gallery(self.form.decode(codes if self.kept.all() else codes[self.kept]), self.kept_items)

    @property
    def kept_items(self) -> pyarrow.Table:
        """Those that are not gone."""
        return self.items if self.kept.all() else self.items.filter(pyarrow.array(self.kept))

    def without(self, is_gone: np.ndarray) -> "Segment":
        """The same, where more rows are gone, by a mask [n]."""
        return dataclasses.replace(self, kept=self.kept & ~is_gone)


def key_of(name: str, what: str) -> str:
    """The tensor of a segment in a checkpoint."""
    return f"segment_{name}/{what}/.ATTRIBUTES/VARIABLE_VALUE"


def gallery_of(segments: Sequence[Segment]) -> Gallery:
    """All items that are not gone, in their order, with what their codes stand for."""
    parts = [segment.gallery() for segment in segments]
    return Gallery(np.concatenate([part.vectors for part in parts]), joined([part.items for part in parts]))


def joined_segment(segments: Sequence[Segment]) -> Segment:
    """A new one of the items that are not gone, of whose codes no bit changes."""
    codes = {what: codes_of(segments, what) for what in segments[0].form.codes}
    return Segment.new(joined([segment.kept_items for segment in segments]), segments[0].form, codes)


def codes_of(segments: Sequence[Segment], what: str | None = None) -> np.ndarray:
    """Codes [N, columns] of the items that are not gone, by default the finest ones of plain vectors."""
    return np.concatenate([segment.read(what or segment.plain)[segment.kept] for segment in segments])


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
    return [*segments[:start], *([joined_segment(segments[start:])] if start < len(segments) else [])]


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
        items = f"{segment.name}.arrow"
        if segment.version is None:
            write_items(folder / items, segment.items)
        else:
            link_or_copy(segment.version / "segments" / items, folder / items)
        for what in (*segment.names, TEXTS):
            prefix, index = str(variables / f"{segment.name}.{what}"), f"{segment.name}.{what}.index"
            prefixes.append(prefix)
            if segment.version is None:
                _save(prefix, {key_of(segment.name, name): tensor for name, tensor in _tensors(segment, what).items()})
                link_or_copy(variables / index, folder / index)
            else:
                link_or_copy(segment.shards[what], pathlib.Path(f"{prefix}.data-00000-of-00001"))
                for target in (variables, folder):
                    link_or_copy(segment.version / "segments" / index, target / index)
    kept = {key_of(segment.name, "kept"): segment.kept for segment in segments}
    prefixes.append(str(variables / "state"))
    _save(prefixes[-1], {**kept, GRAPH: tf.constant(graph)})
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=str(variables / "variables"), delete_old_dirs=False
    )


def read_segments(
    version: pathlib.Path, names: Sequence[str] | None, form: SearchForm, is_mixed: bool
) -> list[Segment]:
    """The segments of a version.

    Args:
        version: its folder.
        names: of the segments, in their order, as `index.json` has them.
        form: how they are held.
        is_mixed: whether neighbours are mixed into what is searched.

    Raises:
        OSError, ValueError, LookupError, pyarrow.ArrowException, tf.errors.OpError: where a file is damaged.
    """
    reader = tf.train.load_checkpoint(str(version / "variables/variables"))
    whats = [*form.codes, *(["plain"] if is_mixed else []), TEXTS]
    segments, count = [], len(whats) * len(_checked(names)) + 1  # the last shard is of the masks
    for i, name in enumerate(_checked(names)):
        files = [f"variables/variables.data-{len(whats) * i + j:05}-of-{count:05}" for j in range(len(whats))]
        shards = {what: version / file for what, file in zip(whats, files, strict=True)}
        items, kept = read_items(version / "segments" / f"{name}.arrow"), reader.get_tensor(key_of(name, "kept"))
        segments.append(Segment(name, items, kept, form, {}, version, shards))
        for what in segments[-1].names:
            segments[-1].mapped(what)
    return segments


def read_former(version: pathlib.Path, names: Sequence[str] | None, form: SearchForm) -> list[Segment]:
    """The same of a version of an earlier release, which held float32 alone; they are to be written anew.

    Args:
        version: its folder.
        names: of the segments; None of a release that knew none.
        form: of float32.

    Raises:
        OSError, ValueError, LookupError, pyarrow.ArrowException, tf.errors.OpError: where a file is damaged.
    """
    if names is None:
        with (version / "vectors.npy").open("rb") as file:
            vectors = np.lib.format.read_array(file, allow_pickle=False)
        return [Segment.of(Gallery(vectors, read_items(version / "items.json")), form)]
    reader, segments = tf.train.load_checkpoint(str(version / "variables/variables")), []
    for name in _checked(names):
        plain = key_of(name, "plain")
        vectors = reader.get_tensor(plain if reader.has_tensor(plain) else key_of(name, "vectors"))
        found = Segment.of(Gallery(vectors, read_items(version / "segments" / f"{name}.arrow")), form)
        segments.append(found.without(~reader.get_tensor(key_of(name, "kept"))))
    return segments


def _checked(names) -> Sequence[str]:
    if not names or not all(isinstance(name, str) and name.isalnum() for name in names):
        raise ValueError(f"Received the segments {names}; expected their names.")
    return names


def _tensors(segment: Segment, what: str) -> dict:
    """What a shard of a new segment holds."""
    if what != TEXTS:
        return {what: segment.codes[what]}
    return {name + "s": tf.constant(segment.items[name].to_pylist(), tf.string) for name in ("id", "label")}


def _save(prefix: str, tensors: dict) -> None:
    names = list(tensors)
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=[tensors[name] for name in names]
    )
