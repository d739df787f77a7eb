"""Versions of an index: write one, add items, remove items. Each is whole: an exact search, and what it was made of.

Letters: Q queries, N items, E embedding width, k answers.
"""

import json
import pathlib
import time

import filelock
import numpy as np
import tensorflow as tf

from xbm_keras.atomic_files import new_version, write_whole
from xbm_keras.data.labels import as_objects, counted
from xbm_keras.evaluation.thresholds import MatchThresholds
from xbm_keras.index.approximate import ENGINES, ApproximateSearch, Engine, keys_of
from xbm_keras.index.coded_search import SearchForm
from xbm_keras.index.gallery import Gallery, Strings, is_in, joined, strings
from xbm_keras.index.opened_index import OpenedIndex
from xbm_keras.index.saved_search import ExactSearch, mixed
from xbm_keras.index.segments import Segment, compacted, gallery_of, write_segments

RECALL_AT = 10
RECALL_QUERIES = 1000
WRITTEN_ANEW = ("items", "segments", f"recall_at_{RECALL_AT}", "exact_ms", "approximate_ms")  # of index.json


def write_index(
    folder: pathlib.Path,
    gallery: Gallery,
    model: str,
    *,
    form: SearchForm | None = None,
    thresholds: MatchThresholds | None = None,
    engine: str | None = None,
    num_mixed: int = 0,
    roots: dict[str, str] | None = None,
    network: str | None = None,
) -> dict:
    """Write a gallery as the next version `folder/<n>/`, whole or not at all.

    The version is a SavedModel with the signature `search`: `embeddings` [Q, E] float32 and `k` int32 to `ids`,
    `labels` and `similarities` [Q, min(k, N)], of segments (see `xbm_keras.index.segments`). Beside it lies, with an
    engine, the approximate search of that library (`approximate.<library>`), whose recall is measured.

    Args:
        folder: of the versions.
        gallery: the items.
        model: fingerprint of the model that embedded them.
        form: how they are held and searched, by default in float32 at their width.
        thresholds: of similarities that such a search gives.
        engine: also build an approximate search, by this library: a key of `ENGINES`; needs the extra [ann], LanceDB
            [stores].
        num_mixed: see `ExactSearch`; not with the approximate index. Plain vectors are stored as well, so that items
            may come and go: what is mixed is found anew then.
        roots: of the items, name to place; None where that is not known.
        network: what tells the frozen network and its cached features from others; None where that is not known.

    Returns:
        What `index.json` holds: `items`, `width`, `model`, `network`, `roots`, `segments`, `mixed` and, of an
        approximate index, `recall_at_10`.

    Raises:
        ValueError: for `num_mixed` with the approximate index, or a form that is wider than the vectors.
    """
    if num_mixed and engine:
        raise ValueError(
            f"Received num_mixed={num_mixed} with approximate search; expected one of them: what is mixed changes with "
            "each item that comes, which it cannot follow. Leave one out."
        )
    with _locked(folder):
        segment = Segment.of(gallery, form or SearchForm(gallery.vectors.shape[1], "float32"))
        built = ENGINES[engine].build(segment.gallery(), keys_of(gallery.ids)) if engine else None
        about = {"width": gallery.vectors.shape[1], "model": model, "roots": roots}
        about |= {"network": network} if network else {}
        about |= {"mixed": num_mixed} if num_mixed else {}
        return _write(folder, [segment], about, built, thresholds)


def add_items(
    folder: pathlib.Path, more: Gallery, model: str, *, replace: bool = True, roots: dict[str, str] | None = None
) -> dict:
    """Write the newest version with more items as the next one: see `change_items`."""
    return change_items(folder, more, [], model, replace=replace, roots=roots)


def remove_items(folder: pathlib.Path, ids: Strings) -> dict:
    """Write the newest version without these items as the next one. Raises ValueError for ids that are not there."""
    return change_items(folder, None, ids)


def change_items(
    folder: pathlib.Path,
    more: Gallery | None,
    gone: Strings,
    model: str = "",
    *,
    replace: bool = True,
    roots: dict[str, str] | None = None,
) -> dict:
    """Write the newest version with more items, and without some, as the next one.

    Nothing that is there is embedded or, but where segments become one, written again, and the approximate index takes
    up the new items alone.

    Args:
        folder: of the versions.
        more: the items that come.
        gone: ids of those that go.
        model: fingerprint of the model that embedded the items that come.
        replace: whether an item may take the place of one whose id is there already.
        roots: further ones.

    Returns:
        What `index.json` holds, and how many items were `added` and how many `replaced`.

    Raises:
        ValueError: where another model embedded the items that are there, for another width or another type of
            metadata, for an id in `gone` that is not there, or, without `replace`, for one in `more` that is.
    """
    with _locked(folder):
        opened = OpenedIndex.newest(folder)
        opened.require(gone)
        about = {"roots": None} | {name: value for name, value in opened.about.items() if name not in WRITTEN_ANEW}
        leaving, num_replaced, coming = strings(gone), 0, []
        if more is not None:
            check_new(opened, more.ids, model, replace)
            _require_alike(opened, more)
            coming = [Segment.of(more, opened.form)] if len(more.items) else []
            about["roots"] = {**(about["roots"] or {}), **roots} if roots else about["roots"]
            num_replaced = int(opened.holds(more.ids).sum())
            leaving = strings([*leaving.to_pylist(), *more.ids])
        if opened.approximate is not None:
            ids = opened.kept_items["id"]
            opened.approximate.remove(keys_of(as_objects(ids.to_pylist())[is_in(ids, leaving)]))
            for segment in coming:
                opened.approximate.add(segment.gallery(), keys_of(segment.gallery().ids))
        segments = [segment.without(is_in(segment.items["id"], leaving)) for segment in opened.segments]
        written = _write(folder, segments + coming, about, opened.approximate, opened.thresholds)
        num_added = 0 if more is None else len(more.items) - num_replaced
        return {**written, "added": num_added, "replaced": num_replaced}


