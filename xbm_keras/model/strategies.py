"""The pipeline on several devices: which strategies can train it, and what Keras is to do otherwise.

What a step itself does for its replica is in `xbm_keras.stages.circular_memory.replicas`.
"""

import contextlib

import keras
import tensorflow as tf

from xbm_keras.stages.circular_memory.replicas import is_one_of_several, total

SUPPORTED = (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy)


def check_strategy(strategy: tf.distribute.Strategy, jit_compile: bool = False) -> None:
    """Raises ValueError for a strategy that cannot train a model of ours, or not under XLA."""
    if jit_compile and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            f"Received jit_compile=True with {strategy.num_replicas_in_sync} replicas; expected one device, for which "
            "XLA compiles a step, or jit_compile=False. Leave it out of compile(...)."
        )
    with strategy.scope():
        is_default = not tf.distribute.has_strategy()
    if not isinstance(strategy, SUPPORTED) and not is_default:
        is_known = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)  # its class has another name
        name = "MultiWorkerMirroredStrategy" if is_known else type(strategy).__name__
        raise ValueError(
            f"Received a model made under {name}; expected MirroredStrategy, for the devices of one "
            "machine, or no strategy. Keras 3 cannot fit on several machines with TensorFlow (keras#20585). Compute "
            "the features on many machines (cache.ray_workers), and train on one: it has the backbone no more to run."
        )


def scope(strategy: tf.distribute.Strategy) -> contextlib.AbstractContextManager:
    """Models that are made and compiled within it train under this strategy, where it has several replicas."""
    is_within = strategy.num_replicas_in_sync == 1 or tf.distribute.has_strategy()
    return contextlib.nullcontext() if is_within else strategy.scope()


class ReplicatedModel(keras.Model):
    """A Keras model whose replicas may have unequal shares of a batch, or none."""

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Keras' logs of a step, with means over the items of all replicas in place of means of the replicas' means."""
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        means = [metric for metric in self.metrics if isinstance(metric, keras.metrics.Mean)]
        if not (is_one_of_several() and means):
            return logs
        sums = total(tf.stack([[mean.total.value, mean.count.value] for mean in means]))  # [means, 2]
        results = tf.unstack(tf.math.divide_no_nan(sums[:, 0], sums[:, 1]), len(means))
        return {**logs, **{mean.name: result for mean, result in zip(means, results, strict=True)}}

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """As Keras does it, which would add up the replicas' shares of a batch, and fail where they are unequal."""
        if iterator is not None and self.distribute_strategy.num_replicas_in_sync > 1:
            local_results = self.distribute_strategy.experimental_local_results
            _, _, batches = next(iter(iterator))
            iterator, data_batch = None, keras.tree.map_structure(lambda s: local_results(s)[0], next(batches))
        super()._maybe_symbolic_build(iterator, data_batch)
