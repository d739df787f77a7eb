"""Mining keys: a vector per memory row, kept in another space than the features, in which hard rows are sought."""

from collections.abc import Callable

import keras
import tensorflow as tf

from xbm_keras.arguments import Natural, Positive, arguments_in, checked
from xbm_keras.stages.circular_memory.ring import Rows
from xbm_keras.stages.circular_memory.writes import without_journal, write_rows, write_whole

CHUNK = 4096  # rows of the pass over a memory that was filled before


@keras.saving.register_keras_serializable("xbm_keras")
class MiningKeys(keras.layers.Layer):
    """Stored keys [M, K] of the rows of a memory, made by a function that may change as training goes on.

    Rows that were just enqueued get their keys in the same step. Of the others `num_refreshed` rows are done anew in
    each step, in turn, so that no key is older than `ceil(M / num_refreshed)` steps. After a prefill the next update
    makes all of them.

    Args:
        memory_size: rows M.
        width: K.
        num_refreshed: rows per step, beside those of the batch; 0 where the function never changes.

    Raises:
        ValueError: for a negative `num_refreshed`.
    """

    @checked
    def __init__(self, memory_size: Positive, width: Positive, num_refreshed: Natural = 0, **kwargs):
        kwargs.setdefault("trainable", False)
        super().__init__(**kwargs)
        self.memory_size = memory_size
        self.width = width
        self.num_refreshed = min(num_refreshed, memory_size)

        def weight(name: str, shape: tuple, dtype: str) -> keras.Variable:
            return self.add_weight(
                name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False, autocast=False
            )

        self.keys = weight("keys", (memory_size, width), "float32")
        self.next_row = weight("next_row", (), "int64")  # to be done anew
        self.num_seen = weight("num_seen", (), "int64")  # rows that had been enqueued at the last update
        self.built = True

    def update(self, make_keys: Callable[[tf.Tensor], tf.Tensor], rows: Rows) -> None:
        """Make the keys of the rows that the batch wrote, and of the next rows in turn.

        Where all keys are made, after a prefill, a step that is undone takes back those of the batch alone; the next
        update makes all of them again then.

        Args:
            make_keys: features [n, D] to keys [n, K].
            rows: the memory, after the enqueue of a step.
        """
        num_enqueued, batch_size = rows.num_enqueued, tf.cast(tf.minimum(rows.num_new, self.memory_size), tf.int64)
        newest = (num_enqueued - batch_size + tf.range(batch_size)) % self.memory_size
        self._write(newest, make_keys, rows)

        num_new = num_enqueued - self.num_seen.value
        is_unknown = (num_new < 0) | (num_new > batch_size)  # prefilled, or reset, since the last update
        chunk = self.num_refreshed or min(CHUNK, self.memory_size)
        num_chunks = tf.where(is_unknown, -(-self.memory_size // chunk), int(self.num_refreshed > 0))
        first = self.next_row.value + tf.range(chunk, dtype=tf.int64)
        if self.num_refreshed:
            self._write(first % self.memory_size, make_keys, rows)

        def step(i):
            with without_journal():
                self._write((first + tf.cast(i * chunk, tf.int64)) % self.memory_size, make_keys, rows)
            return (i + 1,)

        done = tf.constant(int(self.num_refreshed > 0))
        tf.while_loop(lambda i: i < num_chunks, step, (done,), parallel_iterations=1)
        write_whole(self.next_row, (self.next_row.value + tf.cast(num_chunks * chunk, tf.int64)) % self.memory_size)
        write_whole(self.num_seen, num_enqueued)

    def _write(self, slots, make_keys, rows):
        write_rows(self.keys, slots, tf.stop_gradient(make_keys(rows.take(slots))))

    def block(self, start: tf.Tensor | int, width: tf.Tensor | int) -> tf.Tensor:
        """Keys of `width` rows from `start` on, float32 [width, K]."""
        return tf.slice(self.keys.value, [start, 0], [width, -1])

    def call(self, *args, **kwargs):
        """Not a layer to call: see `update` and `block`."""
        raise TypeError("MiningKeys has no call(); use update(...) and block(start, width).")

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), **arguments_in(self)}
