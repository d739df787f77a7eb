"""One step of training: the loss, what is mined, what the metrics say, and that it learns."""

import itertools

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
    loss_of,
    make_model,
    some,
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
    SupConLoss,
    TripletLoss,
    XBMModel,
)
from xbm_keras.model.fused_adam import FusedAdam

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
@pytest.mark.parametrize("how", [("all", "all"), (3, 2, "hardest")], ids=["all", "hardest"])
def test_permuting_the_batch_leaves_the_loss(how, mining):
    losses = []
    x, y = dataset(12)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(12) if seed else np.arange(12)
        model = make_model(20, HardTopK(*how, mining=mining()))
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
    for mode in MODES if memory_size == 12 else ("eager", "xla"):
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


def test_an_optimizer_may_add_up_gradients_of_several_steps(mode):
    x, y = dataset(32)
    model = compiled(optimizer=FusedAdam(0.01, gradient_accumulation_steps=2), mode=mode)
    kernels = [built_kernel(model, x)]
    for start in range(0, 32, 8):
        model.train_on_batch(*some(x, y, slice(start, start + 8)))
        kernels.append(model.head.kernel.numpy())
    assert [not np.array_equal(a, b) for a, b in itertools.pairwise(kernels)] == [False, True, False, True]
