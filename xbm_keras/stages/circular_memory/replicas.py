"""One batch on several devices: what `tf.distribute.MirroredStrategy` asks of a model whose loss is no sum over items.

Each replica has its share of the batch as anchors, and the whole batch, in the order of replicas, for its own copy of
the memory: so all copies hold the same rows, and the result is that of one device with the whole batch.
"""

from collections.abc import Callable

import tensorflow as tf


def _step() -> tf.distribute.ReplicaContext | None:
    """The step of one of several replicas that this is traced in; else None."""
    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def is_one_of_several() -> bool:
    """Whether this is traced in the step of one of several replicas."""
    return _step() is not None


def gather(*tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The rows of all replicas, in their order, with gradient; on one device the tensors themselves."""
    step = _step()
    if step is None:
        return tensors
    gathered = [step.all_gather(tensor, axis=0) for tensor in tensors]
    return tuple(tf.ensure_shape(g, (None, *t.shape[1:])) for g, t in zip(gathered, tensors, strict=True))


def total(tensor: tf.Tensor) -> tf.Tensor:
    """The sum over all replicas, without gradient."""
    step = _step()
    return tensor if step is None else tf.stop_gradient(step.all_reduce(tf.distribute.ReduceOp.SUM, tensor))


def of_whole_batch(make: Callable[[tf.Tensor | int], tf.Tensor], num_items: tf.Tensor | int) -> tf.Tensor:
    """This replica's rows of what `make` gives for the number of items of the whole batch, such as random numbers.

    Args:
        make: from a number n to a tensor [n, ...], the same on all replicas.
        num_items: of this replica.
    """
    step = _step()
    if step is None:
        return make(num_items)
    shares = step.all_gather(tf.reshape(num_items, [1]), axis=0)  # [replicas]
    start = tf.reduce_sum(shares[: step.replica_id_in_sync_group])
    return make(tf.reduce_sum(shares))[start : start + num_items]


def masked_mean(values: tf.Tensor, mask: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Mean over the mask, of all replicas: each gives its share of it. Over an empty mask 0, with zero gradient.

    With weights it is the weighted mean, sum(w x) / sum(w); where they sum up to 0 it is 0.
    """
    if weights is None:
        weights = tf.ones_like(values)
    whole = total(tf.reduce_sum(tf.where(mask, weights, 0.0)))
    return tf.math.divide_no_nan(tf.reduce_sum(tf.where(mask, weights * values, 0.0)), whole)


def evenly(loss: tf.Tensor) -> tf.Tensor:
    """A loss of which each replica gave its share, in equal shares, each with the gradient of its own.

    Keras weights the replicas' losses by their items where it tracks them, and some may have none.
    """
    step = _step()
    if step is None:
        return loss
    return total(loss) / step.num_replicas_in_sync + (loss - tf.stop_gradient(loss))
