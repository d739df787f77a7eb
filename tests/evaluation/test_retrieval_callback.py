"""Embedding of many items, and the scores of each epoch by a callback."""

import keras
import numpy as np
import pytest

from xbm_keras import Backbone, CircularMemory, HardTopK, Head, SupConLoss, XBMModel
from xbm_keras.evaluation.retrieval import RetrievalEvaluation, embed, evaluate_retrieval


def make_model(backbone=None, width=12, **kwargs):
    keras.utils.set_random_seed(0)
    model = XBMModel(backbone, Head(6), CircularMemory(64), HardTopK(16, 4), SupConLoss(), **kwargs)
    model.compile(keras.optimizers.Adam(0.01))
    return model


def make_data(num_classes=10, seed=0):
    """Classes that lie apart in a few directions, under louder noise in the others."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), 8)
    random.shuffle(labels)
    centers = random.normal(size=(num_classes, 4))[labels]
    features = np.concatenate([centers + 0.5 * random.normal(size=centers.shape), 2 * random.normal(size=(80, 8))], 1)
    return features.astype("float32"), labels


def fit(model, callbacks, epochs=3):
    features, labels = make_data()
    x = {"features": features, "sample_id": np.arange(len(labels))}
    return model.fit(x, labels, batch_size=32, epochs=epochs, callbacks=callbacks, verbose=0)


NAMES = {"recall_at_1", "recall_at_5", "recall_at_10", "map_at_r", "r_precision"}


@pytest.mark.parametrize("batch_size", [1, 7, 80, 4096])
def test_embed_gives_what_the_encoder_gives(batch_size, tmp_path):
    model = make_model()
    model.build({"features": (None, 12)})
    features = make_data()[0] * 100
    np.save(tmp_path / "features.npy", features.astype("float16"))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    embeddings = embed(model.head, mapped, batch_size)
    assert embeddings.dtype == np.float32
    expected = model.encoder.predict(features.astype("float16").astype("float32"), verbose=0)
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    assert embed(model.head, mapped[:0]).shape == (0, 6)


def test_the_logs_hold_the_scores_of_the_epoch():
    features, labels = make_data(seed=1)
    model = make_model()
    seen = {}

    class Later(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen[epoch] = dict(logs)
            expected = evaluate_retrieval(self.model.encoder.predict(features, verbose=0), labels)
            assert {name: logs[f"val_{name}"] for name in expected} == pytest.approx(expected, abs=1e-3)

    callback = RetrievalEvaluation(features, labels)
    history = fit(model, [callback, Later()]).history
    assert {f"val_{name}" for name in NAMES} == set(callback.baseline) <= set(history)
    assert history["val_map_at_r"] == [seen[epoch]["val_map_at_r"] for epoch in range(3)]
    assert all(type(value) is float for value in (*history["val_map_at_r"], *callback.baseline.values()))
    assert len({callback.baseline["val_map_at_r"], *history["val_map_at_r"]}) == 4


def test_the_baseline_is_the_head_before_the_first_step():
    features, labels = make_data(seed=1)
    model, untouched = make_model(), make_model()
    untouched.build({"features": (None, 12)})
    callback = RetrievalEvaluation(features, labels)
    fit(model, [callback], epochs=1)
    expected = evaluate_retrieval(embed(untouched.head, features), labels)
    assert callback.baseline == {f"val_{name}": value for name, value in expected.items()}
    fit(model, [callback], epochs=1)  # training goes on from another head
    assert callback.baseline["val_map_at_r"] != expected["map_at_r"]


def test_evaluation_leaves_training_as_it_is():
    plain, watched = make_model(), make_model()
    keras.utils.set_random_seed(0)
    fit(plain, [])
    keras.utils.set_random_seed(0)
    fit(watched, [RetrievalEvaluation(*make_data(seed=1))])
    for a, b in zip(plain.weights, watched.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_checkpoint_and_early_stopping_read_the_scores(tmp_path):
    features, labels = make_data(seed=1)
    monitored = {"monitor": "val_map_at_r", "mode": "max"}
    best = keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), save_best_only=True, **monitored)
    weights_path = str(tmp_path / "best.weights.h5")
    weights = keras.callbacks.ModelCheckpoint(weights_path, save_best_only=True, save_weights_only=True, **monitored)
    named = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}-{val_recall_at_1:.3f}.keras"))
    stop = keras.callbacks.EarlyStopping(patience=2, min_delta=2, **monitored)  # nothing improves by that much
    callbacks = [RetrievalEvaluation(features, labels), best, weights, named, stop]
    history = fit(make_model(), callbacks, epochs=9).history
    scores = history["val_map_at_r"]
    assert len(scores) == 1 + 2
    assert best.best == max(scores)
    fresh = make_model()
    fresh.build({"features": (None, 12)})
    fresh.optimizer.build(fresh.trainable_variables)  # else Keras warns that it has no place for the slots
    fresh.load_weights(weights_path)
    for loaded in (keras.saving.load_model(tmp_path / "best.keras"), fresh):
        found = evaluate_retrieval(embed(loaded.head, features), labels)
        assert found["map_at_r"] == pytest.approx(max(scores), abs=1e-9)
    names = {f"{epoch + 1}-{recall:.3f}.keras" for epoch, recall in enumerate(history["val_recall_at_1"])}
    assert names < {path.name for path in tmp_path.iterdir()}


def test_queries_against_the_others_under_a_name_of_their_own():
    features, labels = make_data(seed=1)
    is_query = np.arange(len(labels)) % 4 == 0
    model = make_model()
    callback = RetrievalEvaluation(features, labels, ks=(1, 3), is_query=is_query, prefix="test_")
    history = fit(model, [callback], epochs=1).history
    vectors = embed(model.head, features)
    expected = evaluate_retrieval(vectors[is_query], labels[is_query], vectors[~is_query], labels[~is_query], (1, 3))
    assert {name: history[f"test_{name}"] for name in expected} == {name: [value] for name, value in expected.items()}
    assert not any(name.startswith("val_") for name in history)


def test_inputs_pass_the_backbone_once():
    network = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Conv2D(5, 3), keras.layers.GlobalAveragePooling2D()]
    )
    model = make_model(Backbone(network, image_size=(4, 4)))
    random = np.random.default_rng(7)
    images, labels = random.integers(0, 256, (40, 4, 4, 3)).astype("uint8"), np.arange(40) % 5
    callback = RetrievalEvaluation(images, labels, from_inputs=True)
    inputs = {"inputs": images.astype("float32"), "sample_id": np.arange(40)}
    history = model.fit(inputs, labels, batch_size=20, epochs=2, callbacks=[callback], verbose=0).history
    expected = evaluate_retrieval(model.encoder.predict(images, verbose=0), labels)
    assert history["val_map_at_r"][-1] == pytest.approx(expected["map_at_r"], abs=1e-3)


def test_what_the_callback_cannot_use_is_told():
    features, labels = make_data()
    with pytest.raises(ValueError, match=r"80 validation items with labels of shape \(79,\); expected \(80,\)"):
        RetrievalEvaluation(features, labels[1:])
    for is_query in (np.ones(79, bool), np.ones(80, int)):
        with pytest.raises(ValueError, match=r"is_query of shape .* expected \(80,\) bool"):
            RetrievalEvaluation(features, labels, is_query=is_query)
    with pytest.raises(ValueError, match="from_inputs=True with a model that has no backbone"):
        fit(make_model(), [RetrievalEvaluation(features, labels, from_inputs=True)])
    with pytest.raises(ValueError, match="80 queries none of which has a match"):
        fit(make_model(), [RetrievalEvaluation(features, np.arange(80))])
