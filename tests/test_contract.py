"""What every public class and function keeps to: a row for each, and the columns as tests.

`python -m tests.test_contract` writes the saved models of this version, which later versions must load.
"""

import doctest
import inspect
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import xbm_keras
from tests.conftest import MODES, in_mode
from tests.fresh_processes import run_fresh
from xbm_keras import (
    Backbone,
    CircularMemory,
    HardTopK,
    Head,
    InEmbeddings,
    InFeatures,
    InSketch,
    NeighborTopK,
    Picks,
    RelevantTopK,
    Rows,
    StartAlignment,
    XBMModel,
)
from xbm_keras.config.yaml_files import check_config
from xbm_keras.experiment import build
from xbm_keras.stages.cosine_scores import Keys

SAVED = pathlib.Path(__file__).parent / "saved_models"
B, D = 8, 6
FEATURES = np.random.default_rng(0).normal(size=(B, D)).astype(np.float32)
FEATURES /= np.linalg.norm(FEATURES, axis=1, keepdims=True)
LABELS = np.arange(B, dtype=np.int64) % 3
IDS = np.arange(B, dtype=np.int64) + 100


class Row(NamedTuple):
    """One public name."""

    make: Callable | None = None
    """Gives the object; None for what is no computation."""
    apply: Callable | None = None
    """From the object and features [B, D] to a tensor or several."""


def rows_of(features):
    return Rows(features, tf.constant(LABELS), tf.constant(IDS), tf.ones([B], tf.bool))


def picks_of(features):
    """All pairs but those with itself."""
    shape = [B, B]
    return Picks(
        tf.broadcast_to(tf.range(B), shape),
        tf.constant(LABELS[:, None] == LABELS),
        ~tf.eye(B, dtype=tf.bool),
        tf.zeros(shape),
    )


def built(layer):
    layer.build((None, D))
    return layer


def enqueue(memory, features):
    memory.reset()
    for variable in memory.weights:
        variable.assign(tf.zeros_like(variable.value))
    memory.enqueue(features, tf.constant(LABELS), tf.constant(IDS))
    rows = memory.read()
    return rows.block(0, 6), rows.labels, rows.sample_ids, rows.is_valid


def small_backbone():
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Conv2D(D, 3), keras.layers.BatchNormalization(), keras.layers.GlobalMaxPooling2D()]
    return Backbone(keras.Sequential([keras.Input((6, 6, 3)), *layers]), "MobileNetV2", (6, 6))


def embed(model, features):
    outputs = model({"features": features})
    return outputs["features"], outputs["embeddings"]


def with_sketch(mining):
    mining.sketch.build((None, D))
    return mining


def keys_of(mining, features):
    """Keys of anchors and of rows, outside of a step: stored ones are in the saved models below."""
    features = tf.cast(features, tf.float32)
    keys = mining.keys(Keys(features, rows_of(features).block), rows_of(features), features[:, :3], embed_by_hand)
    return keys.anchors, keys.block(1, 4)


def embed_by_hand(features):
    return features[:, :3]


def loss_row(name):
    return Row(getattr(xbm_keras, name), lambda loss, f: loss(tf.matmul(f, f, transpose_b=True), picks_of(f)))


def make_model(head=None, memory=None, top_k=None, backbone=None, **options):
    top_k = top_k or HardTopK(2, 1, "hardest")
    loss = xbm_keras.SupConLoss(0.1)
    model = XBMModel(backbone, head or Head(3), memory or CircularMemory(B), top_k, loss, **options)
    model.build({"features": (None, D)})
    return model


