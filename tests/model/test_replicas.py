"""Several devices: two replicas train like one device with the whole batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.fresh_processes import run_fresh
from xbm_keras import CircularMemory, HardTopK, Head, SupConLoss, XBMModel

# The number of devices is settled before TensorFlow starts.
TWO_DEVICES = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # as commands do in conftest.py
import keras
import numpy as np
import pytest
from xbm_keras import *
from xbm_keras.model.fused_adam import FusedAdam
from xbm_keras.training.known_neighbors import know_neighbors

rng = np.random.default_rng(0)
x = {"features": rng.normal(size=(48, 6)).astype(np.float32), "sample_id": rng.permutation(48) + 100}
y = np.arange(48) % 3
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def make(memory_size, top_k=(4, 2, "random"), storage_dtype="float32", head=(), loss=None, frozen=False,
         mining=None, start_alignment=0.0):
    memory = CircularMemory(memory_size, storage_dtype, frozen)
    if not isinstance(top_k, keras.layers.Layer):  # each model has a space of its own to mine in
        top_k = HardTopK(*top_k, mining=mining and type(mining).from_config(mining.get_config()))
    held = StartAlignment(start_alignment) if start_alignment else None
    model = XBMModel(None, Head(**{"embedding_dim": 4, **dict(head)}), memory, top_k, loss or SupConLoss(), held)
    model.build({"features": (None, 6)})
    # Adam, so damped that it does not blow up the rounding of gradients near 0
    optimizer = FusedAdam(0.01, epsilon=0.1) if frozen else keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def copies(variable):
    return [copy.numpy() for copy in strategy.experimental_local_results(variable.value)]
"""

ALIKE = """
def assert_alike(two, one):
    pairs = zip(two.variables + two.optimizer.variables, one.variables + one.optimizer.variables, strict=True)
    for mine, other in pairs:
        first, second = copies(mine)
        np.testing.assert_array_equal(first, second, err_msg=mine.path)
        np.testing.assert_allclose(first, other.numpy(), rtol=1e-4, atol=1e-5, err_msg=mine.path)


def assert_same_logs(two, one):
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
"""

LIKE_ONE_DEVICE = """
class LastBatch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.logs = logs


arguments = eval(sys.argv[1])
one, last, last_of_two = make(**arguments), LastBatch(), LastBatch()
with strategy.scope():
    two = make(**arguments)
two.set_weights(one.get_weights())
# Keras splits 15 items as 8 and 7; of the last three all are the first replica's.
how = {"shuffle": False, "verbose": 0}
expected = one.fit(x, y, 15, callbacks=[last], **how).history
assert_same_logs(two.fit(x, y, 15, callbacks=[last_of_two], **how).history, expected)
assert_same_logs(last_of_two.logs, last.logs)
assert_alike(two, one)
before = [v.numpy() for v in two.weights]
x["features"][13] = np.nan  # of the second replica
with pytest.raises(NonFiniteFeatures, match=str(x["sample_id"][13])):
    two.fit(x, y, 15, **how)
for v, w in zip(two.weights, before, strict=True):
    np.testing.assert_array_equal(v, w)
x["features"][13] = 0.5
weights = np.linspace(0.1, 3.0, 48)  # of anchors, whose shares of a batch differ
assert_same_logs(two.fit(x, y, 15, sample_weight=weights, **how).history,
                 one.fit(x, y, 15, sample_weight=weights, **how).history)
assert_alike(two, one)
# And as usual, in equal shares.
assert_same_logs(two.fit(x, y, 16, sample_weight=weights, **how).history,
                 one.fit(x, y, 16, sample_weight=weights, **how).history)
assert_alike(two, one)
how = dict(batch_size=31, verbose=0, return_dict=True)
assert_same_logs(two.evaluate(x, y, **how), one.evaluate(x, y, **how))
"""

