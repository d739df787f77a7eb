"""Steps whose numbers are NaN or infinite: they leave no trace, and `fit` stops and says which items.

An assertion inside the step would be a silent no-op under XLA. So the step takes a note, which is read outside.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from xbm_keras.geometry import all_finite
from xbm_keras.stages.circular_memory import replicas
from xbm_keras.stages.circular_memory.item_arrays import MAX_REPORTED_IDS, non_finite_message
from xbm_keras.stages.circular_memory.writes import Journal, journal, put_back

MAX_UNREAD_STEPS = 50


class NonFiniteFeatures(ValueError):
    """A batch held NaN or infinite features. It changed neither the memory nor the weights."""


class NonFiniteLoss(ArithmeticError):
    """A loss, or the weights after a step, became NaN or infinite. That step changed nothing."""


class Rejections:
    """Notes of the steps that were undone, kept in variables that are no part of a saved model."""

    def __init__(self):
        self.count = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.ids = tf.Variable([-1] * (MAX_REPORTED_IDS + 1), dtype=tf.int64, trainable=False)
        self.num_items = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.are_features = tf.Variable(False, trainable=False)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)

    def note(self, is_bad: tf.Tensor, sample_ids: tf.Tensor, are_features: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Note the ids of the first bad items, if there are any; whether there are none.

        Args:
            is_bad: [B] bool.
            sample_ids: [B] int64.
            are_features: whether the features are what is bad.
            step: number of steps before.
        """
        is_good = ~tf.reduce_any(is_bad)
        first = tf.concat([tf.zeros([1], tf.int64), tf.cumsum(tf.cast(is_bad, tf.int64))], axis=0)[:-1]
        place = tf.where(is_bad & (first < MAX_REPORTED_IDS), first, MAX_REPORTED_IDS)  # the last place is a bin
        blank = tf.fill([MAX_REPORTED_IDS + 1], tf.constant(-1, tf.int64))
        is_first = ~is_good & tf.equal(self.count, 0)
        self.ids.assign(tf.where(is_first, tf.tensor_scatter_nd_update(blank, place[:, None], sample_ids), self.ids))
        self.num_items.assign(tf.where(is_first, tf.reduce_sum(tf.cast(is_bad, tf.int64)), self.num_items))
        self.are_features.assign(tf.where(is_first, are_features, self.are_features))
        self.step.assign(tf.where(is_first, tf.cast(step, tf.int64), self.step))
        self.count.assign_add(tf.where(is_good, tf.constant(0, tf.int64), 1))
        return is_good

    def reset(self) -> None:
        """Forget them."""
        self.count.assign(0)

    def raise_first(self) -> None:
        """Raise NonFiniteFeatures or NonFiniteLoss, if a step was undone."""
        if not self.count.numpy():
            return
        num_items = int(self.num_items.numpy())
        ids = self.ids.numpy()[: min(num_items, MAX_REPORTED_IDS)]
        if self.are_features.numpy():
            raise NonFiniteFeatures(non_finite_message(num_items, ids))
        shown = ", ".join(map(str, ids))
        raise NonFiniteLoss(
            f"Received a loss or weights that are NaN or infinite after {self.step.numpy()} steps, in a batch with "
            f"sample id {shown}; expected finite numbers. This batch changed nothing. Lower the learning rate, or "
            "look at the loss and its temperature."
        )


def note_batch(model: keras.Model, features: tf.Tensor, ids: tf.Tensor, is_bad: tf.Tensor) -> tf.Tensor:
    """Note which items of a batch have bad features, or else a bad loss; whether none has.

    Args:
        model: an `XBMModel`.
        features: [B, D], all of which must be finite.
        ids: [B] of the anchors.
        is_bad: bool [B], which anchors have a bad loss.
    """
    has_bad_features = ~all_finite(features, axis=1)  # [B]
    has_bad_features, is_bad, ids = replicas.gather(tf.cast(has_bad_features, tf.int32), tf.cast(is_bad, tf.int32), ids)
    has_bad_features = has_bad_features > 0
    are_features = tf.reduce_any(has_bad_features)
    is_bad = tf.where(are_features, has_bad_features, is_bad > 0)
    optimizer = getattr(model, "optimizer", None)  # there is none before compile
    step = tf.convert_to_tensor(optimizer.iterations) if optimizer else 0
    return model.rejections.note(is_bad, ids, are_features, step)


def seeds_of(model: keras.Model) -> list[keras.Variable]:
    """The states of the model's generators of random numbers, which Keras counts among its variables alone."""
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights]


def undone_unless_finite(model: keras.Model, inputs: dict, step: Callable[[], dict]) -> dict:
    """Run a training step of an `XBMModel`, and undo it where it noted a rejection or its new weights are not finite.

    Zero gradients in place of bad ones would still move an optimizer.

    Args:
        model: with its weights and its optimizer's.
        inputs: of the step.
        step: gives the logs.
    """
    state = (*model.trainable_variables, *model.optimizer.variables, *seeds_of(model))
    before: Journal = [(variable, None, tf.identity(variable.value)) for variable in state]
    num_steps, num_rejected = tf.identity(model.optimizer.iterations), tf.identity(model.rejections.count)
    with journal() as noted:
        logs = step()
    is_finite = tf.equal(num_rejected, model.rejections.count)
    overflows = [~all_finite(v.value) for v in model.trainable_variables]
    # Of the whole batch: a replica without items would see nothing bad, and keep what the others undo.
    (ids,) = replicas.gather(tf.reshape(inputs.get("sample_id", tf.zeros([1], tf.int64)), [-1]))
    is_bad = tf.fill(tf.shape(ids), is_finite & tf.reduce_any(overflows))
    is_finite &= model.rejections.note(is_bad, tf.cast(ids, tf.int64), tf.constant(False), num_steps)
    put_back([*before, *noted], ~is_finite)
    return logs


class StopOnNonFinite(keras.callbacks.Callback):
    """Raises `NonFiniteFeatures` or `NonFiniteLoss` after such a step. `XBMModel.fit` brings it along.

    To read a note is to wait for the device, so it is done after 1, 2, 4, ... steps, then every `MAX_UNREAD_STEPS`, and
    at the end of each epoch. The steps between a bad one and its reading are steps like any other.
    """

    def on_train_begin(self, logs=None):
        """Forget what an earlier `fit` met."""
        self.model.rejections.reset()
        self.num_steps, self.next_reading = 0, 1

    def on_epoch_begin(self, epoch, logs=None):
        """Steps of an epoch are numbered from 0, those of a call of several by the last one."""
        self.num_before = self.num_steps

    def on_train_batch_end(self, batch, logs=None):
        """Read the model's notes, where it is time."""
        self.num_steps = self.num_before + batch + 1
        if self.num_steps >= self.next_reading:
            self.next_reading += min(self.num_steps, MAX_UNREAD_STEPS)
            self.model.rejections.raise_first()

    def on_epoch_end(self, epoch, logs=None):
        """Read the model's notes."""
        self.model.rejections.raise_first()
