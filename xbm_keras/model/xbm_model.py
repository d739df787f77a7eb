"""The pipeline as a Keras model: frozen backbone, cross-batch memory, top-k sample, FC layer, pair loss."""

import functools

import keras
import tensorflow as tf

from xbm_keras.geometry import UnitLength, unit_length
from xbm_keras.model import strategies
from xbm_keras.model.custom_gradients import freed_with_the_graph
from xbm_keras.model.earlier_versions import translated
from xbm_keras.model.fused_adam import FusedAdam as FusedAdam  # registered where a model that it trained is loaded
from xbm_keras.model.labels_and_ids import WarnOfRepeatedIds, check_inputs, check_texts, read_batch, with_items
from xbm_keras.model.non_finite import Rejections, StopOnNonFinite, note_batch, seeds_of, undone_unless_finite
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.stages.circular_memory import replicas
from xbm_keras.stages.circular_memory.item_arrays import read_weights
from xbm_keras.stages.circular_memory.ring import CircularMemory, batch_as_rows
from xbm_keras.stages.cosine_scores import all_bits_of_float32
from xbm_keras.stages.hard_top_k.by_label import HardTopK
from xbm_keras.stages.hard_top_k.by_neighbors import NeighborTopK
from xbm_keras.stages.hard_top_k.mining_keys import MiningKeys
from xbm_keras.stages.head.fc_layer import Head
from xbm_keras.stages.head.starts import Start
from xbm_keras.stages.pair_losses.base import PairLoss
from xbm_keras.stages.pair_losses.start_alignment import StartAlignment

