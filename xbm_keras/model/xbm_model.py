"""The pipeline as a Keras model: frozen backbone, cross-batch memory, top-k sample, FC layer, pair loss."""

import functools

import keras
import tensorflow as tf

from xbm_keras.geometry import UnitLength, unit_length
from xbm_keras.model import strategies
from xbm_keras.model.labels_and_ids import WarnOfRepeatedIds, check_inputs, check_texts, read_labels_and_ids, with_items
from xbm_keras.model.non_finite import Rejections, StopOnNonFinite, note_batch, seeds_of, undone_unless_finite
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.stages.circular_memory import replicas
from xbm_keras.stages.circular_memory.item_arrays import read_weights
from xbm_keras.stages.circular_memory.ring import CircularMemory, Rows, batch_as_rows
from xbm_keras.stages.cosine_scores import all_bits_of_float32
from xbm_keras.stages.hard_top_k.by_label import HardTopK
from xbm_keras.stages.hard_top_k.by_neighbors import NeighborTopK
from xbm_keras.stages.hard_top_k.mining_keys import MiningKeys
from xbm_keras.stages.hard_top_k.sketch import Sketch
from xbm_keras.stages.head.fc_layer import Head
from xbm_keras.stages.head.starts import Start
from xbm_keras.stages.pair_losses.base import PairLoss
from xbm_keras.stages.pair_losses.start_alignment import divergence_from_start, squared_distance

STAGES = ("backbone", "head", "memory", "top_k", "pair_loss", "sketch")
MINE_IN = ("features", "embeddings", "sketch")


