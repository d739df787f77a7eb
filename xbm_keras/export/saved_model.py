"""The SavedModel that serves: everything between what clients send and embeddings, and nothing else."""

import functools
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal

import keras
import numpy as np
import PIL.Image
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from xbm_keras.arguments import Positive, checked
from xbm_keras.atomic_files import latest_version, new_version, write_whole
from xbm_keras.data.decoding import MAX_PIXELS, decode_all
from xbm_keras.data.views import Average, changes_of
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.export.averaging import mean_of_views, resized_views, write_average
from xbm_keras.export.check import in_float32, require_same
from xbm_keras.export.serving_requests import write_requests
from xbm_keras.geometry import unit_length
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.stages.backbone.frozen import Backbone

# Requests to `serve_bytes`, `serve_uint8` or `serve_features` wait up to 2 ms for others to share a pass with.
BATCHING = """\
max_batch_size { value: 32 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 64 }
num_batch_threads { value: 2 }
"""


@checked
def export_encoder(
    model: XBMModel,
    folder: pathlib.Path,
    *,
    weights: Literal["float32", "float16"] = "float32",
    max_pixels: Positive = MAX_PIXELS,
    codes: Sequence[Literal["float16", "int8", "int4", "trellis", "layers", "binary"]] = (),
    average: Sequence[Average] = (),
    add_files: Callable[[pathlib.Path], None] | None = None,
) -> pathlib.Path:
    """Write what serves in TF Serving's layout, `folder/<version>/`, as the next version, seen once it is whole.

    The signatures, in all of which N is free, also 0, and `embeddings` are float32 [N, E] of unit length:

    - `serving_default` takes what the model was made for: RGB images in 0..255, float32 [N, H, W, 3] of any one size
      (`inputs`), backbone features [N, D] (`features`), or of texts `token_ids` and `padding_mask`, int32 [N, L].
    - `serve_uint8`, of images: the same as uint8 (`inputs`).
    - `serve_bytes`, of images: encoded ones, strings [N] (`bytes`): JPEG, PNG, GIF, WebP and BMP, each of any size,
      decoded and resized as in training, which reads further formats. It also gives `valid`, bool [N]: a string that
      is no such picture, is damaged, or has more than `max_pixels` gets a zero vector and false, and does not disturb
      the others.
    - `serve_features` takes features of the backbone, float32 [N, D] (`features`).
    - `serve_query` and `serve_document`, of a model of queries and documents, take the same as `serving_default`, which
      is that of queries, and `serve_document_features` takes features of documents. Where the head is of queries alone
      the last two are not there: documents are compared as their features are, and an index of them stays.
    - `serving_default_<width>` and so on, of a head with nested widths: the same, but embeddings [N, width].

    It computes in float32 whatever the dtype policy of the model. The version gets its name once it was loaded again
    and each signature has given the embeddings of the model.

    Preprocessing is inside, except for the tokenizer, whose operations TensorFlow alone does not have. The memory, the
    miner, the loss and the optimizer are not. In `assets.extra` lie requests with which TF Serving warms up, and beside
    the versions `batching.config` for it.

    Args:
        model: a built model.
        folder: of the versions.
        weights: float16 halves the size; what is computed stays float32, and so do vectors and the insides of a
            SavedModel backbone.
        max_pixels: encoded pictures with more are refused before they are decoded: small files may hold many. Training
            reads larger ones; where clients send such, say how large.
        codes: also give the embeddings in these codes, as `embeddings_float16`, `embeddings_int8`, `embeddings_int4`
            and `embeddings_binary`, of a half, a quarter, an eighth and a 32nd of the bytes, and as
            `embeddings_trellis`, for what `xbm-keras compress` cut; what they cost is measured.
        average: each picture is embedded as the mean, of unit length, of its own embedding and of those of its views:
            "flip" is the picture mirrored, "crops" its centre, once seven and once six eighths of height and width. A
            picture passes the network so many times more. `xbm-keras evaluate --average` tells what it gives.
            Features are embedded as they are.
        add_files: given the folder that is to become the version, writes what else belongs into it.

    Returns:
        The folder of the new version.

    Raises:
        ValueError: for other weights, codes or views, weights that float16 cannot hold, views of a model that takes no
            pictures or names no size of them, or where what was written does not run or gives other embeddings. There
            is no new version then.

    Example:
        >>> import pathlib, tempfile
        >>> model = XBMModel(None, Head(8), CircularMemory(16), HardTopK(4, 2), SupConLoss())
        >>> model.build({"features": (None, 32)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     version = export_encoder(model, pathlib.Path(folder))
        ...     serve = tf.saved_model.load(str(version)).signatures["serving_default"]
        ...     version.name, serve(features=tf.ones([3, 32]))["embeddings"].shape
        ('1', TensorShape([3, 8]))
    """
    backbone = model.backbone
    if average and (backbone is None or not backbone.image_size):
        raise ValueError(
            f"Received average={list(average)} with a model that takes no pictures, or names no size of them; "
            "expected one that does, for the views are of pictures, and are resized. Leave it out, or give the "
            "backbone an image_size."
        )
    stored = _half(model) if weights == "float16" else []
    signatures = _of_layer(model, model.head, stored, max_pixels, average)
    if model.top_k.by_relevance:
        signatures["serve_query"] = signatures["serving_default"]
        if model.head.sides != "query":
            documents = _of_layer(model, model.head.on_rows, stored, max_pixels, average)
            signatures["serve_document"] = documents["serving_default"]
            signatures["serve_document_features"] = documents["serve_features"]
    signatures = {
        name + at: (_giving(function, width, codes), inputs)
        for name, (function, inputs) in signatures.items()
        for at, width in [("", None), *((f"_{width}", width) for width in model.head.widths[:-1])]
    }
    archive = keras.export.ExportArchive()
    if backbone is not None and backbone.is_saved_model:
        archive.track(backbone.network)  # its tables; variables are found by themselves
    with in_float32(backbone, model.head), new_version(folder) as target:
        for name, (function, inputs) in sorted(signatures.items()):
            specs = {key: tf.TensorSpec(spec.shape, spec.dtype, name=key) for key, spec in inputs.items()}
            archive.add_endpoint(name, _traced(function, specs), [specs])
        archive.write_out(str(target), verbose=False)
        _compare(target, signatures, backbone)
        requests = {name: _example(inputs, backbone) for name, (_, inputs) in sorted(signatures.items())}
        if average:
            write_average(target, average)
        write_requests(target / "assets.extra" / "tf_serving_warmup_requests", requests)
        if add_files is not None:
            add_files(target)
        write_whole(folder / "batching.config", BATCHING)
    return latest_version(folder)


