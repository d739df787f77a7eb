"""`python -m xbm_keras.index`: build a gallery, add and remove items, and search it."""

import argparse
import logging
import pathlib

import numpy as np

from xbm_keras import index, saved_run, terminal
from xbm_keras.pictures import ExportedModel, embed_folder, fingerprint, why_invalid
from xbm_keras.versions import latest_version

log = logging.getLogger("xbm_keras")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 where it cannot be done."""
    options = _parser().parse_args(arguments)
    terminal.set_up()
    with terminal.readable_errors():
        options.run(options)
    return 0


def build(options: argparse.Namespace) -> None:
    """Embed the run's data, or a folder of pictures, and write a first version."""
    if options.pictures:
        gallery, model = _from_pictures(options)
    else:
        gallery, model = _from_run(options)
    about = index.write_index(pathlib.Path(options.index), gallery, model, approximate_search=options.approximate)
    _report(options, about)


def add(options: argparse.Namespace) -> None:
    """Embed a folder of pictures, and write a version with them."""
    _report(options, index.add_items(pathlib.Path(options.index), *_from_pictures(options)))


def remove(options: argparse.Namespace) -> None:
    """Write a version without some items."""
    _report(options, index.remove_items(pathlib.Path(options.index), np.array(options.id)))


def search(options: argparse.Namespace) -> None:
    """Print the items nearest to each picture."""
    model = ExportedModel(_exported(options.model))
    gallery, about, approximate = index.read_index(pathlib.Path(options.index))
    if about["model"] != model.fingerprint:
        raise ValueError(
            f"Received the model {model.fingerprint} for an index of the model {about['model']}; expected one model, "
            "since vectors of two do not compare. Give the model that the index was built with."
        )
    vectors, valid = model.embed([pathlib.Path(path).read_bytes() for path in options.picture])
    if options.approximate and approximate is None:
        raise ValueError("Received --approximate with an index that has no such part; build it with --approximate.")
    if options.approximate:
        ids, similarities = index.search_approximately(gallery, approximate, vectors, options.k)
    else:
        ids, similarities = index.Search(gallery).find(vectors, options.k)
    for path, is_valid, *answers in zip(options.picture, valid, ids, similarities, strict=True):
        print(path if is_valid else f"{path}: {why_invalid(pathlib.Path(path).read_bytes())}")
        for item, similarity in zip(*answers, strict=True) if is_valid else ():
            print(f"  {similarity:.4f}  {item}")


def _from_run(options) -> tuple[index.Gallery, str]:
    """The items of a run's data, embedded by its head."""
    head = saved_run.load_head(options.model)
    dataset = saved_run.load_data(options.model, options.config, options.set, all_test=options.items == "all")
    saved_run.check_width(head, dataset)
    test = dataset.splits.test
    vectors, ids = saved_run.embed_items(head, dataset, test), dataset.keys[test].astype(str)
    gallery = index.Gallery(vectors, ids, dataset.names_of(test))
    return gallery, fingerprint(_exported(options.model))


def _from_pictures(options) -> tuple[index.Gallery, str]:
    """The pictures of a folder that can be read, by relative path; the first folder of the path is the label."""
    model = ExportedModel(_exported(options.model))
    ids, vectors = [], []
    for paths, embeddings, valid in embed_folder(model, pathlib.Path(options.pictures)):
        for path in np.array(paths)[~valid]:
            log.warning("Left out %s: %s.", path, why_invalid((pathlib.Path(options.pictures) / path).read_bytes()))
        ids.append(np.array(paths)[valid])
        vectors.append(embeddings[valid])
    names = np.concatenate(ids)
    labels = np.array([name.split("/")[0] if "/" in name else "" for name in names], dtype=str)
    return index.Gallery(np.concatenate(vectors), names, labels), model.fingerprint


def _exported(model: str) -> pathlib.Path:
    """The SavedModel of a run's workdir, or the folder itself."""
    folder = pathlib.Path(model)
    return latest_version(folder / "export") if (folder / "export").is_dir() else folder


def _report(options, about: dict) -> None:
    version = latest_version(pathlib.Path(options.index))
    recall = ", ".join(f"{name} {value:.4g}" for name, value in about.items() if isinstance(value, float))
    log.info("%s: %d items of width %d%s", version, about["items"], about["width"], recall and f"; {recall}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m xbm_keras.index", description="A gallery to search.")
    commands = parser.add_subparsers(required=True)

    def command(name: str, run, **kwargs) -> argparse.ArgumentParser:
        made = commands.add_parser(name, **kwargs)
        made.set_defaults(run=run)
        made.add_argument("--index", required=True, help="the folder of its versions")
        return made

    def model(made: argparse.ArgumentParser) -> None:
        made.add_argument("--model", required=True, help="the workdir of a run, or an exported model")

    made = command("build", build, help="embed a run's data, or a folder of pictures")
    model(made)
    made.add_argument("--pictures", help="a folder; by default the run's data")
    made.add_argument("--config", help="of other data than the run's own; they need no labels")
    made.add_argument("--set", action="append", default=[], metavar="section.key=value", help="over the config")
    made.add_argument("--items", choices=("test", "all"), default="all", help="which of the data's items")
    made.add_argument("--approximate", action="store_true", help="also an approximate index; needs the extra [ann]")
    made = command("add", add, help="embed a folder of pictures, and add them")
    model(made)
    made.add_argument("--pictures", required=True)
    made = command("remove", remove, help="remove items")
    made.add_argument("id", nargs="+")
    made = command("search", search, help="the items nearest to pictures")
    model(made)
    made.add_argument("--k", type=int, default=10)
    made.add_argument("--approximate", action="store_true")
    made.add_argument("picture", nargs="+")
    return parser