@keras.saving.register_keras_serializable("xbm_keras")
class XBMModel(strategies.ReplicatedModel):
    """Trains a head on a frozen backbone with pairs from a cross-batch memory, by plain `compile` and `fit`.

    Inputs are `{"inputs": x, "sample_id": int64 [B]}`, or `{"features": f [B, D], "sample_id": ...}` to train from
    features that were computed before; `y` is the label, integer [B], or None with a loss that needs none. The same
    item must always carry the same id. A prefilled memory that no step changes has all of that: `{"slot": int64 [B]}`
    alone trains from its rows. `model.encoder` is the result: a plain model from inputs to embeddings.

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
        start_alignment: weight of a second loss that holds each anchor's similarities to its picks to what they were
            under the head of `set_start`, see `divergence_from_start`; 0 for none.
        start_l2: weight of the squared distance of the head's weights from those of `set_start`; 0 for none.

    Raises:
        ValueError: for an unknown `mine_in`, or one whose arguments are missing or that NeighborTopK does not take, for
            NeighborTopK with a loss that needs labels, or the reverse, or for a negative weight; in a step, for a
            batch without labels that the loss needs, or without sample ids where there is a memory.
        NonFiniteFeatures: by `fit`, for a batch with NaN or infinite features.
        NonFiniteLoss: by `fit`, for a loss or weights that became NaN or infinite.

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
        start_alignment: float = 0.0,
        start_l2: float = 0.0,
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
        if not (start_alignment >= 0 and start_l2 >= 0):
            raise ValueError(f"Received {start_alignment=} and {start_l2=}; expected weights of 0 or more.")
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
        self.start_alignment = start_alignment
        self.start_l2 = start_l2
        self.start: Head | None = None  # the head as it was before the first step
        if start_alignment or start_l2:
            self.start = Head.from_config({**head.get_config(), "name": "start", "trainable": False})
        self.mining_keys = None
        if mine_in == "sketch" and memory.memory_size:
            self.mining_keys = MiningKeys(memory.memory_size, sketch.sketch_dim, name="mining_keys")
        elif mine_in == "embeddings" and key_refresh != "exact" and memory.memory_size:
            self.mining_keys = MiningKeys(memory.memory_size, head.embedding_dim, key_refresh, name="mining_keys")
        self.occupancy = keras.metrics.Mean(name="occupancy")
        self.valid_anchors = keras.metrics.Mean(name="valid_anchors")
        self.positive_sim = keras.metrics.Mean(name="positive_sim")
        self.negative_sim = keras.metrics.Mean(name="negative_sim")
        self.active_pairs = keras.metrics.Mean(name="active_pairs")
        self.rejections = Rejections()
        # Behind a function, where Keras does not look for layers: those of the encoder are the model's own.
        self._encoder_of = functools.lru_cache(maxsize=1)(_make_encoder)

    def build(self, input_shape):
        """Build the stages; `input_shape` is the dict of shapes of the inputs."""
        check_inputs(input_shape, self.backbone is None)
        if "features" in input_shape:
            features_shape = (None, input_shape["features"][-1])
        elif self.backbone is not None:
            features_shape = (None, self.backbone.compute_output_shape(input_shape["inputs"])[-1])
        else:
            features_shape = (None, input_shape["inputs"][-1])
        for stage in (self.head, self.memory, self.top_k, self.sketch, self.start):
            if stage is not None and not stage.built:  # a loaded model brings its stages already built
                stage.build(features_shape)
        if self.start is not None:
            self.start.set_weights(self.head.get_weights())
        self.built = True

    def set_start(self, start: Start) -> None:
        """Start the head from a closed form. Raises ValueError where it was made for other widths."""
        self.head.set_start(start)
        if self.start is not None:
            self.start.set_weights(self.head.get_weights())

    def get_build_config(self):
        """The width of the features: all that `build` needs."""
        return {"feature_dim": self.memory.feature_dim} if self.built else None

    def build_from_config(self, config):
        """Build for features of the saved width."""
        self.build({"features": (None, config["feature_dim"])})

    def call(self, inputs, training=False):
        """Features [B, D] and embeddings [B, E], both of unit length."""
        check_inputs(inputs, self.backbone is None, getattr(self.memory, "feature_dim", None))
        if "features" in inputs or self.backbone is None:
            features = inputs.get("features", inputs.get("inputs"))
        else:
            features = self.backbone(inputs["inputs"])
        features = unit_length(features)
        return {"features": features, "embeddings": self.head(features, training=training)}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The picture: enqueue, score, pick, embed the picks, compare. Mean over the valid anchors, a scalar.

        `sample_weight` [B], which `class_weight` becomes, weights the anchors in the mean: one of weight 0 is a row of
        the memory like any other.
        """
        features, anchors = y_pred["features"], y_pred["embeddings"]  # [B, D] frozen, [B, E]
        labels, ids = read_labels_and_ids(x, y, features, self.pair_loss, self.memory.memory_size)  # [B]
        batch = replicas.gather(features, labels, ids)  # the same, of all devices where there are several
        rows = self._enqueue(*batch) if training else batch_as_rows(*batch)  # [M, D]
        row_embeddings = self._embed_rows(rows, batch[0], anchors)  # [M, E]; None where the picks are fewer
        num_new = tf.shape(batch[0])[0] if training else None
        keys = self._mining_space(features, anchors, rows, row_embeddings, num_new)  # [B, K] and [M, K], in blocks
        picks = self.top_k(features, rows, labels, ids, **keys)  # [B, T]
        # For each nested width of the embedding [B, T]; for most heads that is its full width alone.
        similarities = self.head.compare(anchors, rows, picks, row_embeddings)
        losses = [self.pair_loss(each, picks) for each in similarities]
        if self.start_alignment:
            embeds_all = row_embeddings is not None
            strays = divergence_from_start(similarities, self.start, features, rows, picks, embeds_all=embeds_all)
            losses = [loss + self.start_alignment * stray for loss, stray in zip(losses, strays, strict=True)]
        per_anchor = self.head.weighted_mean(losses)  # [B]
        weights = None if sample_weight is None else read_weights(sample_weight, tf.shape(per_anchor)[0])  # [B]
        is_valid = self.pair_loss.valid_anchors(picks)  # [B]
        self._track(similarities[-1], picks, is_valid)
        is_finite = note_batch(self, batch, is_valid & ~tf.math.is_finite(per_anchor))
        loss = replicas.masked_mean(per_anchor, is_valid, weights)
        if self.start_l2:
            loss += self.start_l2 * replicas.share(squared_distance(self.head, self.start))
        return replicas.evenly(tf.where(is_finite, loss, float("nan")))

    def _enqueue(self, features, labels, ids) -> Rows:
        if self.enqueue:
            return self.memory.enqueue(features, labels, ids)
        return self.memory.read()

    def _embed_rows(self, rows, batch_features, anchors):
        """All rows through the head, where that is no more work than the picks alone; the batch only once."""
        if rows.features is batch_features:
            return replicas.gather(anchors)[0]
        if (anchors.shape[0] or 1) * self.top_k.num_picks(self.memory.memory_size) >= self.memory.memory_size:
            return self.head.embed_rows(rows)
        return None

    def _mining_space(self, features, anchors, rows, row_embeddings, num_new) -> dict:
        """Arguments of `top_k` that say where hardness is measured; none of them for the features.

        `num_new` rows were just enqueued; None where the rows are the batch itself.
        """
        if self.mine_in == "features":
            return {}
        if self.mine_in == "sketch":
            make_keys, how = self.sketch, {"anchor_keys": self.sketch(features), "rerank": self.rerank}
        else:
            make_keys, how = self.head, {"anchor_keys": anchors}
        if self.mine_in == "embeddings" and row_embeddings is not None and self.mining_keys is None:
            return {**how, "row_keys": lambda start, width: tf.slice(row_embeddings, [start, 0], [width, -1])}
        if self.mining_keys is None or num_new is None:
            return {**how, "row_keys": lambda start, width: make_keys(rows.block(start, width))}
        self.mining_keys.update(make_keys, self.memory, rows, num_new)
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

    def train_step(self, data):
        """The stock step, undone where features, loss or new weights are not finite: such a batch leaves no trace."""
        data = with_items(data, self.memory, self.enqueue)
        inputs = data[0]
        if not self.built:  # Keras would build in the first step, after what was before it is noted here
            self.build(keras.tree.map_structure(lambda tensor: tensor.shape, inputs))
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return undone_unless_finite(self, inputs, functools.partial(super().train_step, data))

    def test_step(self, data):
        """The stock step, which leaves no trace: what training draws by chance next is what it had drawn without."""
        data = with_items(data, self.memory, self.enqueue)
        seeds = [(seed.value, tf.identity(seed.value)) for seed in seeds_of(self)]
        logs = super().test_step(data)
        for seed, before in seeds:
            seed.assign(before)
        return logs

    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, *args, **kwargs):
        """`keras.Model.fit`, which also stops at a NaN or infinite number: `NonFiniteFeatures`, `NonFiniteLoss`.

        On a GPU its products have all bits of float32, not those of TensorFloat-32 alone: the order of the picks and
        the guards' thresholds depend on them.
        """
        check_texts(x, y)
        strategies.check_strategy(self.distribute_strategy, self.jit_compile)
        guards = [StopOnNonFinite(), WarnOfRepeatedIds()]
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = keras.callbacks.CallbackList([*guards, *callbacks.callbacks], model=self)
        else:
            callbacks = [*guards, *keras.tree.flatten(callbacks or [])]
        with all_bits_of_float32():
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """`keras.Model.evaluate`, with products of all bits of float32, as in `fit`."""
        with all_bits_of_float32():
            return super().evaluate(*args, **kwargs)

    @property
    def encoder(self) -> keras.Model:
        """Inputs -> embeddings [B, E], sharing the weights: for predict, evaluation, export and serving.

        One object for the life of the model, so that `predict` in a loop traces once.

        Raises:
            ValueError: if the model is not built yet.
        """
        if not self.built:
            raise ValueError("This model has no weights yet; expected it to be built, by fit or by build, first.")
        return self._encoder_of(self.backbone, self.head, self.memory.feature_dim)

    def without_backbone(self) -> "XBMModel":
        """The same model, same weights, for features as inputs."""
        stages = self.head, self.memory, self.top_k, self.pair_loss
        mining = self.mine_in, self.enqueue, self.key_refresh, self.sketch, self.rerank
        with strategies.scope(self.distribute_strategy):
            twin = XBMModel(None, *stages, *mining, self.start_alignment, self.start_l2)
            twin.build({"features": (None, self.memory.feature_dim)})
            if self.start is not None:
                twin.start.set_weights(self.start.get_weights())
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
            "start_alignment": self.start_alignment,
            "start_l2": self.start_l2,
        }

    @classmethod
    def from_config(cls, config):
        """The model that `get_config` described."""
        stages = {name: config[name] and keras.saving.deserialize_keras_object(config[name]) for name in STAGES}
        return cls(**{**config, **stages})


def _make_encoder(backbone: Backbone | None, head: Head, feature_dim: int) -> keras.Model:
    """The plain model from inputs to embeddings."""
    if backbone is None:
        inputs = features = keras.Input((feature_dim,), name="features")
    else:
        inputs = backbone.make_inputs()
        features = backbone(inputs)
    return keras.Model(inputs, head(UnitLength(dtype="float32", name="unit_length")(features)), name="encoder")
