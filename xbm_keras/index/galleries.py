"""A gallery to search: vectors, ids and labels, as an exact SavedModel and, if wanted, an approximate index beside it.

Letters: Q queries, N gallery items, E embedding width, k answers.
"""

import functools
import json
import pathlib
import time

import filelock
import numpy as np
import pyarrow
import tensorflow as tf

from xbm_keras.atomic_files import latest_version, new_version, write_whole, writing_whole
from xbm_keras.data.labels import as_objects, counted
from xbm_keras.data.sources import Items
from xbm_keras.geometry import unit_length
from xbm_keras.index import usearch_graph
from xbm_keras.index.gallery import ITEMS, Gallery, read_items, write_items

SCORES = 1 << 24  # held at a time by a search: 64 MB
MIXING_POWER = 3.0
RECALL_AT = 10
RECALL_QUERIES = 1000


def mix(vectors: tf.Tensor, gallery: tf.Tensor, count: int) -> tf.Tensor:
    """Sum [n, E] of the `count` rows of a gallery [N, E] that are nearest to vectors [n, E], by cubed similarity."""
    best, nearest = tf.math.top_k(tf.matmul(vectors, gallery, transpose_b=True), min(count, gallery.shape[0]))
    weights = tf.maximum(best, 0.0) ** MIXING_POWER
    return tf.einsum("bn,bne->be", weights, tf.gather(gallery, tf.cast(nearest, tf.int64)))


