"""The frozen network: same features as the network itself, and not one byte of it changes."""

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from xbm_keras import Backbone, CircularMemory, HardTopK, Head, SupConLoss, XBMModel

PHOTOS = [
    "train/Golden-Delicious/Golden-Delicious_001.jpg",
    "train/Golden-Delicious/Golden-Delicious_002.jpg",
    "test/Garant-Ecological-Standard-Milk/Garant-Ecological-Standard-Milk_002.jpg",
    "test/Garant-Ecological-Standard-Milk/Garant-Ecological-Standard-Milk_010.jpg",
]
MOBILENET = "mobilenet_v2_imagenet_224.weights.h5"


def small_cnn(size=8, width=5, pool=True, seed=0):
    """A network with batch statistics that are not those of initialisation."""
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((size, size, 3)),
        keras.layers.Conv2D(width, 3),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
    ]
    network = keras.Sequential([*layers, *([keras.layers.GlobalAveragePooling2D()] if pool else [])])
    normalization = network.layers[1]
    normalization.moving_mean.assign(np.linspace(-3, 3, width))
    normalization.moving_variance.assign(np.linspace(900, 9000, width))
    return network


def small_model(backbone, memory_size=12):
    return XBMModel(backbone, Head(3), CircularMemory(memory_size), HardTopK(4, 2), SupConLoss())


def images(n=8, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3)).astype(np.float32)


def batch_of(x):
    return {"inputs": x, "sample_id": np.arange(len(x))}, np.arange(len(x)) % 2


def contents(layer):
    return [v.numpy().tobytes() for v in layer.weights]


# --- the features are those of the network ---


def test_keras_file_gives_the_features_of_the_network(tmp_path):
    network = small_cnn()
    network.save(tmp_path / "network.keras")
    backbone = Backbone.from_file(str(tmp_path / "network.keras"))
    assert backbone.image_size == (8, 8)  # taken from the network
    features = backbone(images())
    assert features.dtype == tf.float32
    np.testing.assert_array_equal(features, network(images(), training=False))
    assert np.ptp(features, axis=0).min() > 0.01  # not all alike


def test_real_photos_and_weights_equal_keras_applications(data_dir):
    # Pitfall: features that would not converge because the preprocessing differed (deep-learning-models #21).
    weights = str(data_dir / "weights" / MOBILENET)
    photos = np.stack([np.asarray(PIL.Image.open(data_dir / "grocery" / path)) for path in PHOTOS])
    backbone = Backbone.from_application("MobileNetV2", weights, layers="last")
    network = keras.applications.MobileNetV2(
        include_top=False, input_shape=(224, 224, 3), weights=weights, pooling="avg"
    )
    expected = network(keras.applications.mobilenet_v2.preprocess_input(photos.astype(np.float32)), training=False)
    features = backbone(photos).numpy()  # uint8, as decoded
    assert features.shape == (4, 1280)
    assert backbone.compute_output_shape((4, 224, 224, 3)) == (4, 1280)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    similarities = features @ features.T / np.outer(*[np.linalg.norm(features, axis=1)] * 2)
    assert similarities[0, 1] > similarities[0, 2]  # an apple is nearer to an apple than to milk
    assert similarities[2, 3] > similarities[0, 3]


@pytest.mark.parametrize(
    ("name", "scaled"),
    [
        ("MobileNetV2", lambda x: x / 127.5 - 1),
        ("EfficientNetB0", lambda x: x),
        ("ResNet50", lambda x: x[..., ::-1] - np.array([103.939, 116.779, 123.68], np.float32)),
    ],
)
def test_preprocessing_of_each_network_is_its_own(name, scaled):
    # The formulas are those of the papers' code; asymmetric in the channels, so that swapped ones are seen.
    backbone = Backbone(keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()]), name, image_size=(4, 4))
    x = images(2, 4)
    np.testing.assert_allclose(backbone(x), scaled(x).reshape(2, -1), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(x, images(2, 4))  # preprocess_input of numpy arrays writes in place


@pytest.mark.parametrize("shape", [(13, 9), (5, 6), (8, 8)])
def test_images_of_another_size_are_resized_inside(shape):
    network = small_cnn()
    backbone = Backbone(network, image_size=(8, 8))
    x = np.random.default_rng(0).integers(0, 256, (3, *shape, 3)).astype(np.uint8)
    resized = tf.image.resize(x, (8, 8), antialias=True)
    np.testing.assert_allclose(backbone(x), network(resized, training=False), rtol=1e-5, atol=1e-5)
    assert backbone.input_shape_per_item == (None, None, 3)
    assert backbone.compute_output_shape((None, None, None, 3)) == (None, 5)


def test_pooling_of_maps():
    network = small_cnn(pool=False)
    maps = network(images(), training=False).numpy()  # [8, 6, 6, 5]
    np.testing.assert_allclose(Backbone(network, image_size=(8, 8))(images()), maps.mean((1, 2)), rtol=1e-4)
    np.testing.assert_array_equal(Backbone(network, image_size=(8, 8), pooling="max")(images()), maps.max((1, 2)))
    with pytest.raises(ValueError, match=r"shape \(8, 6, 6, 5\) with pooling='first'"):
        Backbone(network, image_size=(8, 8), pooling="first")(images())


def test_pooling_of_tokens():
    network = keras.Sequential([keras.Input((3, 2)), keras.layers.Rescaling(2.0)])
    x = np.array([[[1, 5], [2, 3], [9, -4]]], np.float32)
    for pooling, expected in (("avg", [[8, 8 / 3]]), ("max", [[18, 10]]), ("first", [[2, 10]])):
        backbone = Backbone(network, pooling=pooling)
        np.testing.assert_allclose(backbone(x), expected, rtol=1e-6)
        assert backbone.compute_output_shape((7, 3, 2)) == (7, 2)
    assert backbone.input_shape_per_item == (3, 2)


def test_vectors_pass_as_they_are():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(3.0)])
    np.testing.assert_array_equal(Backbone(network)(np.array([[1.0, 2.0]])), [[3, 6]])


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_rank_that_cannot_be_pooled(pooling):
    network = keras.Sequential([keras.Input((2, 3, 4, 5)), keras.layers.Rescaling(1.0)])
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3, 4, 5\).*expected \[B, D\]"):
        Backbone(network, pooling=pooling)(np.zeros((1, 2, 3, 4, 5)))


