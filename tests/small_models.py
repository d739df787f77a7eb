"""Small models and data for the tests of the whole pipeline."""

import keras
import numpy as np

from tests.conftest import compile_arguments
from xbm_keras import (
    Backbone,
    CircleLoss,
    CircularMemory,
    ContrastiveLoss,
    HardTopK,
    Head,
    InfoNCELoss,
    LiftedStructureLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    RecallSurrogateLoss,
    SemiHardTripletLoss,
    SmoothAPLoss,
    SupConLoss,
    TripletLoss,
    TupletLoss,
    XBMModel,
)

LOSSES = [
    CircleLoss(),
    ContrastiveLoss(),
    InfoNCELoss(),
    LiftedStructureLoss(),
    MarginLoss(),
    MultiSimilarityLoss(),
    NTXentLoss(),
    RecallSurrogateLoss(),
    SemiHardTripletLoss(),
    SmoothAPLoss(),
    SupConLoss(),
    TripletLoss(),
    TupletLoss(),
]
METRICS = {"loss", "occupancy", "valid_anchors", "positive_sim", "negative_sim", "active_pairs"}


def make_model(
    memory_size=24, top_k=None, loss=None, head=None, backbone=None, storage_dtype="float32", frozen=False, **options
):
    top_k = top_k or HardTopK(4, 2)
    memory = CircularMemory(memory_size, storage_dtype, frozen)
    return XBMModel(backbone, head or Head(3), memory, top_k, loss or SupConLoss(), **options)


def compiled(*args, optimizer=None, mode="eager", width=6, **options):
    """Eager unless said otherwise: a handful of steps is done before a graph is traced.

    A graph is traced twice where its first step makes variables, so they are made for features of this width, unless
    it is None.
    """
    model = make_model(*args, **options)
    model.compile(optimizer or keras.optimizers.SGD(0.1, momentum=0.9), **compile_arguments(mode))
    if mode != "eager" and width and model.backbone is None:
        model.build({"features": (None, width)})
        model.optimizer.build(model.trainable_variables)
    return model


def dataset(n=24, width=6, classes=3, seed=0):
    """Inputs and labels; the ids are shuffled, so that no id is a position."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(n).astype(np.int64) + 100
    return {"features": rng.normal(size=(n, width)).astype(np.float32), "sample_id": ids}, np.arange(n) % classes


def some(x, y, rows):
    return {name: values[rows] for name, values in x.items()}, y[rows]


def built_kernel(model, x):
    """Build the model for these inputs; the kernel of its head."""
    model.build({name: values.shape for name, values in x.items()})
    return model.head.kernel.numpy()


def memory_of(model):
    return {v.name: v.numpy().tolist() for v in model.memory.weights}


def state_of(model):
    """Every byte that training moves: weights, optimizer slots, memory."""
    return [(v.path, v.numpy().tobytes()) for v in (*model.weights, *model.optimizer.variables)]


def loss_of(model, x, y, training):
    return float(model.compute_loss(x, y, model(x), training=training))


def assert_same_training(a, b, **tolerance):
    """Head, optimizer and memory of two models agree."""
    for mine, other in ((a.head, b.head), (a.optimizer, b.optimizer), (a.memory, b.memory)):
        mine = mine.variables
        assert len(mine) == len(other.variables)
        for v, w in zip(mine, other.variables, strict=True):
            if v.dtype.startswith("float") and tolerance:
                np.testing.assert_allclose(v, w, err_msg=v.path, **tolerance)
            else:
                np.testing.assert_array_equal(v, w, err_msg=v.path)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def small_backbone():
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Conv2D(6, 3), keras.layers.BatchNormalization(), keras.layers.GlobalMaxPooling2D()]
    return Backbone(keras.Sequential([keras.Input((6, 6, 3)), *layers]), "MobileNetV2", (6, 6))


def images(n, seed=0):
    rng = np.random.default_rng(seed)
    x = {"inputs": rng.integers(0, 256, (n, 6, 6, 3)).astype(np.float32), "sample_id": np.arange(n)}
    return x, np.arange(n) % 3


def clusters(classes=8, per_class=20, seed=0):
    """Classes that a few directions tell apart, under louder ones that do not."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), per_class)
    signal = rng.normal(size=(classes, 6))[y] + 0.25 * rng.normal(size=(len(y), 6))
    features = np.concatenate([signal, 1.5 * rng.normal(size=(len(y), 10))], axis=1).astype(np.float32)
    return {"features": features, "sample_id": np.arange(len(y), dtype=np.int64)}, y
