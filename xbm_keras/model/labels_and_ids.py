"""What a batch says of its items: labels, sample ids and weights, checked where a step is traced, and what ids did."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from xbm_keras.geometry import unit_length
from xbm_keras.stages.circular_memory import replicas
from xbm_keras.stages.circular_memory.item_arrays import (
    check_features,
    read_labels,
    read_relevant,
    read_sample_ids,
    read_slot_numbers,
)
from xbm_keras.stages.circular_memory.ring import CircularMemory


class WarnOfRepeatedIds(keras.callbacks.Callback):
    """Says once that ids seem to number the items of each batch, not those of the data. `XBMModel.fit` brings it along.

    Told by the memory, where each id counts once: after an epoch of batches with the same ids it holds several batches,
    and no more rows of them count than one batch has.
    """

    def on_train_begin(self, logs=None):
        """Nothing was said."""
        self.is_due = bool(self.model.memory.memory_size and not self.model.memory.frozen)

    def on_epoch_begin(self, epoch, logs=None):
        """Note how many rows there were."""
        self.num_before, self.batch_size = self._num_enqueued(), None

    def on_train_batch_end(self, batch, logs=None):
        """Note the size of the epoch's first batch, or of those of a call of several steps: no other is larger."""
        if self.batch_size is None:
            self.batch_size = (self._num_enqueued() - self.num_before) // (batch + 1)

    def on_epoch_end(self, epoch, logs=None):
        """Look at the memory."""
        if not self.is_due or not self.batch_size:
            return
        memory = self.model.memory
        num_held = int(memory.occupancy())
        num_valid = np.count_nonzero(memory.newest_of_id.is_newest.value[:num_held])
        if (
            num_valid <= self.batch_size
            and min(num_held, self._num_enqueued() - self.num_before) >= 2 * self.batch_size
        ):
            self.is_due = False
            warnings.warn(
                f"Received sample ids that leave {num_valid} of the memory's {num_held} rows valid, no more than a "
                "batch has: of rows with one id the newest alone counts, and each batch brought the ids of the last. "
                "Expected ids that number the items of the whole data set, not those of a batch. Give "
                "np.arange(num_items), in the order of the items.",
                stacklevel=2,
            )

    def _num_enqueued(self) -> int:
        memory = self.model.memory
        return int(memory.num_enqueued.numpy()) if self.is_due and memory.built else 0


class Batch(NamedTuple):
    """What a batch is to its model."""

    wanted: tf.Tensor
    """[B] int64, the labels that positives have; or [B, P], the ids of the documents that answer a query."""
    ids: tf.Tensor
    """[B] int64: no row of this id is a pick of the anchor."""
    items: tuple[tf.Tensor, tf.Tensor, tf.Tensor]
    """Features [n, D] of unit length, labels [n] and ids [n] of what enters the memory: the anchors themselves, or
    documents."""
    source: tuple[tf.Tensor, tf.Tensor]
    """All features [B, ...] that came with the anchors, and sample ids [B] to name these by."""


def read_batch(inputs: dict, labels, features: tf.Tensor, model: keras.Model, training: bool) -> Batch:
    """Labels and ids of a batch; a loss that uses no labels gets none to see, all are 0.

    Args:
        inputs: of the model; "sample_id" among them may be left out where there is no memory, and where anchors are
            queries. These come with a "document" [B, D] each, and its "document_id" [B]; without, where steps find all
            documents in a frozen memory.
        labels: what came with them; None where there is nothing.
        features: [B, D].
        model: an `XBMModel`; loss, top k and memory say what is needed.
        training: else the batch itself is in the role of the memory.

    Raises:
        ValueError: where labels, ids or documents are needed and missing, or of another dtype or shape.
    """
    loss, memory_size = model.pair_loss, model.memory.memory_size
    if labels is None and loss.uses_labels:
        raise ValueError(
            f"Received a batch without labels; expected (inputs, labels): {loss.name} needs classes. "
            "Without labels use SimilarityAlignmentLoss with NeighborTopK."
        )
    batch_size = features.shape[0] or tf.shape(features)[0]
    ids = inputs.get("sample_id")
    if ids is None:
        if memory_size and not model.top_k.by_relevance:
            raise ValueError(
                f"Received inputs {sorted(inputs)} with {memory_size=}; expected 'sample_id' among them, so that a "
                "sample never meets its own copy in the memory. Add an int64 array that numbers the items, such as "
                "np.arange(num_items), or use CircularMemory(0)."
            )
        ids = replicas.of_whole_batch(lambda n: tf.range(tf.cast(n, tf.int64)), batch_size)
    ids = read_sample_ids(ids, batch_size)
    checked = tf.where(inputs["is_held"], 0.0, float("nan"))[:, None] if "is_held" in inputs else features
    if model.top_k.by_relevance:
        return _of_queries(inputs, labels, features, ids, checked, model.memory, training)
    wanted = read_labels(labels, batch_size) if loss.uses_labels else tf.zeros_like(ids)
    return Batch(wanted, ids, (features, wanted, ids), (checked, ids))


