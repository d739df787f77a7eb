"""Frozen pretrained network: inputs -> features [B, D], preprocessing inside."""

import difflib
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import keras
import numpy as np
import tensorflow as tf
from annotated_types import MinLen

from xbm_keras.arguments import Positive, arguments_in, checked
from xbm_keras.geometry import unit_length
from xbm_keras.stages.backbone.choices import Choice, choices_of
from xbm_keras.stages.backbone.pyramid import parts_to_choose, with_outputs
from xbm_keras.stages.backbone.resizing import resize_by_products

GLYPH_NET = pathlib.Path(__file__).parent / "weights" / "glyph_net.keras"
Pooling = Literal["avg", "max", "first"]
Layers = Literal["last", "pyramid"] | Annotated[Sequence[str], MinLen(1)]
ImageSize = tuple[Positive, Positive]


def load_keras_file(path: str | os.PathLike) -> keras.Model:
    """A model saved as `.keras`, by Keras' safe mode: no code that the file holds is run, no other file is read.

    Raises:
        ValueError: where safe mode refuses the file, or it is damaged.
    """
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # layers raise what they like where a file makes up their config
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        raise ValueError(
            f"Received {str(path)!r}, which cannot be loaded: {str(cause)[:500]}\nExpected a whole .keras file of "
            "layers that need no code of the file. Save the model again, without Lambda layers and the like."
        ) from error


