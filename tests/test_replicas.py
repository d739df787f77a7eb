"""Several devices: two replicas train like one device with the whole batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import run_fresh
from xbm_keras import CircularMemory, HardTopK, Head, SupConLoss, XBMModel

# The number of devices is settled before TensorFlow starts.
TWO_DEVICES = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
import numpy as np
import pytest
from xbm_keras import *

rng = np.random.default_rng(0)
x = {"features": rng.normal(size=(48, 6)).astype(np.float32), "sample_id": rng.permutation(48) + 100}
y = np.arange(48) % 3
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def make(memory_size, top_k=(4, 2, "hardest"), **options):
    model = XBMModel(None, Head(3), CircularMemory(memory_size), HardTopK(*top_k), SupConLoss(), **options)
    model.build({"features": (None, 6)})
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), jit_compile=False)
    return model


def fit(model):
    return model.fit(x, y, batch_size=16, shuffle=False, verbose=0).history


def copies(variable):
    return [copy.numpy() for copy in strategy.experimental_local_results(variable.value)]
"""

LIKE_ONE_DEVICE = """
arguments = eval(sys.argv[1])
one = make(**arguments)
with strategy.scope():
    two = make(**arguments)
two.set_weights(one.get_weights())
expected, history = fit(one), fit(two)
for name, values in expected.items():
    np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)
for mine, other in zip(two.variables + two.optimizer.variables, one.variables + one.optimizer.variables):
    first, second = copies(mine)
    np.testing.assert_array_equal(first, second, err_msg=mine.path)
    np.testing.assert_allclose(first, other.numpy(), rtol=1e-4, atol=1e-6, err_msg=mine.path)
"""

BAD_FEATURES_OF_ONE_REPLICA = """
before = [v.numpy() for v in two.weights]
x["features"][13] = np.nan  # of the second replica
with pytest.raises(NonFiniteFeatures, match=str(x["sample_id"][13])):
    fit(two)
for v, w in zip(two.weights, before, strict=True):
    np.testing.assert_array_equal(v, w)
"""

EVALUATED_ALIKE = """
sizes = dict(batch_size=16, verbose=0, return_dict=True)
np.testing.assert_allclose(*([*m.evaluate(x, y, **sizes).values()] for m in (one, two)), rtol=1e-4)
"""

RANDOM_POSITIVES = """
with strategy.scope():
    model = make(200, (2, 2, "random"))
x, y = {name: values[:42] for name, values in x.items()}, y[:42]  # the last batch is a smaller one
assert np.isfinite(fit(model)["loss"]).all()
for variable in model.variables:
    np.testing.assert_array_equal(*copies(variable))
assert int(model.memory.num_enqueued.value.numpy()) == 42
"""


def test_two_replicas_train_like_one_device_and_hold_the_same_memory():
    arguments = {"memory_size": 40, "mine_in": "embeddings", "key_refresh": 5, "start_l2": 0.3}
    run_fresh(TWO_DEVICES + LIKE_ONE_DEVICE + BAD_FEATURES_OF_ONE_REPLICA, arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [{"memory_size": 0, "mine_in": "embeddings"}, {"memory_size": 200}, {"memory_size": 24, "mine_in": "embeddings"}],
    ids=str,
)
def test_two_replicas_train_and_evaluate_like_one_device(arguments):
    run_fresh(TWO_DEVICES + LIKE_ONE_DEVICE + EVALUATED_ALIKE, arguments)


@pytest.mark.slow
def test_random_positives_and_a_smaller_last_batch():
    run_fresh(TWO_DEVICES + RANDOM_POSITIVES)


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
