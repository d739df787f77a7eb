"""`xbm-keras index`: build a gallery, keep it up to date, and search it."""

import argparse
import dataclasses
import json
import logging
import pathlib
import textwrap

import numpy as np

from xbm_keras.atomic_files import latest_version, versions
from xbm_keras.cli import labels, parsers, terminal
from xbm_keras.cli.queries import read_queries
from xbm_keras.data.errors import DataError
from xbm_keras.data.labels import counted
from xbm_keras.evaluation.thresholds import read_thresholds
from xbm_keras.experiment.indexing import embedder_of, of_run, reembedded
from xbm_keras.index import galleries, mapping, stores
from xbm_keras.index.approximate import ENGINES
from xbm_keras.index.coded_search import SearchForm, read_search_form
from xbm_keras.index.exported_model import exported_by
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.incoming import Embedder, Incoming, changes, embedded, incoming, kind_of, source_of, with_metadata
from xbm_keras.index.opened_index import OpenedIndex, are_comparable, form_of
from xbm_keras.index.roots import choose_root, place_of

log = logging.getLogger("xbm_keras")
TEXT = 80  # signs of a text that a line shows


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 where it cannot be done."""
    options = parsers.index().parse_args(arguments)
    terminal.set_up()
    with terminal.readable_errors():
        COMMANDS[options.run](options)
    return 0


def build(options: argparse.Namespace) -> None:
    """Embed the run's data, or what lies in a folder or file, and write a version of it alone."""
    if path := _path(options):
        root = choose_root(path, options.root or "", {})
        embedder, coming = _incoming(options, path, root)
        gallery, _ = embedded(coming, embedder)
        about: dict = {"model": embedder.fingerprint, "network": embedder.network(coming.source)}
        about["roots"] = {root: place_of(path)}
    else:
        gallery, about = of_run(options.model, options.config, options.set, options.items == "all")
        if options.metadata:
            gallery = Gallery(gallery.vectors, with_metadata(gallery.items, options.metadata))
    folder = pathlib.Path(options.index)
    former = versions(folder)
    model, width = exported_by(options.model), gallery.vectors.shape[1]
    form = SearchForm.parse(options.form, width) if options.form else form_of(model, width)
    about |= _held(model, form, width, options.mix)
    about = galleries.write_index(folder, gallery, engine=options.approximate, **about)
    _report(options, about, f"; it takes the place of version {former[-1].name}, which stays there" if former else "")


def add(options: argparse.Namespace) -> None:
    """Embed what lies in a folder or file, and write a version with it. What is refused is so before it is embedded."""
    folder, path = pathlib.Path(options.index), _path(options)
    if not path:
        raise ValueError("Received nothing to add; expected --pictures, --texts or --vectors. Give one.")
    opened = OpenedIndex.newest(folder)
    known = opened.about.get("roots")
    root = choose_root(path, options.root, known or {})
    embedder, coming = _incoming(options, path, root)
    keys = coming.source.items.keys
    if known is None and options.root is None and (shared := keys[opened.holds(keys)]).size:
        raise ValueError(
            f"Received {counted(len(shared), 'item')} of paths that are ids of this index, such as "
            f"{str(shared[0])!r}, and an index that does not know its folders, as older versions wrote it; expected to "
            f"be told whether this folder is that of these items. If so, say --root='' --replace, else --root={root}."
        )
    galleries.check_new(opened, coming.ids, embedder.fingerprint, options.replace)
    more, left_out = embedded(coming, embedder)
    roots = _roots(opened, root, path)
    about = galleries.add_items(folder, more, embedder.fingerprint, replace=options.replace, roots=roots)
    _report(
        options,
        about,
        f"; {about['added']} added and {about['replaced']} replaced under the root {root!r}, {left_out} left out",
    )