def check_new(opened: OpenedIndex, ids: Strings, model: str, replace: bool) -> None:
    """Raises ValueError where items of these ids, embedded by this model, may not be added to an index.

    Args:
        opened: the index.
        ids: of the items.
        model: fingerprint of the model that embeds them.
        replace: whether an item may take the place of one whose id is there already.
    """
    if model != opened.model:
        raise ValueError(
            f"Received items embedded by the model {model} for an index of the model {opened.model}; expected "
            "one model, since vectors of two do not compare. Build the index anew."
        )
    here = [str(each) for each, is_here in zip(ids, opened.holds(ids), strict=True) if is_here]
    if here and not replace:
        raise ValueError(
            f"Received {len(here)} of {counted(len(ids), 'item')} whose ids the index holds already, such as "
            f"{here[0]!r}; expected new ones. Replace those by --replace; or, where they are others, give their "
            "folder a name of its own by --root. Nothing was added."
        )


def _require_alike(opened: OpenedIndex, more: Gallery) -> None:
    """Raises ValueError for vectors of another width, or columns of another type, than those of an index."""
    joined([opened.items, more.items])
    if more.vectors.shape[1] not in (opened.about["width"], opened.form.width):
        raise ValueError(
            f"Received vectors of width {more.vectors.shape[1]} for a gallery of width {opened.about['width']}; "
            "expected the same. Embed them with the model of the gallery."
        )


def read_index(folder: pathlib.Path):
    """The newest version: its gallery, what `index.json` holds, and its approximate search, None where it has none.

    Raises:
        ValueError: where there is none, or its files are damaged.
    """
    opened = OpenedIndex.newest(folder)
    return opened.gallery, opened.about, opened.approximate


def _locked(folder: pathlib.Path) -> filelock.BaseFileLock:
    """Only one process at a time reads the newest version and writes the next one."""
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / ".lock")


def _write(
    folder: pathlib.Path,
    segments: list[Segment],
    about: dict,
    engine: Engine | None,
    thresholds: MatchThresholds | None,
) -> dict:
    num_mixed = about.get("mixed", 0)
    # What is mixed changes with each item.
    segments = [mixed(segments, num_mixed)] if num_mixed else compacted(segments)
    num_items = sum(int(segment.kept.sum()) for segment in segments)
    about = {"items": num_items, **about, "segments": [segment.name for segment in segments]}
    with new_version(folder) as target:
        search = ExactSearch(segments, about["width"], num_mixed, is_empty=True)
        tf.saved_model.save(search, str(target), signatures={"search": search.search})
        write_segments(target, segments)
        segments[0].form.write(target)
        if thresholds is not None:
            thresholds.write(target)
        if engine is not None:
            engine.save(target / engine.file)
            about |= _measure(gallery_of(segments), engine)
        write_whole(target / "index.json", json.dumps(about, indent=1))
    return about


def _measure(gallery: Gallery, engine: Engine) -> dict:
    """Share of the exact nearest 10 that the approximate search finds, and the time per query."""
    queries = np.random.default_rng(0).permutation(len(gallery.items))[:RECALL_QUERIES]
    k = min(RECALL_AT, len(gallery.items) - 1)
    if k < 1:
        return {}
    exact = ExactSearch.of(gallery)
    times, found = [], []
    for find in (exact.find, ApproximateSearch(gallery.items, engine).find):
        find(gallery.vectors[queries[:1]], k + 1)  # traces
        start = time.perf_counter()
        rows, _ = find(gallery.vectors[queries], k + 1)
        times.append((time.perf_counter() - start) / len(queries) * 1e3)
        found.append([set(row) - {own} for row, own in zip(rows.tolist(), queries.tolist(), strict=True)])
    recall = sum(len(a & b) for a, b in zip(*found, strict=True)) / sum(map(len, found[0]))
    return {f"recall_at_{RECALL_AT}": recall, "exact_ms": times[0], "approximate_ms": times[1]}
