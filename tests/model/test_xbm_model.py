"""The pipeline as a Keras model: plain compile and fit, and what must hold over whole runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.small_models import (
    LOSSES,
    METRICS,
    assert_same_training,
    built_kernel,
    compiled,
    dataset,
    images,
    make_model,
    memory_of,
    small_backbone,
    state_of,
    unit,
)
from xbm_keras import (
    CircularMemory,
    HardTopK,
    Head,
    InEmbeddings,
    InFeatures,
    NonFiniteFeatures,
    SupConLoss,
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