FROZEN_MEMORY_AND_NONE = """
one = make(48, frozen=True)
with strategy.scope():
    two = make(48, frozen=True)
two.set_weights(one.get_weights())
for model in (one, two):
    model.memory.prefill(x["features"], y, x["sample_id"])
know_neighbors(two, num_ahead=1000)
assert len(copies(two.top_k.table.indices)) == 2
slots = tf.data.Dataset.from_tensor_slices(({"slot": np.arange(48)},)).batch(15)
assert_same_logs(two.fit(slots, verbose=0).history, one.fit(slots, verbose=0).history)
assert_alike(two, one)
one = make(0)
with strategy.scope():
    two = make(0)
two.set_weights(one.get_weights())
# Without ids each item counts for itself, whichever replica has it.
how = {"batch_size": 31, "epochs": 2, "shuffle": False, "verbose": 0}
some = {"features": x["features"][:31]}, y[:31]
assert_same_logs(two.fit(*some, **how).history, one.fit(*some, **how).history)
assert_alike(two, one)
"""

SPLITS = """
def batches(is_split):
    \"""Ten of random sizes, or their shares; the first ones leave a replica without items.\"""
    rng = np.random.default_rng(3)
    for step in range(10):
        picked = rng.integers(0, 48, rng.integers(1, 16))
        place = int(rng.integers(0, len(picked) + 1)) if step > 1 else step * len(picked)
        for rows in np.split(picked, [place]) if is_split else [picked]:
            yield {name: values[rows] for name, values in x.items()}, y[rows]


def dataset(is_split):
    inputs = {"features": tf.TensorSpec((None, 6)), "sample_id": tf.TensorSpec((None,), tf.int64)}
    types = inputs, tf.TensorSpec((None,), tf.int64)
    return tf.data.Dataset.from_generator(batches, output_signature=types, args=[is_split])


def prefilled(model):
    model.memory.prefill(x["features"], y, x["sample_id"])
    return model


def made(is_prefilled=False, is_loaded=False, **arguments):
    return make(**arguments), is_prefilled, is_loaded


folder, arguments = sys.argv[1:]  # whose stages each model makes for itself
one, is_prefilled, is_loaded = made(**eval(arguments))
with strategy.scope():
    two, *_ = made(**eval(arguments))
two.set_weights(one.get_weights())
if is_prefilled:
    one, two = prefilled(one), prefilled(two)
if is_loaded:
    one.save(f"{folder}/one.keras")
    with strategy.scope():
        two = keras.saving.load_model(f"{folder}/one.keras")
assert_alike(two, one)
how = {"steps_per_epoch": 10, "verbose": 0, "shuffle": False}
expected = one.fit(dataset(False), **how).history
# Of one pipeline each replica takes the next batch in turn, of whatever size.
assert_same_logs(two.fit(strategy.distribute_datasets_from_function(lambda _: dataset(True)), **how).history, expected)
assert_alike(two, one)
assert expected["loss"][0] > 0
"""

FILLED = """
def assert_holds(model, expected, enqueued=48):
    assert all(np.isin(copy, [0, 1]).all() and copy.sum() == 48 for copy in copies(model.memory.newest_of_id.is_newest))
    for mine, other in zip(model.memory.weights, expected.memory.weights, strict=True):
        for copy in copies(mine):
            np.testing.assert_array_equal(copy, other.numpy(), err_msg=mine.path)


def scoped(function, *args):
    with strategy.scope():
        return function(*args)


arguments = eval(sys.argv[2])
make_one, make_two = (lambda: make(60, **arguments)), (lambda: scoped(make, *[60], *arguments.values()))
one = make_one()
one.memory.prefill(x["features"], y, x["sample_id"])
weights, whole = f"{sys.argv[1]}/one.weights.h5", f"{sys.argv[1]}/one.keras"
one.save_weights(weights)
one.save(whole)
fill = lambda model: model.memory.prefill(x["features"], y, x["sample_id"])
load = lambda model: model.load_weights(weights)
set_all = lambda model: model.set_weights(one.get_weights())
saved = tf.train.Checkpoint(variables=[v.value for v in one.variables]).write(f"{sys.argv[1]}/checkpoint")
def restore(model):
    tf.train.Checkpoint(variables=[v.value for v in model.variables]).read(saved).assert_existing_objects_matched()

for way in (fill, load, set_all, restore):
    for call in (scoped, lambda function, model: function(model)):
        two = make_two()
        call(way, two)
        assert_holds(two, one)
two = scoped(keras.saving.load_model, whole)
assert_holds(two, one)
two.save(f"{sys.argv[1]}/two.keras")
np.testing.assert_array_equal(keras.saving.load_model(f"{sys.argv[1]}/two.keras").memory.features, one.memory.features)
for call in (scoped, lambda function: function()):
    fill(two)
    call(two.memory.reset)
    assert [int(copy) for copy in copies(two.memory.num_enqueued)] == [0, 0]
    assert not any(copy.any() for copy in copies(two.memory.newest_of_id.newest_in_bucket))
fill(two)
rows = [copy[:48] for copy in copies(two.memory.sample_ids)]
for copy in rows:
    np.testing.assert_array_equal(copy, np.roll(x["sample_id"], 0))
"""