class ExactSearch(tf.Module):
    """Exact search as a SavedModel: the k items of highest cosine similarity, best first, ties by position.

    Args:
        gallery: the items.
        num_mixed: nearest items that are mixed into each item, and into each query before it is answered, weighted by
            cubed similarity; similarities then are those of the mixed vectors. 0 is none.

    Reference:
        Database-side augmentation: Arandjelovic and Zisserman, "Three things everyone should know to improve object
        retrieval", CVPR 2012; expansion weighted by a power: Radenovic et al., "Fine-tuning CNN Image Retrieval", 2019.
    """

    def __init__(self, gallery: Gallery, num_mixed: int = 0):
        super().__init__()
        self.num_mixed = num_mixed
        vectors = gallery.vectors
        if num_mixed and len(vectors):
            block = max(1, SCORES // len(vectors))
            parts = [vectors[start : start + block] for start in range(0, len(vectors), block)]
            # Each is the nearest to itself, with weight 1.
            vectors = np.concatenate([unit_length(mix(part, tf.constant(vectors), num_mixed + 1)) for part in parts])
        self.vectors = tf.Variable(vectors, trainable=False)
        self.ids = tf.Variable(gallery.ids.tolist(), trainable=False, dtype=tf.string, shape=gallery.ids.shape)
        self.labels = tf.Variable(gallery.labels.tolist(), trainable=False, dtype=tf.string, shape=gallery.ids.shape)
        width = gallery.vectors.shape[1]
        self.search = tf.function(
            self._search,
            input_signature=[
                tf.TensorSpec((None, width), tf.float32, "embeddings"),
                tf.TensorSpec((), tf.int32, "k"),
            ],
        )

    def find(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and cosine similarities [Q, min(k, N)]."""
        found = self.search(tf.constant(queries, tf.float32), tf.constant(k))
        ids = as_objects([each.decode() for each in found["ids"].numpy().ravel()])
        return ids.reshape(found["ids"].shape), found["similarities"].numpy()

    def _search(self, embeddings, k):
        """Of queries [Q, E] `similarities` float32, `ids` and `labels`, all [Q, min(k, N)]."""
        num_items = self.vectors.shape[0]
        k = tf.minimum(k, num_items)
        queries = unit_length(embeddings)
        block = max(1, SCORES // max(num_items, 1))
        num_queries = tf.shape(queries)[0]
        similarities = tf.TensorArray(tf.float32, 0, dynamic_size=True, infer_shape=False, element_shape=[None, None])
        positions = tf.TensorArray(tf.int64, 0, dynamic_size=True, infer_shape=False, element_shape=[None, None])
        for i in tf.range(tf.maximum(1, (num_queries + block - 1) // block)):  # once also where Q is 0
            asked = queries[i * block : (i + 1) * block]
            if self.num_mixed:
                asked = unit_length(asked + mix(asked, self.vectors, self.num_mixed))
            scores = tf.matmul(asked, self.vectors, transpose_b=True)
            best, place = tf.math.top_k(scores, k)
            similarities, positions = similarities.write(i, best), positions.write(i, tf.cast(place, tf.int64))
        places = tf.reshape(positions.concat(), [num_queries, k])
        return {
            "similarities": tf.reshape(similarities.concat(), [num_queries, k]),
            "ids": tf.gather(self.ids, places),
            "labels": tf.gather(self.labels, places),
        }


def write_index(
    folder: pathlib.Path,
    gallery: Gallery,
    model: str,
    *,
    approximate_search: bool = False,
    num_mixed: int = 0,
    roots: dict[str, str] | None = None,
) -> dict:
    """Write a gallery as the next version `folder/<n>/`, whole or not at all.

    The version is a SavedModel with the signature `search`: `embeddings` [Q, E] float32 and `k` int32 to `ids`,
    `labels` and `similarities` [Q, min(k, N)]. Beside it lie the gallery itself (`vectors.npy`, `items.arrow`) and,
    with `approximate_search`, a USearch index (`approximate.usearch`), whose recall is measured.

    Args:
        folder: of the versions.
        gallery: the items.
        model: fingerprint of the model that embedded them.
        approximate_search: also build the approximate index; needs the extra [ann].
        num_mixed: see `ExactSearch`; not with the approximate index. The stored vectors are plain, so that items may
            come and go: what is mixed is found anew then.
        roots: of the items, name to place; None where that is not known.

    Returns:
        What `index.json` holds: `items`, `width`, `model`, `roots`, `mixed` and, of an approximate index,
        `recall_at_10`.

    Raises:
        ValueError: for `num_mixed` with the approximate index.
    """
    if num_mixed and approximate_search:
        raise ValueError(
            f"Received num_mixed={num_mixed} with approximate_search; expected one of them: what is mixed changes with "
            "each item that comes, which a graph cannot follow. Leave one out."
        )
    with _locked(folder):
        index = usearch_graph.build(gallery.vectors, _keys(gallery)) if approximate_search else None
        return _write(folder, gallery, model, index, roots, num_mixed)


def add_items(
    folder: pathlib.Path, more: Gallery, model: str, *, replace: bool = True, roots: dict[str, str] | None = None
) -> dict:
    """Write the newest version with more items as the next one.

    Nothing that is there is embedded again, and the approximate index takes up the new items alone.

    Args:
        folder: of the versions.
        more: the items.
        model: fingerprint of the model that embedded them.
        replace: whether an item may take the place of one whose id is there already.
        roots: further ones.

    Returns:
        What `index.json` holds, and how many items were `added` and how many `replaced`.

    Raises:
        ValueError: where another model embedded the items that are there, or, without `replace`, an id is there.
    """
    with _locked(folder):
        gallery, about, index = read_index(folder)
        check_new(gallery, about, more.ids, model, replace)
        is_replaced = more.holds(gallery.ids)
        if index is not None:
            index.remove(_keys(gallery)[is_replaced])
            index.add(_keys(more), more.vectors)
        roots = {**(about.get("roots") or {}), **roots} if roots else about.get("roots")
        num_replaced = int(is_replaced.sum())
        written = _write(folder, gallery.with_items(more), model, index, roots, about.get("mixed", 0))
        return {**written, "added": len(more.ids) - num_replaced, "replaced": num_replaced}


def check_new(gallery: Gallery, about: dict, ids, model: str, replace: bool) -> None:
    """Raises ValueError where items of these ids, embedded by this model, may not be added to an index.

    Args:
        gallery: of the index.
        about: what its `index.json` holds.
        ids: of the items.
        model: fingerprint of the model that embeds them.
        replace: whether an item may take the place of one whose id is there already.
    """
    if model != about["model"]:
        raise ValueError(
            f"Received items embedded by the model {model} for an index of the model {about['model']}; expected "
            "one model, since vectors of two do not compare. Build the index anew."
        )
    here = [str(each) for each, is_here in zip(ids, gallery.holds(ids), strict=True) if is_here]
    if here and not replace:
        raise ValueError(
            f"Received {len(here)} of {counted(len(ids), 'item')} whose ids the index holds already, such as "
            f"{here[0]!r}; expected new ones. Replace those by --replace; or, where they are others, give their "
            "folder a name of its own by --root. Nothing was added."
        )


def remove_items(folder: pathlib.Path, ids) -> dict:
    """Write the newest version without these items as the next one. Raises ValueError for ids that are not there."""
    with _locked(folder):
        gallery, about, index = read_index(folder)
        fewer = gallery.without(ids)
        if index is not None:
            index.remove(_keys(gallery)[~fewer.holds(gallery.ids)])
        return _write(folder, fewer, about["model"], index, about.get("roots"), about.get("mixed", 0))


def read_index(folder: pathlib.Path):
    """The newest version: its gallery, what `index.json` holds, and its approximate index, None where it has none.

    Raises:
        ValueError: where there is none, or its files are damaged.
    """
    version = latest_version(folder)
    try:
        about = json.loads((version / "index.json").read_text("utf-8"))
        with (version / "vectors.npy").open("rb") as file:
            gallery = Gallery(np.lib.format.read_array(file, allow_pickle=False), read_items(version))
        about["model"]  # all that is needed of it
    except (OSError, ValueError, LookupError, TypeError, RecursionError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"Received {version}, a version of an index whose files are damaged ({type(error).__name__}: {error}); "
            "expected them as they were written. Build the index anew, or delete this folder, and the version before "
            "it is the newest again."
        ) from error
    path = version / "approximate.usearch"
    return gallery, about, usearch_graph.load(path) if path.exists() else None


def search_approximately(gallery: Gallery, index, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and cosine similarities [Q, min(k, N)] of near items, most of them the nearest."""
    keys = _keys(gallery)
    order = np.argsort(keys)
    found, similarities = usearch_graph.search(index, queries, min(k, len(keys)))
    return gallery.ids[order[np.searchsorted(keys, found, sorter=order)]], similarities


def _locked(folder: pathlib.Path) -> filelock.BaseFileLock:
    """Only one process at a time reads the newest version and writes the next one."""
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / ".lock")


def _keys(gallery: Gallery) -> np.ndarray:
    """A number for each item that stays when others come and go: [N] int64, as sample ids are."""
    return Items(gallery.ids, None, {}).sample_ids() if len(gallery.ids) else np.empty(0, np.int64)


def _write(
    folder: pathlib.Path, gallery: Gallery, model: str, index, roots: dict[str, str] | None, num_mixed: int
) -> dict:
    about = {"items": len(gallery.ids), "width": gallery.vectors.shape[1], "model": model, "roots": roots}
    about |= {"mixed": num_mixed} if num_mixed else {}
    if index is not None:
        about |= _measure(gallery, index)
    with new_version(folder) as target:
        search = ExactSearch(gallery, num_mixed)
        tf.saved_model.save(search, str(target), signatures={"search": search.search})
        with writing_whole(target / "vectors.npy") as side:
            np.save(side, gallery.vectors)
        write_items(target / ITEMS, gallery.items)
        if index is not None:
            index.save(str(target / "approximate.usearch"))
        write_whole(target / "index.json", json.dumps(about, indent=1))
    return about


def _measure(gallery: Gallery, index) -> dict:
    """Share of the exact nearest 10 that the approximate index finds, and the time per query."""
    queries = np.random.default_rng(0).permutation(len(gallery.ids))[:RECALL_QUERIES]
    k = min(RECALL_AT, len(gallery.ids) - 1)
    if k < 1:
        return {}
    exact = ExactSearch(gallery)
    times, found = [], []
    for find in (exact.find, functools.partial(search_approximately, gallery, index)):
        find(gallery.vectors[queries[:1]], k + 1)  # traces
        start = time.perf_counter()
        ids, _ = find(gallery.vectors[queries], k + 1)
        times.append((time.perf_counter() - start) / len(queries) * 1e3)
        found.append([set(row) - {own} for row, own in zip(ids, gallery.ids[queries], strict=True)])
    recall = sum(len(a & b) for a, b in zip(*found, strict=True)) / sum(map(len, found[0]))
    return {f"recall_at_{RECALL_AT}": recall, "exact_ms": times[0], "approximate_ms": times[1]}