def test_network_with_a_dict_of_one_output():
    inner = small_cnn()
    network = keras.Model(inner.inputs, {"pooled": inner.outputs[0]})
    backbone = Backbone(network, image_size=(8, 8))
    np.testing.assert_array_equal(backbone(images()), inner(images(), training=False))
    assert backbone.compute_output_shape((4, 8, 8, 3)) == (4, 5)
    x, y = batch_of(images())
    model = small_model(backbone)
    model.compile("sgd")
    assert np.isfinite(model.fit(x, y, batch_size=4, verbose=0).history["loss"]).all()


def test_network_with_a_dict_of_two_outputs():
    inner = small_cnn()
    network = keras.Model(inner.inputs, {"pooled": inner.outputs[0], "twice": 2 * inner.outputs[0]})
    with pytest.raises(ValueError, match=r"outputs pooled, twice; expected a single one, or 'sequence_output'\. Wrap"):
        Backbone(network, image_size=(8, 8))(images())
    with pytest.raises(ValueError, match=r"outputs pooled, twice; expected a single one, or 'sequence_output'\. Wrap"):
        Backbone(network, image_size=(8, 8)).compute_output_shape((None, 8, 8, 3))


def test_tokens_keep_their_dtype():
    # 2^24 + 1 is no float32: through a float input of the encoder two tokens would become one.
    ids = keras.Input((2,), dtype="int32", name="ids")
    network = keras.Model(ids, keras.ops.cast(keras.ops.mod(ids, np.array([2, 3], np.int32)), "float32"))
    x = np.array([[2**24, 2**24], [2**24 + 1, 2**24 + 1]], np.int32)
    model = small_model(Backbone(network))
    model.compile("sgd")
    model.fit({"inputs": x, "sample_id": np.arange(2)}, np.arange(2), verbose=0)
    np.testing.assert_allclose(model.backbone(x), [[0, 1], [1, 2]])
    np.testing.assert_allclose(
        model.encoder.predict(x, verbose=0), model.predict({"inputs": x}, verbose=0)["embeddings"], rtol=1e-5
    )
    assert np.ptp(model.encoder.predict(x, verbose=0), axis=0).max() > 0


# --- frozen ---


def test_nothing_of_it_changes_in_training_though_all_is_set_trainable():
    # Frozen is two things in Keras, weights and statistics; a later `trainable = True` undoes either elsewhere.
    backbone = Backbone(small_cnn(), image_size=(8, 8))
    model = small_model(backbone)
    model.trainable = True
    backbone.trainable = True
    before = contents(backbone)
    assert len(before) == 6  # kernel, bias, and the four of BatchNormalization
    x, y = batch_of(images())
    expected = backbone(images()).numpy()
    model.compile(keras.optimizers.SGD(1.0))
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert [v.path.split("/")[-1] for v in model.trainable_variables] == ["kernel", "bias"]  # the head alone
    np.testing.assert_array_equal(backbone(images(), training=True), expected)
    model({**x, "inputs": images()}, training=True)
    assert contents(backbone) == before
    assert not backbone.trainable
    assert not backbone.trainable_variables