def test_two_replicas_train_like_one_device_also_on_unequal_shares_and_without_items():
    arguments = "dict(memory_size=40, mining=InEmbeddings(5), start_alignment=0.3)"
    run_fresh(TWO_DEVICES + ALIKE + LIKE_ONE_DEVICE + FROZEN_MEMORY_AND_NONE, arguments)


def test_each_replica_gets_what_is_prefilled_loaded_restored_and_reset(tmp_path):
    run_fresh(TWO_DEVICES + FILLED, tmp_path, {})


@pytest.mark.slow
def test_each_replica_gets_int8_rows(tmp_path):
    run_fresh(TWO_DEVICES + FILLED, tmp_path, {"top_k": (2, 2), "storage_dtype": "int8"})


def test_ten_random_splits_of_a_loaded_model_with_prefilled_int8_rows(tmp_path):
    arguments = {"memory_size": 60, "storage_dtype": "int8", "is_prefilled": True, "is_loaded": True}
    run_fresh(TWO_DEVICES + ALIKE + SPLITS, tmp_path, arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        "dict(memory_size=40, loss=CircleLoss())",
        "dict(memory_size=0, loss=TripletLoss())",
        "dict(memory_size=300, top_k=(2, 'all'), is_prefilled=True, loss=MultiSimilarityLoss())",
        "dict(memory_size=0, top_k=('all', 'all'), loss=ContrastiveLoss())",
        "dict(memory_size=300, top_k=HardTopK(3, 2, 'easiest', None, 0.9, 0.05, 0.05), head={'widths': [2, 4]})",
        "dict(memory_size=300, mining=InEmbeddings(7), is_prefilled=True)",
        "dict(memory_size=60, mining=InSketch(3), loss=RecallSurrogateLoss())",
        "dict(memory_size=40, mining=InEmbeddings(), head={'widths': [2, 4]})",
        "dict(memory_size=300, top_k=NeighborTopK(3, 4), loss=SimilarityAlignmentLoss(), start_alignment=0.5)",
        "dict(memory_size=0, top_k=NeighborTopK(3, 4), loss=SimilarityAlignmentLoss())",
    ],
)
def test_ten_random_splits(tmp_path, arguments):
    run_fresh(TWO_DEVICES + ALIKE + SPLITS, tmp_path, arguments)


def test_several_machines_are_refused():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = XBMModel(None, Head(3), CircularMemory(8), HardTopK(2, 1), SupConLoss())
        model.compile("sgd")
    x = {"features": np.ones((8, 4), np.float32), "sample_id": np.arange(8)}
    with pytest.raises(ValueError, match=r"MultiWorkerMirroredStrategy; expected MirroredStrategy.*keras#20585"):
        model.fit(x, np.arange(8) % 2, verbose=0)


def test_one_device_by_name_is_no_strategy_to_refuse():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = XBMModel(None, Head(3), CircularMemory(8), HardTopK(2, 1), SupConLoss())
        model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    x = {"features": np.eye(8, 4, dtype=np.float32) + 0.1, "sample_id": np.arange(8)}
    assert np.isfinite(model.fit(x, np.arange(8) % 2, verbose=0).history["loss"]).all()
