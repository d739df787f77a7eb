"""Adam as Keras has it, with the update of a weight as one operation."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("xbm_keras")
class FusedAdam(keras.optimizers.Adam):
    """`keras.optimizers.Adam`, whose dozen operations for each weight are one: TensorFlow's own, on CPU, GPU and XLA.

    It has the same variables, so that either goes on where the other stopped, and the same numbers to the rounding of
    `1 - beta_2`: with the default 1e-5 of a move, more the nearer beta_2 is to 1. `amsgrad`, which the operation does
    not know, is as in Keras.

    Reference:
        Kingma and Ba, "Adam", ICLR 2015, arXiv 1412.6980, the formulation before section 2.1.

    Example:
        >>> weight = keras.Variable([1.0, 2.0])
        >>> FusedAdam(0.1).apply([tf.constant([1.0, -1.0])], [weight])
        >>> weight.numpy().round(3).tolist()
        [0.9, 2.1]
    """

    def update_step(self, gradient, variable, learning_rate):
        """Update a weight, and its slots, by its gradient."""
        if self.amsgrad:
            super().update_step(gradient, variable, learning_rate)
            return
        index, dtype = self._get_variable_index(variable), variable.dtype
        step = keras.ops.cast(self.iterations + 1, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(tf.constant(self.beta_1, dtype), step),
            beta2_power=tf.pow(tf.constant(self.beta_2, dtype), step),
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.constant(self.beta_1, dtype),
            beta2=tf.constant(self.beta_2, dtype),
            epsilon=tf.constant(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )
