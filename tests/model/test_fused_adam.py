"""Adam by one operation: what Keras computes by a dozen."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from xbm_keras.model.fused_adam import FusedAdam

OPTIONS = [
    {},
    {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3},
    {"weight_decay": 0.1, "clipnorm": 0.5},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
    {"amsgrad": True},
    {"gradient_accumulation_steps": 2},
    {"loss_scale_factor": 8.0},
]


def trained(kind, mode="eager", num_steps=7, **options):
    """A matrix and a vector after some steps, and the optimizer; its rate falls."""
    random = np.random.default_rng(0)
    weights = [keras.Variable(random.normal(size=shape), dtype="float32") for shape in ((5, 3), (3,))]
    optimizer = kind(keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5), **options)
    optimizer.build(weights)
    step = in_mode(lambda *gradients: optimizer.apply(list(gradients)), mode)
    for _ in range(num_steps):
        step(*(tf.constant(random.normal(size=weight.shape), tf.float32) for weight in weights))
    return weights, optimizer


def assert_alike(mine, other):
    """To the rounding of 1 - beta_2."""
    for a, b in zip([*mine[0], *mine[1].variables], [*other[0], *other[1].variables], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=b.path)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_the_adam_of_keras(options, mode):
    assert_alike(trained(FusedAdam, mode, **options), trained(keras.optimizers.Adam, **options))


def test_a_step_is_one_operation_for_each_weight():
    weights, _ = trained(FusedAdam, num_steps=0)
    optimizer = FusedAdam(0.1)
    optimizer.build(weights)
    step = tf.function(lambda: optimizer.apply([tf.ones(weight.shape) for weight in weights])).get_concrete_function()
    kinds = [operation.type for operation in step.graph.get_operations()]
    assert kinds.count("ResourceApplyAdam") == 2
    assert not {"Sqrt", "AssignSubVariableOp"} & set(kinds)


@pytest.mark.parametrize(("first", "then"), [(keras.optimizers.Adam, FusedAdam), (FusedAdam, keras.optimizers.Adam)])
def test_either_goes_on_where_the_other_stopped(first, then):
    weights, before = trained(first, num_steps=4)
    after = then.from_config(before.get_config())
    after.build(weights)
    for mine, other in zip(after.variables, before.variables, strict=True):
        mine.assign(other)
    random = np.random.default_rng(1)
    gradients = [tf.constant(random.normal(size=weight.shape), tf.float32) for weight in weights]
    copies = [keras.Variable(weight.value) for weight in weights]
    other = first.from_config(before.get_config())
    other.build(copies)
    for mine, known in zip(other.variables, before.variables, strict=True):
        mine.assign(known)
    after.apply(gradients, weights)
    other.apply(gradients, copies)
    assert_alike((weights, after), (copies, other))
