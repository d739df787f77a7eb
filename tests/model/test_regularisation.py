"""What keeps a head near its start, or its steps small: dropout, L2 to the start, warm-up, averaging."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import MODES
from tests.model.test_start_alignment import started, turn
from tests.small_models import assert_same_training, compiled, dataset, loss_of, unit
from xbm_keras import Head
from xbm_keras.config.yaml_files import check_config
from xbm_keras.experiment import build, phases
from xbm_keras.experiment.loading import load_dataset


def test_dropout_leaves_out_features_of_anchors_alone():
    head = Head(400, dropout=0.25)
    head.build((None, 400))
    head.kernel.assign(np.eye(400))
    features = unit(np.random.default_rng(0).uniform(0.5, 1, (8, 400)).astype(np.float32))
    np.testing.assert_allclose(head(features), features, atol=1e-6)
    dropped = head(features, training=True).numpy()
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.03)
    ratio = dropped / features
    scale = ratio.max(axis=1, keepdims=True)
    np.testing.assert_allclose(np.where(dropped == 0, scale, ratio), np.tile(scale, 400), rtol=1e-4)
    assert (head(features, training=True).numpy() != dropped).any()

    x, y = dataset(n=24, width=6)
    model = compiled(24, head=Head(3, dropout=0.5))
    model.build({"features": (None, 6)})
    outputs, plain = model(x, training=True), model(x)
    np.testing.assert_array_equal(outputs["features"], plain["features"])
    assert np.abs(outputs["embeddings"] - plain["embeddings"]).max() > 0.1
    seen = []
    call = model.head.call
    model.head.call = lambda features, training=False: seen.append(training) or call(features, training)
    model.compute_loss(x, y, outputs, training=True)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 2])
def test_a_share_to_drop_is_checked(dropout):
    with pytest.raises(ValueError, match="dropout"):
        Head(4, dropout=dropout)


def far(model):
    before = {weight.name: weight.numpy() for weight in model.start.weights}
    return sum(((w.numpy() - before[w.name]) ** 2).sum() for w in model.head.trainable_weights)


@pytest.mark.parametrize("kind", ["linear", "residual", "mlp"])
def test_l2_to_the_start_is_the_squared_distance(kind):
    (held, x, y), (free, *_) = (started(0.0, head=Head(3, kind=kind), start_l2=l2) for l2 in (0.5, 0.0))
    held.top_k.num_positives = free.top_k.num_positives = 0  # which would be drawn
    at_start = loss_of(held, x, y, training=True) - loss_of(free, x, y, training=True)
    assert at_start == pytest.approx(0, abs=1e-6)
    for model in (held, free):
        for weight in model.head.trainable_weights:
            weight.assign_add(np.random.default_rng(0).normal(size=weight.shape))
    extra = loss_of(held, x, y, training=True) - loss_of(free, x, y, training=True)
    assert extra == pytest.approx(0.5 * far(held), rel=1e-4)
    assert extra > 1


def test_l2_pulls_back():
    moved = []
    for l2 in (1e-9, 0.3, 3.0):
        model, x, y = started(0.0, start_l2=l2)
        model.fit(x, y, batch_size=12, epochs=10, verbose=0)
        moved.append(far(model))
    assert moved[0] > 2 * moved[1] > 4 * moved[2] > 0


@pytest.mark.parametrize("mode", MODES[1:])
def test_in_all_modes_alike(mode):
    models = []
    for each in ("eager", mode):
        model, x, y = started(1.0, head=Head(3), mode=each, start_l2=0.5)
        model.fit(x, y, batch_size=12, epochs=2, verbose=0, shuffle=False)
        models.append(model)
    assert_same_training(*models, atol=1e-5)


def test_a_saved_model_goes_on_from_the_same_start(tmp_path):
    model, *_ = started(0.0, head=Head(3, dropout=0.3), start_l2=0.5)
    model.optimizer.build(model.trainable_variables)
    turn(model)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert far(loaded) == pytest.approx(far(model)) != 0
    assert (loaded.start_l2, loaded.head.dropout) == (0.5, 0.3)
    twin = model.without_backbone()
    assert twin.start_l2 == 0.5
    assert far(twin) == far(model)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="start_l2=-1"):
        compiled(start_l2=-1)


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(16), 6)
    np.savez(tmp_path / "x.npz", features=rng.normal(size=(16, 8))[labels] + rng.normal(size=(96, 8)), label=labels)

    def make(**training):
        given = {
            "data": {"source": "features", "path": str(tmp_path / "x.npz")},
            "backbone": {"kind": "none"},
            "head": {"embedding_dim": 4, "start": "pca", "power": 1},
            "training": {"epochs": 4, "classes_per_batch": 2, "samples_per_class": 4, "jit_compile": False, **training},
        }
        config = check_config(given, "x.yaml")
        loaded = load_dataset(config, None)
        return config, loaded, phases.start_model(config, loaded, None, loaded.splits.train)

    return make


def test_the_rate_rises_and_then_falls(data):
    config, loaded, model = data(schedule="cosine", warmup=0.25, learning_rate=0.1)
    steps = 4 * build.steps_per_epoch(config, build.make_sampler(config, loaded.labels[loaded.splits.train]))
    rates = [float(model.optimizer._learning_rate(step)) for step in range(steps + 1)]
    top = round(steps / 4)
    assert rates[0] == 0
    assert rates[top] == max(rates) == pytest.approx(0.1)
    assert np.all(np.diff(rates[: top + 1]) > 0)
    assert np.all(np.diff(rates[top:]) < 0)
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    middle = top + (steps - top) // 2
    assert rates[middle] == pytest.approx(0.05 * (1 + np.cos(np.pi * (middle - top) / (steps - top))), rel=1e-4)
    plain = data(schedule="cosine", learning_rate=0.1)[2].optimizer._learning_rate
    assert float(plain(0)) == pytest.approx(0.1)


def test_the_average_takes_the_place_of_the_weights_at_the_end_of_an_epoch(data):
    config, loaded, plain = data()
    train = loaded.splits.train
    steps = build.steps_per_epoch(config, build.make_sampler(config, loaded.labels[train]))
    assert steps > 2
    passed = []
    noted = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: passed.append(plain.head.get_weights()))
    phases.fit(config, loaded, plain, train, 1, [noted], show_progress=False)
    average = passed[0]
    for weights in passed[1:]:
        average = [0.8 * a + 0.2 * w for a, w in zip(average, weights, strict=True)]
    config, loaded, averaged = data(averaging=0.8)
    ends = []
    noted = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_, **__: ends.append(averaged.head.get_weights()))
    phases.fit(config, loaded, averaged, train, 2, [noted], show_progress=False)
    for weight, expected, last in zip(ends[0], average, passed[-1], strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-5)
        assert np.abs(weight - last).max() > 1e-5
    assert any(np.abs(a - b).max() > 1e-5 for a, b in zip(*ends, strict=True))
    for weight, expected in zip(averaged.head.get_weights(), ends[1], strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_the_config_reaches_the_model(data):
    model = data(feature_dropout=0.2, start_l2=0.1)[2]
    assert model.head.dropout == 0.2
    assert model.start_l2 == 0.1
    assert far(model) == 0
    assert tf.reduce_any(model.start.kernel.value != 0)
