"""Where a GPU would run what this package traces. Nothing runs here: the registry of kernels says it."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

from tests.gpu_kernels import misplaced
from xbm_keras import (
    CircularMemory,
    HardTopK,
    Head,
    InEmbeddings,
    InSketch,
    NeighborTopK,
    RelevantTopK,
    SimilarityAlignmentLoss,
    SmoothAPLoss,
    StartAlignment,
    SupConLoss,
    TripletLoss,
    XBMModel,
)
from xbm_keras.evaluation import exact_search
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.saved_search import ExactSearch
from xbm_keras.model.fused_adam import FusedAdam
from xbm_keras.stages import cosine_scores
from xbm_keras.stages.hard_top_k.neighbor_table import NeighborTable
from xbm_keras.stages.pair_losses import ContrastiveLoss, RecallSurrogateLoss

B, D, E, M = 128, 64, 16, 40_000
LARGE = 5_000  # below B x 40 picks, below B x B, and far below M

LABELLED = {
    "random positives, stored keys": {"top_k": lambda: HardTopK(32, 8, mining=InEmbeddings(512))},
    "exact embeddings": {"top_k": lambda: HardTopK(32, 8, mining=InEmbeddings()), "pair_loss": ContrastiveLoss()},
    "int8, guards, hardest": {
        "top_k": lambda: HardTopK(32, 8, "hardest", max_score=0.9, absolute_margin=0.05),
        "storage_dtype": "int8",
        "pair_loss": TripletLoss(),
    },
    "float16, sketch": {"top_k": lambda: HardTopK(32, 8, mining=InSketch(8)), "storage_dtype": "float16"},
    "bfloat16, smooth AP, easiest": {
        "top_k": lambda: HardTopK(32, 8, "easiest"),
        "storage_dtype": "bfloat16",
        "pair_loss": SmoothAPLoss(),
    },
    "all": {"top_k": lambda: HardTopK("all", "all", max_rows_for_all=M), "pair_loss": RecallSurrogateLoss()},
    "left as it is, held to the start": {"frozen": True, "start_alignment": lambda: StartAlignment(1.0)},
    "in the batch": {"memory_size": 0},
    "half precision": {"head": lambda: Head(E, dtype="mixed_bfloat16")},
}
UNLABELLED = {
    "neighbours, nested": {
        "top_k": lambda: NeighborTopK(),
        "pair_loss": SimilarityAlignmentLoss(),
        "head": lambda: Head(E, widths=[8, E]),
        "storage_dtype": "int8",
    }
}
WAYS = {**LABELLED, **UNLABELLED}


def make_model(*, memory_size=M, storage_dtype="float32", frozen=False, **stages) -> XBMModel:
    """Functions among the stages make what is one model's own."""
    stages = {"head": Head(E), "top_k": HardTopK(32, 8), "pair_loss": SupConLoss(), **stages}
    stages = {name: each() if inspect.isfunction(each) else each for name, each in stages.items()}
    model = XBMModel(None, memory=CircularMemory(memory_size, storage_dtype, frozen), **stages)
    model.build({"features": (None, D)})
    model.compile(FusedAdam(1e-3), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def traced(step, batch_size=B, jit_compile=False):
    inputs = {
        "features": tf.TensorSpec((batch_size, D), tf.float32),
        "sample_id": tf.TensorSpec((batch_size,), tf.int64),
    }
    labels = tf.TensorSpec((batch_size,), tf.int64)
    return tf.function(lambda x, y: step((x, y)), jit_compile=jit_compile).get_concrete_function(inputs, labels)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize("name", WAYS)
def test_training_step(name, jit_compile):
    model = make_model(**WAYS[name])
    assert misplaced(traced(model.train_step, jit_compile=jit_compile), large=LARGE, xla=jit_compile) == []


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize("name", ["by label", "neighbours, nested"])
def test_training_step_whose_neighbours_are_known(name, jit_compile):
    model = make_model(**{**WAYS.get(name, {}), "frozen": True, "storage_dtype": "float32"})
    model.top_k.table = NeighborTable(model.memory, model.top_k.search, model.top_k.num_known)
    step = tf.function(lambda x: model.train_step((x,)), jit_compile=jit_compile)
    function = step.get_concrete_function({"slot": tf.TensorSpec((B,), tf.int64)})
    assert misplaced(function, large=LARGE, xla=jit_compile) == []


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["enqueued", "prefilled"])
def test_training_step_of_queries_and_documents(is_frozen, jit_compile):
    top_k = RelevantTopK(32, 2, mining=InEmbeddings(512))
    model = make_model(top_k=top_k, head=Head(E, sides="two"), frozen=is_frozen)
    numbers, vectors = tf.TensorSpec((B,), tf.int64), tf.TensorSpec((B, D), tf.float32)
    inputs = {"features": vectors, "sample_id": numbers}
    inputs |= {} if is_frozen else {"document": vectors, "document_id": numbers}
    step = tf.function(lambda x, y: model.train_step((x, y)), jit_compile=jit_compile)
    function = step.get_concrete_function(inputs, tf.TensorSpec((B, 4), tf.int64))
    assert misplaced(function, large=LARGE, xla=jit_compile) == []