def _of_queries(inputs, labels, features, ids, checked, memory, training) -> Batch:
    relevant = read_relevant(labels, tf.shape(ids)[0])
    if "document" in inputs:
        check_features(inputs["document"].shape, memory.feature_dim)
        documents = unit_length(inputs["document"])
        document_ids = read_sample_ids(inputs.get("document_id"), ids.shape[0] or tf.shape(ids)[0])
        checked = tf.concat([checked, documents], axis=1)
    elif training and memory.frozen and memory.memory_size:
        documents, document_ids = features[:0], ids[:0]
    else:
        raise ValueError(
            f"Received inputs {sorted(inputs)}; expected 'document' [B, D] among them, and 'document_id' [B]: one that "
            "answers each query. Only for training, and with frozen=True, does a prefilled memory hold all already."
        )
    no_row = tf.fill(tf.shape(ids), tf.constant(-1, tf.int64))  # queries are no rows
    return Batch(relevant, no_row, (documents, tf.zeros_like(document_ids), document_ids), (checked, ids))


def check_inputs(inputs, takes_features: bool, width: int | None = None) -> None:
    """Look at a model's inputs, or at their shapes.

    Args:
        inputs: of the model: tensors, or shapes.
        takes_features: whether "inputs" are features, too: there is no backbone.
        width: D, where the model is built.

    Raises:
        ValueError: where they are no dict with "features" or "inputs", or features of another shape.
    """
    if not isinstance(inputs, dict) or not {"features", "inputs"} & set(inputs):
        found = sorted(inputs) if isinstance(inputs, dict) else "without names"
        raise ValueError(
            f"Received inputs {found}; expected a dict with 'features' [B, D], or with 'inputs' of the backbone, and "
            "'sample_id' [B]. Give {'features': x, 'sample_id': np.arange(len(x))}."
        )
    features = inputs.get("features", inputs.get("inputs") if takes_features else None)
    if features is not None:
        check_features(getattr(features, "shape", features), width)


def check_texts(inputs, labels) -> None:
    """Refuse names in place of numbers in what `fit` is given, which Keras would do in words of its own.

    Args:
        inputs: of the model; arrays by name, or whatever else.
        labels: an array, a list, or whatever else.

    Raises:
        ValueError: for labels or sample ids that are text.
    """
    ids = inputs.get("sample_id") if isinstance(inputs, dict) else None
    for values, read in ((labels, read_labels), (ids, read_sample_ids)):
        if values is not None and (isinstance(values, list | tuple) or hasattr(values, "dtype")):
            first = np.asarray(values[:1])
            if first.dtype.kind in "USO":
                read(first, len(first))


def with_items(data: tuple, memory: CircularMemory) -> tuple:
    """Inputs, labels and weights of a step; where the inputs are slots, with what the memory holds there.

    Args:
        data: as Keras gives it: inputs, and perhaps labels and weights.
        memory: prefilled.

    Raises:
        ValueError: as `read_slots` does.
    """
    inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    if isinstance(inputs, dict) and "slot" in inputs:
        inputs, labels = read_slots(inputs["slot"], memory)
    return inputs, labels, weights


def read_slots(slots, memory: CircularMemory) -> tuple[dict, tf.Tensor]:
    """Inputs of a model, and labels, of a batch that is in the memory already.

    A slot that holds no row is marked in "is_held", and has its own number as the sample id: a step refuses its batch.

    Args:
        slots: where, integer, [B] or [B, 1].
        memory: prefilled.

    Raises:
        ValueError: where rows may leave the memory, or there is none, or for slots of another dtype or shape.
    """
    if not memory.frozen or not memory.memory_size:
        raise ValueError(
            f"Received slots of a memory with frozen={memory.frozen} and memory_size={memory.memory_size}; expected "
            "one that holds the training set and that no step changes. Use frozen=True and prefill, or give features."
        )
    slots = read_slot_numbers(slots)
    is_held = (slots >= 0) & (slots < memory.occupancy())
    held = tf.where(is_held, slots, 0)
    features, labels, sample_ids = memory.items(held)
    if memory.storage_dtype != "float32":  # rounded
        features = unit_length(features)
    sample_ids = tf.where(is_held, sample_ids, slots)
    return {"features": features, "sample_id": sample_ids, "number": held, "is_held": is_held}, labels
