"""`xbm-keras embed`: vectors of pictures, texts or features, and their ids, by an exported model."""

import argparse
import logging
import pathlib
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from xbm_keras import progress
from xbm_keras.atomic_files import write_whole, writing_whole
from xbm_keras.cli import terminal
from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.data.labels import printable
from xbm_keras.index.exported_model import (
    ExportedModel,
    embed_folder,
    exported_by,
    pictures_in,
    read_rows,
    why_invalid,
)
from xbm_keras.index.exported_texts import ExportedTexts

log = logging.getLogger("xbm_keras")
OUTPUTS = (".npy", ".parquet")
TABLES: dict[str, Callable[..., pd.DataFrame]] = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
TEXTS = 256  # that are embedded at a time


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 where it cannot be done."""
    parser = argparse.ArgumentParser(prog="xbm-keras embed", description="Vectors by an exported model.")
    parser.add_argument("--model", required=True, help=terminal.MODEL)
    parser.add_argument(
        "--input",
        required=True,
        help="a folder of pictures, an .npy of features, a .txt with a text on each line, or a .csv or .parquet "
        "with the columns text and, if wanted, id",
    )
    parser.add_argument(
        "--output", required=True, help="an .npy, beside which a .csv holds the ids, or a .parquet of ids and vectors"
    )
    options = parser.parse_args(arguments)
    terminal.set_up()
    with terminal.readable_errors():
        output = pathlib.Path(options.output)
        if output.suffix not in OUTPUTS:
            raise ConfigError(f"Received --output {options.output!r}; expected a path that ends in .npy or .parquet.")
        ids, vectors = embed(exported_by(options.model), pathlib.Path(options.input))
        write(output, ids, vectors)
        log.info("%s: %d vectors of width %d", output, *vectors.shape)
    return 0


def embed(version: pathlib.Path, path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Ids and embeddings [N, E] of what lies at a path."""
    if path.is_dir():
        return of_pictures(ExportedModel(version), path)
    if path.suffix == ".npy":
        vectors = ExportedModel(version, "serve_features").embed_features(read_rows(str(path)))
        return [str(i) for i in range(len(vectors))], vectors
    ids, texts = read_texts(path)
    model, found = ExportedTexts(ExportedModel(version, "serving_default"), version), []
    for start in progress.track(range(0, len(texts), TEXTS), "embedding", len(texts)):
        found.append(model.embed(texts[start : start + TEXTS]))
    return ids, np.concatenate(found)


def of_pictures(model: ExportedModel, folder: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Paths below a folder, and embeddings, of the pictures that can be read; the others are told."""
    paths, ids, found = pictures_in(folder), [], []
    with progress.bar("embedding", len(paths), "pictures") as bar:
        for batch, embeddings, valid in embed_folder(model, folder, paths):
            for name in np.array(batch)[~valid]:
                log.warning("Left out %s: %s.", printable(name), why_invalid(folder / name))
            ids += np.array(batch)[valid].tolist()
            found.append(embeddings[valid])
            bar.advance(len(batch))
    return ids, np.concatenate(found)


def read_texts(path: pathlib.Path) -> tuple[list[str], list[str]]:
    """Ids and texts of a file; by default the ids are numbers of lines or rows, from 0."""
    if path.suffix == ".txt" and path.is_file():
        table = pd.DataFrame({"text": path.read_text("utf-8").splitlines()})
    elif path.suffix in TABLES and path.is_file():
        table = TABLES[path.suffix](path)
    else:
        raise ConfigError(
            f"Received --input {str(path)!r}; expected a folder, or an .npy, .txt, .csv or .parquet file."
        )
    if "text" not in table or not len(table):
        columns = ", ".join(map(str, table.columns))
        raise ConfigError(
            f"Received --input {str(path)!r} with the columns {columns}; expected rows with the column text."
        )
    ids = table["id"] if "id" in table else pd.Series(range(len(table)))
    return ids.astype(str).tolist(), table["text"].fillna("").astype(str).tolist()


def write(path: pathlib.Path, ids: list[str], vectors: np.ndarray) -> None:
    """Write vectors [N, E], and their ids beside them or in the same file."""
    if path.suffix == ".parquet":
        rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
        with writing_whole(path) as side:
            pyarrow.parquet.write_table(
                pyarrow.table({"id": pyarrow.array(ids, pyarrow.string()), "vector": rows}), side
            )
        return
    with writing_whole(path) as side:
        np.save(side, vectors)
    write_whole(path.with_suffix(".csv"), pd.DataFrame({"id": ids}).to_csv(index=False))
