"""FC layer and L2 normalisation: the only trainable weights."""

import keras
import tensorflow as tf

from xbm_keras.stages.circular_memory import Rows
from xbm_keras.stages.cosine_scores import cosine_scores, l2_normalize
from xbm_keras.stages.hard_top_k import Picks
from xbm_keras.stages.head_starts import Start

KINDS = ("linear", "residual", "mlp")


@keras.saving.register_keras_serializable("xbm_keras")
class Head(keras.layers.Layer):
    """FC layer from features to embeddings of unit length, float32 [B, E].

    Kinds, each of which equals its start before the first step:

    - "linear": `f W + b`
    - "residual": `f W0 + b0 + f W`, where `W0`, `b0` is the start, frozen, and `W` begins at zero, so that weight decay
      pulls toward the start
    - "mlp": `f W + b + relu(f U + c) V`, where `V` begins at zero

    Before, each feature is raised to a power and keeps its sign, and the row is made of unit length anew: 0.5, the
    square root, keeps a few strong features from drowning the others.

    Args:
        embedding_dim: E.
        kind: one of the above.
        hidden_dim: width of the "mlp" kind's hidden layer.
        power: of the features; 1 leaves them as they are.
        seed: of the random start and of `U`.

    Raises:
        ValueError: for an unknown kind, a width below 1, or a power outside 0..1.

    Reference:
        Perronnin et al., "Improving the Fisher Kernel", ECCV 2010, section 3.3 (signed power normalisation).
    """

    def __init__(
        self,
        embedding_dim: int,
        kind: str = "linear",
        hidden_dim: int = 512,
        power: float = 1.0,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kind not in KINDS:
            raise ValueError(f"Received kind={kind!r}; expected one of {', '.join(KINDS)}.")
        for name, width in (("embedding_dim", embedding_dim), ("hidden_dim", hidden_dim)):
            if not isinstance(width, int) or width < 1:
                raise ValueError(f"Received {name}={width!r}; expected a whole number, 1 or more.")
        if not 0 < power <= 1:
            raise ValueError(f"Received power={power}; expected a number above 0, up to 1.")
        self.embedding_dim = embedding_dim
        self.kind = kind
        self.hidden_dim = hidden_dim
        self.power = power
        self.seed = seed

    def build(self, input_shape):
        """Create the weights for features of shape `(batch, D)`."""
        d, e = input_shape[-1], self.embedding_dim
        random = keras.initializers.GlorotUniform(self.seed)
        trains_start = self.kind != "residual"
        self.kernel = self.add_weight(name="kernel", shape=(d, e), initializer=random, trainable=trains_start)
        self.bias = self.add_weight(name="bias", shape=(e,), initializer="zeros", trainable=trains_start)
        if self.kind == "residual":
            self.delta = self.add_weight(name="delta", shape=(d, e), initializer="zeros")
        elif self.kind == "mlp":
            h = self.hidden_dim
            hidden_random = keras.initializers.HeNormal(self.seed + 1)
            self.hidden_kernel = self.add_weight(name="hidden_kernel", shape=(d, h), initializer=hidden_random)
            self.hidden_bias = self.add_weight(name="hidden_bias", shape=(h,), initializer="zeros")
            self.hidden_out = self.add_weight(name="hidden_out", shape=(h, e), initializer="zeros")
        self.built = True

    def set_start(self, start: Start) -> None:
        """Start from a closed form. Raises ValueError where it was made for other widths."""
        if start.kernel.shape != tuple(self.kernel.shape):
            raise ValueError(
                f"Received a start of shape {start.kernel.shape}; this head maps "
                f"{self.kernel.shape[0]} to {self.kernel.shape[1]} dimensions. Compute it with these widths."
            )
        self.kernel.assign(start.kernel)
        self.bias.assign(start.bias)

    def call(self, features):
        """Features [B, D] to embeddings [B, E] of unit length, float32."""
        features = signed_power(features, self.power)
        z = tf.matmul(features, self.kernel) + self.bias
        if self.kind == "residual":
            z += tf.matmul(features, self.delta)
        elif self.kind == "mlp":
            hidden = tf.nn.relu(tf.matmul(features, self.hidden_kernel) + self.hidden_bias)
            z += tf.matmul(hidden, self.hidden_out)
        return l2_normalize(z)

    def embed_rows(self, rows: Rows) -> tf.Tensor:
        """Embeddings [M, E] of all memory rows, with gradient.

        Slots that were never filled get the first row's features: a zero row would give NaN gradients through the
        normalisation of some heads, though no pair uses it.
        """
        features = rows.block(0, tf.shape(rows.labels)[0])
        return self(tf.where(rows.is_valid[:, None], features, features[:1]))

    def compare(
        self,
        anchors: tf.Tensor,
        rows: Rows,
        picks: Picks,
        row_embeddings: tf.Tensor | None = None,
        *,
        jit_compile: bool = False,
    ) -> tf.Tensor:
        """Cosine similarities [B, T] of anchors and their picks, under the current weights, gradient on both sides.

        Args:
            anchors: [B, E] embeddings of the batch.
            rows: the memory.
            picks: which rows, [B, T].
            row_embeddings: [M, E], where all rows passed the head already. Else the picked rows pass it, each once
                (under XLA, where `tf.unique` does not exist, once for each time that it was picked).
            jit_compile: say True where this is traced into an XLA-compiled function.
        """
        if row_embeddings is not None:
            return tf.gather(cosine_scores(anchors, row_embeddings), picks.indices, batch_dims=1)
        flat = tf.reshape(picks.indices, [-1])
        if jit_compile:
            picked = self(rows.take(flat))
        else:
            unique, position = tf.unique(flat)
            picked = tf.gather(self(rows.take(unique)), position)
        shape = tf.concat([tf.shape(picks.indices), [self.embedding_dim]], axis=0)
        return tf.einsum("be,bte->bt", anchors, tf.reshape(picked, shape))

    def get_config(self):
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "embedding_dim": self.embedding_dim,
            "kind": self.kind,
            "hidden_dim": self.hidden_dim,
            "power": self.power,
            "seed": self.seed,
        }


def signed_power(features: tf.Tensor, power: float) -> tf.Tensor:
    """Rows [B, D] of features to a power that keep their signs, of unit length; 1 leaves them as they are."""
    if power == 1:
        return features
    return l2_normalize(tf.sign(features) * tf.abs(features) ** power)
