"""`xbm-keras index`: build a gallery, add and remove items, and search it."""

import argparse
import logging
import pathlib

import numpy as np

from xbm_keras.atomic_files import latest_version, versions
from xbm_keras.cli import labels, terminal
from xbm_keras.data.labels import counted, printable
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.experiment import saved_run
from xbm_keras.index import galleries, mapping, stores
from xbm_keras.index.approximate import ENGINES
from xbm_keras.index.exported_model import (
    ExportedModel,
    embed_folder,
    exported_by,
    fingerprint_of,
    pictures_in,
    read_bytes,
    read_rows,
    why_invalid,
)
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.opened_index import OpenedIndex
from xbm_keras.index.roots import choose_root, id_of, place_of

log = logging.getLogger("xbm_keras")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 where it cannot be done."""
    options = _parser().parse_args(arguments)
    terminal.set_up()
    with terminal.readable_errors():
        options.run(options)
    return 0


def build(options: argparse.Namespace) -> None:
    """Embed the run's data, or a folder of pictures, and write a version of them alone."""
    if options.pictures:
        root = choose_root(options.pictures, options.root or "", {})
        model = ExportedModel(exported_by(options.model))
        gallery = _embedded(model, options.pictures, root, pictures_in(pathlib.Path(options.pictures)))
        model_print, roots = model.fingerprint, {root: place_of(options.pictures)}
    else:
        gallery, model_print, roots = _from_run(options)
    folder = pathlib.Path(options.index)
    former = versions(folder)
    extras = {"engine": options.approximate, "num_mixed": options.mix}
    about = galleries.write_index(folder, gallery, model_print, **extras, roots=roots)
    _report(options, about, f"; it takes the place of version {former[-1].name}, which stays there" if former else "")


def add(options: argparse.Namespace) -> None:
    """Embed a folder of pictures, and write a version with them. What is refused is so before anything is embedded."""
    folder, pictures = pathlib.Path(options.index), pathlib.Path(options.pictures)
    model, paths = ExportedModel(exported_by(options.model)), pictures_in(pictures)
    opened = OpenedIndex.newest(folder)
    known = opened.about.get("roots")
    root = choose_root(options.pictures, options.root, known or {})
    if known is None and options.root is None and (shared := np.array(paths)[opened.holds(paths)]).size:
        raise ValueError(
            f"Received {counted(len(shared), 'picture')} of paths that are ids of this index, such as "
            f"{str(shared[0])!r}, and an index that does not know its folders, as older versions wrote it; expected to "
            f"be told whether this folder is that of these items. If so, say --root='' --replace, else --root={root}."
        )
    galleries.check_new(opened, [id_of(root, path) for path in paths], model.fingerprint, options.replace)
    roots = {root: place_of(options.pictures)}
    if known and known.get(root, roots[root]) != roots[root]:
        log.warning("The root %r was another folder up to now.", root)
    more = _embedded(model, options.pictures, root, paths)
    about = galleries.add_items(folder, more, model.fingerprint, replace=options.replace, roots=roots)
    left_out = len(paths) - len(more.ids)
    _report(
        options,
        about,
        f"; {about['added']} added and {about['replaced']} replaced under the root {root!r}, {left_out} left out",
    )


def remove(options: argparse.Namespace) -> None:
    """Write a version without some items."""
    about = galleries.remove_items(pathlib.Path(options.index), np.array(options.id))
    _report(options, about, f"; {len(set(options.id))} removed")


def search(options: argparse.Namespace) -> None:
    """Print the items nearest to each picture, or to each row of an array of features."""
    if bool(options.picture) == bool(options.features):
        raise ValueError("Received pictures and --features, or neither; expected one of them. Give what to search for.")
    model = ExportedModel(exported_by(options.model), "serve_features" if options.features else "serve_bytes")
    opened = OpenedIndex.newest(pathlib.Path(options.index))
    if opened.model != model.fingerprint:
        raise ValueError(
            f"Received the model {model.fingerprint} for an index of the model {opened.model}; expected one model, "
            "since vectors of two do not compare. Give the model that the index was built with."
        )
    if options.features:
        vectors = model.embed_features(read_rows(options.features))
        asked, valid = [f"row {i}" for i in range(len(vectors))], np.ones(len(vectors), bool)
    else:
        asked = options.picture
        vectors, valid = model.embed([read_bytes(pathlib.Path(path)) for path in asked])
    found = opened.find(vectors, options.k, approximate=options.approximate, where=options.where)
    for path, is_valid, hits in zip(asked, valid, found, strict=True):
        print(path if is_valid else f"{path}: {why_invalid(pathlib.Path(path))}")
        for hit in hits if is_valid else ():
            print(f"  {hit['similarity']:.4f}  {hit['id']}")


def export(options: argparse.Namespace) -> None:
    """Write the items of the newest version for another store."""
    opened = OpenedIndex.newest(pathlib.Path(options.index))
    if opened.num_mixed:
        log.warning("The vectors are exported plain; this index mixes %d neighbours into each.", opened.num_mixed)
    stores.export_gallery(options.to, pathlib.Path(options.output), opened.gallery, opened.model)
    log.info("%s: %d items of width %d for %s", options.output, *opened.gallery.vectors.shape, options.to)


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
    log.info("%s: %d items mapped", latest_version(target), len(more.items))


