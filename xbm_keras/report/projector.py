"""The test embeddings for the projector of TensorBoard, which turns them in 3-D and maps them by t-SNE or UMAP."""

import os
import pathlib

import numpy as np
from tensorboard.plugins import projector

from xbm_keras.atomic_files import write_whole, writing_whole
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.retrieval import embed
from xbm_keras.stages.head.fc_layer import Head

MAX_ITEMS = 5_000  # more are slow in a browser


def write_projector(logdir: str | os.PathLike, dataset: Dataset, head: Head) -> None:
    """Write the trained embeddings of at most `MAX_ITEMS` test items, drawn evenly, with their labels and keys.

    Args:
        logdir: what TensorBoard is started with.
        dataset: the items.
        head: the trained head.

    Raises:
        OSError: where a file cannot be written.
    """
    folder = pathlib.Path(logdir)
    folder.mkdir(parents=True, exist_ok=True)
    positions = dataset.splits.test
    if len(positions) > MAX_ITEMS:
        positions = np.sort(np.random.default_rng(0).choice(positions, MAX_ITEMS, replace=False))
    rows = embed(head, UnitRows(dataset.features, positions))
    with writing_whole(folder / "trained.tsv") as side:
        np.savetxt(side, rows, fmt="%.4f", delimiter="\t")
    pairs = zip(dataset.names_of(positions), dataset.keys[positions], strict=True)
    lines = ["class\titem", *("\t".join(" ".join(str(part).split()) for part in pair) for pair in pairs)]
    write_whole(folder / "trained-items.tsv", "\n".join(lines) + "\n")
    config = projector.ProjectorConfig()
    config.embeddings.add(tensor_name="trained", tensor_path="trained.tsv", metadata_path="trained-items.tsv")
    projector.visualize_embeddings(str(folder), config)