def sync(options: argparse.Namespace) -> None:
    """Take up what is new and changed in a folder or file, and drop what is gone, in one version."""
    folder = pathlib.Path(options.index)
    opened = OpenedIndex.newest(folder)
    root = choose_root(options.path, options.root, opened.about.get("roots") or {})
    options.kind = kind_of(options.path)
    try:
        embedder, coming = _incoming(options, options.path, root)
    except DataError as error:
        if not options.allow_empty or (pathlib.Path(options.path).exists() and options.kind != "pictures"):
            raise DataError(
                f"{error} Nothing was changed: an unplugged disk looks so. If all its items are to leave the index, "
                "say --allow_empty."
            ) from error
        found = changes(opened.kept_items, {}, root)
        more, left_out, fingerprint = None, 0, ""
    else:
        fingerprint = embedder.fingerprint
        galleries.check_new(opened, [], fingerprint, replace=True)
        found = changes(opened.kept_items, coming.digests, root)
        more, left_out = embedded(coming, embedder, found.wanted) if len(found.wanted) else (None, 0)
    ids: list[str] = [] if more is None else more.ids.tolist()
    changed = sum(each in found.known for each in ids)
    told = f"{len(ids) - changed} added, {changed} changed, {len(found.gone)} gone, {left_out} left out"
    if not len(ids) and not found.gone:
        log.info("%s: nothing has changed; %s", opened.version, told)
        return
    roots = _roots(opened, root, options.path)
    about = galleries.change_items(folder, more if len(ids) else None, found.gone, fingerprint, roots=roots)
    _report(options, about, f"; {told}")


def reembed(options: argparse.Namespace) -> None:
    """Write a version of the same items, as a new head over the same network embeds them."""
    folder = pathlib.Path(options.index)
    opened = OpenedIndex.newest(folder)
    gallery, fingerprint = reembedded(opened, options.model)
    model, width, former = exported_by(options.model), gallery.vectors.shape[1], opened.form
    as_before = dataclasses.replace(former, width=width if former.width == opened.about["width"] else former.width)
    about = galleries.write_index(
        folder,
        gallery,
        fingerprint,
        engine=next((name for name, each in ENGINES.items() if isinstance(opened.approximate, each)), None),
        roots=opened.about.get("roots"),
        network=opened.about["network"],
        **_held(model, read_search_form(model) or as_before, width, opened.num_mixed),
    )
    _report(options, about, f"; embedded anew by {options.model}")


def remove(options: argparse.Namespace) -> None:
    """Write a version without some items."""
    about = galleries.remove_items(pathlib.Path(options.index), options.id)
    _report(options, about, f"; {len(set(options.id))} removed")


def search(options: argparse.Namespace) -> None:
    """Print the items nearest to each picture, text, or row of an array of features."""
    opened, thresholds = OpenedIndex.newest(pathlib.Path(options.index)), None
    asked = read_queries(options, opened)
    if options.precision is not None:
        thresholds = opened.require_thresholds(exported_by(options.model))
        if not options.json:  # which has lines of its own alone
            log.info("%s", thresholds.told(options.precision))
    found = opened.find(asked.vectors, options.k, approximate=options.approximate, where=options.where)
    for one, error, hits in zip(asked.names, asked.errors, found, strict=True):
        if thresholds is not None:
            matches = thresholds.is_match(np.array([hit["similarity"] for hit in hits]), options.precision)
            hits = [{**hit, "is_match": bool(match)} for hit, match in zip(hits, matches, strict=True)]
        if options.json:
            print(json.dumps({"query": one, "error": error, "hits": [] if error else hits}, ensure_ascii=False))
            continue
        print(f"{one}: {error}" if error else one)
        for hit in () if error else hits:
            print(f"  {hit['similarity']:.4f}  {told_of(hit)}")


def told_of(hit: dict) -> str:
    """A hit in one line: its id, its label where no folder of the id says that already, its text, and metadata."""
    metadata = {name: str(x) for name, x in hit["metadata"].items() if x is not None}
    label = hit["label"] if f"/{hit['label']}/" not in f"/{hit['id']}/" else ""
    text = textwrap.shorten(metadata.pop("text", ""), TEXT)
    match = "" if hit.get("is_match", True) else "(no match)"
    return "  ".join(filter(None, [hit["id"], match, label, text, *(f"{name}={x}" for name, x in metadata.items())]))


