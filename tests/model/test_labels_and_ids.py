"""Labels, sample ids and weights of a batch: what is taken, and what is refused before the first step."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests.small_models import built_kernel, compiled, dataset, make_model, memory_of, unit
from xbm_keras import ContrastiveLoss, HardTopK, Head, SupConLoss

LABELS = {
    "fractions": (lambda y: y / 10, r"labels of dtype float\d+; expected integer labels, \[B\] or \[B, 1\]. Cast"),
    "whole floats": (lambda y: y.astype(np.float32), "labels of dtype float32; expected integer labels"),
    "one-hot integers": (lambda y: np.eye(3, dtype=int)[y], r"labels of shape \(.*, 3\); expected .* np.argmax"),
    "one-hot": (lambda y: np.eye(3, dtype=np.float32)[y], r"labels of shape \(.*, 3\); expected .* np.argmax"),
    "two columns": (lambda y: np.stack([y, y], axis=1), r"labels of shape \(.*, 2\); expected integer labels"),
    "strings": (lambda y: np.array(["a", "b", "c"])[y], r"labels of dtype string; expected .* np.unique"),
    "matrices": (lambda y: np.tile(y[:, None, None], (1, 2, 1)), r"labels of shape \(.*, 2, 1\); expected integer"),
    "several": (lambda y: {"a": y, "b": y}, "labels of type dict; expected integer labels"),
}
IDS = {
    "floats": (lambda ids: (ids + 2.0**25).astype(np.float32), r"sample_id of dtype float32; expected integer ids"),
    "doubles": (lambda ids: ids.astype(np.float64), r"sample_id of dtype float\d+; expected integer ids.* np.arange"),
    "strings": (lambda ids: ids.astype(str), "sample_id of dtype string; expected integer ids"),
    "truth values": (lambda ids: ids > 110, "sample_id of dtype bool; expected integer ids"),
    "two columns": (lambda ids: np.stack([ids, ids], axis=1), r"sample_id of shape \(.*, 2\); expected integer ids"),
}


@pytest.mark.parametrize("case", LABELS)
def test_other_labels_are_refused_before_the_first_step(case):
    (x, y), (change, message) = dataset(), LABELS[case]
    model = compiled(mode="graph" if case == "one-hot" else "eager")
    built_kernel(model, x)
    data = tf.data.Dataset.from_tensor_slices((x, change(y))).batch(8)
    with pytest.raises(ValueError, match=message):
        model.fit(data, verbose=0, shuffle=False)
    assert model.memory.num_enqueued.numpy() == 0


@pytest.mark.parametrize("case", IDS)
def test_other_ids_are_refused_before_the_first_step(case):
    (x, y), (change, message) = dataset(), IDS[case]
    model = compiled(mode="graph" if case == "floats" else "eager")
    built_kernel(model, x)
    data = tf.data.Dataset.from_tensor_slices(({**x, "sample_id": change(x["sample_id"])}, y)).batch(8)
    with pytest.raises(ValueError, match=message):
        model.fit(data, verbose=0, shuffle=False)
    assert model.memory.num_enqueued.numpy() == 0


def test_evaluate_refuses_the_same():
    x, y = dataset()
    model = compiled()
    model.fit(x, y, batch_size=8, verbose=0)
    with pytest.raises(ValueError, match="labels of dtype float32"):
        model.evaluate(x, y / 2, batch_size=8, verbose=0)


def test_labels_or_ids_of_another_number_of_items_are_refused():
    x, y = dataset(8)
    model = make_model()
    built_kernel(model, x)
    for ids, labels, name in ((x["sample_id"], y[:6], "labels"), (x["sample_id"][:6], y, "sample_id")):
        with pytest.raises(ValueError, match=rf"{name} of shape \(6,\); expected integer .* with B = 8"):
            loss_of_arrays(model, {**x, "sample_id": ids}, labels)


def loss_of_arrays(model, x, y):
    return model.compute_loss(x, y, model(x), training=True)


@pytest.mark.parametrize(("dtype", "is_column"), [("uint8", False), ("int32", True), ("int64", True), ("bool", True)])
def test_all_integers_are_taken(dtype, is_column):
    x, y = dataset(classes=2)
    reference = compiled(24)
    reference.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    model = compiled(24)
    ids = x["sample_id"].astype("int64" if dtype == "bool" else dtype)
    y = y.astype(dtype)
    if is_column:
        ids, y = ids[:, None], y[:, None]
    model.fit({**x, "sample_id": ids}, y, batch_size=8, shuffle=False, verbose=0)
    assert memory_of(model) == memory_of(reference)


def test_negative_ids_and_ids_far_apart_are_items_like_others():
    x, y = dataset()
    x["sample_id"] = np.where(np.arange(24) % 2, -1, 1) * (2**62 - np.arange(24))
    model = compiled(24)
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert model.memory.read().is_valid.numpy().all()


# --- ids that number the items of a batch ---

PER_BATCH = {"each batch": lambda i: i % 8, "one for all": lambda i: 0 * i, "in halves": lambda i: i % 4}


@pytest.mark.parametrize("case", PER_BATCH)
def test_ids_that_number_the_items_of_each_batch_are_told_once(case):
    x, y = dataset(21)
    x["sample_id"] = PER_BATCH[case](np.arange(21))
    model = compiled(memory_size=17)
    num_valid = {"each batch": 8, "one for all": 1, "in halves": 4}[case]
    with pytest.warns(UserWarning, match=rf"leave {num_valid} of the memory's 17 rows valid") as told:
        model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    assert len(told) == 1
    assert "Give np.arange(num_items)" in str(told[0].message)


@pytest.mark.parametrize(
    ("num_items", "memory_size", "options"),
    [(24, 100, {}), (8, 100, {}), (24, 8, {}), (24, 0, {}), (24, 24, {"frozen": True})],
    ids=["many epochs", "an epoch of one batch", "a memory of one batch", "no memory", "a memory that is left alone"],
)
def test_ids_that_number_the_items_of_the_data_are_not_spoken_of(num_items, memory_size, options):
    x, y = dataset(num_items)  # warnings are errors
    model = compiled(memory_size=memory_size, **options)
    built_kernel(model, x)
    if options:
        model.memory.prefill(x["features"], y, np.arange(24) % 8)
    model.fit(x, y, batch_size=8, epochs=4, verbose=0)


def test_a_call_of_several_steps_is_no_batch():
    x, y = dataset(48)  # warnings are errors
    x["sample_id"] = np.arange(48) % 12  # views of items, more than a batch has
    model = compiled(memory_size=48)
    model.steps_per_execution = 3
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)


# --- weights of anchors ---


def weighted_contrastive(z, y, weights, positive=0.9, negative=0.4):
    """The loss of each anchor, slowly, and their mean by weight."""
    losses = []
    for i in range(len(z)):
        pull = [max(positive - z[i] @ z[j], 0) for j in range(len(z)) if j != i and y[j] == y[i]]
        push = [max(z[i] @ z[j] - negative, 0) for j in range(len(z)) if y[j] != y[i]]
        losses.append((np.mean(pull) if pull else 0) + (np.mean(push) if push else 0))
    return np.average(losses, weights=weights)


@pytest.mark.parametrize(
    ("shape", "dtype", "mode"),
    [((12,), "float64", "eager"), ((12, 1), "float32", "xla"), ((12,), "int64", "graph")],
)
def test_sample_weight_gives_the_weighted_mean(shape, dtype, mode):
    x, y = dataset(12)
    weights = np.array([0, 3, 1, 2, 5, 1, 0, 4, 1, 1, 2, 7])
    model = compiled(12, HardTopK("all", "all"), ContrastiveLoss(0.9, 0.4), Head(3), mode=mode)
    z = unit(unit(x["features"]) @ built_kernel(model, x))
    expected = weighted_contrastive(z, y, weights)
    assert abs(expected - weighted_contrastive(z, y, np.ones(12))) > 1e-3
    loss = model.train_on_batch(x, y, sample_weight=weights.reshape(shape).astype(dtype))[0]
    assert loss == pytest.approx(expected, rel=1e-5)
    assert set(model.memory.sample_ids.numpy()) == set(x["sample_id"])  # those of weight 0, too


def test_small_weights_are_no_smaller_loss():
    x, y = dataset(12)
    losses = []
    for scale in (1.0, 1e-3):
        model = compiled(12, HardTopK("all", "all"))
        losses.append(model.train_on_batch(x, y, sample_weight=np.linspace(1, 2, 12) * scale)[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_class_weight_is_the_weight_of_its_items():
    x, y = dataset()
    a, b, plain = (compiled(24, HardTopK("all", "all"), SupConLoss()) for _ in range(3))
    a.fit(x, y, batch_size=8, shuffle=False, verbose=0, class_weight={0: 1.0, 1: 4.0, 2: 0.5})
    b.fit(x, y, batch_size=8, shuffle=False, verbose=0, sample_weight=np.array([1.0, 4.0, 0.5])[y])
    plain.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    np.testing.assert_allclose(a.head.kernel, b.head.kernel, rtol=1e-6)
    assert np.abs(a.head.kernel.numpy() - plain.head.kernel.numpy()).max() > 1e-4


def test_an_anchor_of_weight_zero_moves_nothing_and_is_a_partner_of_the_others():
    x, y = dataset(8)
    model = compiled(8, HardTopK("all", "all"))
    before = built_kernel(model, x)
    assert model.train_on_batch(x, y, sample_weight=np.zeros(8))[0] == 0
    np.testing.assert_array_equal(model.head.kernel, before)


def test_evaluate_weights_too():
    x, y = dataset(12)
    model = compiled(0, HardTopK("all", "all"))
    built_kernel(model, x)
    plain, weighted, alike = (
        model.evaluate(x, y, batch_size=12, verbose=0, return_dict=True, sample_weight=w)["loss"]
        for w in (None, np.arange(12), np.full(12, 3.0))
    )
    assert weighted != pytest.approx(plain, rel=1e-3)
    assert alike == pytest.approx(plain, rel=1e-6)


def test_weights_of_another_form_are_refused():
    x, y = dataset(8)
    model = make_model()
    built_kernel(model, x)
    for weights, message in (
        (np.ones((8, 2)), r"sample_weight of shape \(8, 2\); expected one number for each item"),
        (np.ones(6), r"sample_weight of shape \(6,\); expected one number"),
        (np.array(["a"] * 8), "sample_weight of dtype string; expected one number"),
    ):
        with pytest.raises(ValueError, match=message):
            model.compute_loss(x, y, model(x), sample_weight=weights)


def test_weights_that_sum_up_below_zero_give_the_mean_too():
    x, y = dataset(12)
    losses = []
    for weights in (np.linspace(1, 2, 12), -np.linspace(1, 2, 12), np.tile([1.0, -1.0], 6)):
        model = compiled(12, HardTopK("all", "all"))
        losses.append(model.train_on_batch(x, y, sample_weight=weights)[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == 0


# --- inputs ---

INPUTS = {
    "an array": (lambda x: x["features"], "Received inputs without names; expected a dict with 'features'"),
    "a pair": (lambda x: (x["features"], x["sample_id"]), "Received inputs without names; expected a dict"),
    "other names": (lambda x: {"feature": x["features"]}, r"inputs \['feature'\]; expected a dict with 'features'"),
    "maps": (lambda x: {**x, "features": x["features"][:, None]}, r"features of shape \(8, 1, 6\); expected \[B, D\]"),
    "numbers": (lambda x: {**x, "features": x["features"][:, 0]}, r"features of shape \(8,\); expected \[B, D\]"),
}


@pytest.mark.parametrize("what", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize("case", INPUTS)
def test_other_inputs_are_refused(case, is_built, what):
    (x, y), (change, message) = dataset(), INPUTS[case]
    model = compiled()
    if is_built:
        built_kernel(model, x)
    with pytest.raises(ValueError, match=message):
        getattr(model, what)(change(x), *([] if what == "predict" else [y]), batch_size=8, verbose=0)


def test_features_of_another_width_are_refused():
    x, y = dataset()
    model = compiled()
    built_kernel(model, x)
    with pytest.raises(ValueError, match="features of width 5; this memory was built for width 6"):
        model.fit({**x, "features": x["features"][:, :5]}, y, batch_size=8, verbose=0)


def test_features_of_unknown_width_are_refused_by_a_model_that_is_not_built():
    model = compiled(mode="graph", width=None)
    features, ids = tf.TensorSpec((None, None)), tf.TensorSpec((None,), tf.int64)
    step = tf.function(lambda x, y: model.train_step((x, y)))
    with pytest.raises(ValueError, match=r"features of shape \(None, None\); expected \[B, D\] with a known width D"):
        step.get_concrete_function({"features": features, "sample_id": ids}, ids)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_features_that_are_whole_numbers_are_taken(dtype):
    x, y = dataset()
    whole = np.abs(x["features"] * 9).astype(dtype)
    whole[:, 0] = True
    a, b = compiled(24), compiled(24)
    a.fit({**x, "features": whole}, y, batch_size=8, shuffle=False, verbose=0)
    b.fit({**x, "features": whole.astype("float32")}, y, batch_size=8, shuffle=False, verbose=0)
    assert memory_of(a) == memory_of(b)
    np.testing.assert_array_equal(a.head.kernel, b.head.kernel)


# --- evaluation ---


@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_evaluate_leaves_no_trace(mode):
    x, y = dataset()
    models = [compiled(24, mode=mode) for _ in range(2 if mode == "eager" else 1)]
    for model in models:
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    before = [v.numpy().tobytes() for v in models[0].variables]
    first, second = (models[0].evaluate(x, y, batch_size=8, verbose=0) for _ in range(2))
    assert first == second
    assert [v.numpy().tobytes() for v in models[0].variables] == before
    for model in models:
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    np.testing.assert_array_equal(models[0].head.kernel, models[-1].head.kernel)


def test_keras_own_losses_agree_on_what_weights_mean():
    # Keras divides by the number of items, not by the sum of weights, unless told "mean_with_sample_weight": as here.
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    assert float(loss([[0.0], [0.0]], [[1.0], [2.0]], sample_weight=[[3.0], [1.0]])) == pytest.approx(7 / 4)


@pytest.mark.parametrize("as_given", [list, np.array, pd.Series, pd.Categorical, tf.constant], ids=lambda f: f.__name__)
def test_names_are_refused_before_keras_sees_them(as_given):
    x, y = dataset()
    names = as_given([f"class {label}" for label in y.tolist()])
    with pytest.raises(ValueError, match=r"labels of dtype string; expected integer labels.* np\.unique"):
        compiled().fit(x, names, verbose=0)
    with pytest.raises(ValueError, match=r"sample_id of dtype string; expected integer ids.* np\.arange"):
        compiled().fit({**x, "sample_id": as_given([str(i) for i in x["sample_id"].tolist()])}, y, verbose=0)
