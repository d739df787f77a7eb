"""One batch on several devices: what `tf.distribute.MirroredStrategy` asks of a model whose loss is no sum over items.

Each replica has its share of the batch as anchors, and the whole batch, in the order of replicas, for its own copy of
the memory: so all copies hold the same rows, and the result is that of one device with the whole batch.
"""

import tensorflow as tf

SUPPORTED = (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy)


def check_strategy(strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError for a strategy that cannot train a model of ours."""
    with strategy.scope():
        is_default = not tf.distribute.has_strategy()
    if not isinstance(strategy, SUPPORTED) and not is_default:
        is_known = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)  # its class has another name
        name = "MultiWorkerMirroredStrategy" if is_known else type(strategy).__name__
        raise ValueError(
            f"Received a model made under {name}; expected MirroredStrategy, for the devices of one "
            "machine, or no strategy. Keras 3 cannot fit on several machines with TensorFlow (keras#20585). Compute "
            "the features on many machines (cache.engine=ray), and train on one: it has the backbone no more to run."
        )


def gather(*tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The rows of all replicas, in their order; on one device the tensors themselves."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors
    gathered = [context.all_gather(tensor, axis=0) for tensor in tensors]
    return tuple(tf.ensure_shape(g, (None, *t.shape[1:])) for g, t in zip(gathered, tensors, strict=True))


def total(tensor: tf.Tensor) -> tf.Tensor:
    """The sum over all replicas, without gradient."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensor
    return tf.stop_gradient(context.all_reduce(tf.distribute.ReduceOp.SUM, tensor))


def masked_mean(values: tf.Tensor, mask: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Mean over the mask, of all replicas: each gives its share of it. Over an empty mask 0, with zero gradient.

    With weights it is the weighted mean, sum(w x) / sum(w); where they sum up to 0 it is 0.
    """
    if weights is None:
        weights = tf.ones_like(values)
    whole = total(tf.reduce_sum(tf.where(mask, weights, 0.0)))
    return tf.reduce_sum(tf.where(mask, weights * values, 0.0)) / tf.where(whole > 0, whole, 1.0)


def share(value: tf.Tensor) -> tf.Tensor:
    """What each replica gives of a number that is the same on all of them."""
    context = tf.distribute.get_replica_context()
    return value if context is None else value / context.num_replicas_in_sync
