"""Known neighbours: what steps would search in a memory that they do not change, searched before the first one."""

import hashlib
import json
import logging
import pathlib
import time
from collections.abc import Iterable

import numpy as np

from xbm_keras import progress
from xbm_keras.feature_cache.kept_blocks import kept_blocks, path_of
from xbm_keras.model import strategies
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.stages.hard_top_k.neighbor_table import Anchors, NeighborTable

log = logging.getLogger("xbm_keras")
KEPT_ABOVE = 1e11  # products of numbers: what takes a second is not worth its files
DIGESTED = 65_536  # rows at a time
OF_STEPS = ("name", "num_positives", "num_random", "positives", "max_rows_for_all", "seed")  # not of the search


def know_neighbors(
    model: XBMModel,
    num_ahead: int,
    cache_dir: str | None = None,
    anchors: Anchors | None = None,
    num_anchors: int | None = None,
) -> None:
    """Search once for each anchor, where the steps ahead would search more often: for more anchors than there are.

    Args:
        model: its memory filled, and to stay as it is. One that steps change, or whose picks change with the head, is
            left alone.
        num_ahead: anchors of all steps ahead together.
        cache_dir: where what took long is kept, so that a killed process goes on after it, and the next one reads it;
            None keeps it nowhere.
        anchors: by number; by default the rows of the memory, by slot.
        num_anchors: how many there are; by default as many as rows.
    """
    memory, top_k = model.memory, model.top_k
    num_anchors = num_anchors or memory.memory_size
    if top_k.table is not None or not memory.frozen or not top_k.num_known or num_ahead <= num_anchors:
        return
    with strategies.scope(model.distribute_strategy):
        table = NeighborTable(memory, top_k.search, top_k.num_known, anchors, num_anchors)
    blocks: Iterable[np.ndarray] = map(table.searched, table.starts)
    if cache_dir and num_anchors * memory.memory_size * memory.feature_dim > KEPT_ABOVE:
        folder = pathlib.Path(cache_dir).expanduser() / _digest(model, table, anchors)
        about = {"what": "neighbours", "items": num_anchors, "among": memory.memory_size, "k": top_k.num_known}
        blocks = kept_blocks(folder, about, table.starts, _telling(table, num_anchors, folder))
        if path_of(folder, table.starts[-1]).exists():
            log.info("The neighbours of %s items are read from %s.", f"{num_anchors:,}", folder)
    with progress.bar("neighbours", num_anchors) as bar:
        for start, block in zip(table.starts, blocks, strict=True):
            table.fill(start, block)
            bar.advance(len(block))
    top_k.table = table
    model.train_function = None  # one that is traced already would search on


def _telling(table, num_anchors, folder):
    """The search of a block, which says after the second one how long all will take: the first one traces a graph."""
    began: list[float] = []

    def searched(start):
        began.append(time.monotonic())
        if len(began) == 3:
            seconds = (began[2] - began[1]) * (num_anchors - start) / table.block_rows
            what = (f"{num_anchors:,}", f"{max(1, round(seconds)):,}", folder)
            log.info("The neighbours of %s items are searched once, which takes about %s s, and kept in %s.", *what)
        return table.searched(start)

    return searched


def _digest(model: XBMModel, table: NeighborTable, anchors: Anchors | None) -> str:
    """Of all that decides the table."""
    memory, top_k = model.memory, model.top_k
    settings = {name: value for name, value in top_k.get_config().items() if name not in OF_STEPS}
    about = [type(top_k).__name__, settings, memory.storage_dtype, table.block_rows]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    digest.update(memory.num_enqueued.numpy().tobytes())
    for variable in (*memory.weights, *top_k.weights):
        if variable is not memory.num_enqueued:
            for start in range(0, variable.shape[0], DIGESTED):
                digest.update(variable.value[start : start + DIGESTED].numpy().tobytes())
    for start in table.starts if anchors else ():
        for each in table.read(start):
            digest.update(each.numpy().tobytes())
    return digest.hexdigest()[:16]
