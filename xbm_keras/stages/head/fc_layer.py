"""FC layer and L2 normalisation: the only trainable weights."""

from collections.abc import Sequence
from typing import Annotated, Literal

import keras
import tensorflow as tf
from annotated_types import Ge, Gt, Le, MinLen

from xbm_keras.arguments import AboveZero, Positive, arguments_in, checked
from xbm_keras.geometry import signed_power, unit_length
from xbm_keras.stages.circular_memory.ring import Rows
from xbm_keras.stages.circular_memory.writes import is_under_xla
from xbm_keras.stages.cosine_scores import cosine_scores, scores_of_picks
from xbm_keras.stages.hard_top_k.by_label import Picks
from xbm_keras.stages.head.starts import Start

Width = Annotated[int, Ge(1), Le(65_536)]


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

    With nested `widths` each of the embedding's beginnings of these widths, made unit length again, is compared and
    trained beside the whole, so that a vector can be cut after training.

    Args:
        embedding_dim: dimensions E of an embedding.
        kind: one matrix; the start and a matrix beside it; or the start and a hidden layer beside it.
        hidden_dim: width of the "mlp" kind's hidden layer.
        power: of the features; 1 leaves them as they are.
        seed: of the random start and of `U`.
        widths: nested ones, such as [16, 32, 64, 128]: each beginning of the embedding is trained to be an embedding
            itself. Ascending, the last one is `embedding_dim`. None: that one alone.
        width_weights: of the losses of the nested widths in their mean; by default the widths: a narrow beginning is
            part of all the wider ones, so its loss pulls at their weights too, and is the largest of all.
        sides: what of queries and documents passes this layer, where the anchors are queries and the memory's rows
            documents: "both"; "query" alone, so that documents, and an index of them, stay as they are, which takes an
            `embedding_dim` of the features' width; or "two", each a layer of its own.

    Raises:
        ValueError: for an argument out of bounds, nested widths that do not ascend up to E, or weights that do not fit
            them; in `build`, for the sides "query" with an E that is not D.

    Reference:
        Perronnin et al., "Improving the Fisher Kernel", ECCV 2010, section 3.3 (signed power normalisation).
        Nested widths: Kusupati et al., "Matryoshka Representation Learning", arXiv 2205.13147.

    Example:
        >>> head = Head(2)
        >>> head.build((None, 3))
        >>> head.set_start(ClosedForms(np.eye(3, dtype="float32"), np.array([0, 0, 1])).pca(2))
        >>> embeddings = head(tf.eye(3))
        >>> embeddings.shape, tf.norm(embeddings, axis=1).numpy().round(3).tolist()
        (TensorShape([3, 2]), [1.0, 1.0, 1.0])
    """

    @checked
    def __init__(
        self,
        embedding_dim: Width,
        kind: Literal["linear", "residual", "mlp"] = "linear",
        hidden_dim: Positive = 512,
        power: Annotated[float, Gt(0), Le(1)] = 1.0,
        seed: int = 0,
        widths: Annotated[Sequence[Width], MinLen(1)] | None = None,
        width_weights: Sequence[AboveZero] | None = None,
        sides: Literal["both", "query", "two"] = "both",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.embedding_dim = embedding_dim
        self.kind = kind
        self.hidden_dim = hidden_dim
        self.power = power
        self.seed = seed
        if width_weights is not None and len(width_weights) != len(widths or ()):
            raise ValueError(f"Received {width_weights=} with {widths=}; expected one for each width.")
        self.sides = sides
        self.widths = tuple(widths or (embedding_dim,))
        """Ascending; the last one is E."""
        self.width_weights = tuple(map(float, width_weights or self.widths))
        if list(self.widths) != sorted(set(self.widths)) or self.widths[-1] != embedding_dim:
            raise ValueError(
                f"Received widths={widths} with embedding_dim={embedding_dim}; expected ascending whole numbers, the "
                f"last of which is {embedding_dim}, such as {[max(1, embedding_dim // 2), embedding_dim]}."
            )

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
        if self.sides == "query" and d != e:
            raise ValueError(
                f"Received sides='query' with {e} dimensions for features of width {d}; expected {d}: queries are "
                f"compared with documents as they are. Use embedding_dim={d}, or sides='both'."
            )
        if self.sides == "two":
            alike = {**self.get_config(), "sides": "both", "seed": self.seed + 2, "name": "row_layer"}
            self.row_layer = Head.from_config(alike)
            self.row_layer.build(input_shape)
        self.built = True

    def set_start(self, start: Start, of_rows: Start | None = None) -> None:
        """Start from a closed form; with two layers also that of the rows, by default from the same one.

        Raises ValueError where it was made for other widths.
        """
        if start.kernel.shape != tuple(self.kernel.shape):
            raise ValueError(
                f"Received a start of shape {start.kernel.shape}; this head maps "
                f"{self.kernel.shape[0]} to {self.kernel.shape[1]} dimensions. Compute it with these widths."
            )
        self.kernel.assign(start.kernel)
        self.bias.assign(start.bias)
        if self.sides == "two":
            self.row_layer.set_start(of_rows or start)

    def call(self, features):
        """Features [B, D] to embeddings [B, E] of unit length, float32."""
        if self.power != 1:
            features = unit_length(signed_power(features, self.power))
        features = tf.cast(features, self.compute_dtype)
        z = tf.nn.bias_add(tf.matmul(features, self.kernel), self.bias)
        if self.kind == "residual":
            z += tf.matmul(features, self.delta)
        elif self.kind == "mlp":
            hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(features, self.hidden_kernel), self.hidden_bias))
            z += tf.matmul(hidden, self.hidden_out)
        return unit_length(z)

    def on_rows(self, features: tf.Tensor) -> tf.Tensor:
        """Features [..., D] of memory rows, the documents, to embeddings [..., E]: as `call`, but for other `sides`."""
        if self.sides == "both":
            return self(features)
        return unit_length(tf.cast(features, tf.float32)) if self.sides == "query" else self.row_layer(features)

    def embed_rows(self, rows: Rows) -> tf.Tensor:
        """Embeddings [M, E] of all memory rows, with gradient.

        Slots that were never filled get the first row's features: a zero row would give NaN gradients through the
        normalisation of some heads, though no pair uses it.
        """
        features = rows.block(0, tf.shape(rows.labels)[0])
        return self.on_rows(tf.where(rows.is_valid[:, None], features, features[:1]))

    def compare(self, anchors: tf.Tensor, rows: Rows, picks: Picks) -> list[tf.Tensor]:
        """Cosine similarities of anchors and their picks, under the current weights, gradient on both sides.

        Args:
            anchors: [B, E] embeddings of the batch.
            rows: the memory. Where not all of it passed the head already, the picked rows pass it, each once (under
                XLA, where `tf.unique` does not exist, once for each time that it was picked).
            picks: which rows, [B, T].

        Returns:
            For each of `widths` [B, T] float32.
        """
        if rows.embeddings is not None:
            return [
                tf.gather(cosine_scores(*each), picks.indices, batch_dims=1)
                for each in zip(self.nested(anchors), self.nested(rows.embeddings), strict=True)
            ]
        flat, position = tf.reshape(picks.own, [-1]), None
        if not is_under_xla():
            flat, position = tf.unique(flat, tf.int64)
        num_own = tf.shape(flat)[0]
        taken = tf.concat([flat, picks.shared], axis=0) if picks.num_shared else flat
        similarities = []
        for some_anchors, embedded in zip(
            self.nested(anchors), self.nested(self.on_rows(rows.take(taken))), strict=True
        ):
            # Split, not sliced: the gradient of a slice is a tensor of zeros for each.
            own, shared = tf.split(embedded, [num_own, picks.num_shared]) if picks.num_shared else (embedded, None)
            own = own if position is None else tf.gather(own, position)
            own = tf.reshape(own, tf.concat([tf.shape(picks.own), [embedded.shape[1]]], axis=0))
            similarities.append(scores_of_picks(some_anchors, own, shared))
        return similarities

    def nested(self, embeddings: tf.Tensor) -> list[tf.Tensor]:
        """The beginnings of embeddings [N, E], for each of `widths` [N, width] of unit length."""
        return [*(unit_length(embeddings[:, :width]) for width in self.widths[:-1]), embeddings]

    def weighted_mean(self, losses: Sequence[tf.Tensor]) -> tf.Tensor:
        """The mean over the widths of losses per anchor, each [B], by their weights."""
        weighted = [weight * loss for weight, loss in zip(self.width_weights, losses, strict=True)]
        return tf.add_n(weighted) / sum(self.width_weights)

    def load_own_variables(self, store):
        """Weights; files of earlier versions may hold the state of a dropout, or the number of a stage, a scalar."""
        kept = [key for key in store.keys() if key != "seed_state" and store[key].shape]  # noqa: SIM118
        super().load_own_variables({key: store[key] for key in kept})

    @classmethod
    def from_config(cls, config):
        """The head that `get_config` described; those of earlier versions say how they train, which is no more."""
        return super().from_config({key: each for key, each in config.items() if key not in ("dropout", "nesting")})

    def get_config(self):
        """Arguments of the constructor."""
        lists = {"widths": list(self.widths), "width_weights": list(self.width_weights)}
        return {**super().get_config(), **arguments_in(self), **lists}
