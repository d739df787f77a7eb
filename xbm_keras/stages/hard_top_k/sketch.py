"""Frozen sketch: a short code of the features that ranks rows about as the features do, and that never goes stale."""

import keras
import numpy as np
import tensorflow as tf

from xbm_keras.arguments import Positive, arguments_in, checked
from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.geometry import unit_length

BLOCK_ROWS = 8192  # of the pass over the features


@keras.saving.register_keras_serializable("xbm_keras")
class Sketch(keras.layers.Layer):
    """A fixed projection of features [B, D] to unit vectors [B, K]; by default of random orthogonal directions.

    Args:
        sketch_dim: K.
        seed: of the random directions.

    Raises:
        ValueError: for a width below 1.

    Example:
        >>> features = tf.math.l2_normalize(tf.random.normal([100, 32], seed=0), axis=1)
        >>> sketch = Sketch(8)
        >>> sketch.build(features.shape)
        >>> _ = sketch.projection.assign(principal_directions(features.numpy(), 8))
        >>> sketch(features).shape
        TensorShape([100, 8])
    """

    @checked
    def __init__(self, sketch_dim: Positive = 64, seed: int = 0, **kwargs):
        kwargs.setdefault("trainable", False)
        super().__init__(autocast=False, **kwargs)
        self.sketch_dim = sketch_dim
        self.seed = seed

    def build(self, input_shape):
        """Create the projection for features of shape `(batch, D)`."""
        shape = (input_shape[-1], self.sketch_dim)
        random = keras.initializers.Orthogonal(seed=self.seed)
        self.projection = self.add_weight(
            name="projection", shape=shape, dtype="float32", initializer=random, trainable=False, autocast=False
        )
        self.built = True

    def call(self, features):
        """Features [B, D] to sketches [B, K] of unit length, float32."""
        return unit_length(tf.matmul(tf.cast(features, tf.float32), self.projection.value))

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), **arguments_in(self)}


def principal_directions(features: FeatureRows, sketch_dim: int) -> np.ndarray:
    """The projection [D, K] that keeps most of the inner products of these features: not centred, as cosines are not.

    Args:
        features: [N, D], unit vectors; read in blocks.
        sketch_dim: K, at most D.

    Raises:
        ValueError: if K > D.

    Example:
        >>> abs(principal_directions(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 1)).tolist()
        [[1.0], [0.0]]

    Reference:
        Eckart and Young, Psychometrika 1, 1936: the best approximation of the matrix of inner products of rank K.
    """
    num_items, width = features.shape
    if sketch_dim > width:
        raise ValueError(
            f"Received sketch_dim={sketch_dim} for features of width {width}; expected at most {width}. "
            "A sketch is to be shorter than the features: lower it, or mine in the features."
        )
    moment = np.zeros((width, width))
    for start in range(0, num_items, BLOCK_ROWS):
        block = np.asarray(features[start : start + BLOCK_ROWS], np.float64)
        moment += block.T @ block
    return np.linalg.eigh(moment)[1][:, ::-1][:, :sketch_dim].astype(np.float32)