def export(options: argparse.Namespace) -> None:
    """Write the items of the newest version for another store."""
    opened = OpenedIndex.newest(pathlib.Path(options.index))
    if opened.num_mixed:
        log.warning("The vectors are exported plain; this index mixes %d neighbours into each.", opened.num_mixed)
    if opened.form.codes[opened.form.finest].name != "float32":
        log.warning("The vectors are what is left of them: this index holds %s.", opened.form)
    stores.export_gallery(options.to, pathlib.Path(options.output), opened.gallery, opened.model)
    items, width = opened.gallery.vectors.shape
    log.info("%s: %s of width %d for %s", options.output, counted(items, "item"), width, options.to)


def map_to(options: argparse.Namespace) -> None:
    """Map the items of an index into the space of another model, and add them to the index of that model."""
    target = pathlib.Path(options.to)
    old, _, _ = galleries.read_index(pathlib.Path(options.index))
    new, about, _ = galleries.read_index(target)
    more, found = mapping.map_gallery(old, new)
    galleries.add_items(target, more, about["model"])
    kept = f"{found['recall_at_10']:.3f} of the 10 nearest"
    if "map_at_r" in found:
        kept += f", and a MAP@R of {found['map_at_r']:.3f}, where the new model's own vectors have "
        kept += f"{found['map_at_r_new']:.3f}"
    log.info("%s of %d pairs. Of %d others, the mapped find %s.", found["map"], found["pairs"], found["held_out"], kept)
    log.info("%s: %s mapped", latest_version(target), counted(len(more.items), "item"))


def _held(model: pathlib.Path, form: SearchForm, width: int, num_mixed: int) -> dict:
    """How an index is held, as `write_index` takes it: with the thresholds of the model, where they hold for it."""
    thresholds = read_thresholds(model) if are_comparable(model, form, width, num_mixed) else None
    return {"form": form, "num_mixed": num_mixed, "thresholds": thresholds}


def _path(options) -> str | None:
    """What `--pictures`, `--texts` or `--vectors` names; which of them is noted as its kind."""
    given = {name: getattr(options, name) for name in ("pictures", "texts", "vectors") if getattr(options, name)}
    if len(given) > 1:
        raise ValueError(f"Received {' and '.join(f'--{name}' for name in given)}; expected one of them.")
    ((options.kind, path),) = given.items() if given else ((None, None),)
    return path


def _incoming(options, path: str, root: str) -> tuple[Embedder, Incoming]:
    """The items at a path, and what embeds them."""
    source = source_of(path, options.kind)
    embedder = embedder_of(options.model, pathlib.Path(options.index), source.modality)  # type: ignore[union-attr]
    coming = incoming(source, embedder, root)
    if options.metadata:
        coming = dataclasses.replace(coming, items=with_metadata(coming.items, options.metadata))
    return embedder, coming


def _roots(opened: OpenedIndex, root: str, path: str) -> dict[str, str]:
    """The root of new items, and a word where it was another folder before."""
    place = place_of(path)
    if (opened.about.get("roots") or {}).get(root, place) != place:
        log.warning("The root %r was another folder up to now.", root)
    return {root: place}


def _report(options, about: dict, more: str = "") -> None:
    version = latest_version(pathlib.Path(options.index))
    form = read_search_form(version)
    more = f", held as {form}{more}" if form and form != SearchForm(about["width"], "float32") else more
    recall = ", ".join(f"{name} {value:.4g}" for name, value in about.items() if isinstance(value, float))
    recall = recall and f"; {recall}"
    log.info("%s: %s of width %d%s%s", version, counted(about["items"], "item"), about["width"], more, recall)


COMMANDS = {
    "build": build, "add": add, "sync": sync, "reembed": reembed, "remove": remove, "search": search,
    "label": labels.label, "export": export, "map": map_to,
}  # fmt: skip
"""What `parsers.index` names."""
