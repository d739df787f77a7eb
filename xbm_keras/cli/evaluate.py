"""`xbm-keras evaluate`: scores and vectors of a finished run on any data."""

import json
import logging
import pathlib

import numpy as np
import pandas as pd

from xbm_keras.atomic_files import write_whole, writing_whole
from xbm_keras.cli import parsers, terminal
from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.data.labels import counted
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation import wording
from xbm_keras.evaluation.pair_scores import compare_pairs
from xbm_keras.evaluation.side_by_side import compare
from xbm_keras.experiment import saved_run

log = logging.getLogger("xbm_keras")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 where it cannot be done."""
    options = parsers.evaluate().parse_args(arguments)
    terminal.set_up()
    with terminal.readable_errors():
        if options.embed and pathlib.Path(options.embed).suffix != ".npy":
            raise ConfigError(f"Received --embed {options.embed!r}; expected a path that ends in .npy.")
        head = saved_run.load_head(options.model)
        dataset = saved_run.load_data(options.model, options.config, options.set, all_test=options.items == "all")
        path = pathlib.Path(options.embed) if options.embed else None
        averaged = _averaged(options, head, dataset) if options.average else None
        if isinstance(dataset, PairDataset):
            metrics = score_pairs(head, dataset, path)
        else:
            metrics = score_items(head, dataset, path, averaged)
        is_all = options.items == "all"
        trained = saved_run.count_trained(options.model, dataset, options.config, options.set) if is_all else 0
    what = "queries" if isinstance(dataset, PairDataset) else "items"
    terminal.print_scores(metrics, f"{'All' if is_all else 'Test'} {what}")
    for line in wording.gains_of_averages(metrics):
        print(line)
    if trained:
        print(
            f"{trained:,} of these {len(dataset.splits.test):,} {what} trained or chose the head, so that the scores "
            "are too good for new ones: --items test scores those that did not."
        )
    if options.output:
        write_whole(options.output, json.dumps(metrics, indent=1))
    return 0


def _averaged(options, head, dataset) -> np.ndarray:
    """Embeddings [n, E] of the test pictures, averaged. Raises ConfigError where nothing could tell what that gives."""
    if not isinstance(dataset, PairDataset) and not options.embed:
        labels = dataset.labels[dataset.labelled(dataset.splits.test)]
        if not len(labels):
            raise ConfigError("Received --average with data without labels, which tell what it gives; expected some.")
        if np.bincount(labels).max() == 1:
            raise ConfigError(
                f"Received --average with {counted(len(labels), 'labelled item')}, no two of which share a class; "
                "expected some that do, which tell what it gives. Give --items all or other data, or --embed to have "
                "the embeddings alone."
            )
    return saved_run.average_views(options.model, head, dataset, options.average, options.config, options.set)


def score_items(head, dataset, path: pathlib.Path | None, averaged: np.ndarray | None = None) -> dict:
    """Scores of the test items, also of embeddings averaged over views; vectors, keys and labels go to a path."""
    test = dataset.splits.test
    saved_run.check_width(head, dataset.features)
    if path:
        about = {"key": dataset.keys[test], "label": dataset.names_of(test)}
        vectors = saved_run.embed_items(head, dataset.features, test) if averaged is None else averaged
        write_vectors(path, vectors, about)
    return compare(dataset, {"frozen": None, "trained": head}, test, averaged=averaged)


def score_pairs(head, dataset: PairDataset, path: pathlib.Path | None) -> dict:
    """Scores of the test queries over all documents; vectors and ids of both go beside a path."""
    splits = dataset.splits
    saved_run.check_width(head, dataset.queries)
    if path:
        sides = {"queries": (dataset.queries, splits.test), "documents": (dataset.documents, None)}
        for name, (features, chosen) in sides.items():
            vectors = saved_run.embed_items(head, features, chosen, of_rows=name == "documents")
            ids = getattr(dataset.pairs, name).ids[slice(None) if chosen is None else chosen]
            write_vectors(path.with_name(f"{path.stem}.{name}.npy"), vectors, {"id": ids})
    trained_on = np.union1d(splits.train, splits.validation)
    return compare_pairs(
        UnitRows(dataset.queries, splits.test),
        UnitRows(dataset.documents),
        *dataset.pairs.relevant(splits.test),
        {"frozen": None, "trained": head},
        dataset.is_unseen(splits.test, trained_on) if len(trained_on) else None,
    )


def write_vectors(path: pathlib.Path, vectors: np.ndarray, about: dict) -> None:
    """Write vectors [N, E], and, line for line, what is known of them."""
    with writing_whole(path) as side:
        np.save(side, vectors)
    write_whole(path.with_suffix(".csv"), pd.DataFrame(about).to_csv(index=False))
    told = path, counted(len(vectors), "vector"), vectors.shape[1], path.with_suffix(".csv"), " and ".join(about)
    log.info("%s: %s of width %d; %s: %s of each", *told)