def _traced(function: Callable, specs: dict[str, tf.TensorSpec]) -> Callable:
    """The function as a graph: what an archive is given it traces twice, and then there is only a call to trace."""
    graph = tf.function(function, input_signature=[specs], autograph=False).get_concrete_function()
    return lambda inputs: graph(inputs)


def _compare(version: pathlib.Path, signatures: dict, backbone: Backbone | None) -> None:
    """Load a SavedModel, and compare what each of its signatures gives with what the model gives."""
    saved = []

    def load():
        saved.append(tf.saved_model.load(str(version)))
        return {}

    require_same("the SavedModel", load, {})
    for name, (function, inputs) in signatures.items():
        trial = {key: _noise(each) for key, each in _example(inputs, backbone).items()}
        embeddings = {"embeddings": function(trial)["embeddings"]}
        require_same(f"the signature {name}", functools.partial(saved[0].signatures[name], **trial), embeddings)


def _noise(tensor: tf.Tensor) -> tf.Tensor:
    """Random pixels or features of the same form; encoded pictures and tokens as they are."""
    if not (tensor.dtype.is_floating or tensor.dtype == tf.uint8):
        return tensor
    return tf.cast(tf.random.stateless_uniform(tf.shape(tensor), (0, 0), 0, 255), tensor.dtype)


Signature = tuple[Callable, dict[str, tf.TensorSpec]]


def _of_layer(
    model: XBMModel, layer: Callable, stored: list, max_pixels: int, average: Sequence[Average]
) -> dict[str, Signature]:
    """The signatures of a model whose features pass this layer last."""

    def embed(features):
        return {"embeddings": layer(unit_length(features))}

    embed_features = _with_weights(lambda inputs: embed(inputs["features"]), stored)
    features = {"features": tf.TensorSpec((None, model.memory.feature_dim), tf.float32)}
    signatures: dict[str, Signature] = {"serve_features": (embed_features, features)}
    backbone = model.backbone
    if backbone is None:
        return {**signatures, "serving_default": signatures["serve_features"]}
    embed_inputs = _with_weights(lambda inputs: embed(backbone(inputs)), stored)
    return signatures | _of_inputs(backbone, embed_inputs, max_pixels, average)


def _giving(function: Callable, width: int | None, codes: Sequence[str]) -> Callable:
    """The function, giving its embeddings, or beginnings of them of unit length again; and these in codes, too."""

    def cut(inputs):
        outputs = function(inputs)
        embeddings = outputs["embeddings"]
        if width is not None:
            embeddings = unit_length(embeddings[:, :width])
        coded = {f"embeddings_{name}": CODES[name].encode(embeddings) for name in codes}
        return {**outputs, "embeddings": embeddings, **coded}

    return cut


