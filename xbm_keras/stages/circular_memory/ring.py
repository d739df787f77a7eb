"""Cross-batch memory: a fixed-size FIFO of the features of a frozen network.

Classical XBM (arXiv 1912.06798) stores embeddings, which go stale as the network learns. Here the rows are features of
a frozen network, so they never do (S-XBM of SMEC, arXiv 2510.12474).
"""

from typing import Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from xbm_keras.arguments import Natural, arguments_in, checked
from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.geometry import all_finite, unit_rows
from xbm_keras.stages.circular_memory.item_arrays import (
    check_features,
    non_finite_message,
    read_labels,
    read_sample_ids,
)
from xbm_keras.stages.circular_memory.newest_of_id import NewestOfId, is_last_of_its_id
from xbm_keras.stages.circular_memory.writes import write_rows, write_whole

PREFILL_ROWS = 1024  # rows that one prefill step enqueues
CHECKPOINT_ROWS = 65_536  # rows that are saved or restored at a time


class Rows(NamedTuple):
    """What anchors are compared with: the memory, or the batch itself. See `CircularMemory` for an example."""

    features: tf.Tensor
    """[M, D], in the storage dtype, of unit length: a step enqueues features that are, and `prefill` makes them so."""
    labels: tf.Tensor
    """[M] int64."""
    sample_ids: tf.Tensor
    """[M] int64."""
    is_valid: tf.Tensor
    """[M] bool: the slot is filled, and no newer row has the same sample id: each id is valid at most once."""
    scales: tf.Tensor | None = None
    """[M] float32 where the features are int8: what a row is to be multiplied with."""
    variable: tf.Variable | None = None
    """That holds the features, where they are the memory's: a GPU gathers int8 rows from a variable alone."""
    embeddings: tf.Tensor | None = None
    """[M, E], where all rows passed the head."""
    num_enqueued: tf.Tensor | None = None
    """How many rows the memory was given so far, an int64; None for a batch in the role of the memory."""
    num_new: tf.Tensor | None = None
    """How many of them this step gave, at most; None outside of a step."""
    numbers: tf.Tensor | None = None
    """[B] int64, which anchors of a neighbour table those of this step are; None where that is not known."""
    is_newest: tf.Variable | None = None
    """[M] int8, of a memory: 1 unless a newer row has the same sample id. A GPU gathers them from a variable alone."""

    def take(self, indices: tf.Tensor) -> tf.Tensor:
        """Features of the rows at `indices` [...], float32 [..., D]."""
        # Not from the variable where it can be helped: a graph keeps each op that reads one, be its result used or not.
        features = tf.gather(self.features if self.scales is None else self.variable, indices)
        features = tf.cast(features, tf.float32)
        return features if self.scales is None else features * tf.gather(self.scales, indices)[..., None]

    def valid_at(self, indices: tf.Tensor) -> tf.Tensor:
        """Whether the rows at `indices` [...] are valid, bool [...], without a look at all of them."""
        if self.is_newest is None:
            return tf.gather(self.is_valid, indices)
        return (indices < self.num_enqueued) & tf.cast(tf.gather(self.is_newest, indices), tf.bool)

    def block(self, start: tf.Tensor | int, width: tf.Tensor | int) -> tf.Tensor:
        """Features of `width` rows from `start` on, float32 [width, D]. In float32 storage they are not copied."""
        features = tf.cast(tf.slice(self.features, [start, 0], [width, -1]), tf.float32)
        return features if self.scales is None else features * tf.slice(self.scales, [start], [width])[:, None]


def batch_as_rows(features: tf.Tensor, labels: tf.Tensor, sample_ids: tf.Tensor) -> Rows:
    """The batch in the role of the memory: in-batch pairs only. Of rows with one sample id the last is valid.

    Example:
        >>> batch_as_rows(tf.zeros([3, 2]), tf.zeros([3]), tf.constant([5, 8, 5])).is_valid.numpy().tolist()
        [False, True, True]
    """
    return Rows(features, labels, sample_ids, is_last_of_its_id(sample_ids))


