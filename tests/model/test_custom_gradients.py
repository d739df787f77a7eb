"""TensorFlow registers custom gradients for the life of the process: they must not keep the model."""

import gc
import weakref

import pytest
from tensorflow.python.framework import ops

from tests.small_models import compiled, dataset
from xbm_keras import HardTopK, TripletLoss


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_a_model_that_was_traced_is_freed(method):
    x, y = dataset()
    gc.collect()  # of other tests
    known = set(ops.gradient_registry._registry)
    model = compiled(24, HardTopK(4, 2), TripletLoss(), mode="graph")  # a loss that has such a gradient of its own
    getattr(model, method)(x, y, batch_size=8, verbose=0)
    assert set(ops.gradient_registry._registry) > known
    memory = weakref.ref(model.memory)
    del model
    gc.collect()
    assert memory() is None
    assert set(ops.gradient_registry._registry) == known