def _of_inputs(
    backbone: Backbone, embed: Callable, max_pixels: int, average: Sequence[Average]
) -> dict[str, Signature]:
    """The signatures that begin with the backbone's own inputs: functions of one dict, and what the dict holds."""
    shape, dtype = backbone.input_shape_per_item, tf.as_dtype(backbone.input_dtype_per_item)
    if isinstance(shape, dict):
        return {"serving_default": (embed, {key: tf.TensorSpec((None, *each), dtype) for key, each in shape.items()})}
    if not backbone.image_size:
        return {
            "serving_default": (
                lambda inputs: embed(inputs["inputs"]),
                {"inputs": tf.TensorSpec((None, *shape), dtype)},
            )
        }
    # One graph of the network for all three.
    prepared = tf.TensorSpec((None, *backbone.image_size, 3), tf.float32)
    embed = tf.function(_never_empty(embed), input_signature=[prepared], autograph=False)
    resize, resize_batch = backbone.resize, backbone.resize_batch
    if average:
        resize, resize_batch = resized_views(resize, average), resized_views(resize_batch, average)
        views = tf.TensorSpec((None, 1 + len(changes_of(average)), *backbone.image_size, 3), tf.float32)
        embed = tf.function(mean_of_views(embed), input_signature=[views], autograph=False)

    def from_images(inputs):
        return embed(resize_batch(inputs["inputs"]))

    def from_bytes(inputs):
        data = inputs["bytes"]
        positions, images = decode_all(data, resize, max_pixels)
        size = tf.size(data, tf.int64)
        embedded = {name: _scatter(values, positions, size) for name, values in embed(images).items()}
        return {**embedded, "valid": _scatter(tf.ones_like(positions, tf.bool), positions, size)}

    return {
        "serving_default": (from_images, {"inputs": tf.TensorSpec((None, None, None, 3), tf.float32)}),
        "serve_uint8": (from_images, {"inputs": tf.TensorSpec((None, None, None, 3), tf.uint8)}),
        "serve_bytes": (from_bytes, {"bytes": tf.TensorSpec((None,), tf.string)}),
    }


def _never_empty(function: Callable) -> Callable:
    """The function, which for an empty batch sees a blank picture: on some CPUs TensorFlow fails to convolve none."""

    def call(images):
        size = tf.shape(images)[0]
        blank = tf.zeros((tf.cast(size == 0, tf.int32), *images.shape[1:]), images.dtype)
        outputs = function(tf.concat([images, blank], axis=0))
        return {name: values[:size] for name, values in outputs.items()}

    return call


def _scatter(values, positions, size):
    """Rows at their positions among `size` rows, zeros or False at the others."""
    shape = tf.concat([[size], tf.shape(values, tf.int64)[1:]], axis=0)
    return tf.scatter_nd(positions[:, None], values, shape)


def _half(model: XBMModel) -> list[tuple[keras.Variable, tf.Variable]]:
    """Matrices and kernels of backbone and head, and each in float16. Statistics and biases need the range of float32.

    Raises:
        ValueError: for a weight that float16 cannot hold.
    """
    stored, backbone = [], model.backbone
    of_backbone = [] if backbone is None or backbone.is_saved_model else backbone.weights
    for weight in (*of_backbone, *model.head.weights):
        if len(weight.shape) > 1:
            half = tf.cast(weight.value, tf.float16)
            if not np.isfinite(half).all():
                raise ValueError(
                    f"Received weights='float16' and the weight {weight.path}, whose values it cannot hold; expected "
                    "finite ones within 65504. Use weights='float32'."
                )
            stored.append((weight, tf.Variable(half, trainable=False)))
    return stored


def _with_weights(function: Callable, stored: list[tuple[keras.Variable, tf.Variable]]) -> Callable:
    """The function, computing with these variables in place of the model's own."""

    def with_weights(inputs):
        with keras.StatelessScope(state_mapping=[(weight, tf.cast(half, weight.dtype)) for weight, half in stored]):
            return function(inputs)

    return with_weights if stored else function


def _example(inputs: dict[str, tf.TensorSpec], backbone: Backbone | None) -> dict[str, tf.Tensor]:
    """One item of a signature: black pictures, a token twice (Keras warns of attention to one), features of ones."""
    size = (backbone.image_size if backbone is not None else None) or (2,)
    if "bytes" in inputs:
        file = io.BytesIO()
        PIL.Image.new("RGB", (size[-1], size[0])).save(file, "JPEG")
        return {"bytes": tf.constant([file.getvalue()])}
    shapes = {
        name: [1, *(each or size[i % len(size)] for i, each in enumerate(spec.shape[1:]))]
        for name, spec in inputs.items()
    }
    return {name: tf.ones(shapes[name], spec.dtype) for name, spec in inputs.items()}


def describe_signatures(version: pathlib.Path) -> dict[str, str]:
    """What each signature of an exported model takes, such as "`inputs`: float32 [N, H, W, 3]"."""
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())

    def shape(tensor):
        sizes = [dim.size for dim in tensor.tensor_shape.dim]
        letters = "NHW" if len(sizes) == 4 else "NL"
        return ", ".join(letters[i] if size < 0 else str(size) for i, size in enumerate(sizes))

    return {
        name: ", ".join(
            f"`{key}`: {tf.as_dtype(tensor.dtype).name} [{shape(tensor)}]"
            for key, tensor in sorted(signature.inputs.items())
        )
        for name, signature in saved.meta_graphs[0].signature_def.items()
        if not name.startswith("__")
    }
