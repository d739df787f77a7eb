"""What a batch says of its items: labels, sample ids and weights, checked where a step is traced, and what ids did."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from xbm_keras.stages import replicas
from xbm_keras.stages.circular_memory import CircularMemory
from xbm_keras.stages.pair_losses import PairLoss


class WarnOfRepeatedIds(keras.callbacks.Callback):
    """Says once that ids seem to number the items of each batch, not those of the data. `XBMModel.fit` brings it along.

    Told by the memory, where each id counts once: after an epoch of batches with the same ids it holds several batches,
    and no more rows of them count than one batch has.
    """

    def on_train_begin(self, logs=None):
        """Nothing was said."""
        self.is_due = bool(self.model.memory.memory_size and self.model.enqueue)

    def on_epoch_begin(self, epoch, logs=None):
        """Note how many rows there were."""
        self.num_before, self.batch_size = self._num_enqueued(), None

    def on_train_batch_end(self, batch, logs=None):
        """Note the size of the epoch's first batch: the others are no larger."""
        if self.batch_size is None:
            self.batch_size = self._num_enqueued() - self.num_before

    def on_epoch_end(self, epoch, logs=None):
        """Look at the memory."""
        if not self.is_due or not self.batch_size:
            return
        memory = self.model.memory
        num_held = int(memory.occupancy())
        num_valid = np.count_nonzero(memory.is_newest.value[:num_held])
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


def read_labels_and_ids(
    inputs: dict, labels, features: tf.Tensor, pair_loss: PairLoss, memory_size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Labels and sample ids of a batch, int64 [B]; a loss that uses no labels gets none to see, all are 0.

    Args:
        inputs: of the model; "sample_id" among them may be left out where there is no memory.
        labels: what came with them; None where there is nothing.
        features: [B, D].
        pair_loss: says whether labels are needed.
        memory_size: M.

    Raises:
        ValueError: where labels or ids are needed and missing, or of another dtype or shape.
    """
    if labels is None and pair_loss.uses_labels:
        raise ValueError(
            f"Received a batch without labels; expected (inputs, labels): {pair_loss.name} needs classes. "
            "Without labels use SimilarityAlignmentLoss with NeighborTopK."
        )
    batch_size = features.shape[0] or tf.shape(features)[0]
    ids = inputs.get("sample_id")
    if ids is None:
        if memory_size:
            raise ValueError(
                f"Received inputs {sorted(inputs)} with {memory_size=}; expected 'sample_id' among them, so that a "
                "sample never meets its own copy in the memory. Add an int64 array that numbers the items, such as "
                "np.arange(num_items), or use CircularMemory(0)."
            )
        ids = replicas.of_whole_batch(lambda n: tf.range(tf.cast(n, tf.int64)), batch_size)
    ids = read_sample_ids(ids, batch_size)
    return read_labels(labels, batch_size) if pair_loss.uses_labels else tf.zeros_like(ids), ids


def read_slots(slots, memory: CircularMemory, is_changing: bool) -> tuple[dict, tf.Tensor]:
    """Inputs of a model, and labels, of a batch that is in the memory already.

    Args:
        slots: where, integer [B].
        memory: prefilled.
        is_changing: whether steps enqueue.

    Raises:
        ValueError: where rows may leave the memory, or there is none.
    """
    if is_changing or not memory.memory_size:
        raise ValueError(
            f"Received slots with enqueue={is_changing} and memory_size={memory.memory_size}; expected a memory that "
            "holds the training set and that no step changes. Use enqueue=False and prefill, or give features."
        )
    features, labels, sample_ids = memory.items(slots)
    return {"features": features, "sample_id": sample_ids}, labels


def read_labels(labels, batch_size: tf.Tensor | int) -> tf.Tensor:
    """Labels as int64 [B].

    Args:
        labels: integer or bool, [B] or [B, 1].
        batch_size: B.

    Raises:
        ValueError: for another dtype or shape.
    """
    expected = "integer labels, [B] or [B, 1]"
    labels = _tensor("labels", labels, expected)
    if labels.shape.rank and labels.shape.rank > 1 and labels.shape[-1] != 1:
        raise ValueError(
            f"Received labels of shape {labels.shape}; expected {expected}. Of one-hot labels give "
            "np.argmax(labels, axis=1)."
        )
    if not (labels.dtype.is_integer or labels.dtype.is_bool):
        mend = "Cast them to int64, if each of them is a whole number."
        if labels.dtype == tf.string:
            mend = "Number the classes: np.unique(labels, return_inverse=True)[1]."
        raise ValueError(f"Received labels of dtype {labels.dtype.name}; expected {expected}. {mend}")
    return tf.cast(_vector("labels", labels, batch_size, expected), tf.int64)


def read_sample_ids(sample_ids, batch_size: tf.Tensor | int) -> tf.Tensor:
    """Sample ids as int64 [B].

    Args:
        sample_ids: integer, [B] or [B, 1].
        batch_size: B.

    Raises:
        ValueError: for another dtype or shape.
    """
    expected = "integer ids, [B] or [B, 1]"
    sample_ids = _tensor("sample_id", sample_ids, expected)
    if not sample_ids.dtype.is_integer:
        raise ValueError(
            f"Received sample_id of dtype {sample_ids.dtype.name}; expected {expected}: other dtypes lose digits, and "
            "items that share an id hide each other in the memory. Give np.arange(num_items), which is int64."
        )
    return tf.cast(_vector("sample_id", sample_ids, batch_size, expected), tf.int64)


def read_weights(weights, batch_size: tf.Tensor | int) -> tf.Tensor:
    """Weights of the anchors, float32 [B].

    Args:
        weights: numbers, [B] or [B, 1].
        batch_size: B.

    Raises:
        ValueError: for another dtype or shape.
    """
    expected = "one number for each item, [B] or [B, 1]"
    weights = _tensor("sample_weight", weights, expected)
    if weights.dtype == tf.string or weights.dtype.is_complex:
        raise ValueError(
            f"Received sample_weight of dtype {weights.dtype.name}; expected {expected}. Cast it to float32."
        )
    return tf.cast(_vector("sample_weight", weights, batch_size, expected), tf.float32)


def _tensor(name: str, value, expected: str) -> tf.Tensor:
    try:
        return tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Received {name} of type {type(value).__name__}; expected {expected}. Give a single array."
        ) from error


def _vector(name: str, tensor: tf.Tensor, batch_size: tf.Tensor | int, expected: str) -> tf.Tensor:
    """The tensor as [B]."""
    shape, static_size = tensor.shape, tf.get_static_value(batch_size)
    is_column = shape.rank == 2 and shape[1] in (1, None)
    is_other_size = shape.rank and None not in (shape[0], static_size) and shape[0] != static_size
    if not (shape.rank in (1, None) or is_column) or is_other_size:
        size = "B" if static_size is None else static_size
        raise ValueError(
            f"Received {name} of shape {shape}; expected {expected}, with B = {size}. Give one number for each item."
        )
    return tf.reshape(tensor, [batch_size])
