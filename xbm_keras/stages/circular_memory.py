"""Cross-batch memory: a fixed-size FIFO of the features of a frozen network.

Classical XBM (arXiv 1912.06798) stores embeddings, which go stale as the network learns. Here the rows are features of
a frozen network, so they never do (S-XBM of SMEC, arXiv 2510.12474).
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

PREFILL_ROWS = 4096  # rows that one prefill step enqueues


class Rows(NamedTuple):
    """What anchors are compared with: the memory, or the batch itself."""

    features: tf.Tensor
    """[M, D], in the storage dtype."""
    labels: tf.Tensor
    """[M] int64."""
    sample_ids: tf.Tensor
    """[M] int64."""
    is_valid: tf.Tensor
    """[M] bool: the slot is filled, and no newer row has the same sample id."""


def batch_as_rows(features: tf.Tensor, labels: tf.Tensor, sample_ids: tf.Tensor) -> Rows:
    """The batch in the role of the memory: in-batch pairs only. Of rows with one sample id the last is valid."""
    return Rows(features, labels, sample_ids, _is_last_of_its_id(sample_ids))


@keras.saving.register_keras_serializable("xbm_keras")
class CircularMemory(keras.layers.Layer):
    """Fixed-size FIFO of features, labels and sample ids; the oldest rows leave by being overwritten.

    The one counter `num_enqueued` holds the whole state beyond the rows: occupancy is `min(num_enqueued, memory_size)`,
    the next slot is `num_enqueued % memory_size`. All state is in non-trainable weights, so `.keras`, `.weights.h5` and
    checkpoints restore it exactly.

    Args:
        memory_size: rows M. 0 is legal: then `enqueue` gives the batch itself back, and nothing is kept.
        storage_dtype: "float32", "float16" or "bfloat16", the dtype in which features are kept.

    Raises:
        ValueError: for a negative size or an unknown storage dtype; in `build`, for a feature width that is unknown.

    Example:
        >>> memory = CircularMemory(memory_size=4)
        >>> memory.build((None, 2))
        >>> rows = memory.enqueue(tf.ones([3, 2]), tf.constant([7, 8, 9]), tf.constant([0, 1, 2]))
        >>> rows.is_valid.numpy().tolist()
        [True, True, True, False]
    """

    def __init__(self, memory_size: int, storage_dtype: str = "float32", **kwargs):
        kwargs.setdefault("trainable", False)
        super().__init__(**kwargs)
        if not isinstance(memory_size, int) or memory_size < 0:
            raise ValueError(
                f"Received memory_size={memory_size!r}; expected a whole number of rows, 0 or more. "
                "Use 0 to train on in-batch pairs only."
            )
        if storage_dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(
                f"Received storage_dtype={storage_dtype!r}; expected 'float32', 'float16' or 'bfloat16'. "
                "float16 halves the memory."
            )
        self.memory_size = memory_size
        self.storage_dtype = storage_dtype

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
            self.labels = self._rows("labels", "int64")
            self.sample_ids = self._rows("sample_ids", "int64")
            self.is_newest = self._rows("is_newest", "bool")
            self.num_enqueued = self.add_weight(
                name="num_enqueued", shape=(), dtype="int64", initializer="zeros", trainable=False, autocast=False
            )
        self.built = True

    def _rows(self, name: str, dtype: str, *width: int) -> keras.Variable:
        shape = (self.memory_size, *width)
        return self.add_weight(
            name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False, autocast=False
        )

    def enqueue(
        self, features: tf.Tensor, labels: tf.Tensor, sample_ids: tf.Tensor, *, jit_compile: bool = False
    ) -> Rows:
        """Write a batch over the oldest rows, in place, and read the memory.

        Any batch size works: of a batch larger than the memory the newest rows stay, an empty one changes nothing. A
        batch that holds a non-finite feature is not written at all. An older row whose sample id comes again is kept
        but no longer valid, so candidates hold each id at most once.

        Args:
            features: [B, D] float.
            labels: [B] integer.
            sample_ids: [B] integer.
            jit_compile: say True where this is traced into an XLA-compiled function.

        Returns:
            The memory after the batch was written.

        Raises:
            ValueError: if the width of the features is not that of `build`.
        """
        if features.shape[-1] != self.feature_dim:
            raise ValueError(
                f"Received features of width {features.shape[-1]}; this memory was built for width "
                f"{self.feature_dim}. Use one memory per backbone."
            )
        labels, sample_ids = tf.cast(labels, tf.int64), tf.cast(sample_ids, tf.int64)
        if not self.memory_size:
            return batch_as_rows(features, labels, sample_ids)

        n = tf.shape(features, tf.int64)[0]
        skipped = tf.maximum(n - self.memory_size, 0)  # older rows of a batch larger than the memory
        cursor = self.num_enqueued.value + skipped
        slots = (cursor + tf.range(n - skipped, dtype=tf.int64)) % self.memory_size
        is_finite = tf.reduce_all(tf.math.is_finite(features))

        features, labels, sample_ids = features[skipped:], labels[skipped:], sample_ids[skipped:]
        superseded = _is_in(self.sample_ids.value, sample_ids) & is_finite
        self.is_newest.value.assign(self.is_newest.value & ~superseded)
        for variable, rows in (
            (self.features, features),
            (self.labels, labels),
            (self.sample_ids, sample_ids),
            (self.is_newest, _is_last_of_its_id(sample_ids)),
        ):
            rows = tf.cast(rows, variable.dtype)
            rows = tf.where(is_finite, rows, tf.gather(variable.value, slots))
            # A resource scatter is the one update whose cost does not grow with M outside XLA.
            variable.value.scatter_nd_update(slots[:, None], rows)
            if not jit_compile:
                # The scatter leaves the variable in copy-on-read mode: without this each read copies all M rows.
                # XLA has no kernel for this op, and no such mode.
                tf.raw_ops.DisableCopyOnRead(resource=variable.value.handle)
        self.num_enqueued.value.assign_add(tf.where(is_finite, n, 0))
        return self.read()

    def read(self) -> Rows:
        """The memory as it is, in the order of slots, not of age. Raises ValueError where `memory_size` is 0."""
        if not self.memory_size:
            raise ValueError("Received memory_size=0, which keeps no rows to read; use batch_as_rows(...) instead.")
        is_filled = tf.range(self.memory_size, dtype=tf.int64) < self.num_enqueued.value
        return Rows(
            tf.convert_to_tensor(self.features.value),
            tf.convert_to_tensor(self.labels.value),
            tf.convert_to_tensor(self.sample_ids.value),
            is_filled & self.is_newest.value,
        )

    def occupancy(self) -> tf.Tensor:
        """Number of filled rows, a scalar int64."""
        if not self.memory_size:
            return tf.constant(0, tf.int64)
        return tf.minimum(self.num_enqueued.value, self.memory_size)

    def reset(self) -> None:
        """Forget all rows."""
        if self.memory_size:
            self.num_enqueued.assign(0)

    def prefill(self, features: np.ndarray, labels: np.ndarray, sample_ids: np.ndarray) -> None:
        """Enqueue a whole data set before training, newest rows last; of more than M rows the last M stay.

        Args:
            features: [N, D] float; a memory-mapped array is read in blocks.
            labels: [N] integer.
            sample_ids: [N] integer.

        Raises:
            ValueError: if a feature is not finite; the sample ids are named. Nothing of its block is written.
        """
        for start in range(max(0, len(features) - self.memory_size), len(features), PREFILL_ROWS):
            block = slice(start, start + PREFILL_ROWS)
            rows = np.asarray(features[block], np.float32)
            is_bad = ~np.isfinite(rows).all(axis=1)
            if is_bad.any():
                raise ValueError(non_finite_message(np.asarray(sample_ids[block])[is_bad]))
            self.enqueue(tf.constant(rows), tf.constant(labels[block]), tf.constant(sample_ids[block]))

    def call(self, features, *args, **kwargs):
        """Not a layer to call: see `enqueue` and `read`."""
        raise TypeError("CircularMemory has no call(); use enqueue(features, labels, sample_ids) or read().")

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "memory_size": self.memory_size, "storage_dtype": self.storage_dtype}


def non_finite_message(sample_ids: np.ndarray) -> str:
    """The error text for items whose features are NaN or infinite."""
    shown = ", ".join(str(i) for i in sample_ids[:8]) + (", ..." if len(sample_ids) > 8 else "")
    return (
        f"Received NaN or infinite features for {len(sample_ids)} item(s), with sample id {shown}; expected finite "
        "numbers. Remove or repair these items; they were not written to the memory."
    )


def _is_in(ids: tf.Tensor, some_ids: tf.Tensor) -> tf.Tensor:
    """Which of ids [M] occur in some_ids [n]; O(M log n)."""
    ordered = tf.sort(some_ids)
    position = tf.searchsorted(ordered, ids, out_type=tf.int32)
    padded = tf.pad(ordered, [[0, 1]])  # position n means: larger than all of them
    return (position < tf.size(ordered)) & (tf.gather(padded, position) == ids)


def _is_last_of_its_id(sample_ids: tf.Tensor) -> tf.Tensor:
    """[n] bool, False where the same id comes again later in the batch."""
    n = tf.size(sample_ids)
    is_later = tf.range(n)[None, :] > tf.range(n)[:, None]
    return ~tf.reduce_any((sample_ids[:, None] == sample_ids[None, :]) & is_later, axis=1)
