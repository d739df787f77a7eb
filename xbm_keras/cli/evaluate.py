"""`xbm-keras evaluate`: scores and vectors of a finished run on any data."""

import argparse
import json
import pathlib

import numpy as np
import pandas as pd

from xbm_keras.atomic_files import write_whole, writing_whole
from xbm_keras.cli import terminal
from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.evaluation.side_by_side import compare
from xbm_keras.experiment import saved_run


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 where it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="xbm-keras evaluate",
        description="Evaluate a finished run on any data, or embed them.",
    )
    parser.add_argument("--model", required=True, help="the workdir of the run")
    parser.add_argument("--config", help="of the data, which need no labels; by default the run's own")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="over the config")
    parser.add_argument("--items", choices=("test", "all"), default="test", help="which of the data's items")
    parser.add_argument("--output", help="write the scores to this .json file")
    parser.add_argument(
        "--embed",
        help="write vectors [N, E] to this .npy file, and keys and labels, where there are some, to a .csv beside it",
    )
    options = parser.parse_args(arguments)
    terminal.set_up()
    with terminal.readable_errors():
        if options.embed and pathlib.Path(options.embed).suffix != ".npy":
            raise ConfigError(f"Received --embed {options.embed!r}; expected a path that ends in .npy.")
        head = saved_run.load_head(options.model)
        dataset = saved_run.load_data(options.model, options.config, options.set, all_test=options.items == "all")
        saved_run.check_width(head, dataset)
        if options.embed:
            write_vectors(pathlib.Path(options.embed), head, dataset)
        heads = {"frozen": None, "trained": head}
        metrics = compare(dataset, heads, dataset.splits.test)
    terminal.print_scores(metrics)
    if options.output:
        write_whole(options.output, json.dumps(metrics, indent=1))
    return 0


def write_vectors(path: pathlib.Path, head, dataset) -> None:
    """Write the embeddings [N, E] of the test items, and, line for line, their keys and labels."""
    test = dataset.splits.test
    with writing_whole(path) as side:
        np.save(side, saved_run.embed_items(head, dataset, test))
    table = pd.DataFrame({"key": dataset.keys[test], "label": dataset.names_of(test)})
    write_whole(path.with_suffix(".csv"), table.to_csv(index=False))
