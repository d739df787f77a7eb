"""One batch on several devices: what `tf.distribute.MirroredStrategy` asks of a model whose loss is no sum over items.

Each replica has its share of the batch as anchors, and the whole batch, in the order of replicas, for its own copy of the
memory: so all copies hold the same rows, and the result is that of one device with the whole batch.
"""

import tensorflow as tf

SUPPORTED = (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy)


def check_strategy(strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError for a strategy that cannot train a model of ours."""
    if tf.distribute.has_strategy() or type(strategy).__name__ != "_DefaultDistributionStrategy":
        if not isinstance(strategy, SUPPORTED):
            raise ValueError(
                f"Received a model made under {type(strategy).__name__}; expected MirroredStrategy, for the devices of "
                "one machine, or none. Keras 3 cannot fit on several machines with TensorFlow (keras#20585). With "
                "frozen features one device is seldom too few: compute the features on many machines, "
                "cache.engine=ray, and train on one."
            )


def gather(*tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The rows of all replicas, in their order; on one device the tensors themselves."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors
    return tuple(context.all_gather(tensor, axis=0) for tensor in tensors)


def total(tensor: tf.Tensor) -> tf.Tensor:
    """The sum over all replicas, without gradient."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensor
    return tf.stop_gradient(context.all_reduce(tf.distribute.ReduceOp.SUM, tensor))


def replica_id() -> tf.Tensor | int:
    """The number of this replica."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group