def test_dropout_inside_stays_off():
    network = keras.Sequential([keras.Input((50,)), keras.layers.Dropout(0.5)])
    x = np.ones((2, 50), np.float32)
    np.testing.assert_array_equal(Backbone(network)(x, training=True), x)
    model = small_model(Backbone(network))
    np.testing.assert_allclose(model({"inputs": x}, training=True)["features"], x / 50**0.5, rtol=1e-6)


def test_no_gradient_passes():
    network = small_cnn()
    x = tf.constant(images())
    with tf.GradientTape() as tape:
        tape.watch([x, *[v.value for v in network.weights]])
        y = tf.reduce_sum(Backbone(network, image_size=(8, 8))(x))
    assert all(g is None for g in tape.gradient(y, [x, *[v.value for v in network.weights]]))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_of_a_model_around_leaves_the_features_alone(policy):
    network = small_cnn()  # float32 weights and policy of its own
    expected = network(images(), training=False)
    backbone = Backbone(network, image_size=(8, 8), dtype=policy)
    features = backbone(images())
    assert features.dtype == tf.float32
    np.testing.assert_array_equal(features, expected)


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "hint"), [("mobilenetv2", "'MobileNetV2'"), ("ResNet-50", "'ResNet50'"), ("EfficentNetB0", "'Effic")]
)
def test_unknown_application(name, hint):
    with pytest.raises(ValueError, match=f"Received {name!r}, which is no model.*Did you mean {hint}"):
        Backbone.from_application(name, None)
    with pytest.raises(ValueError, match=f"Received {name!r}, which is no model.*Did you mean {hint}"):
        Backbone(small_cnn(), preprocessing=name)


def test_unknown_application_like_no_other():
    with pytest.raises(ValueError, match=r"which is no model of keras.applications. Expected one of .*VGG16"):
        Backbone.from_application("ZZZZ", None)


def test_unknown_pooling():
    with pytest.raises(ValueError, match="Received pooling='mean'; expected one of 'avg', 'max', 'first'"):
        Backbone(small_cnn(), pooling="mean")
    for pooling in ("mean", "first"):
        with pytest.raises(ValueError, match=f"Received pooling='{pooling}'; expected one of 'avg', 'max'"):
            Backbone.from_application("MobileNetV2", None, (32, 32), pooling)


def test_missing_weights_file(tmp_path):
    with pytest.raises(ValueError, match=r"Received backbone weights '.*nowhere.h5', which is no file; expected"):
        Backbone.from_application("MobileNetV2", str(tmp_path / "nowhere.h5"))


def test_weights_of_another_network(tmp_path):
    small_cnn().save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match=r"(?s)could not be loaded into MobileNetV2 at 32x32: .*\nExpected weights"):
        Backbone.from_application("MobileNetV2", str(tmp_path / "other.weights.h5"), (32, 32))


def test_weights_file_that_is_none(tmp_path):
    (tmp_path / "empty.weights.h5").write_bytes(b"not hdf5")
    with pytest.raises(ValueError, match=r"could not be loaded into MobileNetV2 at 32x32"):
        Backbone.from_application("MobileNetV2", str(tmp_path / "empty.weights.h5"), (32, 32))


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"Received backbone '.*gone.keras', which is no file"):
        Backbone.from_file(str(tmp_path / "gone.keras"))
    with pytest.raises(ValueError, match=r"Received backbone '.*', which holds no saved_model.pb"):
        Backbone.from_file(str(tmp_path))


# --- round trips ---


def test_config_round_trip():
    backbone = Backbone(small_cnn(pool=False), "MobileNetV2", (8, 8), "max", name="mine")
    twin = Backbone.from_config(backbone.get_config())
    for name in ("preprocessing", "image_size", "pooling", "name", "trainable"):
        assert getattr(twin, name) == getattr(backbone, name)
    twin.network.set_weights(backbone.network.get_weights())
    np.testing.assert_array_equal(twin(images()), backbone(images()))


def test_keras_round_trip_of_a_model_with_a_backbone(tmp_path):
    model = small_model(Backbone(small_cnn(), "MobileNetV2", (8, 8)))
    model.compile(keras.optimizers.Adam(0.01))
    x, y = batch_of(images())
    model.fit(x, y, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.backbone.image_size == (8, 8)
    assert contents(loaded.backbone) == contents(model.backbone)
    assert contents(loaded.memory) == contents(model.memory)
    for name, expected in model.predict(x, verbose=0).items():
        np.testing.assert_array_equal(loaded.predict(x, verbose=0)[name], expected)
    np.testing.assert_array_equal(
        loaded.encoder.predict(images(), verbose=0), model.encoder.predict(images(), verbose=0)
    )
    loaded.trainable = True
    before = contents(loaded.backbone)
    loaded.fit(x, y, batch_size=4, verbose=0)
    assert contents(loaded.backbone) == before
    assert [v.path.split("/")[-1] for v in loaded.trainable_variables] == ["kernel", "bias"]
