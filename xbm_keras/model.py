"""The pipeline as a Keras model: frozen backbone, cross-batch memory, top-k sample, FC layer, pair loss."""

import keras
import tensorflow as tf

from xbm_keras.stages.backbone import Backbone
from xbm_keras.stages.circular_memory import CircularMemory, Rows, batch_as_rows, non_finite_message
from xbm_keras.stages.hard_top_k import HardTopK
from xbm_keras.stages.head import Head
from xbm_keras.stages.mining_keys import MiningKeys
from xbm_keras.stages.neighbor_top_k import NeighborTopK
from xbm_keras.stages.pair_losses import PairLoss
from xbm_keras.stages.sketch import Sketch

STAGES = ("backbone", "head", "memory", "top_k", "pair_loss", "sketch")
MINE_IN = ("features", "embeddings", "sketch")
MAX_REPORTED_IDS = 8


@keras.saving.register_keras_serializable("xbm_keras")
class XBMModel(keras.Model):
    """Trains a head on a frozen backbone with pairs from a cross-batch memory, by plain `compile` and `fit`.

    Inputs are `{"inputs": x, "sample_id": int64 [B]}`, or `{"features": f [B, D], "sample_id": ...}` to train from
    features that were computed before; `y` is the label, integer [B], or None with a loss that needs none. The same
    item must always carry the same id. `model.encoder` is the result: a plain model from inputs to embeddings.

    Args:
        backbone: a `Backbone`; or None where the inputs are features.
        head: the FC layer.
        memory: the cross-batch memory. Size 0 trains on in-batch pairs.
        top_k: chooses the pairs.
        pair_loss: a `PairLoss`.
        mine_in: the space in which the top k are sought: "features", "embeddings" (the memory through the head,
            without gradient) or "sketch" (a short frozen code of the features). The loss embeds the picks anew anyhow.
        enqueue: False leaves the memory as it is, for one that was prefilled with the whole training set.
        key_refresh: for `mine_in="embeddings"`: "exact" passes all rows through the current head in each step; a number
            S keeps their embeddings and renews S of them per step, in turn, so that none is older than ceil(M / S)
            steps.
        sketch: for `mine_in="sketch"`, the projection.
        rerank: for `mine_in="sketch"`: of the best `rerank` k by sketch the best k by feature score are picked.

    Raises:
        ValueError: for an unknown `mine_in`, or one whose arguments are missing or that NeighborTopK does not take, or
            for NeighborTopK with a loss that needs labels, or the reverse; in a step, for a batch without labels that
            the loss needs, or without sample ids where there is a memory.
        NonFiniteFeatures: by `fit`, for a batch with NaN or infinite features.

    Example:
        >>> model = XBMModel(None, Head(8), CircularMemory(256), HardTopK(16, 4), SupConLoss())
        >>> model.compile(keras.optimizers.Adam(1e-3))
        >>> x = {"features": np.random.default_rng(0).normal(size=(64, 32)), "sample_id": np.arange(64)}
        >>> history = model.fit(x, np.arange(64) % 8, batch_size=32, verbose=0)
        >>> model.encoder.predict(x["features"], verbose=0).shape
        (64, 8)
    """

    def __init__(
        self,
        backbone: Backbone | None,
        head: Head,
        memory: CircularMemory,
        top_k: HardTopK | NeighborTopK,
        pair_loss: PairLoss,
        mine_in: str = "features",
        enqueue: bool = True,
        key_refresh: int | str = "exact",
        sketch: Sketch | None = None,
        rerank: int = 4,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if mine_in not in MINE_IN:
            raise ValueError(f"Received mine_in={mine_in!r}; expected one of {', '.join(MINE_IN)}.")
        if (mine_in == "sketch") != (sketch is not None):
            raise ValueError(
                f"Received mine_in={mine_in!r} with sketch={sketch!r}; expected a Sketch with mine_in='sketch' alone."
            )
        if key_refresh != "exact" and (not isinstance(key_refresh, int) or key_refresh < 1):
            raise ValueError(f"Received key_refresh={key_refresh!r}; expected 'exact' or a number of rows per step.")
        if not isinstance(rerank, int) or rerank < 1:
            raise ValueError(f"Received rerank={rerank!r}; expected a whole number, 1 or more.")
        is_without_labels = isinstance(top_k, NeighborTopK)
        if is_without_labels == pair_loss.uses_labels or (is_without_labels and mine_in != "features"):
            raise ValueError(
                f"Received {type(top_k).__name__} with {type(pair_loss).__name__} and mine_in={mine_in!r}; expected "
                "NeighborTopK with a loss that uses no labels and mine_in='features', or HardTopK with one that does."
            )
        self.backbone = backbone
        self.head = head
        self.memory = memory
        self.top_k = top_k
        self.pair_loss = pair_loss
        self.mine_in = mine_in
        self.enqueue = enqueue
        self.key_refresh = key_refresh
        self.sketch = sketch
        self.rerank = rerank
        self.mining_keys = None
        if mine_in == "sketch" and memory.memory_size:
            self.mining_keys = MiningKeys(memory.memory_size, sketch.sketch_dim, name="mining_keys")
        elif mine_in == "embeddings" and key_refresh != "exact" and memory.memory_size:
            self.mining_keys = MiningKeys(memory.memory_size, head.embedding_dim, key_refresh, name="mining_keys")
        self.unit_length = keras.layers.UnitNormalization(name="unit_length", dtype="float32")
        self.occupancy = keras.metrics.Mean(name="occupancy")
        self.valid_anchors = keras.metrics.Mean(name="valid_anchors")
        self.positive_sim = keras.metrics.Mean(name="positive_sim")
        self.negative_sim = keras.metrics.Mean(name="negative_sim")
        self.active_pairs = keras.metrics.Mean(name="active_pairs")
        # Not Keras variables: what went wrong in this process is no part of a saved model.
        self.rejected_batches = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.rejected_ids = tf.Variable([-1] * (MAX_REPORTED_IDS + 1), dtype=tf.int64, trainable=False)

    def build(self, input_shape):
        """Build the stages; `input_shape` is the dict of shapes of the inputs."""
        if "features" in input_shape:
            features_shape = (None, input_shape["features"][-1])
        elif self.backbone is not None:
            features_shape = (None, self.backbone.compute_output_shape(input_shape["inputs"])[-1])
        else:
            features_shape = (None, input_shape["inputs"][-1])
        for stage in (self.head, self.memory, self.top_k, self.sketch):
            if stage is not None and not stage.built:  # a loaded model brings its stages already built
                stage.build(features_shape)
        self.built = True

    def get_build_config(self):
        """The width of the features: all that `build` needs."""
        return {"feature_dim": self.memory.feature_dim} if self.built else None

    def build_from_config(self, config):
        """Build for features of the saved width."""
        self.build({"features": (None, config["feature_dim"])})

    def call(self, inputs, training=False):
        """Features [B, D] and embeddings [B, E], both of unit length."""
        if "features" in inputs or self.backbone is None:
            features = inputs.get("features", inputs.get("inputs"))
        else:
            features = self.backbone(inputs["inputs"])
        features = self.unit_length(features)
        return {"features": features, "embeddings": self.head(features)}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The picture: enqueue, score, pick, embed the picks, compare. Mean over the valid anchors, a scalar."""
        labels, ids = self._labels_and_ids(x, y, y_pred)
        features, anchors = y_pred["features"], y_pred["embeddings"]  # [B, D] frozen, [B, E]
        rows = self._enqueue(features, labels, ids) if training else batch_as_rows(features, labels, ids)  # [M, D]
        row_embeddings = self._embed_rows(rows, features, anchors)  # [M, E]; None where the picks are fewer
        keys = self._mining_space(features, anchors, rows, row_embeddings)  # [B, K] and [M, K], the latter in blocks
        picks = self.top_k(features, rows, labels, ids, **keys, jit_compile=self.jit_compile)  # [B, T]
        # For each nested width of the embedding [B, T]; for most heads that is its full width alone.
        similarities = self.head.compare(anchors, rows, picks, row_embeddings, jit_compile=self.jit_compile)
        per_anchor = self.head.weighted_mean([self.pair_loss(each, picks) for each in similarities])  # [B]
        is_valid = self.pair_loss.valid_anchors(picks)  # [B]
        self._track(similarities[-1], picks, is_valid)
        is_finite = self._check_finite(features, ids)
        return tf.where(is_finite, _mean(per_anchor, is_valid), float("nan"))

    def _labels_and_ids(self, x, y, y_pred):
        """Labels and sample ids of the batch, int64 [B]; a loss that uses no labels gets none to see, all are 0."""
        if y is None and self.pair_loss.uses_labels:
            raise ValueError(
                f"Received a batch without labels; expected (inputs, labels): {self.pair_loss.name} needs classes. "
                "Without labels use SimilarityAlignmentLoss with NeighborTopK."
            )
        ids = x.get("sample_id")
        if ids is None:
            if self.memory.memory_size:
                raise ValueError(
                    f"Received inputs {sorted(x)} with memory_size={self.memory.memory_size}; expected 'sample_id' "
                    "among them, so that a sample never meets its own copy in the memory. Add an int64 array that "
                    "numbers the items, such as np.arange(num_items), or use CircularMemory(0)."
                )
            ids = tf.range(tf.shape(y_pred["features"])[0])
        ids = tf.cast(tf.reshape(ids, [-1]), tf.int64)
        if not self.pair_loss.uses_labels:
            return tf.zeros_like(ids), ids
        return tf.cast(tf.reshape(y, [-1]), tf.int64), ids

    def _enqueue(self, features, labels, ids) -> Rows:
        if self.enqueue:
            return self.memory.enqueue(features, labels, ids, jit_compile=self.jit_compile)
        return self.memory.read()

    def _embed_rows(self, rows, features, anchors):
        """All rows through the head, where that is no more work than the picks alone; the batch only once."""
        if rows.features is features:
            return anchors
        num_rows, batch_size = self.memory.memory_size, features.shape[0] or 1
        if batch_size * self.top_k.num_picks(num_rows) >= num_rows:
            return self.head.embed_rows(rows)
        return None

    def _mining_space(self, features, anchors, rows, row_embeddings) -> dict:
        """Arguments of `top_k` that say where hardness is measured; none of them for the features."""
        if self.mine_in == "features":
            return {}
        if self.mine_in == "sketch":
            make_keys, how = self.sketch, {"anchor_keys": self.sketch(features), "rerank": self.rerank}
        else:
            make_keys, how = self.head, {"anchor_keys": anchors}
        if self.mine_in == "embeddings" and row_embeddings is not None:
            return {**how, "row_keys": lambda start, width: tf.slice(row_embeddings, [start, 0], [width, -1])}
        if self.mining_keys is None or rows.features is features:
            return {**how, "row_keys": lambda start, width: make_keys(rows.block(start, width))}
        self.mining_keys.update(make_keys, self.memory, rows, tf.shape(features)[0], jit_compile=self.jit_compile)
        return {**how, "row_keys": self.mining_keys.block}

    def _track(self, similarities, picks, is_valid):
        """Update the metrics of the progress bar."""
        similarities = tf.stop_gradient(similarities)
        with tf.GradientTape() as tape:
            tape.watch(similarities)
            per_anchor = self.pair_loss(similarities, picks)
        is_active = tf.not_equal(tape.gradient(per_anchor, similarities), 0.0)
        self.valid_anchors.update_state(is_valid)
        self.positive_sim.update_state(similarities, picks.is_valid & picks.is_positive)
        self.negative_sim.update_state(similarities, picks.is_valid & ~picks.is_positive)
        self.active_pairs.update_state(is_active, picks.is_valid)
        if self.memory.memory_size:
            self.occupancy.update_state(self.memory.occupancy() / self.memory.memory_size)

    def _check_finite(self, features, ids):
        """Whether the batch is finite; if not, note the ids of the first bad rows for `fit` to report."""
        is_bad = ~tf.reduce_all(tf.math.is_finite(features), axis=1)  # [B]
        is_finite = ~tf.reduce_any(is_bad)
        first = tf.concat([tf.zeros([1], tf.int64), tf.cumsum(tf.cast(is_bad, tf.int64))], axis=0)[:-1]
        place = tf.where(is_bad & (first < MAX_REPORTED_IDS), first, MAX_REPORTED_IDS)  # the last place is a bin
        noted = tf.tensor_scatter_nd_update(self.rejected_ids, place[:, None], ids)
        self.rejected_ids.assign(tf.where(is_finite, self.rejected_ids, noted))
        self.rejected_batches.assign_add(tf.where(is_finite, tf.constant(0, tf.int64), 1))
        return is_finite

    def train_step(self, data):
        """The stock step, undone where the batch held a non-finite feature, so that such a batch leaves no trace.

        An assertion inside the step would be a silent no-op under XLA, and zero gradients still move an optimizer.
        """
        if not self.built:  # Keras would build in the first step, after what was before it is noted here
            inputs, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            self.build(keras.tree.map_structure(lambda tensor: tensor.shape, inputs))
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        state = [v.value for v in (*self.trainable_variables, *self.optimizer.variables)]
        before = [tf.identity(v) for v in state]
        num_rejected = tf.identity(self.rejected_batches)
        logs = super().train_step(data)
        is_finite = tf.equal(num_rejected, self.rejected_batches)
        for variable, value in zip(state, before, strict=True):
            variable.assign(tf.where(is_finite, variable, value))
        return logs

    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, *args, **kwargs):
        """`keras.Model.fit`, which also stops with `NonFiniteFeatures` at a batch with NaN or infinite features."""
        guard = StopOnNonFiniteFeatures()
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = keras.callbacks.CallbackList([guard, *callbacks.callbacks], model=self)
        else:
            callbacks = [guard, *keras.tree.flatten(callbacks or [])]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    @property
    def encoder(self) -> keras.Model:
        """Inputs -> embeddings [B, E], sharing the weights: for predict, evaluation, export and serving.

        Raises:
            ValueError: if the model is not built yet.
        """
        if not self.built:
            raise ValueError("This model has no weights yet; expected it to be built, by fit or by build, first.")
        if self.backbone is None:
            inputs = features = keras.Input((self.memory.feature_dim,), name="features")
        else:
            inputs = self.backbone.make_inputs()
            features = self.backbone(inputs)
        return keras.Model(inputs, self.head(self.unit_length(features)), name="encoder")

    def without_backbone(self) -> "XBMModel":
        """The same model, same weights, for features as inputs."""
        twin = XBMModel(
            None,
            self.head,
            self.memory,
            self.top_k,
            self.pair_loss,
            self.mine_in,
            self.enqueue,
            self.key_refresh,
            self.sketch,
            self.rerank,
        )
        twin.build({"features": (None, self.memory.feature_dim)})
        twin.compile(self.optimizer)
        return twin

    def get_config(self):
        """Arguments of the constructor."""
        config = super().get_config()
        config.pop("autocast", None)
        stages = {name: getattr(self, name) for name in STAGES}
        return {
            **config,
            **{name: stage and keras.saving.serialize_keras_object(stage) for name, stage in stages.items()},
            "mine_in": self.mine_in,
            "enqueue": self.enqueue,
            "key_refresh": self.key_refresh,
            "rerank": self.rerank,
        }

    @classmethod
    def from_config(cls, config):
        """The model that `get_config` described."""
        stages = {name: config[name] and keras.saving.deserialize_keras_object(config[name]) for name in STAGES}
        return cls(**{**config, **stages})


class NonFiniteFeatures(ValueError):
    """A batch held NaN or infinite features. It changed neither the memory nor the weights."""


class StopOnNonFiniteFeatures(keras.callbacks.Callback):
    """Raises `NonFiniteFeatures` after such a batch. `XBMModel.fit` brings it along."""

    def on_train_begin(self, logs=None):
        """Forget what an earlier `fit` met."""
        self.model.rejected_batches.assign(0)
        self.model.rejected_ids.assign(tf.fill([MAX_REPORTED_IDS + 1], tf.constant(-1, tf.int64)))

    def on_train_batch_end(self, batch, logs=None):
        """Read the model's note of what it refused."""
        if int(self.model.rejected_batches):
            ids = self.model.rejected_ids.numpy()[:MAX_REPORTED_IDS]
            raise NonFiniteFeatures(non_finite_message(ids[ids >= 0]))


def _mean(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean over the mask; over an empty one 0, with zero gradient."""
    count = tf.reduce_sum(tf.cast(mask, tf.float32))
    return tf.reduce_sum(tf.where(mask, values, 0.0)) / tf.maximum(count, 1.0)