@keras.saving.register_keras_serializable("xbm_keras")
class Backbone(keras.layers.Layer):
    """A frozen network with its own preprocessing, pooled to one feature vector per item.

    Frozen means both: no weight is trainable, and the network always runs in inference mode, so the statistics of
    BatchNormalization never move. `trainable` stays False whatever is assigned to it or to a model around it.

    Args:
        network: a built Keras model or layer from images (or other inputs) to features [B, D], or to maps
            [B, H, W, D] or tokens [B, L, D], which are pooled. Several outputs are pooled each, brought to unit length
            and put side by side.
        preprocessing: the name of the `keras.applications` model whose `preprocess_input` comes first, such as
            "MobileNetV2"; None where the network takes its inputs as they are.
        image_size: (height, width) to which images of another size are resized; None for inputs that are no images.
        pooling: "avg", "max" or "first" (the first token; of tokens only).

    Raises:
        ValueError: for an unknown preprocessing or pooling, or a network whose output cannot be pooled.

    Example:
        >>> network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(5, 3)])
        >>> backbone = Backbone(network, image_size=(8, 8))
        >>> backbone(tf.zeros([2, 20, 16, 3])).shape
        TensorShape([2, 5])
    """

    choices: tuple[Choice, ...] = ()
    """Parts of the features of which a run takes some, the narrowest first; none where all of them are wanted."""

    @checked
    def __init__(
        self,
        network: keras.Layer,
        preprocessing: str | None = None,
        image_size: ImageSize | None = None,
        pooling: Pooling = "avg",
        **kwargs,
    ):
        preprocess = _application(preprocessing)[1] if preprocessing else None
        kwargs["trainable"] = False
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.network.trainable = False
        self.preprocessing = preprocessing
        self.preprocess = preprocess
        self.image_size = (image_size[0], image_size[1]) if image_size else None
        self.pooling = pooling
        self.built = True

    @property
    def trainable(self):
        """Always False."""
        return False

    @trainable.setter
    def trainable(self, value):
        """Ignored: `model.trainable = True` thaws the head of a model, never its backbone."""

    @property
    def input_shape_per_item(self) -> tuple:
        """Shape of one input: `(None, None, 3)` for images, else what the network says."""
        if self.image_size:
            return (None, None, 3)
        return tuple(self._saved_model_input().shape[1:] if self.is_saved_model else self.network.input_shape[1:])

    @property
    def input_dtype_per_item(self) -> str:
        """Dtype of the inputs: float32 for images, else what the network says, such as int32 for tokens."""
        if self.image_size:
            return "float32"
        return self._saved_model_input().dtype.name if self.is_saved_model else self.network.inputs[0].dtype

    def make_inputs(self):
        """Symbolic inputs of a model that begins with this backbone: one, or a dict of them by name."""
        shape, dtype = self.input_shape_per_item, self.input_dtype_per_item
        if isinstance(shape, dict):
            return {name: keras.Input(each, dtype=dtype, name=name) for name, each in shape.items()}
        return keras.Input(shape, dtype=dtype, name="inputs")

    def _saved_model_input(self) -> tf.TensorSpec:
        """What the endpoint of a SavedModel takes, which `TFSMLayer` does not tell."""
        endpoint = self.network.call_endpoint_fn
        endpoint = getattr(endpoint, "concrete_functions", [endpoint])[0]
        return tf.nest.flatten(endpoint.structured_input_signature)[0]

    def call(self, inputs):
        """Inputs, such as RGB images in 0..255 [B, H, W, 3], to features [B, D] float32."""
        x = self.resize_batch(inputs) if self.image_size else inputs
        if self.preprocess is not None:
            x = self.preprocess(x)
        return self._side_by_side(self.network(x, training=False))

    def _side_by_side(self, outputs) -> tf.Tensor:
        """Features [B, D] float32 of what a network gave."""
        pooled = [tf.cast(self._pool(y), tf.float32) for y in outputs_of(outputs)]
        if len(pooled) > 1:  # maps of different layers differ in scale
            pooled = [unit_length(y) for y in pooled]
        return tf.stop_gradient(tf.concat(pooled, axis=-1))

    def resize(self, image: tf.Tensor) -> tf.Tensor:
        """A picture [H, W, 3] at `image_size`, float32: by an operation of the CPU, where pictures are decoded."""
        if image.shape[-3:-1] == self.image_size:
            return tf.cast(image, tf.float32)
        return tf.image.resize(image, self.image_size, antialias=True)

    def resize_batch(self, images: tf.Tensor) -> tf.Tensor:
        """Pictures [B, H, W, 3] at `image_size`, float32: the same to rounding, on any device and under XLA."""
        if self.image_size is None or images.shape[-3:-1] == self.image_size:
            return tf.cast(images, tf.float32)
        return resize_by_products(images, self.image_size)

    def prepare(self, item: np.ndarray) -> np.ndarray:
        """One item as `call` takes it in a batch: a picture at `image_size`, float32. Safe to call in threads."""
        return self.resize(tf.constant(item)).numpy() if self.image_size else item

    def as_function(self) -> Callable:
        """`call` as a graph, for batches of prepared items: one, however often it is asked for."""
        return self._graph

    @functools.cached_property
    def _graph(self) -> Callable:
        graph = tf.function(self)
        return lambda inputs: graph(inputs)  # an attribute that is a graph would be part of what is exported

    def _pool(self, y):
        rank = len(y.shape)
        if rank == 2:
            return y
        if rank == 3 and self.pooling == "first":
            return y[:, 0]
        if rank in (3, 4) and self.pooling != "first":
            axes = list(range(1, rank - 1))
            return tf.reduce_mean(y, axes) if self.pooling == "avg" else tf.reduce_max(y, axes)
        raise ValueError(
            f"Received a network output of shape {tuple(y.shape)} with pooling={self.pooling!r}; expected [B, D], "
            "[B, tokens, D] or, for 'avg' and 'max', [B, H, W, D]."
        )

    def compute_output_shape(self, input_shape):
        """(batch, D)."""
        item = (*self.image_size, 3) if self.image_size else tuple(input_shape[1:])
        if self.is_saved_model:  # TFSMLayer does not tell: trace it
            dtype = tf.float32 if self.image_size else self._saved_model_input().dtype
            traced = tf.function(self.call).get_concrete_function(tf.TensorSpec((None, *item), dtype))
            return (input_shape[0], traced.output_shapes[-1])
        shapes = outputs_of(self.network.compute_output_shape((None, *item)))
        return (input_shape[0], sum(shape[-1] for shape in shapes))

    @classmethod
    @checked
    def from_application(
        cls,
        name: str,
        weights: str | None = "imagenet",
        image_size: ImageSize = (224, 224),
        pooling: Literal["avg", "max"] = "avg",  # Keras takes any other word for no pooling
        layers: Layers | Literal["auto", "all"] = "pyramid",
    ) -> "Backbone":
        """A network of `keras.applications`, without its classifier.

        Args:
            name: such as "MobileNetV2" or "EfficientNetB0".
            weights: "imagenet" (downloaded once by Keras), the path of a weights file, or None: random.
            image_size: height and width that pictures are resized to.
            pooling: of the maps.
            layers: whose maps are pooled: "pyramid", the last layer of each of the three lowest resolutions (see
                `with_outputs`); "last"; or names of layers. "auto" is the pyramid, "all" its maps as they are and in
                cells, of which a run takes some (`choices`).

        Raises:
            ValueError: for an unknown name, pooling or layer, and for weights that are missing or do not fit.
        """
        constructor, _ = _application(name)
        if weights not in (None, "imagenet") and not pathlib.Path(weights).is_file():
            raise ValueError(
                f"Received backbone weights {weights!r}, which is no file; expected 'imagenet', None or the path of a "
                "weights file."
            )
        try:
            network = constructor(include_top=False, input_shape=(*image_size, 3), weights=weights)
        except Exception as error:  # Keras raises a bare Exception where a download fails, and h5py many kinds
            raise ValueError(
                f"Received backbone weights {weights!r}, which could not be loaded into {name} at "
                f"{image_size[0]}x{image_size[1]}: {error}\nExpected weights of that network without its classifier. "
                "Without a connection, bring the file from elsewhere, and say --set backbone.weights=FILE."
            ) from error

        return cls._of_maps(network, layers, name, image_size, pooling)

    @classmethod
    @checked
    def from_file(
        cls,
        path: str,
        preprocessing: str | None = None,
        image_size: ImageSize | None = None,
        pooling: Pooling = "avg",
        layers: Layers | Literal["auto", "all"] = "last",
        endpoint: str = "serving_default",
    ) -> "Backbone":
        """A network of yours: a model saved as `.keras`, or the folder of a TensorFlow SavedModel.

        Keras cannot put a SavedModel into a `.keras` file; export holds it.

        Args:
            path: of the file, or the folder.
            preprocessing: the `keras.applications` model whose `preprocess_input` comes first; None: images in 0..255
                reach the network as they are.
            image_size: height and width that pictures are resized to; None is what a `.keras` model was made for.
            pooling: of the maps or tokens that it gives.
            layers: of a `.keras` model: which give the features, as for `from_application`; "last" are its own outputs,
                and "auto" and "all" are for networks that end in maps.
            endpoint: of a SavedModel.

        Raises:
            ValueError: if there is no such file, it needs code that safe mode refuses, or has no such layers; for a
                folder without a SavedModel, or one without such an endpoint.
        """
        place = pathlib.Path(path).expanduser()
        if place.is_dir():
            if not (place / "saved_model.pb").is_file():
                raise ValueError(
                    f"Received backbone {path!r}, which holds no saved_model.pb; expected a SavedModel folder."
                )
            network = keras.layers.TFSMLayer(str(place), call_endpoint=endpoint)
        elif place.is_file():
            network = load_keras_file(place)
            if image_size is None and len(network.input_shape) == 4 and None not in network.input_shape[1:3]:
                image_size = tuple(network.input_shape[1:3])
            return cls._of_maps(network, layers, preprocessing, image_size, pooling)
        else:
            raise ValueError(f"Received backbone {path!r}, which is no file; expected the path of a .keras model.")
        return cls(network, preprocessing, image_size, pooling, name="backbone")

    @classmethod
    def _of_maps(
        cls,
        network: keras.Model,
        layers: Layers | Literal["auto", "all"],
        preprocessing: str | None,
        image_size: ImageSize | None,
        pooling: Pooling,
    ) -> "Backbone":
        """That gives the maps of these layers; of "all" what there is to choose among."""

        def of(layers: Layers) -> Backbone:
            giving = with_outputs(network, layers, pooling)
            return cls(giving, preprocessing, image_size, pooling, name="backbone")

        if layers not in ("auto", "all"):
            return of(layers)
        if layers == "auto" or pooling == "first":  # which maps do not have, as they say themselves
            return of("pyramid")
        names, wanted = parts_to_choose(with_outputs(network, "pyramid"))
        if len(wanted) < 2:
            return of("pyramid")
        backbone = of(names)
        widths = [each.shape[-1] for each in outputs_of(backbone.network.output)]
        backbone.choices = choices_of(names, widths, wanted, lambda some: of(list(some)))
        return backbone

    @classmethod
    def from_glyph_net(cls) -> "Backbone":
        """The small network of 48x48 pictures that ships with the package, pretrained on Latin and Cyrillic letters."""
        return cls.from_file(str(GLYPH_NET))

    @property
    def is_saved_model(self) -> bool:
        """Whether the network is a SavedModel, which `.keras` files cannot hold."""
        return isinstance(self.network, keras.layers.TFSMLayer)

    def get_config(self):
        """Arguments of the constructor."""
        network = keras.saving.serialize_keras_object(self.network)
        return {**super().get_config(), **arguments_in(self), "network": network}

    @classmethod
    def from_config(cls, config):
        """The layer that `get_config` described."""
        return cls(**{**config, "network": keras.saving.deserialize_keras_object(config["network"])})


def outputs_of(outputs) -> list:
    """The outputs, or the shapes (tuples), of a network that may give several in a list; of named ones the tokens."""
    if not isinstance(outputs, dict):
        return outputs if isinstance(outputs, list) else [outputs]
    if "sequence_output" not in outputs and len(outputs) != 1:
        raise ValueError(
            f"Received a network with outputs {', '.join(sorted(outputs))}; expected a single one, or "
            "'sequence_output'. Wrap it in a model that returns the features."
        )
    return [outputs.get("sequence_output", next(iter(outputs.values())))]


def _application(name: str):
    """The constructor of a `keras.applications` model and its `preprocess_input`."""
    names = [n for n in dir(keras.applications) if n[0].isupper()]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"Received {name!r}, which is no model of keras.applications. {hint}Expected one of {', '.join(names)}."
        )
    constructor = getattr(keras.applications, name)
    return constructor, sys.modules[constructor.__module__].preprocess_input
