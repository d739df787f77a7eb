"""SavedModels as the frozen network."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.stages.backbone.test_frozen import batch_of, images, small_cnn, small_model
from xbm_keras import Backbone


@pytest.fixture
def saved_model(tmp_path):
    """A network, and the SavedModel folder that it was exported to."""
    network = small_cnn()
    network.export(str(tmp_path / "exported"), verbose=False)
    return network, str(tmp_path / "exported")


def test_saved_model_gives_the_features_of_the_network(saved_model):
    network, path = saved_model
    for options in ({}, {"endpoint": "serve"}, {"image_size": (8, 8)}):
        backbone = Backbone.from_file(path, **options)
        np.testing.assert_allclose(backbone(images()), network(images(), training=False), rtol=1e-5, atol=1e-5)
        assert backbone.compute_output_shape((None, 8, 8, 3)) == (None, 5)
        assert backbone.compute_output_shape((4, 8, 8, 3)) == (4, 5)
        assert backbone.is_saved_model
        assert backbone.input_shape_per_item == ((None, None, 3) if "image_size" in options else (8, 8, 3))


@pytest.mark.parametrize("image_size", [None, (8, 8)])
def test_saved_model_trains_evaluates_and_encodes(saved_model, tmp_path, image_size):
    # TFSMLayer has neither input_shape nor compute_output_shape.
    network, path = saved_model
    model = small_model(Backbone.from_file(path, image_size=image_size))
    model.compile("sgd")
    x, y = batch_of(images())
    before = [v.numpy() for v in network.weights]
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    model.evaluate(x, y, batch_size=4, verbose=0)
    embeddings = model.encoder.predict(images(), verbose=0)
    features = tf.math.l2_normalize(network(images(), training=False), axis=1)
    expected = tf.math.l2_normalize(features @ model.head.kernel.numpy() + model.head.bias.numpy(), axis=1)
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.predict(x, verbose=0)["embeddings"], expected, rtol=1e-4, atol=1e-5)
    assert [v.path.split("/")[-1] for v in model.trainable_variables] == ["kernel", "bias"]
    for variable, value in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)

    model.without_backbone().save(tmp_path / "head.keras")
    loaded = keras.saving.load_model(tmp_path / "head.keras")
    np.testing.assert_allclose(loaded.encoder.predict(features, verbose=0), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(loaded.memory.sample_ids, model.memory.sample_ids)
    model.encoder.export(str(tmp_path / "encoder"), verbose=False)
    serve = tf.saved_model.load(str(tmp_path / "encoder")).signatures["serving_default"]
    (served,) = serve(tf.constant(images())).values()
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-5)


def test_saved_model_of_tokens(tmp_path):
    ids = keras.Input((None,), dtype="int32", name="ids")
    network = keras.Model(ids, keras.layers.Embedding(7, 4)(ids))
    network.export(str(tmp_path / "tokens"), verbose=False)
    backbone = Backbone.from_file(str(tmp_path / "tokens"))
    x = np.array([[1, 2, 3], [6, 5, 4]], np.int32)
    assert backbone.input_shape_per_item == (None,)
    assert backbone.compute_output_shape((2, 3)) == (2, 4)
    np.testing.assert_allclose(backbone(x), network(x).numpy().mean(axis=1), rtol=1e-6)
    model = small_model(backbone)
    model.compile("sgd")
    model.fit({"inputs": x, "sample_id": np.arange(2)}, np.arange(2), verbose=0)
    assert model.encoder(x).shape == (2, 3)


def test_unknown_endpoint(saved_model):
    with pytest.raises(ValueError, match="nonsense"):
        Backbone.from_file(saved_model[1], endpoint="nonsense")