ROWS = {
    "Backbone": Row(small_backbone),  # of pictures: see tests/stages/test_backbone.py, and the saved model below
    "CircularMemory": Row(lambda: built(CircularMemory(6, "float16")), enqueue),
    "ClosedForms": Row(),  # NumPy
    **{name: Row() for name in ("FittedHead", "FittedPairs", "fit_head", "fit_pairs")},  # files and NumPy
    "HardTopK": Row(
        lambda: HardTopK(3, 2, "easiest", max_score=0.9),
        lambda top_k, f: tuple(top_k(f, rows_of(f), tf.constant(LABELS), tf.constant(IDS))),
    ),
    "Head": Row(lambda: built(Head(3, "mlp", 4, seed=5)), lambda head, f: head(f)),
    "InEmbeddings": Row(lambda: InEmbeddings(3), keys_of),
    "InFeatures": Row(InFeatures, keys_of),
    "InSketch": Row(lambda: with_sketch(InSketch(4, rerank=2, seed=2)), keys_of),
    "NeighborTopK": Row(
        lambda: built(NeighborTopK(3, num_random=0)),
        lambda top_k, f: tuple(top_k(f, rows_of(f), tf.constant(LABELS), tf.constant(IDS))),
    ),
    "NonFiniteFeatures": Row(),
    "NonFiniteLoss": Row(),
    "PKSampler": Row(),  # NumPy
    "PairLoss": Row(),  # abstract
    "Picks": Row(),
    "RelevantTopK": Row(
        lambda: RelevantTopK(3, 2, "easiest", max_score=0.9),
        lambda top_k, f: tuple(top_k(f, rows_of(f), tf.constant(IDS[:, None] // 2 * 2), tf.constant(-IDS))),
    ),
    "RetrievalEvaluation": Row(),
    "Rows": Row(),
    "Start": Row(),  # NumPy
    "StartAlignment": Row(lambda: StartAlignment(2.0)),  # of a model: see its saved model below
    "XBMModel": Row(make_model, embed),
    "batch_as_rows": Row(
        lambda: xbm_keras.batch_as_rows,
        lambda f, x: [each for each in f(x, tf.constant(LABELS), tf.constant(IDS)) if each is not None],
    ),
    **{name: Row() for name in ("evaluate_retrieval", "export_encoder", "near_duplicates")},
    "cosine_scores": Row(lambda: xbm_keras.cosine_scores, lambda f, x: f(x, x)),
    **{name: loss_row(name) for name in xbm_keras.__all__ if name.endswith("Loss") and name not in
       ("PairLoss", "NonFiniteLoss")},
}  # fmt: skip
COMPUTING = [name for name, row in ROWS.items() if row.apply]
WITH_CONFIG = [name for name, row in ROWS.items() if row.make and inspect.isclass(getattr(xbm_keras, name))]


def test_every_public_name_has_a_row():
    assert set(ROWS) == set(xbm_keras.__all__)


@pytest.mark.parametrize("name", sorted(xbm_keras.__all__))
def test_every_public_name_has_a_docstring_whose_example_runs(name):
    thing = getattr(xbm_keras, name)
    assert thing.__doc__
    points_to_one = issubclass(thing, (tuple, xbm_keras.PairLoss, Exception)) if inspect.isclass(thing) else False
    names = {**vars(xbm_keras), "np": np, "tf": tf, "keras": keras}
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(thing), names, name, None, None)
    assert examples.examples or points_to_one
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples).failed == 0


def serialized(thing):
    return json.dumps(keras.saving.serialize_keras_object(thing))


def restored(text):
    return keras.saving.deserialize_keras_object(json.loads(text))


@pytest.mark.parametrize("name", WITH_CONFIG)
def test_config_round_trip_through_json(name):
    first = ROWS[name].make()
    again = restored(serialized(first))
    assert type(again) is type(first)
    assert json.dumps(again.get_config(), sort_keys=True) == json.dumps(first.get_config(), sort_keys=True)


def applied(row, features, mode="eager", thing=None):
    """What the object makes of the features, as arrays; and how often the function was traced."""
    thing = thing or row.make()
    traces = []

    def function(x):
        traces.append(1)
        return row.apply(thing, x)

    function = in_mode(function, mode)
    function(tf.constant(-features))
    outputs = function(tf.constant(features))
    return [each.numpy() for each in tf.nest.flatten(outputs)], len(traces)


def assert_close(outputs, expected, **tolerance):
    assert len(outputs) == len(expected)
    for mine, other in zip(outputs, expected, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine.astype(np.float64), other.astype(np.float64), **tolerance)


@pytest.mark.parametrize("name", COMPUTING)
def test_eager_graph_and_xla_are_the_same_in_one_trace(name):
    expected, _ = applied(ROWS[name], FEATURES)
    for mode in MODES[1:]:
        outputs, num_traces = applied(ROWS[name], FEATURES, mode)
        assert num_traces == 1
        assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("name", COMPUTING)
def test_half_precision_inputs(name, dtype):
    half = FEATURES.astype(dtype.as_numpy_dtype)
    expected, _ = applied(ROWS[name], half.astype(np.float32))
    outputs, _ = applied(ROWS[name], half)
    if name == "batch_as_rows":  # keeps what it is given
        outputs[0] = outputs[0].astype(np.float32)
    assert_close(outputs, expected, rtol=0.1, atol=0.05)


FRESH = """
import sys
import numpy as np
from tests import test_contract as contract
texts = contract.json.loads(sys.argv[1])
outputs = {f"{name} {i}": each for name, text in texts.items() for i, each in enumerate(
    contract.applied(contract.ROWS[name], contract.FEATURES, thing=contract.rebuilt(text))[0])}
np.savez(sys.argv[2], **outputs, **contract.answers(contract.pathlib.Path(sys.argv[3])))
"""


def rebuilt(text):
    """From JSON, with weights: those that a seed gives."""
    thing = restored(text)
    if isinstance(thing, XBMModel):
        thing.build({"features": (None, D)})
    elif isinstance(thing, InSketch):
        with_sketch(thing)
    elif isinstance(thing, keras.Layer) and not thing.built:
        built(thing)
    return thing


def trained_models():
    """Between them all layers, kinds of head, storage dtypes, and ways to mine; each after some steps."""
    models = {
        "pictures": make_model(backbone=small_backbone(), top_k=HardTopK(2, 1, "random", seed=4)),
        "keys": make_model(Head(3, "mlp", 4), CircularMemory(B, "int8"), HardTopK(2, 1, "hardest", InEmbeddings(3))),
        "sketch": make_model(Head(3, "residual"), CircularMemory(B, "bfloat16"), HardTopK(mining=InSketch(4))),
        "all": make_model(memory=CircularMemory(B, "float16"), top_k=HardTopK("all", "all", mining=InEmbeddings())),
    }
    for model in models.values():
        model.compile(keras.optimizers.AdamW(0.01), run_eagerly=True)
        x = {"features": FEATURES, "sample_id": IDS}
        for _ in range(2):
            model.train_on_batch({name: values[:5] for name, values in x.items()}, LABELS[:5])
    return models


def answers(folder):
    """What each saved model in the folder gives, and the loss of its next step."""
    found = {}
    for path in sorted(folder.glob("*.keras")):
        model = keras.saving.load_model(path)
        found[f"{path.stem} embeddings"] = embed(model, FEATURES)[1].numpy()
        if model.backbone is not None:
            pictures = np.arange(2 * 6 * 6 * 3, dtype=np.float32).reshape(2, 6, 6, 3)
            found[f"{path.stem} of pictures"] = model.encoder.predict(pictures, verbose=0)
        found[f"{path.stem} memory"] = model.memory.read().take(tf.range(B)).numpy()
        model.run_eagerly = True
        found[f"{path.stem} loss"] = model.train_on_batch({"features": FEATURES, "sample_id": IDS}, LABELS)[0]
        found[f"{path.stem} kernel"] = model.head.trainable_weights[0].numpy()
    return found


def test_everything_loads_in_a_new_process_and_does_the_same(tmp_path):
    for name, model in trained_models().items():
        model.save(tmp_path / f"{name}.keras")
    texts = {name: serialized(ROWS[name].make()) for name in WITH_CONFIG if name in COMPUTING}
    run_fresh(FRESH, json.dumps(texts), tmp_path / "out.npz", tmp_path)
    expected = answers(tmp_path)
    for name in texts:
        expected |= {f"{name} {i}": each for i, each in enumerate(applied(ROWS[name], FEATURES)[0])}
    with np.load(tmp_path / "out.npz") as out:
        assert set(out.files) == set(expected)
        for name in out.files:
            np.testing.assert_array_equal(out[name], expected[name], err_msg=name)


@pytest.mark.parametrize("version", sorted(path.name for path in SAVED.iterdir() if path.is_dir()))
def test_models_of_earlier_versions_load_and_train_on(version):
    found = answers(SAVED / version)
    with np.load(SAVED / version / "answers.npz") as expected:
        assert set(found) == set(expected.files)
        for name in expected.files:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_no_code_is_run_by_loading(tmp_path):
    """A Keras file can hold Python bytecode in a Lambda layer; a loaded run is data."""
    network = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Lambda(lambda x: x + 1)])
    network.add(keras.layers.GlobalMaxPooling2D())
    network.save(tmp_path / "net.keras")
    with pytest.raises(ValueError, match=r"[Ll]ambda"):
        Backbone.from_file(str(tmp_path / "net.keras"))
    np.savez(tmp_path / "vectors.npz", features=np.array([[1.0], None], object), label=[1, 2])
    config = {"data": {"source": "features", "path": str(tmp_path / "vectors.npz")}, "backbone": {"kind": "none"}}
    with pytest.raises(ValueError, match="holds Python objects"):
        build.make_source(check_config(config, "x"))


if __name__ == "__main__":
    folder = SAVED / "0.1.0"
    folder.mkdir(parents=True)
    for name, model in trained_models().items():
        model.save(folder / f"{name}.keras")
    np.savez(folder / "answers.npz", **answers(folder))
