"""The pipeline as a Keras model: plain compile and fit, and what must hold over whole runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import MODES
from tests.small_models import (
    LOSSES,
    METRICS,
    assert_same_training,
    built_kernel,
    clusters,
    compiled,
    dataset,
    images,
    loss_of,
    make_model,
    memory_of,
    small_backbone,
    some,
    state_of,
    unit,
)
from xbm_keras import (
    CircularMemory,
    ContrastiveLoss,
    HardTopK,
    Head,
    InEmbeddings,
    InFeatures,
    InfoNCELoss,
    InSketch,
    NonFiniteFeatures,
    SupConLoss,
    TripletLoss,
    XBMModel,
)

# --- plain compile and fit ---


def test_fit_of_arrays_and_of_tf_data_is_the_same():
    x, y = dataset()
    a, b = compiled(mode="graph"), compiled(mode="graph")
    history = a.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    b.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), epochs=2, shuffle=False, verbose=0)
    assert set(history) == METRICS
    assert_same_training(a, b, rtol=1e-5, atol=1e-6)
    assert a.predict(x, verbose=0)["embeddings"].shape == (24, 3)


def test_positional_arguments_and_forms_of_callbacks():
    x, y = dataset()
    epochs = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    model = compiled()
    model.fit(x, y, 8, 2, 0, [note])
    model.fit(x, y, verbose=0, callbacks=note)
    model.fit(x, y, verbose=0, callbacks=[[note]])
    assert epochs == [0, 1, 0, 0]


@pytest.mark.parametrize("setting", [True, False])
def test_products_have_all_bits_of_float32_and_the_setting_comes_back(setting):
    """TensorFloat-32, which GPUs multiply with by default, keeps 10 of 23 bits."""
    config, during = tf.config.experimental, []
    read = config.tensor_float_32_execution_enabled
    before = read()
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: during.append(read()),
        on_test_batch_end=lambda batch, logs: during.append(read()),
    )
    model, (x, y) = compiled(), dataset()
    try:
        config.enable_tensor_float_32_execution(setting)
        model.fit(x, y, verbose=0, callbacks=[note])
        model.evaluate(x, y, verbose=0, callbacks=[note])
        assert (set(during), read()) == ({False}, setting)
        with pytest.raises(NonFiniteFeatures):
            model.fit({**x, "features": np.full_like(x["features"], np.nan)}, y, verbose=0)
        assert read() == setting
    finally:
        config.enable_tensor_float_32_execution(before)


def test_callback_list_gets_the_guard():
    x, y = dataset()
    model = compiled()
    callbacks = keras.callbacks.CallbackList([], add_history=True, model=model)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=callbacks)
    x["features"][3] = np.nan
    with pytest.raises(NonFiniteFeatures, match=str(x["sample_id"][3])):
        model.fit(x, y, batch_size=8, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize(("is_built", "num_items"), [(True, 21), (False, 24)])
def test_traced_once_for_the_life_of_the_model(is_built, num_items):
    # Pitfall: the memory of TF Similarity grows and retraces.
    calls = []

    class Counted(XBMModel):
        def compute_loss(self, *args, **kwargs):
            calls.append(1)
            return super().compute_loss(*args, **kwargs)

    model = Counted(None, Head(3), CircularMemory(17), HardTopK(4, 2), SupConLoss())
    model.compile("sgd", jit_compile=False)
    if is_built:
        model.build({"features": (None, 6)})
    model.fit(*dataset(num_items), batch_size=8, epochs=4, verbose=0)
    assert len(calls) == (1 if is_built else 2)  # TensorFlow traces a function that made variables once more
    before = len(calls)
    model.fit(*dataset(num_items, seed=1), batch_size=8, epochs=2, verbose=0)
    assert len(calls) == before


@pytest.mark.parametrize("mining", [InFeatures, InEmbeddings])
def test_evaluate_and_predict_leave_the_memory_and_the_weights(mining):
    # Pitfall: validation rows enter TF Similarity's memory.
    x, y = dataset()
    model = compiled(top_k=HardTopK(4, 2, mining=mining()), mode="graph")
    model.fit(x, y, batch_size=8, verbose=0)
    before = state_of(model)
    result = model.evaluate(*dataset(seed=1), batch_size=8, verbose=0, return_dict=True)
    model.predict(dataset(seed=2)[0], batch_size=8, verbose=0)
    assert state_of(model) == before
    assert set(result) == METRICS - {"active_pairs"}  # which the gradient of a step tells
    assert np.isfinite(list(result.values())).all()


def test_validation_inside_fit_leaves_the_memory():
    x, y = dataset()
    a, b = compiled(), compiled()
    a.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, validation_data=dataset(seed=1))
    b.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_array_equal(a.memory.sample_ids, b.memory.sample_ids)
    np.testing.assert_array_equal(a.memory.features, b.memory.features)
    assert int(a.memory.num_enqueued.value) == 48


def test_batches_of_different_size():
    x, y = dataset(21)
    model = compiled(memory_size=17)
    history = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    newest = {i % 17: i % 21 for i in range(63)}  # slot -> item, written one after the other
    np.testing.assert_array_equal(model.memory.sample_ids, x["sample_id"][[newest[slot] for slot in range(17)]])


# --- the loss ---


def in_batch_supcon(embeddings, labels, temperature=0.1):
    """Khosla et al., eq. 2, slowly."""
    z = unit(np.asarray(embeddings, np.float64))
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        total = sum(np.exp(z[i] @ z[a] / temperature) for a in others)
        positives = [a for a in others if labels[a] == labels[i]]
        if positives and len(positives) < len(others):
            losses.append(np.mean([-np.log(np.exp(z[i] @ z[p] / temperature) / total) for p in positives]))
    return np.mean(losses)


def test_in_batch_loss_equals_the_formula():
    x, y = dataset(11)
    y[4] = 77  # alone in its class: no valid anchor, but a negative of all others
    model = make_model(0, HardTopK("all", "all"), SupConLoss(0.1))
    embeddings = unit(x["features"]) @ built_kernel(model, x)
    assert loss_of(model, x, y, training=True) == pytest.approx(in_batch_supcon(embeddings, y), rel=1e-5)


@pytest.mark.parametrize("mining", [InFeatures, InEmbeddings])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: x.name)
def test_memory_of_exactly_one_batch_equals_the_in_batch_loss(loss, mining):
    # Pitfall: XBM makes some losses worse; memory_size=0 is the row to compare with.
    x, y = dataset(12)
    with_memory = make_model(12, HardTopK("all", "all", mining=mining()), loss)
    without = make_model(0, HardTopK("all", "all", mining=mining()), loss)
    loss_of(with_memory, *dataset(7, seed=1), training=True)  # older rows, all overwritten below
    expected = loss_of(without, x, y, training=True)
    assert expected > 0
    assert loss_of(with_memory, x, y, training=True) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mining", [InFeatures, InEmbeddings])
@pytest.mark.parametrize("top_k", [HardTopK("all", "all"), HardTopK(3, 2, "hardest")], ids=["all", "hardest"])
def test_permuting_the_batch_leaves_the_loss(top_k, mining):
    losses = []
    x, y = dataset(12)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(12) if seed else np.arange(12)
        top_k.mining = mining()
        model = make_model(20, top_k)
        loss_of(model, *dataset(13, seed=1), training=True)
        losses.append(loss_of(model, *some(x, y, order), training=True))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: x.name)
def test_loss_of_a_memory_that_starts_does_not_depend_on_its_size(loss):
    # Pitfalls: zero rows that count as class 0 (PML 2.x), a loss above 2000 at the start (research-xbm #10).
    x, y = dataset(12)
    expected = loss_of(make_model(0, HardTopK("all", "all"), loss), x, y, training=True)
    for memory_size in (13, 1000):
        model = make_model(memory_size, HardTopK("all", "all"), loss)
        assert loss_of(model, x, y, training=True) == pytest.approx(expected, rel=1e-5)


def test_loss_scale_does_not_depend_on_the_size_of_a_full_memory():
    x, y = dataset(16)
    losses = []
    for memory_size in (16, 64, 1024):
        model = make_model(memory_size, HardTopK("all", "all"), ContrastiveLoss())
        crowd, labels = dataset(memory_size, seed=1)
        crowd["sample_id"] += 5000
        loss_of(model, crowd, labels, training=True)
        losses.append(loss_of(model, x, y, training=True))
    assert losses == pytest.approx([losses[0]] * 3, rel=0.15)


@pytest.mark.parametrize(
    ("mining", "memory_size", "loss"),
    [(InFeatures, 12, SupConLoss()), (InFeatures, 200, TripletLoss()), (InEmbeddings, 200, InfoNCELoss())],
    ids=["all rows", "picks alone", "embeddings"],
)
def test_eager_graph_and_xla_train_alike(mining, memory_size, loss):
    # Memories small and large: all rows through the head, or the picks alone; then XLA has a way of its own.
    x, y = dataset()
    runs = []
    for mode in MODES:
        model = compiled(memory_size, HardTopK(4, 2, mining=mining()), loss, mode=mode)
        losses = [model.train_on_batch(*some(x, y, slice(i, i + 8)))[0] for i in (0, 8, 16)]
        runs.append((model, losses))
    assert runs[0][1][0] > 0
    assert all(np.isfinite(v.numpy()).all() for v in runs[0][0].optimizer.variables)  # the sums of all gradients
    for model, losses in runs[1:]:
        assert losses == pytest.approx(runs[0][1], rel=1e-4)
        assert_same_training(model, runs[0][0], rtol=1e-4, atol=1e-6)


def test_stale_rows_are_embedded_with_the_current_head():
    # The memory holds features, so rows of long ago are embedded anew: the loss is that of one large batch.
    x, y = dataset(16)
    model = make_model(16, HardTopK("all", "all"), SupConLoss(0.1))
    loss_of(model, *some(x, y, slice(0, 8)), training=True)
    model.head.kernel.assign(np.random.default_rng(5).normal(size=(6, 3)))
    late = some(x, y, slice(8, 16))
    z = unit(unit(x["features"].astype(np.float64)) @ model.head.kernel.numpy())
    expected = []
    for i in range(8, 16):
        others = [a for a in range(16) if a != i]
        total = sum(np.exp(z[i] @ z[a] / 0.1) for a in others)
        positives = [a for a in others if y[a] == y[i]]
        expected.append(np.mean([np.log(total) - z[i] @ z[p] / 0.1 for p in positives]))
    assert loss_of(model, *late, training=True) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("mining", [InFeatures, InEmbeddings])
def test_gradient_reaches_the_head_from_both_sides(mining):
    x, y = dataset(8)
    model = make_model(50, HardTopK(3, 2, "hardest", mining()))
    loss_of(model, *dataset(20, seed=1), training=True)

    def loss(kernel, bias):
        model.head.kernel.assign(kernel)
        model.head.bias.assign(bias)
        return loss_of(model, x, y, training=True)

    kernel, bias = model.head.kernel.numpy(), model.head.bias.numpy()
    with tf.GradientTape() as tape:
        value = model.compute_loss(x, y, model(x), training=True)
    gradient = tape.gradient(value, model.head.kernel.value).numpy()
    step = np.zeros_like(kernel)
    step[2, 1] = 1e-2
    slope = (loss(kernel + step, bias) - loss(kernel - step, bias)) / 2e-2
    assert gradient[2, 1] == pytest.approx(slope, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("mining", [InFeatures, InEmbeddings])
def test_hardness_is_measured_in_the_space_to_mine_in(mining, monkeypatch):
    x, y = dataset(10, classes=2)
    model = make_model(10, HardTopK(2, 0, mining=mining()))
    features = unit(x["features"])
    keys = unit(features @ built_kernel(model, x)) if mining is InEmbeddings else features
    picked, pick = [], model.top_k.call
    monkeypatch.setattr(model.top_k, "call", lambda *args, **how: picked.append(pick(*args, **how)) or picked[-1])
    loss_of(model, x, y, training=True)
    scores = keys @ keys.T
    for i in range(10):
        others = [row for row in range(10) if y[row] != y[i]]
        hardest = sorted(others, key=lambda row: -scores[i, row])[:2]
        assert picked[0].indices.numpy()[i].tolist() == hardest
        np.testing.assert_allclose(picked[0].feature_scores[i], features[i] @ features[hardest].T, atol=1e-6)


@pytest.mark.parametrize(("refresh", "mode"), [(200, "eager"), (30, "eager"), (30, "graph"), (200, "xla")])
def test_stored_keys_of_all_rows_train_like_exact_ones(refresh, mode):
    """Renewing all rows in each step is exact; some of them is a little stale in the mining, never in the loss."""
    x, y = dataset()
    exact = compiled(200, HardTopK(4, 2, "hardest", InEmbeddings()))
    stored = compiled(200, HardTopK(4, 2, "hardest", InEmbeddings(refresh)), mode=mode)
    losses = [[model.train_on_batch(*some(x, y, slice(i, i + 8)))[0] for i in (0, 8, 16)] for model in (exact, stored)]
    assert np.isfinite(losses[1]).all()
    if refresh == 200:
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        assert_same_training(stored, exact, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_a_sketch_that_keeps_everything_mines_like_the_features(mode):
    x, y = dataset()
    features = compiled(200, HardTopK(4, 2, "hardest"))
    sketch = compiled(200, HardTopK(4, 2, "hardest", InSketch(6)), mode=mode)
    for model in (features, sketch):
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert_same_training(sketch, features, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("make_mining", [lambda: InEmbeddings(7), lambda: InSketch(3)], ids=["embeddings", "sketch"])
def test_stored_keys_are_saved_and_traced_once(make_mining, tmp_path):
    x, y = dataset()
    model = compiled(40, HardTopK(2, 1, "hardest", make_mining()), mode="graph")
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for mine, other in zip(model.top_k.mining.stored.weights, again.top_k.mining.stored.weights, strict=True):
        np.testing.assert_array_equal(mine, other)
    for each in (model, again):
        each.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert_same_training(model, again, rtol=1e-5, atol=1e-7)
    assert model.without_backbone().top_k.mining.stored is model.top_k.mining.stored  # of the memory that they share
    with pytest.raises(ValueError, match="keeps keys of another memory's rows; expected one for each memory"):
        make_model(40, model.top_k)


@pytest.mark.parametrize("storage_dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("mining", [InFeatures, InEmbeddings])
def test_low_precision_memory_trains(storage_dtype, mining):
    x, y = dataset()
    model = XBMModel(None, Head(3), CircularMemory(200, storage_dtype), HardTopK(4, 2, mining=mining()), SupConLoss())
    model.compile("sgd", run_eagerly=True)
    history = model.fit(x, y, batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


# --- samples and their copies ---


@pytest.mark.parametrize("mining", [InFeatures, InEmbeddings])
def test_an_item_never_meets_its_own_copy(mining, monkeypatch):
    # Pitfalls: the copy that the last epoch left scores exactly 1.0; and masked after mining, nothing else is picked.
    x, y = dataset(24)
    model = compiled(100, HardTopK("all", 7, mining=mining()), mode="eager")
    seen, pick = [], model.top_k.call

    def spy(features, rows, labels, ids, **how):
        picks = pick(features, rows, labels, ids, **how)
        picked = tf.gather(rows.sample_ids, picks.indices).numpy()
        seen.append((ids.numpy(), picked, picks.is_valid.numpy(), picks.is_positive.numpy(), picks.feature_scores))
        return picks

    monkeypatch.setattr(model.top_k, "call", spy)
    model.fit(x, y, batch_size=8, epochs=4, verbose=0)
    assert int(model.memory.num_enqueued.value) == 96  # several copies of each
    for ids, picked, is_valid, _, scores in seen:
        assert not (is_valid & (picked == ids[:, None])).any()
        assert np.where(is_valid, scores, 0).max() < 0.999
        for row in range(8):
            picked_ids = picked[row][is_valid[row]]
            assert len(set(picked_ids)) == len(picked_ids)  # nor one item twice
    for ids, picked, is_valid, is_positive, _ in seen[3:]:  # all 8 items of a class are there: 7 are to be had
        assert (is_valid & is_positive).sum(axis=1).tolist() == [7] * 8
        class_of = dict(zip(x["sample_id"], y, strict=True))
        for row in range(8):
            same = [class_of[p] == class_of[ids[row]] for p in picked[row][is_valid[row]]]
            np.testing.assert_array_equal(same, is_positive[row][is_valid[row]])


def test_ids_and_labels_above_2_to_the_53_survive_fit():
    x, _ = dataset(16)
    x["sample_id"] = 2**53 + np.arange(16, dtype=np.int64)  # as floats every second one is its neighbour
    y = 2**60 + np.arange(16, dtype=np.int64) // 2
    model = compiled(16, HardTopK("all", "all"))
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    np.testing.assert_array_equal(model.memory.sample_ids, x["sample_id"])
    np.testing.assert_array_equal(model.memory.labels, y)
    assert history["valid_anchors"] == [1.0, 1.0]


def test_missing_sample_ids():
    x, y = dataset()
    model = compiled()
    with pytest.raises(ValueError, match=r"Received inputs \['features'\] with memory_size=24; expected 'sample_id'"):
        model.fit({"features": x["features"]}, y, verbose=0)


def test_memory_off_needs_no_sample_ids():
    x, y = dataset()
    a, b = compiled(0, HardTopK("all", "all")), compiled(0, HardTopK("all", "all"))
    history = a.fit({"features": x["features"]}, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    b.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert_same_training(a, b, rtol=1e-6)
    assert history["loss"][1] < history["loss"][0]


def test_missing_labels():
    with pytest.raises(ValueError, match="Received a batch without labels; expected"):
        compiled().fit(dataset()[0], verbose=0)


def test_class_with_one_item_trains():
    # Pitfall: the minimum of an empty positive set crashes (research-xbm #15).
    x, y = dataset(8)
    y = np.array([0, 0, 0, 1, 1, 1, 2, 3])
    for loss in LOSSES:
        history = compiled(8, loss=loss).fit(x, y, batch_size=8, epochs=2, verbose=0).history
        assert np.isfinite(history["loss"]).all()
        assert history["valid_anchors"] == [1.0 if loss.name in ("contrastive", "margin") else 0.75] * 2


@pytest.mark.parametrize("labels", [np.zeros(8, int), np.arange(8)], ids=["one class", "all alone"])
def test_batch_without_any_valid_anchor_is_a_loss_of_zero(labels):
    x, _ = dataset(8)
    model = compiled(8)
    history = model.fit(x, labels, batch_size=8, verbose=0).history
    assert history["loss"] == history["valid_anchors"] == [0.0]
    np.testing.assert_array_equal(model.head.kernel, built_kernel(make_model(), x))


def test_a_frozen_memory_is_left_alone():
    x, y = dataset()
    model = compiled(24, frozen=True)
    built_kernel(model, x)
    model.memory.prefill(unit(x["features"]), y, x["sample_id"])
    before = memory_of(model)
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0).history
    assert memory_of(model) == before
    assert history["occupancy"] == [1.0] * 3
    assert history["loss"][-1] < history["loss"][0]


# --- metrics ---


def test_metrics_of_a_batch_made_by_hand(mode):
    # Angles 0, 60, 90, 150 degrees; a fifth item alone in its class, at 180.
    angles = np.deg2rad([0, 60, 90, 150, 180])
    x = {"features": np.stack([np.cos(angles), np.sin(angles)], axis=1) * 7, "sample_id": np.arange(5)}
    y = np.array([0, 0, 1, 1, 2])
    still = {"optimizer": keras.optimizers.SGD(0.0), "mode": mode, "width": 2}
    model = compiled(10, HardTopK("all", "all"), ContrastiveLoss(0.9, 0.4), Head(2), **still)
    built_kernel(model, x)
    model.head.kernel.assign(np.eye(2))
    logs = model.fit(x, y, batch_size=5, verbose=0).history
    cosine = np.cos(angles[:, None] - angles[None, :])
    is_pair = ~np.eye(5, dtype=bool)
    is_positive = (y[:, None] == y) & is_pair
    is_negative = is_pair & ~is_positive
    active = (is_positive & (cosine < 0.9)) | (is_negative & (cosine > 0.4))
    assert logs["positive_sim"] == pytest.approx([0.5], abs=1e-5)
    assert logs["negative_sim"] == pytest.approx([cosine[is_negative].mean()], abs=1e-5)
    assert logs["active_pairs"] == pytest.approx([active.sum() / 20], abs=1e-5)
    assert logs["occupancy"] == [0.5]
    assert logs["valid_anchors"] == [1.0]  # contrastive needs no positive
    pull = np.where(is_positive, 0.9 - cosine, 0).sum(axis=1) / np.maximum(is_positive.sum(axis=1), 1)
    push = np.where(is_negative, np.maximum(cosine - 0.4, 0), 0).sum(axis=1) / is_negative.sum(axis=1)
    assert logs["loss"] == pytest.approx([(pull + push).mean()], abs=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_pairs_are_active_that_the_gradient_of_any_width_reaches(policy):
    keras.config.set_dtype_policy(policy)  # whose losses are scaled
    angles = np.deg2rad([0, 60, 90, 150, 180])
    x = {"features": np.stack([np.cos(angles), np.sin(angles)], axis=1), "sample_id": np.arange(5)}
    y = np.array([0, 0, 1, 1, 1])
    head, top_k = Head(2, widths=[1, 2]), HardTopK("all", "all")
    model = compiled(10, top_k, ContrastiveLoss(0.9, 0.4), head, optimizer=keras.optimizers.SGD(0.0))
    built_kernel(model, x)
    model.head.kernel.assign([[1, 0], [0.1, 1]])  # so that no beginning is zero
    logs = model.fit(x, y, batch_size=5, verbose=0).history
    z = unit(x["features"]) @ np.array([[1.0, 0.0], [0.1, 1.0]])
    is_pair, is_same = ~np.eye(5, dtype=bool), y[:, None] == y
    active = np.zeros((5, 5), bool)
    for width in (1, 2):
        cosine = unit(z[:, :width]) @ unit(z[:, :width]).T
        active |= is_pair & np.where(is_same, cosine < 0.9, cosine > 0.4)
    assert 0 < active.sum() < 20
    assert logs["active_pairs"] == pytest.approx([active.sum() / 20], abs=1e-5)


def test_metrics_of_the_progress_bar(capsys):
    x, y = clusters()
    history = compiled(400, HardTopK(16, 4), SupConLoss(0.1)).fit(x, y, batch_size=32, epochs=6, verbose=2).history
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in METRICS)
    filled = np.minimum(32 * np.arange(1, 31), 400) / 400  # after each step of 6 epochs of 5
    assert history["occupancy"] == pytest.approx(filled.reshape(6, 5).mean(axis=1), abs=1e-5)
    for name in ("occupancy", "valid_anchors", "active_pairs"):
        assert all(0 <= v <= 1 for v in history[name])
    assert history["positive_sim"][-1] > history["positive_sim"][0]
    assert history["positive_sim"][-1] > history["negative_sim"][-1]


# --- it learns ---


def leave_one_out_recall(embeddings, y):
    scores = embeddings @ embeddings.T
    np.fill_diagonal(scores, -2)
    return float((y[scores.argmax(axis=1)] == y).mean())


@pytest.mark.parametrize("mining", [InFeatures, InEmbeddings])
def test_learns_from_a_random_start(mining):
    x, y = clusters()
    adam = keras.optimizers.Adam(0.02)
    model = compiled(160, HardTopK(32, 8, mining=mining()), head=Head(6), optimizer=adam, mode="graph", width=16)
    model.build({name: values.shape for name, values in x.items()})
    before = leave_one_out_recall(model.encoder.predict(x["features"], verbose=0), y)
    history = model.fit(x, y, batch_size=32, epochs=15, verbose=0).history
    after = leave_one_out_recall(model.encoder.predict(x["features"], verbose=0), y)
    frozen = leave_one_out_recall(unit(x["features"]), y)
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert after > max(before, frozen) + 0.2


# --- encoder, live and cached features ---


def test_encoder_shares_the_weights_and_needs_a_build():
    model = compiled()
    with pytest.raises(ValueError, match="This model has no weights yet; expected it to be built"):
        _ = model.encoder
    x, y = dataset()
    built_kernel(model, x)
    encoder = model.encoder
    model.fit(x, y, batch_size=8, verbose=0)
    embeddings = encoder.predict(x["features"], verbose=0)
    np.testing.assert_allclose(embeddings, model.predict(x, verbose=0)["embeddings"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert len(encoder.weights) == 2  # no memory inside


def test_encoder_is_one_object_that_traces_once(tmp_path):
    model = compiled(backbone=small_backbone())
    x, y = images(8)
    model.fit(x, y, verbose=0)
    for _ in range(3):
        model.encoder.predict(x["inputs"], verbose=0)
    assert model.encoder.predict_function.experimental_get_tracing_count() == 1
    before = model.encoder.predict(x["inputs"], verbose=0)
    assert [layer.name for layer in model.layers].count("encoder") == 0
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.encoder.predict(x["inputs"], verbose=0), before)
    assert model.encoder is model.encoder


def test_cached_features_train_like_live_ones():
    # Pitfall: cached features that would not converge (deep-learning-models #21).
    x, y = images(24)
    live, cached = compiled(20, backbone=small_backbone()), compiled(20, backbone=small_backbone())
    features = {"features": cached.backbone(x["inputs"]).numpy(), "sample_id": x["sample_id"]}
    a = live.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
    b = cached.fit(features, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert a == pytest.approx(b, rel=1e-4)
    assert_same_training(live, cached, rtol=1e-3, atol=1e-5)


def test_without_backbone_is_the_same_model():
    x, y = images(24)
    model = compiled(20, backbone=small_backbone())
    model.fit(x, y, batch_size=8, verbose=0)
    twin = model.without_backbone()
    features = {"features": model.backbone(x["inputs"]).numpy(), "sample_id": x["sample_id"]}
    expected = model.predict(x, verbose=0)["embeddings"]
    np.testing.assert_allclose(twin.predict(features, verbose=0)["embeddings"], expected, rtol=1e-4, atol=1e-5)
    twin.fit(features, y, batch_size=8, verbose=0)  # trains the weights of both
    assert np.abs(model.predict(x, verbose=0)["embeddings"] - expected).max() > 1e-3
    assert twin.memory is model.memory
