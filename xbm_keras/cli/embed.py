"""`xbm-keras embed`: vectors of pictures, texts or features, and their ids, by an exported model."""

import logging
import pathlib

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from xbm_keras.atomic_files import write_whole, writing_whole
from xbm_keras.cli import parsers, terminal
from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.data.errors import DataError
from xbm_keras.data.labels import counted
from xbm_keras.data.sources import Items
from xbm_keras.data.texts import Texts
from xbm_keras.index.export_embedder import ExportEmbedder
from xbm_keras.index.exported_model import exported_by
from xbm_keras.index.incoming import Incoming, embedded, items_of, kind_of, source_of

log = logging.getLogger("xbm_keras")
OUTPUTS = (".npy", ".parquet")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 where it cannot be done."""
    options = parsers.embed().parse_args(arguments)
    terminal.set_up()
    with terminal.readable_errors():
        output = pathlib.Path(options.output)
        if output.suffix not in OUTPUTS:
            raise ConfigError(f"Received --output {options.output!r}; expected a path that ends in .npy or .parquet.")
        ids, vectors = embed(exported_by(options.model), pathlib.Path(options.input))
        write(output, ids, vectors)
        log.info("%s: %s of width %d", output, counted(len(vectors), "vector"), vectors.shape[1])
    return 0


def embed(version: pathlib.Path, path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Ids and embeddings [N, E] of what lies at a path and has one; of the other items it is told why they have none.

    Raises:
        DataError: where there is nothing, or nothing of use.
    """
    source = _lines(path) if path.suffix == ".txt" else source_of(str(path), kind_of(str(path)))
    embedder = ExportEmbedder(version, path.parent, source.modality)  # type: ignore[union-attr]
    gallery, _ = embedded(Incoming(source, items_of(source, "")), embedder)
    return gallery.ids.tolist(), gallery.vectors


def _lines(path: pathlib.Path) -> Texts:
    """A text on each line of a file; their ids are the numbers of the lines, from 0."""
    if not path.is_file():
        raise DataError(f"Received --input {str(path)!r}, which is no file; expected a .txt with a text on each line.")
    lines = path.read_text("utf-8").splitlines()
    return Texts(lines, Items(np.arange(len(lines)).astype(str), None, {}))


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