STAGES = ("backbone", "head", "memory", "top_k", "pair_loss", "start_alignment")


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
        start_alignment: a `StartAlignment`, a second loss that keeps similarities near those of the start.

    Raises:
        ValueError: for a `top_k` that goes by labels with a loss that uses none, or the reverse; in a step, for a batch
            without labels that the loss needs, or without sample ids where there is a memory.
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
        start_alignment: StartAlignment | None = None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if top_k.uses_labels != pair_loss.uses_labels:
            raise ValueError(
                f"Received {type(top_k).__name__} with {type(pair_loss).__name__}; expected NeighborTopK with a loss "
                "that uses no labels, or HardTopK with one that does."
            )
        if head.sides != "both" and not top_k.by_relevance:
            raise ValueError(
                f"Received a head with sides={head.sides!r} and {type(top_k).__name__}; expected 'both', or "
                "RelevantTopK, for queries and documents."
            )
        self.backbone = backbone
        self.head = head
        self.memory = memory
        self.top_k = top_k
        self.pair_loss = pair_loss
        self.start_alignment = start_alignment
        # Layers that the stages keep beside their own weights. Keras saves them as the model's; checkpoints go by this
        # order, with the mining keys last.
        kept = [*top_k.keep(memory, head.embedding_dim), *([start_alignment.follow(head)] if start_alignment else [])]
        self.state_of_stages = sorted(kept, key=lambda layer: isinstance(layer, MiningKeys))
        self.occupancy = keras.metrics.Mean(name="occupancy")
        self.valid_anchors = keras.metrics.Mean(name="valid_anchors")
        self.positive_sim = keras.metrics.Mean(name="positive_sim")
        self.negative_sim = keras.metrics.Mean(name="negative_sim")
        self.active_pairs = keras.metrics.Mean(name="active_pairs")
        self.rejections = Rejections()
        # Behind a function, where Keras does not look for layers: those of the encoder are the model's own.
        self._encoder_of = functools.lru_cache(maxsize=1)(make_encoder)

    def build(self, input_shape):
        """Build the stages; `input_shape` is the dict of shapes of the inputs."""
        check_inputs(input_shape, self.backbone is None)
        if "features" in input_shape:
            features_shape = (None, input_shape["features"][-1])
        elif self.backbone is not None:
            features_shape = (None, self.backbone.compute_output_shape(input_shape["inputs"])[-1])
        else:
            features_shape = (None, input_shape["inputs"][-1])
        is_new_start = self.start_alignment is not None and not self.start_alignment.start.built
        for stage in (self.head, self.memory, self.top_k, *self.state_of_stages):
            if not stage.built:  # a loaded model, and one of another's stages, brings them already built
                stage.build(features_shape)
        if self.start_alignment is not None and is_new_start:
            self.start_alignment.remember(self.head)
        self.built = True

    def set_start(self, start: Start) -> None:
        """Start the head from a closed form. Raises ValueError where it was made for other widths."""
        self.head.set_start(start)
        if self.start_alignment is not None:
            self.start_alignment.remember(self.head)

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
        if "is_held" not in inputs:  # rows of the memory have it
            features = unit_length(features)
        return {"features": features, "embeddings": self.head(features)}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The picture: enqueue, score, pick, embed the picks, compare. Mean over the valid anchors, a scalar.

        `sample_weight` [B], which `class_weight` becomes, weights the anchors in the mean: one of weight 0 is a row of
        the memory like any other.
        """
        features, anchors = y_pred["features"], y_pred["embeddings"]  # [B, D] frozen, [B, E]
        wanted, ids, items, source = read_batch(x, y, features, self, training)  # [B] or [B, P], [B], rows
        items = replicas.gather(*items)  # the same, of all devices where there are several
        rows = self.memory.enqueue(*items) if training else batch_as_rows(*items)  # [M, D]
        rows = rows._replace(numbers=x.get("number") if training else None)  # known neighbours are of the memory
        rows = self._embed_all_of_few(rows, anchors)  # [M, D], and [M, E] unless the picks are fewer
        picks = self.top_k(features, rows, wanted, ids, anchors=anchors, embed=self.head.on_rows)  # [B, T]
        similarities = self.head.compare(anchors, rows, picks)  # FC layer on the picks, [B, T] for each nested width
        losses = [self.pair_loss(each, picks) for each in self._noting_active(similarities, picks)]  # [B] for each
        if self.start_alignment is not None:
            strays = self.start_alignment(similarities, features, rows, picks)  # [B] for each
            losses = [loss + stray for loss, stray in zip(losses, strays, strict=True)]
        per_anchor = self.head.weighted_mean(losses)  # [B]
        is_valid = self.pair_loss.valid_anchors(picks)  # [B]
        self._track(similarities[-1], picks, is_valid)
        weights = None if sample_weight is None else read_weights(sample_weight, tf.shape(per_anchor)[0])  # [B]
        is_finite = note_batch(self, *source, is_valid & ~tf.math.is_finite(per_anchor))
        loss = replicas.masked_mean(per_anchor, is_valid, weights)
        return replicas.evenly(tf.where(is_finite, loss, float("nan")))

    def _embed_all_of_few(self, rows, anchors):
        """All rows through the head, where that is no more work than the picks alone; a batch only once."""
        if rows.num_enqueued is None:
            is_batch = not self.top_k.by_relevance
            return rows._replace(embeddings=replicas.gather(anchors)[0] if is_batch else self.head.embed_rows(rows))
        if self.top_k.most_rows(anchors.shape[0] or 1, self.memory.memory_size) == self.memory.memory_size:
            return rows._replace(embeddings=self.head.embed_rows(rows))
        return rows

    def _noting_active(self, similarities, picks):
        """The same similarities, which note in the backward pass which picks the loss pulls at or pushes away."""

        @tf.custom_gradient
        def noted(*similarities):
            def backward(*slopes):
                is_active = tf.add_n([tf.abs(slope) for slope in slopes]) > 0.0
                self.active_pairs.update_state(is_active, picks.is_valid)
                return slopes

            return [tf.identity(each) for each in similarities], backward

        return noted(*similarities)

    def _track(self, similarities, picks, is_valid):
        """Update the metrics of the progress bar."""
        similarities = tf.stop_gradient(similarities)
        self.valid_anchors.update_state(is_valid)
        self.positive_sim.update_state(similarities, picks.is_valid & picks.is_positive)
        self.negative_sim.update_state(similarities, picks.is_valid & ~picks.is_positive)
        if self.memory.memory_size:
            self.occupancy.update_state(self.memory.occupancy() / self.memory.memory_size)

    @freed_with_the_graph()
    def train_step(self, data):
        """The stock step, undone where features, loss or new weights are not finite: such a batch leaves no trace."""
        data = with_items(data, self.memory)
        inputs = data[0]
        if not self.built:  # Keras would build in the first step, after what was before it is noted here
            self.build(keras.tree.map_structure(lambda tensor: tensor.shape, inputs))
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return undone_unless_finite(self, inputs, functools.partial(super().train_step, data))

    @freed_with_the_graph()
    def test_step(self, data):
        """The stock step, which leaves no trace: what training draws by chance next is what it had drawn without.

        Its logs leave out `active_pairs`, which the gradient of a training step tells.
        """
        data = with_items(data, self.memory)
        seeds = [(seed.value, tf.identity(seed.value)) for seed in seeds_of(self)]
        logs = super().test_step(data)
        for seed, before in seeds:
            seed.assign(before)
        return {name: value for name, value in logs.items() if name != self.active_pairs.name}

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
        twin = self.with_backbone(None)
        with strategies.scope(self.distribute_strategy):
            twin.compile(self.optimizer)
        return twin

    def with_backbone(self, backbone: Backbone | None) -> "XBMModel":
        """The same stages behind another backbone, not compiled."""
        stages = {name: getattr(self, name) for name in STAGES if name != "backbone"}
        with strategies.scope(self.distribute_strategy):
            twin = XBMModel(backbone=backbone, **stages)
            twin.build({"features": (None, self.memory.feature_dim)})
        return twin

    def get_config(self):
        """Arguments of the constructor."""
        stages = {name: getattr(self, name) for name in STAGES}
        stages = {name: each and keras.saving.serialize_keras_object(each) for name, each in stages.items()}
        return {**super().get_config(), **stages}

    @classmethod
    def from_config(cls, config):
        """The model that `get_config` described, in this version or an earlier one."""
        config = translated(config)
        given = {name: config[name] for name in STAGES if config.get(name)}
        return cls(**{**config, **{name: keras.saving.deserialize_keras_object(each) for name, each in given.items()}})


def make_encoder(backbone: Backbone | None, head: Head, feature_dim: int, inputs=None) -> keras.Model:
    """The plain model from inputs to embeddings; the inputs are by default of any size that the backbone takes."""
    if backbone is None:
        inputs = features = keras.Input((feature_dim,), name="features")
    else:
        inputs = backbone.make_inputs() if inputs is None else inputs
        features = backbone(inputs)
    return keras.Model(inputs, head(UnitLength(dtype="float32", name="unit_length")(features)), name="encoder")
