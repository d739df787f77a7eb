"""Frozen networks of keras_hub, for texts and for pictures, with the preprocessing of their preset."""

import difflib
import functools
import hashlib
import importlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from annotated_types import Ge

from xbm_keras.arguments import checked
from xbm_keras.stages.backbone.choices import choices_of
from xbm_keras.stages.backbone.frozen import Backbone, ImageSize, Pooling, outputs_of
from xbm_keras.stages.backbone.vision_parts import CHOICES, NAMED, Parts, with_parts

TEXT_INPUTS = ("token_ids", "padding_mask")


class HubBackbone(Backbone):
    """A frozen keras_hub network with the preprocessing of its preset, pooled to one feature vector per item.

    Of texts it takes the token ids: `{"token_ids": int32 [B, L], "padding_mask": int32 [B, L]}`, the mask 1 where there
    is a token; `prepare` makes them. Of pictures it takes RGB in 0..255, [B, H, W, 3] of any size.

    Keras writes no `.keras` file of it, see `get_config`; export holds it.

    Args:
        network: of texts a model from token ids, mask and, maybe, segment ids to tokens [B, L, D]; of pictures one from
            pictures to features [B, D], tokens [B, L, D] or maps [B, H, W, D], or to several of these, which are put
            side by side as those of a `Backbone` are.
        preprocessing: of texts a keras_hub preprocessor: text -> token ids and mask; of pictures an `ImageConverter`.
        pooling: "avg", "max" (both over the tokens of the text alone), or "first" (the first token).

    Raises:
        ValueError: for an unknown pooling.
    """

    preprocess: Any  # a layer of keras_hub, of which nothing is known where that is not installed

    def __init__(self, network: keras.Model, preprocessing: keras.Layer, pooling: Pooling = "avg", **kwargs):
        self.remake: Callable[[], HubBackbone] | None = None
        """Makes it again in another process, where it came from a preset."""
        self.modality = "text" if hasattr(preprocessing, "tokenizer") else "image"
        size = None if self.modality == "text" else preprocessing.image_size
        super().__init__(network, None, size, pooling, **kwargs)
        self.preprocess = preprocessing
        self.supports_jit = self.modality == "text"  # an ImageConverter resizes by an operation that XLA does not have
        self.preprocessing = _describe(network, preprocessing)
        if self.modality == "text":
            preprocessing("")  # builds what its first call builds, before threads call it

    @classmethod
    @checked
    def from_preset(
        cls,
        preset: str,
        max_length: Annotated[int, Ge(3)] = 128,
        pooling: Pooling = "avg",
        image_size: ImageSize | None = None,
        parts: Parts = "pooled",
    ) -> "HubBackbone":
        """A network of texts or of pictures, as the preset says; of CLIP and SigLIP the picture side, projected.

        Args:
            preset: the name of a keras_hub preset, which is downloaded; or a folder: of a preset, or of Hugging Face.
            max_length: tokens of a text, the special ones included; what is longer is cut.
            pooling: of the tokens of a text, the padding left out; of the tokens or maps of a picture.
            image_size: (height, width); by default what the network was made for.
            parts: of a vision transformer, side by side: "class", the class token, or what CLIP and SigLIP compare;
                "patches", the mean of the patches; "gem", their generalised mean; "blocks", the class tokens of the
                last four blocks. "pooled" is what `pooling` makes of all tokens; "auto" is class and patches, "all" are
                all four, of which a run chooses (`choices`); of other networks both are "pooled".

        Raises:
            ValueError: where keras_hub is missing or cannot load the preset, and for a network that takes neither
                texts with a padding mask nor pictures.
        """
        hub = _keras_hub()
        folder = os.path.expanduser(preset)
        preset = folder if os.path.exists(folder) else preset
        network = _load(hub.models.Backbone, preset)
        names = set(network.input) if isinstance(network.input, dict) else set()
        if any(len(tensor.shape) == 4 for tensor in keras.tree.flatten(network.input)):
            network, converter = _of_pictures(hub, network, preset, image_size)

            def of_parts(parts: Any) -> HubBackbone:
                giving = _giving(network, parts, converter.image_size)
                made = cls(giving, converter, pooling, name="backbone")
                made.remake = functools.partial(cls.from_preset, preset, max_length, pooling, image_size, parts)
                return made

            backbone = of_parts(parts)
            if parts == "all" and with_parts(network, parts) is not None:
                widths = [each.shape[-1] for each in outputs_of(backbone.network.output)]
                backbone.choices = choices_of(NAMED["all"], widths, CHOICES, of_parts)
            return backbone
        if not isinstance(parts, str):
            raise ValueError(f"Received parts {', '.join(parts)} with {preset!r}, which takes texts; leave them out.")
        elif names >= set(TEXT_INPUTS):
            longest = getattr(network, "max_sequence_length", max_length) or max_length
            if max_length > longest:
                raise ValueError(
                    f"Received max_length={max_length} for {preset!r}, which takes at most {longest} tokens; expected "
                    f"at most {longest}."
                )
            backbone = cls(network, _preprocessor(hub, preset, max_length), pooling, name="backbone")
        else:
            raise ValueError(
                f"Received preset {preset!r}, a {type(network).__name__} with the inputs {', '.join(sorted(names))}; "
                f"expected a network of pictures, or one of texts with {' and '.join(TEXT_INPUTS)}."
            )
        backbone.remake = functools.partial(cls.from_preset, preset, max_length, pooling, image_size, parts)
        return backbone

    @property
    def input_shape_per_item(self):
        """Shape of one input: `(None, None, 3)` for pictures; for texts a dict of them."""
        return dict.fromkeys(TEXT_INPUTS, (None,)) if self.modality == "text" else (None, None, 3)

    @property
    def input_dtype_per_item(self) -> str:
        """Dtype of the inputs."""
        return "int32" if self.modality == "text" else "float32"

    def call(self, inputs):
        """Pictures [B, H, W, 3], or token ids and mask [B, L], to features [B, D] float32."""
        if self.modality == "image":
            x = self.preprocess(tf.cast(inputs, tf.float32))
            names = self.network.input if isinstance(self.network.input, dict) else ()
            return self._side_by_side(self.network(dict.fromkeys(names, x) or x, training=False))
        token_ids, mask = (tf.cast(inputs[name], tf.int32) for name in TEXT_INPUTS)
        all_inputs = {"token_ids": token_ids, "padding_mask": mask, "segment_ids": tf.zeros_like(token_ids)}
        (y,) = outputs_of(self.network({name: all_inputs[name] for name in self.network.input}, training=False))
        return tf.stop_gradient(_pool_tokens(tf.cast(y, tf.float32), mask, self.pooling))

    def resize(self, image):
        """A picture [H, W, 3] at `image_size`, float32, as `call` resizes it."""
        return self.preprocess.resizing(tf.cast(image, tf.float32))

    def resize_batch(self, images):
        """Pictures [B, H, W, 3] at `image_size`, float32."""
        return self.resize(images)

    def prepare(self, item):
        """One item as `call` takes it in a batch: a picture at `image_size`, or the tokens and mask of a text [L]."""
        if self.modality == "image":
            return np.asarray(self.resize(item))
        inputs = self.preprocess(item)
        return {name: np.asarray(inputs[name], np.int32) for name in TEXT_INPUTS}

    @functools.cached_property
    def _graph(self) -> Callable:
        """Of texts one for all lengths, which leaves out the padding that a batch has in common."""
        if self.modality == "image":
            return super()._graph
        signature = {name: tf.TensorSpec((None, None), tf.int32) for name in TEXT_INPUTS}
        graph = tf.function(lambda inputs: self(inputs), input_signature=[signature])

        def function(inputs):
            used = np.flatnonzero(np.asarray(inputs["padding_mask"]).any(axis=0))
            return graph({name: inputs[name][:, : used.max(initial=0) + 1] for name in TEXT_INPUTS})

        return function

    def compute_output_shape(self, input_shape):
        """(batch, D)."""
        batch = (input_shape["token_ids"] if self.modality == "text" else input_shape)[0]
        return (batch, sum(each.shape[-1] for each in outputs_of(self.network.output)))

    def save_tokenizer(self, folder: pathlib.Path) -> None:
        """Write the preprocessing of texts as a preset for `keras_hub.models.TextClassifierPreprocessor.from_preset`.

        There is no network inside.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.preprocess.save_to_preset(str(folder))
        config = keras.saving.serialize_keras_object(self.network)  # keras_hub takes no folder without
        (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")

    def get_config(self):
        """Refused: what a preset holds beside the network is no part of a `.keras` file."""
        raise ValueError(
            "Received a keras_hub backbone to put into a .keras file, which cannot hold its preprocessing; expected a "
            "model without it. Save model.without_backbone(), and load the backbone by HubBackbone.from_preset."
        )


def _keras_hub():
    try:
        return importlib.import_module("keras_hub")
    except ImportError as error:
        raise ValueError(
            f"Received a keras_hub backbone, and keras_hub cannot be imported ({error}); expected the extra [hub]. "
            'Install it with: pip install ".[hub]"'
        ) from error


def _load(kind, preset: str, **kwargs):
    """`kind.from_preset`. Raises ValueError that says what a preset may be."""
    try:
        return kind.from_preset(preset, **kwargs)
    except Exception as error:  # keras_hub, its downloaders and h5py raise many kinds
        near = difflib.get_close_matches(preset, _keras_hub().models.Backbone.presets, n=1)
        hint = f"Did you mean {near[0]!r}? " if near and near[0] != preset else ""
        options = "".join(f" with {name}={value}" for name, value in kwargs.items() if name == "image_shape")
        raise ValueError(
            f"Received preset {preset!r}, of which keras_hub cannot load the {kind.__name__}{options}: {error}\n{hint}"
            "Expected the name of a keras_hub preset, or a folder that holds one or a Hugging Face model (with "
            "config.json). Without a connection, bring it from elsewhere, and say --set backbone.preset=FOLDER."
        ) from error


def _preprocessor(hub, preset: str, max_length: int) -> keras.Layer:
    """What makes token ids and mask of a text, as the network was trained with."""
    options = {"sequence_length": max_length}
    about = pathlib.Path(preset) / "tokenizer_config.json"
    about = json.loads(about.read_text("utf-8")) if about.is_file() else {}
    if about.get("tokenizer_class", "").removesuffix("Fast") in ("BertTokenizer", "DistilBertTokenizer"):
        # Hugging Face strips accents with lower case, unless told otherwise; keras_hub 0.32 leaves them in.
        strip, lower = about.get("strip_accents"), about.get("do_lower_case", True)
        options["tokenizer"] = _load(hub.tokenizers.Tokenizer, preset, strip_accents=lower if strip is None else strip)
    try:
        return hub.models.TextClassifierPreprocessor.from_preset(preset, **options)
    except ValueError:  # some families only embed
        return _load(hub.models.TextEmbedderPreprocessor, preset, **options)


def _of_pictures(hub, network, preset: str, image_size: tuple[int, int] | None) -> tuple[keras.Model, keras.Layer]:
    """Network and `ImageConverter`, both at an image size."""
    converter = _load(hub.layers.ImageConverter, preset)
    own = tuple(getattr(getattr(network, "vision_encoder", network), "image_shape", ()))[:2]
    if image_size and None not in own and own not in ((), tuple(image_size)):
        network = _load(hub.models.Backbone, preset, image_shape=(*image_size, 3))
    size = image_size or (own if own and None not in own else converter.image_size)
    if size is None:
        raise ValueError(f"Received preset {preset!r}, which names no image size; expected one. Set image_size.")
    converter.image_size = tuple(size)
    is_of_two = len(keras.tree.flatten(network.input)) > 1
    if is_of_two and not hasattr(network, "get_vision_embeddings"):
        raise ValueError(
            f"Received preset {preset!r}, a {type(network).__name__}, which takes more than pictures; expected a "
            "network of pictures, or CLIP or SigLIP."
        )
    return network, converter


def _giving(network: keras.Model, parts: Parts, size: tuple[int, int]) -> keras.Model:
    """A network of pictures that gives these parts; where it has none, or these are "pooled", what it gives itself."""
    of_parts = with_parts(network, parts)
    if of_parts is not None or not hasattr(network, "get_vision_embeddings"):
        return network if of_parts is None else of_parts
    images = keras.Input((*size, 3), name="images")
    return keras.Model(images, network.get_vision_embeddings(images), name=network.name)


def _describe(network, preprocessing) -> str:
    """The classes, and a hash of all that decides what the network is given."""
    digest = hashlib.sha256(json.dumps(_nameless(preprocessing.get_config()), sort_keys=True, default=str).encode())
    parts = [type(network).__name__, type(preprocessing).__name__]
    if hasattr(preprocessing, "tokenizer"):
        parts.append(f"{preprocessing.sequence_length} tokens")
        with tempfile.TemporaryDirectory() as folder:
            preprocessing.tokenizer.save_assets(folder)
            for path in sorted(pathlib.Path(folder).iterdir()):
                digest.update(path.read_bytes())
    return ", ".join([*parts, digest.hexdigest()[:16]])


def _nameless(config):
    """A config without the names of layers, which Keras counts up in each process."""
    if isinstance(config, dict):
        left_out = ("name",) if "trainable" in config else ()  # a dtype policy has a name that counts
        return {key: _nameless(value) for key, value in config.items() if key not in left_out}
    return [_nameless(value) for value in config] if isinstance(config, list | tuple) else config


def _pool_tokens(tokens, mask, pooling: str):
    """Tokens [B, L, D] to [B, D], without the padding; zeros for a text without tokens."""
    if pooling == "first":
        return tokens[:, 0]
    is_token = tf.cast(mask, tf.bool)[..., None]  # [B, L, 1]
    if pooling == "max":
        return tf.where(
            tf.reduce_any(is_token, axis=1), tf.reduce_max(tf.where(is_token, tokens, tokens.dtype.min), axis=1), 0.0
        )
    count = tf.reduce_sum(tf.cast(is_token, tokens.dtype), axis=1)
    return tf.reduce_sum(tf.where(is_token, tokens, 0.0), axis=1) / tf.maximum(count, 1.0)
