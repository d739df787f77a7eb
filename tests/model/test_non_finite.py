"""Numbers: features, losses and weights that are not finite, finite gradients, mixed precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import compile_arguments, in_mode
from tests.small_models import (
    LOSSES,
    assert_same_training,
    built_kernel,
    clusters,
    compiled,
    dataset,
    make_model,
    some,
    state_of,
    unit,
)
from xbm_keras import (
    CircularMemory,
    HardTopK,
    Head,
    InEmbeddings,
    InFeatures,
    InSketch,
    NonFiniteFeatures,
    NonFiniteLoss,
    SupConLoss,
    XBMModel,
)
from xbm_keras.evaluation.retrieval import evaluate_retrieval
from xbm_keras.model.fused_adam import FusedAdam
from xbm_keras.model.non_finite import Rejections

# --- features that are not finite ---


@pytest.mark.parametrize(("mode", "bad"), [("eager", np.nan), ("eager", np.inf), ("xla", np.nan)])
def test_batch_that_is_not_finite_leaves_no_trace(mode, bad):
    x, y = dataset()
    sgd, adam = keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.1), FusedAdam(0.01, weight_decay=0.1)
    model = compiled(optimizer=adam if np.isinf(bad) else sgd, mode=mode)
    model.fit(x, y, batch_size=8, verbose=0)
    before = state_of(model)
    late, labels = dataset(8, seed=1)
    late["features"][[2, 5], 1] = bad
    ids = ", ".join(str(i) for i in late["sample_id"][[2, 5]])
    with pytest.raises(NonFiniteFeatures, match=rf"2 item\(s\), with sample id {ids};"):
        model.fit(late, labels, batch_size=8, shuffle=False, verbose=0)
    assert state_of(model) == before
    # Past the guard the loss itself shows it.
    assert np.isnan(keras.Model.fit(model, late, labels, batch_size=8, verbose=0).history["loss"]).all()
    assert state_of(model) == before
    assert np.isfinite(model.fit(x, y, batch_size=8, verbose=0).history["loss"]).all()  # and it goes on
    assert state_of(model) != before


def test_first_batch_of_all_is_not_finite(mode):
    # Zero gradients would still move an optimizer with weight decay.
    x, y = dataset(8)
    x["features"][:] = np.nan
    # Nothing is built before: that such a step makes the variables, too, is what is tested.
    model = compiled(optimizer=keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.5), mode=mode, width=None)
    with pytest.raises(NonFiniteFeatures, match=r"8 item\(s\)"):
        model.fit(x, y, batch_size=8, verbose=0)
    np.testing.assert_array_equal(model.head.kernel, built_kernel(make_model(), x))
    assert all(np.isfinite(v.numpy()).all() for v in model.optimizer.variables)
    assert len(model.optimizer.variables) == 4  # iterations, learning rate, and a momentum of kernel and bias
    assert int(model.optimizer.iterations.value) == 0
    assert int(model.memory.num_enqueued.value) == 0
    assert not np.any(model.memory.features)


def test_stops_at_the_bad_batch_and_keeps_those_before():
    x, y = dataset()
    x["features"][11] = np.nan
    model, short = compiled(), compiled()
    with pytest.raises(NonFiniteFeatures, match=rf"1 item\(s\), with sample id {x['sample_id'][11]};"):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    short.fit(*some(x, y, slice(0, 8)), batch_size=8, shuffle=False, verbose=0)
    assert_same_training(model, short)


@pytest.mark.parametrize(
    ("steps_of_call", "calls_read"), [(1, [1, 2, 4, 8, 16, 32, 64, 114, 120]), (20, [1, 2, 4, 6, 6])]
)
def test_notes_are_read_now_and_then_and_at_the_end_of_an_epoch(steps_of_call, calls_read, monkeypatch):
    # To read a variable is to wait for the device.
    readings, calls = [], []
    read = Rejections.raise_first
    monkeypatch.setattr(Rejections, "raise_first", lambda self: readings.append(len(calls)) or read(self))
    x, y = dataset(240)
    model = compiled(memory_size=0, mode="graph")
    model.steps_per_execution = steps_of_call
    note = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: calls.append(batch))
    model.fit(x, y, batch_size=2, verbose=0, callbacks=[note])
    assert readings == calls_read


@pytest.mark.parametrize("bad_step", [70, 119])
def test_steps_after_a_bad_one_go_on_until_it_is_read(bad_step):
    x, y = dataset(240)
    x["features"][2 * bad_step] = np.nan
    model = compiled(optimizer=keras.optimizers.SGD(1e-3), memory_size=0, mode="graph")
    with pytest.raises(NonFiniteFeatures, match=rf"1 item\(s\), with sample id {x['sample_id'][2 * bad_step]};"):
        model.fit(x, y, batch_size=2, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations.value) == (113 if bad_step == 70 else 119)  # of those before the reading
    assert np.isfinite(model.head.kernel.numpy()).all()


def test_several_steps_per_execution_skip_the_bad_batch():
    x, y = dataset()
    x["features"][11] = np.nan
    model = make_model()
    model.compile("sgd", steps_per_execution=3, jit_compile=False)
    with pytest.raises(NonFiniteFeatures, match=str(x["sample_id"][11])):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    good = np.r_[0:8, 16:24]
    assert sorted(i for i in model.memory.sample_ids.numpy() if i) == sorted(x["sample_id"][good])
    assert int(model.optimizer.iterations.value) == 2


def test_bad_items_with_ids_below_zero_are_named_and_all_are_counted():
    x, y = dataset()
    x["sample_id"] = -1 - np.arange(24)
    for num_bad, told in ((2, r"2 item\(s\), with sample id -1, -2;"), (12, r"12 item.*-1, -2.*-8, \.\.\.;")):
        broken = x["features"].copy()
        broken[:num_bad] = np.nan
        model = compiled()
        with pytest.raises(NonFiniteFeatures, match=told):
            model.fit({**x, "features": broken}, y, batch_size=16, shuffle=False, verbose=0)


def test_more_bad_items_than_are_named():
    x, y = dataset()
    x["features"][::2] = np.nan
    with pytest.raises(NonFiniteFeatures) as error:
        compiled().fit(x, y, batch_size=24, shuffle=False, verbose=0)
    assert ", ".join(str(i) for i in x["sample_id"][:16:2]) in str(error.value)


# --- losses and weights that are not finite ---


class Bursting(SupConLoss):
    """Of the fourth anchor in the batch the loss can be made infinite."""

    def __init__(self):
        super().__init__()
        self.extra = tf.Variable(0.0, trainable=False)

    def __call__(self, similarities, picks):
        return super().__call__(similarities, picks) + tf.where(
            tf.range(tf.shape(similarities)[0]) == 3, self.extra, 0.0
        )


@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_loss_that_is_not_finite_stops_with_step_and_ids(mode):
    x, y = dataset()
    model, short = compiled(loss=Bursting(), mode=mode), compiled()

    def burst(batch, logs=None):
        model.pair_loss.extra.assign(np.inf if batch == 1 else 0.0)

    callback = keras.callbacks.LambdaCallback(on_train_batch_begin=burst)
    with pytest.raises(NonFiniteLoss, match=rf"after 1 steps, in a batch with sample id {x['sample_id'][11]};"):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[callback])
    short.fit(*some(x, y, slice(0, 8)), batch_size=8, shuffle=False, verbose=0)
    for mine, other in zip(model.head.weights, short.head.weights, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)
    assert int(model.optimizer.iterations.value) == 1
    model.pair_loss.extra.assign(0.0)
    assert np.isfinite(model.fit(x, y, batch_size=8, verbose=0).history["loss"]).all()  # and it can go on


def everything_of(model):
    """Every byte that a step may move, seeds among them."""
    return [(v.path, v.numpy().tobytes()) for v in (*model.variables, *model.optimizer.variables)]


UNDONE = {
    "rows that wrap around": (13, {}),
    "a batch larger than the memory": (5, {}),
    "int8 rows": (40, {"storage_dtype": "int8"}),
    "stored embeddings": (40, {"mining": lambda: InEmbeddings(7)}),
    "all embeddings each step": (11, {"mining": lambda: InEmbeddings(200)}),
    "a sketch": (40, {"mining": lambda: InSketch(3)}),
}


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        *((case, "eager") for case in UNDONE),
        ("rows that wrap around", "graph"),
        *((case, "xla") for case in ("int8 rows", "stored embeddings", "a sketch")),
    ],
)
def test_a_loss_that_is_not_finite_leaves_no_trace_at_all(case, mode):
    memory_size, options = UNDONE[case]
    x, y = dataset(16)
    memory = CircularMemory(memory_size, options.get("storage_dtype", "float32"))
    model = XBMModel(None, Head(3), memory, HardTopK(4, 2, mining=options.get("mining", InFeatures)()), Bursting())
    optimizer = FusedAdam(0.01) if mode == "graph" else keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, **compile_arguments(mode))
    built_kernel(model, x)
    model.optimizer.build(model.trainable_variables)
    for i in (0, 8, 0):  # several rows of some ids, of which the newest counts
        model.train_on_batch(*some(x, y, slice(i, i + 8)))
    before = everything_of(model)
    order = np.array([3, 3, 12, 0, 15, 1, 1, 9])  # of ids that are there, some twice
    model.pair_loss.extra.assign(np.inf)
    model.train_on_batch(*some(x, y, order))
    for mine, other in zip(everything_of(model), before, strict=True):
        assert mine == other
    model.pair_loss.extra.assign(0.0)
    assert np.isfinite(model.train_on_batch(*some(x, y, order))[0])  # and it goes on
    assert int(model.memory.num_enqueued.value) == 32


def test_weights_that_overflow_are_those_of_before(mode):
    x, y = dataset()
    model = compiled(optimizer=keras.optimizers.SGD(3e38, momentum=0.9), mode=mode)
    start = built_kernel(model, x)
    with pytest.raises(NonFiniteLoss, match="Lower the learning rate"):
        model.fit(x, y, batch_size=8, epochs=9, shuffle=False, verbose=0)
    assert all(np.isfinite(v.numpy()).all() for v in (*model.weights, *model.optimizer.variables))
    if int(model.optimizer.iterations.value) == 0:
        np.testing.assert_array_equal(model.head.kernel, start)


@pytest.mark.parametrize(
    ("mode", "loss"),
    [*(("eager", loss) for loss in LOSSES), ("xla", SupConLoss())],
    ids=lambda x: getattr(x, "name", x),
)
def test_gradients_are_finite_at_any_fill_level(mode, loss):
    """With rows that nobody wrote, which are zeros, and without."""
    x, y = dataset(8)
    crowd, labels = dataset(24, seed=1)
    crowd["sample_id"] += 5000
    model = make_model(24, HardTopK(9, 7, mining=InEmbeddings()), loss, frozen=True)
    built_kernel(model, x)
    model.compile(jit_compile=mode == "xla")

    def gradients():
        with tf.GradientTape() as tape:
            value = model.compute_loss(x, y, model(x), training=True)
        return tape.gradient(value, [v.value for v in model.trainable_variables])

    gradients = in_mode(gradients, mode)
    for rows in (slice(0, 0), slice(0, 5), slice(5, 24)):
        model.memory.prefill(unit(crowd["features"])[rows], labels[rows], crowd["sample_id"][rows])
        found = [each.numpy() for each in gradients()]
        assert np.isfinite(np.concatenate([each.ravel() for each in found])).all()
        assert any(each.any() for each in found) == (rows.stop > 0)


# --- mixed precision ---


class Watched(SupConLoss):
    """Notes the dtype of what it is given."""

    dtypes: set = set()  # noqa: RUF012

    def __call__(self, similarities, picks):
        self.dtypes |= {similarities.dtype, picks.feature_scores.dtype}
        value = super().__call__(similarities, picks)
        self.dtypes.add(value.dtype)
        return value

    def get_config(self):
        return {"temperature": self.temperature}


@pytest.mark.parametrize(("policy", "mining"), [("mixed_float16", InFeatures), ("mixed_bfloat16", InEmbeddings)])
def test_mixed_precision(policy, mining):
    # Pitfalls: float16 overflow through -1e9 masks, NaN in mixed bfloat16 (PML #121, #161, TF Similarity #364).
    x, y = dataset()
    memory_size = 400 if mining is InFeatures else 40  # the picks alone pass the head, or all rows
    exact = compiled(memory_size, HardTopK(4, 2, "hardest", mining()), optimizer=keras.optimizers.SGD(0.1))
    built_kernel(exact, x)
    start = exact.head.kernel.numpy()
    keras.config.set_dtype_policy(policy)  # set back by conftest.py
    Watched.dtypes = set()
    optimizer = keras.optimizers.SGD(0.1)
    if policy == "mixed_float16":  # Keras' own start of 32,768 overflows here, and it would skip the first steps
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    top_k = HardTopK(4, 2, "hardest", mining())
    model = compiled(memory_size, top_k, Watched(), optimizer=optimizer, mode="graph")
    assert model.head.compute_dtype == policy.removeprefix("mixed_")
    built_kernel(model, x)
    np.testing.assert_array_equal(model.head.kernel, start)
    for _ in range(3):
        model.train_on_batch(x, y)
        exact.train_on_batch(x, y)
    assert Watched.dtypes == {tf.float32}
    assert model(x)["embeddings"].dtype == model(x)["features"].dtype == tf.float32
    assert model.memory.features.dtype == "float32"
    np.testing.assert_array_equal(model.memory.features, exact.memory.features)
    # Without the scaling of the loss the steps would be too small by its factor.
    moved, expected = model.head.kernel.numpy() - start, exact.head.kernel.numpy() - start
    np.testing.assert_allclose(moved, expected, atol=0.1 * np.abs(expected).max())
    history = model.fit(x, y, batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(list(history.values())).all()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_ends_at_the_metrics_of_float32(policy):
    x, y = clusters()

    def trained():
        optimizer = keras.optimizers.Adam(0.02)
        model = compiled(
            160, HardTopK(32, 8, mining=InEmbeddings()), head=Head(6), optimizer=optimizer, mode="graph", width=16
        )
        start = evaluate_retrieval(model.predict(x, verbose=0)["embeddings"], y)
        model.fit(x, y, batch_size=32, epochs=20, shuffle=False, verbose=0)
        return start, evaluate_retrieval(model.predict(x, verbose=0)["embeddings"], y)

    start, expected = trained()
    assert expected["map_at_r"] > start["map_at_r"] + 0.2
    keras.config.set_dtype_policy(policy)
    _, metrics = trained()
    assert metrics == pytest.approx(expected, abs=0.01)