@keras.saving.register_keras_serializable("xbm_keras")
class CircularMemory(keras.layers.Layer):
    """Fixed-size FIFO of features, labels and sample ids; the oldest rows leave by being overwritten.

    The one counter `num_enqueued` holds the whole state beyond the rows: occupancy is `min(num_enqueued, memory_size)`,
    the next slot is `num_enqueued % memory_size`. All state is in non-trainable weights, so `.keras`, `.weights.h5` and
    checkpoints restore it exactly.

    Args:
        memory_size: rows; 0 keeps none and trains on in-batch pairs.
        storage_dtype: of the features that are kept. int8 rows have a scale each: their largest component is 127.
        frozen: steps read the memory and do not change it, for one that `prefill` filled with the whole training set.

    Raises:
        ValueError: for a negative size or an unknown storage dtype; in `build`, for a feature width that is unknown.

    Example:
        >>> memory = CircularMemory(memory_size=4)
        >>> memory.build((None, 2))
        >>> rows = memory.enqueue(tf.ones([3, 2]), tf.constant([7, 8, 9]), tf.constant([0, 1, 2]))
        >>> rows.is_valid.numpy().tolist()
        [True, True, True, False]
    """

    @checked
    def __init__(
        self,
        memory_size: Natural,
        storage_dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32",
        frozen: bool = False,
        **kwargs,
    ):
        kwargs.setdefault("trainable", False)
        super().__init__(**kwargs)
        self.memory_size = memory_size
        self.storage_dtype = storage_dtype
        self.frozen = frozen
        self.is_sealed = False

    def build(self, input_shape):
        """Create the rows for features of shape `(batch, D)`."""
        self.feature_dim = input_shape[-1]
        if len(input_shape) != 2 or self.feature_dim is None:
            raise ValueError(
                f"Received features of shape {tuple(input_shape)}; expected (batch, D) with a known width D. "
                "Pool the backbone's output to one vector per item."
            )
        if self.memory_size:
            self.features = self._rows("features", self.storage_dtype, self.feature_dim)
            if self.storage_dtype == "int8":
                self.scales = self._rows("scales", "float32")
            self.labels = self._rows("labels", "int64")
            self.sample_ids = self._rows("sample_ids", "int64")
            self.newest_of_id = NewestOfId(self.sample_ids, self._rows)
            self.num_enqueued = self.add_weight(
                name="num_enqueued", shape=(), dtype="int64", initializer="zeros", trainable=False, autocast=False
            )
        self.built = True

    def _built_width(self) -> int:
        if not self.built:
            raise ValueError(
                "Received rows for a memory that is not built; expected to know their width D first. Call "
                "memory.build((None, D)), or build the model."
            )
        return self.feature_dim

    def _rows(self, name: str, dtype: str, *width: int) -> keras.Variable:
        shape = (self.memory_size, *width)
        return self.add_weight(
            name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False, autocast=False
        )

    def enqueue(self, features: tf.Tensor, labels: tf.Tensor, sample_ids: tf.Tensor) -> Rows:
        """Write a batch over the oldest rows, in place, and read the memory.

        Any batch size works: of a batch larger than the memory the newest rows stay, an empty one changes nothing. A
        batch that holds a non-finite feature is not written at all. An older row whose sample id comes again is kept
        but no longer valid, so candidates hold each id at most once. A frozen memory is read alone.

        Args:
            features: [B, D] float, of unit length; they are kept as they are.
            labels: [B] integer.
            sample_ids: [B] integer.

        Returns:
            The memory after the batch was written.

        Raises:
            ValueError: if the width of the features is not that of `build`, which comes first, or for labels or ids
                that are no integers or not one for each item.
        """
        labels, sample_ids = self._checked(features, labels, sample_ids)
        if not self.memory_size:
            return batch_as_rows(features, labels, sample_ids)
        if not self.frozen:
            self._write(features, labels, sample_ids)
        return self.read()._replace(num_new=tf.shape(features)[0])

    def _checked(self, features, labels, sample_ids):
        """Labels and sample ids, int64 [B]."""
        check_features(features.shape, self._built_width())
        num_items = features.shape[0] or tf.shape(features)[0]
        return read_labels(labels, num_items), read_sample_ids(sample_ids, num_items)

    def seal(self) -> None:
        """Rows change no more: something was made of them that would be wrong with others.

        Raises ValueError where steps may change them.
        """
        if not self.frozen or not self.memory_size:
            raise ValueError(
                f"Received a memory with frozen={self.frozen} and memory_size={self.memory_size}, to search once; "
                "expected one that no step changes. Use frozen=True and prefill."
            )
        self.is_sealed = True

    def _refuse_if_sealed(self):
        if self.is_sealed:
            raise ValueError(
                "Received rows for a memory whose neighbours are known; expected it to stay as it is, or steps would "
                "find those of the rows before. Make a new memory and model for other rows."
            )

    def _write(self, features, labels, sample_ids):
        self._refuse_if_sealed()
        n = tf.shape(features, tf.int64)[0]
        skipped = tf.maximum(n - self.memory_size, 0)  # older rows of a batch larger than the memory
        numbers = self.num_enqueued.value + tf.range(skipped, n)  # in the order of enqueues
        slots = numbers % self.memory_size
        is_finite = all_finite(features)

        features, labels, sample_ids = features[skipped:], labels[skipped:], sample_ids[skipped:]
        self.newest_of_id.enqueue(sample_ids, numbers, self.num_enqueued.value, only_if=is_finite)
        for variable, rows in [*self._to_storage(features), (self.labels, labels), (self.sample_ids, sample_ids)]:
            write_rows(variable, slots, rows, only_if=is_finite)
        write_whole(self.num_enqueued, self.num_enqueued.value + tf.where(is_finite, n, 0))

    def read(self) -> Rows:
        """The memory as it is, in the order of slots, not of age. Raises ValueError where `memory_size` is 0."""
        if not self.memory_size:
            raise ValueError("Received memory_size=0, which keeps no rows to read; use batch_as_rows(...) instead.")
        is_filled = tf.range(self.memory_size, dtype=tf.int64) < self.num_enqueued.value
        return Rows(
            tf.convert_to_tensor(self.features.value),
            tf.convert_to_tensor(self.labels.value),
            tf.convert_to_tensor(self.sample_ids.value),
            is_filled & tf.cast(self.newest_of_id.is_newest.value, tf.bool),
            tf.convert_to_tensor(self.scales.value) if self.storage_dtype == "int8" else None,
            self.features.value,
            num_enqueued=tf.convert_to_tensor(self.num_enqueued.value),
            is_newest=self.newest_of_id.is_newest.value,
        )

    def items(self, slots: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Features [B, D] float32, labels [B] and sample ids [B] of the rows in these slots, [B] integer."""
        labels, sample_ids = (tf.gather(variable.value, slots) for variable in (self.labels, self.sample_ids))
        return self.read().take(slots), labels, sample_ids

    def _to_storage(self, features):
        """The variables of the features, and what of these is to be written to each."""
        if self.storage_dtype != "int8":
            return [(self.features, features)]
        features = tf.cast(features, tf.float32)
        scales = tf.reduce_max(tf.abs(features), axis=1) / 127.0
        rounded = tf.round(tf.math.divide_no_nan(features, scales[:, None]))
        return [(self.features, rounded), (self.scales, scales)]

    def occupancy(self) -> tf.Tensor:
        """Number of filled rows, a scalar int64."""
        if not self.memory_size:
            return tf.constant(0, tf.int64)
        return tf.minimum(self.num_enqueued.value, self.memory_size)

    def reset(self) -> None:
        """Forget all rows."""
        self._refuse_if_sealed()
        if self.memory_size:
            self.num_enqueued.assign(0)
            self.newest_of_id.reset()

    def prefill(self, features: FeatureRows, labels: np.ndarray, sample_ids: np.ndarray) -> None:
        """Enqueue a whole data set before training, newest rows last; of more than M rows the last M stay.

        Rows are made of unit length, as a step's are; those that have it already, to rounding, stay bit by bit as they
        are, and zero rows zero.

        Args:
            features: [N, D] float; a memory-mapped array is read in blocks.
            labels: [N] integer.
            sample_ids: [N] integer.

        Raises:
            ValueError: if a feature is not finite; the sample ids are named. Nothing of its block is written. And as
                `enqueue` does, before anything is written.
        """
        if not self.memory_size:
            return
        check_features(np.shape(features), self._built_width())
        for name, values in (("labels", labels), ("sample_ids", sample_ids)):
            if len(values) != len(features):
                raise ValueError(
                    f"Received {len(values)} {name} for {len(features)} features; expected one for each item. Give "
                    "arrays of one length."
                )
        for start in range(max(0, len(features) - self.memory_size), len(features), PREFILL_ROWS):
            block = slice(start, start + PREFILL_ROWS)
            rows = np.asarray(features[block], np.float32)
            is_bad = ~np.isfinite(rows).all(axis=1)
            if is_bad.any():
                raise ValueError(non_finite_message(is_bad.sum(), np.asarray(sample_ids[block])[is_bad]))
            rows = tf.constant(unit_rows(rows))
            self._write(rows, *self._checked(rows, np.asarray(labels[block]), np.asarray(sample_ids[block])))

    def save_own_variables(self, store):
        """Weights by name, in blocks of rows: at once they would be copied, and the memory may fill the machine's."""
        for weight in self.weights:
            if weight is self.num_enqueued:
                store[weight.name] = weight.value.numpy()
                continue
            for start in range(0, self.memory_size, CHECKPOINT_ROWS):
                store[f"{weight.name}_{start}"] = weight.value[start : start + CHECKPOINT_ROWS].numpy()

    def load_own_variables(self, store):
        """What `save_own_variables` stored, in blocks of any size.

        Raises:
            ValueError: where that was a memory of another size or width, or one of the two is of int8 alone.
        """
        if not self.memory_size:
            return
        self._refuse_if_sealed()
        blocks = [(key, *key.rsplit("_", 1)) for key in store.keys() if key != "num_enqueued"]  # noqa: SIM118
        saved: dict[str, tuple] = {}
        for key, name, _ in blocks:
            num_rows, *width = store[key].shape
            saved[name] = (num_rows + saved.get(name, (0,))[0], *width)
        weights = {weight.name: weight for weight in self.weights if weight is not self.num_enqueued}
        if saved != {name: tuple(weight.shape) for name, weight in weights.items()}:
            raise ValueError(
                f"Received a saved memory of another size or dtype; expected one of {self.memory_size} rows of width "
                f"{self.feature_dim} in {self.storage_dtype}. Make this memory with the arguments of the saved one."
            )
        for key, name, start in blocks:
            rows = tf.constant(np.asarray(store[key]).astype(weights[name].dtype))
            at = tf.range(int(start), int(start) + len(rows), dtype=tf.int64)
            write_rows(weights[name], at, rows)
        self.num_enqueued.assign(np.asarray(store["num_enqueued"]))

    def call(self, features, *args, **kwargs):
        """Not a layer to call: see `enqueue` and `read`."""
        raise TypeError("CircularMemory has no call(); use enqueue(features, labels, sample_ids) or read().")

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), **arguments_in(self)}
