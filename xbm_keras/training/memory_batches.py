"""The order in which a memory is prefilled, and batches that are read from it where it holds the training set."""

import numpy as np
import tensorflow as tf

from xbm_keras.data.batches import PKSampler, ShuffledSampler, batch_dataset, slot_dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.model.xbm_model import XBMModel


def prefill_order(num_items: int, seed: int) -> np.ndarray:
    """[N] which item enters the memory first, second, and so on."""
    return np.random.default_rng(seed).permutation(num_items)


def training_batches(
    model: XBMModel,
    rows: UnitRows,
    labels: np.ndarray,
    sample_ids: np.ndarray,
    sampler: PKSampler | ShuffledSampler,
    seed: int,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Endless batches for `fit`: slots alone where the memory holds the items bit by bit, else features.

    So in the default run no feature leaves the device during training. Where a memory that no step changes holds them
    rounded, the slot of an item comes along, as its "number".

    Args:
        model: built; its memory prefilled in the order of `prefill_order`, or not at all.
        rows: [N, D] features of the items.
        labels: [N].
        sample_ids: [N].
        sampler: says which items make up a step.
        seed: of the order.
        first_step: number of steps before.
    """
    memory = model.memory
    if memory.frozen and memory.memory_size == len(rows):
        slots = np.argsort(prefill_order(len(rows), seed))
        held = memory.sample_ids.numpy()[slots], memory.labels.numpy()[slots]
        if np.array_equal(held[0], sample_ids) and np.array_equal(held[1], labels):
            if memory.storage_dtype == "float32":
                return slot_dataset(slots, sampler, first_step)
            return batch_dataset(rows, labels, sample_ids, sampler, first_step, slots)
    return batch_dataset(rows, labels, sample_ids, sampler, first_step)
