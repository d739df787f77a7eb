"""The pass through the backbone: from positions of items to features, on this machine or on a worker elsewhere."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from xbm_keras.data.sources import Source, UnreadableItem


def default_batch_size(has_gpu: bool) -> int:
    """Items per call of the network; on a CPU more was measured slower."""
    return 128 if has_gpu else 16


def compute_batches(
    source: Source, network: Callable, prepare: Callable, shards: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[np.ndarray | UnreadableItem]]:
    """Of each batch of items: features [D] float32, or why an item has none, in the order of the positions.

    No batch crosses the end of a shard, so that a shard does not depend on where a run began.

    Args:
        source: the items.
        network: from a batch [batch_size, ...] to features [batch_size, D].
        prepare: from an item to what the network takes.
        shards: positions of items, increasing.
        batch_size: items per call of the network.
    """
    inputs = source.read([position for shard in shards for position in shard], prepare)
    for shard in shards:
        for batch in _batches(inputs, len(shard), batch_size):
            features = _apply(network, [x for x in batch if not isinstance(x, UnreadableItem)], batch_size)
            yield [x if isinstance(x, UnreadableItem) else _checked(next(features)) for x in batch]


def _apply(network: Callable, inputs: list, batch_size: int) -> Iterator[np.ndarray]:
    """Features of at most a batch of inputs; filled up to the full batch, so that there is one trace."""
    if not inputs:
        return iter(())
    blank = tf.nest.map_structure(np.zeros_like, inputs[0])  # an input may be a dict of arrays
    filled = inputs + [blank] * (batch_size - len(inputs))
    batch = tf.nest.map_structure(lambda *arrays: tf.constant(np.stack(arrays)), *filled)
    return iter(network(batch).numpy()[: len(inputs)])


def _checked(row: np.ndarray) -> np.ndarray | UnreadableItem:
    """Features [D] that say something; or what is wrong with them."""
    if not np.isfinite(row).all():
        return UnreadableItem("the backbone gave NaN or infinite features")
    return UnreadableItem("the backbone gave constant features") if row.size > 1 and np.ptp(row) == 0 else row


def _batches(items: Iterator, count: int, batch_size: int) -> Iterator[list]:
    """The next `count` items in lists of at most `batch_size`."""
    for start in range(0, count, batch_size):
        yield [next(items) for _ in range(min(batch_size, count - start))]
