"""The second loss of XBMModel, which holds similarities to what they were at the start."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import MODES
from tests.small_models import assert_same_training, compiled, dataset, loss_of, make_model, unit
from xbm_keras import (
    CircularMemory,
    ClosedForms,
    HardTopK,
    Head,
    NeighborTopK,
    SimilarityAlignmentLoss,
    StartAlignment,
    SupConLoss,
    XBMModel,
)

WEIGHT = 3.0


def started(weight, memory_size=24, top_k=None, head=None, mode="eager", **options):
    """A model at a closed form of its data, which its memory holds."""
    x, y = dataset()
    held = StartAlignment(weight) if weight else None
    model = compiled(memory_size, top_k or HardTopK(4, 2), head=head, mode=mode, start_alignment=held, **options)
    model.build({"features": x["features"].shape})
    model.set_start(ClosedForms(unit(x["features"]), y).pca(model.head.embedding_dim).scaled())
    if memory_size:
        model.memory.prefill(unit(x["features"]), y, x["sample_id"])
    return model, x, y


def turn(model, seed=0):
    """Move the head away from its start, by less than the start is large."""
    kernel = model.head.kernel.numpy()
    model.head.kernel.assign(kernel + np.random.default_rng(seed).normal(scale=0.2, size=kernel.shape))


def kullback_leibler(before, after, mask, temperature=0.1):
    total = 0.0
    for b, a, m in zip(before, after, mask, strict=True):
        p = np.exp(b[m] / temperature) / np.exp(b[m] / temperature).sum()
        q = np.exp(a[m] / temperature) / np.exp(a[m] / temperature).sum()
        total += (p * np.log(p / q)).sum()
    return total / len(before)


@pytest.mark.parametrize("memory_size", [0, 24, 200], ids=["memory off", "all rows", "picks alone"])
def test_loss_is_the_pair_loss_and_the_divergence(memory_size, monkeypatch):
    seen = []

    def noted(self, *args, anchors=None, embed=None, call=HardTopK.call):
        seen.append(call(self, *args, anchors, embed))
        return seen[-1]

    monkeypatch.setattr(HardTopK, "call", noted)
    top_k = HardTopK(4, 2, positives="hardest")  # the same picks each time
    (held, x, y), (free, *_) = (
        started(weight, memory_size, top_k, frozen=memory_size != 0) for weight in (WEIGHT, 0.0)
    )
    rows = unit(x["features"].astype(np.float64))
    kernel, bias = held.head.kernel.numpy(), held.head.bias.numpy()
    for model in (held, free):
        turn(model)
    extra = loss_of(held, x, y, training=True) - loss_of(free, x, y, training=True)
    picks = seen[0]
    before = unit(rows @ kernel + bias)
    after = unit(rows @ held.head.kernel.numpy() + bias)
    order = np.arange(len(rows))  # the memory holds the items in this order, and so does the batch
    similarities = [(z @ z.T)[order[:, None], picks.indices.numpy()] for z in (before, after)]
    assert extra == pytest.approx(WEIGHT * kullback_leibler(*similarities, picks.is_valid.numpy()), rel=1e-4)
    assert extra > 0.01


def test_at_the_start_it_adds_nothing():
    (held, x, y), (free, *_) = started(WEIGHT), started(0.0)
    assert loss_of(held, x, y, training=True) == pytest.approx(loss_of(free, x, y, training=True), abs=1e-6)


def test_each_nested_width_is_held():
    head = {"widths": [1, 3], "width_weights": [1.0, 1e-9]}
    model, x, y = started(WEIGHT, head=Head(3, **head))
    free, *_ = started(0.0, head=Head(3, **head))
    for each in (model, free):
        kernel = each.head.kernel.numpy()
        each.head.kernel.assign(np.concatenate([-kernel[:, :1] + kernel[:, 1:2], kernel[:, 1:]], axis=1))
    assert loss_of(model, x, y, training=True) > loss_of(free, x, y, training=True) + 0.1


def test_training_stays_closer_the_heavier_it_is():
    changes = []
    for weight in (0.0, 3.0, 100.0):
        model, x, y = started(weight, mode="graph")
        start = model.start_alignment.start.get_weights() if weight else model.head.get_weights()
        embeddings = [unit(unit(x["features"]) @ start[0] + start[1])]
        model.optimizer.learning_rate = 0.003
        model.fit(x, y, batch_size=12, epochs=10, verbose=0)
        embeddings.append(model.encoder.predict(x["features"], verbose=0))
        before, after = (z @ z.T for z in embeddings)
        changes.append(np.abs(after - before).mean())
    assert changes[0] > changes[1] > changes[2] > 0


@pytest.mark.parametrize("memory_size", [pytest.param(24, marks=pytest.mark.slow, id="all rows"), 200])
def test_eager_graph_and_xla_train_alike(memory_size):
    runs = []
    for mode in MODES:
        model, x, y = started(WEIGHT, memory_size, mode=mode)
        turn(model)
        losses = [model.train_on_batch({n: v[i : i + 8] for n, v in x.items()}, y[i : i + 8])[0] for i in (0, 8, 16)]
        runs.append((model, losses))
    for model, losses in runs[1:]:
        assert losses == pytest.approx(runs[0][1], rel=1e-4)
        assert_same_training(model, runs[0][0], rtol=1e-3, atol=1e-5)


def test_the_start_is_never_trained():
    model, x, y = started(WEIGHT)
    before = model.start_alignment.start.get_weights()
    model.fit(x, y, batch_size=12, epochs=2, verbose=0)
    for one, other in zip(before, model.start_alignment.start.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(model.head.kernel, before[0])
    assert len(model.trainable_variables) == 2
    assert len(model.encoder.weights) == 2  # what is served does not carry it


def test_without_a_closed_form_it_holds_to_the_random_start():
    model = make_model(start_alignment=StartAlignment(WEIGHT))
    model.build({"features": (None, 6)})
    np.testing.assert_array_equal(model.start_alignment.start.kernel, model.head.kernel)


def test_saved_and_loaded_it_goes_on_alike(tmp_path):
    model, x, y = started(WEIGHT)
    model.fit(x, y, batch_size=12, epochs=1, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.start_alignment.start.kernel, model.start_alignment.start.kernel)
    losses = [
        each.fit(x, y, batch_size=12, epochs=1, verbose=0, shuffle=False).history["loss"] for each in (model, loaded)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_without_backbone_keeps_the_start():
    model, x, y = started(WEIGHT, top_k=HardTopK(4, 2, positives="hardest"))
    turn(model)
    twin = model.without_backbone()
    np.testing.assert_array_equal(twin.start_alignment.start.kernel, model.start_alignment.start.kernel)
    assert loss_of(twin, x, y, training=True) == pytest.approx(loss_of(model, x, y, training=True), rel=1e-6)


def test_goes_with_training_without_labels():
    x, _ = dataset()
    losses = []
    for weight in (0.0, WEIGHT):
        head, loss = Head(3, widths=[2, 3]), SimilarityAlignmentLoss()
        held = StartAlignment(weight) if weight else None
        model = XBMModel(None, head, CircularMemory(24), NeighborTopK(4, 4), loss, held)
        model.build({"features": x["features"].shape})
        model.memory.prefill(unit(x["features"]), np.zeros(24, int), x["sample_id"])
        turn(model)
        losses.append(float(model.compute_loss(x, None, model(x), training=True)))
    assert losses[1] > losses[0] + 0.01


@pytest.mark.parametrize("weight", [-1.0, 0, float("nan")])
def test_weights_that_are_refused(weight):
    with pytest.raises(ValueError, match=r"weight=.*; expected a number above 0"):
        StartAlignment(weight)


def test_each_head_has_a_start_of_its_own():
    held = StartAlignment(WEIGHT)
    make_model(start_alignment=held)
    with pytest.raises(ValueError, match="keeps the start of another head; expected one for each head"):
        make_model(start_alignment=held)


def test_gradient_at_the_start_is_zero():
    # A minimum: the second loss may not push anywhere before the first one does.
    model, x, y = started(1.0, loss=SupConLoss(temperature=1e9))  # whose own gradient is next to none
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x), training=True)
    np.testing.assert_allclose(tape.gradient(loss, model.head.kernel.value), 0.0, atol=1e-5)