def _from_run(options) -> tuple[Gallery, str, dict[str, str]]:
    """The items of a run's data, or its documents, embedded by its head."""
    head = saved_run.load_head(options.model)
    dataset = saved_run.load_data(options.model, options.config, options.set, all_test=options.items == "all")
    if isinstance(dataset, PairDataset):
        saved_run.check_width(head, dataset.documents)
        vectors, ids = saved_run.embed_items(head, dataset.documents, of_rows=True), dataset.pairs.documents.ids
        return Gallery.of(vectors, ids), fingerprint_of(exported_by(options.model)), {}
    saved_run.check_width(head, dataset.features)
    test = dataset.splits.test
    vectors, ids = saved_run.embed_items(head, dataset.features, test), dataset.keys[test].astype(str)
    gallery = Gallery.of(vectors, ids, dataset.names_of(test))
    folder = getattr(dataset.source, "root", None)
    roots = {"": place_of(folder)} if isinstance(folder, pathlib.Path) else {}
    return gallery, fingerprint_of(exported_by(options.model)), roots


def _embedded(model: ExportedModel, pictures: str, root: str, paths: list[str]) -> Gallery:
    """The pictures of a folder that can be read; the first folder of the path below the root is the label."""
    found, vectors = [], []
    for batch, embeddings, valid in embed_folder(model, pathlib.Path(pictures), paths):
        for path in np.array(batch)[~valid]:
            log.warning("Left out %s: %s.", printable(path), why_invalid(pathlib.Path(pictures) / path))
        found += np.array(batch)[valid].tolist()
        vectors.append(embeddings[valid])
    labels = [printable(path.split("/")[0]) if "/" in path else "" for path in found]
    return Gallery.of(np.concatenate(vectors), [id_of(root, path) for path in found], labels)


def _report(options, about: dict, more: str = "") -> None:
    version = latest_version(pathlib.Path(options.index))
    recall = ", ".join(f"{name} {value:.4g}" for name, value in about.items() if isinstance(value, float))
    recall = recall and f"; {recall}"
    log.info("%s: %d items of width %d%s%s", version, about["items"], about["width"], more, recall)


def _positive(text: str) -> int:
    """A number of the command line, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"received {text}; expected at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xbm-keras index", description="A gallery to search.")
    commands = parser.add_subparsers(required=True)

    def command(name: str, run, **kwargs) -> argparse.ArgumentParser:
        made = commands.add_parser(name, **kwargs)
        made.set_defaults(run=run)
        made.add_argument("--index", required=True, help="the folder of its versions")
        return made

    def model(made: argparse.ArgumentParser) -> None:
        made.add_argument("--model", required=True, help=terminal.MODEL)

    made = command("build", build, help="embed a run's data, or a folder of pictures")
    model(made)
    made.add_argument("--pictures", help="a folder; by default the run's data")
    made.add_argument("--root", help="name of that folder, before the ids; by default none: ids are paths below it")
    made.add_argument("--config", help="of other data than the run's own; they need no labels")
    made.add_argument("--set", action="append", default=[], metavar="section.key=value", help="over the config")
    made.add_argument("--items", choices=("test", "all"), default="all", help="which of the data's items")
    made.add_argument(
        "--approximate",
        nargs="?",
        const="usearch",
        choices=sorted(ENGINES),
        help="also an approximate search, by default by usearch; needs the extra [ann]",
    )
    made.add_argument(
        "--mix", type=_positive, default=0, metavar="N", help="mix the N nearest items into each one and each query"
    )
    made = command("add", add, help="embed a folder of pictures, and add them")
    model(made)
    made.add_argument("--pictures", required=True, help="the folder; ids are ROOT/path/below/it")
    made.add_argument("--root", help="its name in the index; by default the one it has there, or the folder's own")
    made.add_argument("--replace", action="store_true", help="items whose ids are there already")
    made = command("remove", remove, help="remove items")
    made.add_argument("id", nargs="+")
    made = command("search", search, help="the items nearest to pictures, or to features")
    model(made)
    made.add_argument("--k", type=_positive, default=10)
    made.add_argument("--approximate", action="store_true")
    made.add_argument("--features", help="an .npy of features [n, D], such as those of queries, in place of pictures")
    made.add_argument("--where", help="search these items alone: \"style = 'flat' and year > 2019\"")
    made.add_argument("picture", nargs="*")
    labels.add_arguments(command("label", labels.label, help="suggest labels by the nearest items"))
    made = command("export", export, help="write the items for another store, which its own client reads")
    made.add_argument("--to", required=True, choices=sorted(stores.STORES))
    made.add_argument("--output", required=True, help="the file or folder to write, which is not there yet")
    made = command("map", map_to, help="map the items into the space of another model, by those in both indexes")
    made.add_argument("--to", required=True, help="the index of the other model, which some of the items are in")
    return parser