def test_training_step_of_a_batch_of_any_size():
    model = make_model()
    assert misplaced(traced(model.train_step, batch_size=None), large=LARGE) == []


def test_evaluation_of_the_loss():
    model = make_model()
    assert misplaced(traced(model.test_step), large=LARGE) == []


@pytest.mark.parametrize("storage_dtype", ["float32", "float16", "bfloat16", "int8"])
def test_prefill(storage_dtype):
    memory = CircularMemory(M, storage_dtype)
    memory.build((None, D))
    ids = tf.TensorSpec((1024,), tf.int64)
    enqueue = tf.function(lambda f, y, i: memory.enqueue(f, y, i).is_valid)
    assert misplaced(enqueue.get_concrete_function(tf.TensorSpec((1024, D)), ids, ids), large=LARGE) == []


def test_evaluation_search():
    found = exact_search._nearest.get_concrete_function()
    assert misplaced(found, large=LARGE) == []


def test_index_search():
    gallery = Gallery.of(np.ones((M, E), np.float32), np.arange(M).astype(str), ["b"] * M)
    of_all, _ = ExactSearch.of(gallery)._graphs()
    assert misplaced(of_all.get_concrete_function(), large=LARGE) == []


@pytest.mark.parametrize("name", CODES)
def test_codes(name):
    code = tf.function(CODES[name].encode).get_concrete_function(tf.TensorSpec((B, 128), tf.float32))
    assert misplaced(code, large=LARGE) == []


def test_encoder():
    encoder = make_model(head=Head(E, "mlp", power=0.5)).encoder
    function = tf.function(encoder).get_concrete_function(tf.TensorSpec((B, D), tf.float32))
    assert misplaced(function, large=LARGE) == []


def test_the_registry_tells_good_from_bad():
    flags, counts, whole = (tf.Variable(tf.zeros([9], t)) for t in (tf.bool, tf.int32, tf.int8))

    @tf.function(input_signature=[tf.TensorSpec((100, 100), tf.int32), tf.TensorSpec((3, 1), tf.int64)])
    def bad(x, at):
        tf.raw_ops.ResourceScatterNdUpdate(ref=flags.handle, indices=at, updates=[True] * 3)
        return (
            tf.argmax(x),
            x + 1,
            tf.gather(tf.convert_to_tensor(whole), at),
            tf.concat([x, x], axis=0),
            counts.read_value(),
        )

    assert misplaced(bad.get_concrete_function(), large=LARGE) == [
        "int32 variable: Variable:0",
        "no kernel: ArgMax of int32, int32",
        "no kernel: GatherV2 of int8, int64, int32",
        "no kernel: ResourceScatterNdUpdate of resource, int64, bool",
        "on the host: AddV2 of int32(100, 100)",
        "on the host: ConcatV2 of int32(100, 100)",
        "on the host: ConcatV2 of int32(200, 100)",
    ]


@pytest.mark.parametrize(("device", "width", "num_anchors", "rows"), [
    ("CPU", 4096, 128, 4096),  # at least so many
    ("CPU", 128, 128, 65_536),  # 32 MB of keys
    ("CPU", 64, 4096, 4096),  # 64 MB of scores
    ("GPU", 1280, 128, 104_832),  # 512 MB of keys: 10 blocks of a million rows
    ("GPU", 64, 4096, 16_384),  # 256 MB of scores
])  # fmt: skip
def test_blocks_follow_the_batch_and_the_device(device, width, num_anchors, rows, monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["one"] if kind == device else [])
    assert cosine_scores.block_rows(width, num_anchors) == rows
    assert int(cosine_scores.block_rows(width, tf.constant(num_anchors))) == rows
