"""Features from several depths of a network: which layers, what numbers, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from xbm_keras import Backbone
from xbm_keras.config.yaml_files import ConfigError, load_config
from xbm_keras.experiment import build
from xbm_keras.feature_cache.cache import fingerprint
from xbm_keras.stages.backbone.pyramid import with_outputs

layers = keras.layers


def conv(filters, strides=1, **kwargs):
    return layers.Conv2D(filters, 3, strides=strides, padding="same", **kwargs)


def residual_network(size=32, seed=0):
    """Four resolutions; a residual branch, a squeeze branch and a padding, which are no levels of the pyramid."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 3))
    fine = conv(4, 2, name="fine")(inputs)
    x = conv(5, 2, name="third")(fine)
    branch = conv(5, name="branch")(x)
    squeezed = layers.Reshape((1, 1, 5))(layers.GlobalAveragePooling2D()(branch))
    x = layers.Add(name="third_sum")([x, layers.Multiply(name="scaled")([branch, squeezed])])
    x = layers.Conv2D(6, 3, strides=2, name="fourth")(layers.ZeroPadding2D(((0, 1), (0, 1)), name="padding")(x))
    shortcut = conv(7, 2, name="shortcut")(x)
    inner = conv(9, name="inner")(x)  # at the resolution of `fourth`, but the shortcut goes past it
    x = layers.Add(name="last_sum")([shortcut, conv(7, 2, name="down")(inner)])
    return keras.Model(inputs, x)


def images(size=32, n=3):
    return np.random.default_rng(0).uniform(0, 255, (n, size, size, 3)).astype(np.float32)


def names_of(network):
    by_tensor = {id(layer.output): layer.name for layer in network.layers}
    return [by_tensor[id(output)] for output in network.outputs]


def test_levels_are_what_all_later_maps_come_from():
    assert names_of(with_outputs(residual_network(), "pyramid")) == ["third_sum", "fourth", "last_sum"]


def test_a_network_that_leaps_has_fewer_levels():
    network = keras.Sequential([keras.Input((32, 32, 3)), conv(3, name="fine"), conv(4, 8), conv(5, name="last")])
    assert names_of(with_outputs(network, "pyramid")) == ["last"]
    assert Backbone(with_outputs(network, "pyramid"), image_size=(32, 32))(images()).shape == (3, 5)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("MobileNetV2", 224, ["block_6_expand_relu", "block_13_expand_relu", "out_relu"]),
        ("MobileNetV2", 32, ["block_6_expand_relu", "block_13_expand_relu", "out_relu"]),
        ("VGG16", 64, ["block4_conv3", "block5_conv3", "block5_pool"]),
        ("ResNet50V2", 64, ["conv3_block3_out", "conv4_block5_out", "post_relu"]),
    ],
)
def test_levels_of_known_networks(name, size, expected):
    network = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(size, size, 3))
    assert names_of(with_outputs(network, "pyramid")) == expected


def test_features_are_pooled_maps_of_unit_length_side_by_side():
    network = residual_network()
    taps = [network.get_layer(name).output for name in ("third_sum", "fourth", "last_sum")]
    maps = [each.numpy() for each in keras.Model(network.input, taps)(images())]
    for pooling, pool in (("avg", np.mean), ("max", np.max)):
        pooled = [pool(each, axis=(1, 2)) for each in maps]
        expected = np.concatenate([each / np.linalg.norm(each, axis=1, keepdims=True) for each in pooled], axis=1)
        backbone = Backbone(with_outputs(network, "pyramid"), image_size=(32, 32), pooling=pooling)
        features = backbone(images())
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)
        assert features.dtype == tf.float32
        assert backbone.compute_output_shape((None, None, None, 3)) == (None, 18)


def test_a_single_named_layer_is_pooled_as_it_is():
    network = residual_network()
    backbone = Backbone(with_outputs(network, ["fourth"]), image_size=(32, 32))
    maps = keras.Model(network.input, network.get_layer("fourth").output)(images()).numpy()
    np.testing.assert_allclose(backbone(images()), maps.mean((1, 2)), rtol=1e-4, atol=1e-6)
    assert backbone.compute_output_shape((2, 32, 32, 3)) == (2, 6)


def test_real_network_with_its_weights(data_dir):
    weights = str(data_dir / "weights" / "mobilenet_v2_imagenet_224.weights.h5")
    features = {kind: Backbone.from_application("MobileNetV2", weights, layers=kind) for kind in ("last", "pyramid")}
    last, pyramid = (backbone(images(224, 2)).numpy() for backbone in features.values())
    assert pyramid.shape == (2, 192 + 576 + 1280)
    np.testing.assert_allclose(np.linalg.norm(pyramid, axis=1), np.sqrt(3), rtol=1e-5)
    unit = last / np.linalg.norm(last, axis=1, keepdims=True)
    np.testing.assert_allclose(pyramid[:, -1280:], unit, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "width"),
    [
        ([], 2048),
        (["loss.name=similarity_alignment", "data.labels=null"], 1280),
        (["backbone.layers=last"], 1280),
        (["backbone.layers=[pyramid.1,pyramid.2]"], 192 + 576),
        (["backbone.layers=[pyramid.3,block_6_expand_relu]"], 1280 + 192),
        (["backbone.layers=pyramid", "loss.name=similarity_alignment", "data.labels=null"], 2048),
        (["backbone.layers=[block_6_expand_relu,out_relu]"], 1472),
    ],
)
def test_layers_of_a_config(overrides, width):
    small = ["backbone.weights=null", "backbone.image_size=[32,32]"]
    with pytest.raises(ConfigError, match="layers"):
        load_config("configs/grocery.yaml", ["backbone.layers=all"])  # of which a run takes some: no config says it
    config = load_config("configs/grocery.yaml", [*small, *overrides])
    assert build.make_backbone(config).compute_output_shape((None, None, None, 3)) == (None, width)


@pytest.mark.parametrize(("pooling", "pool"), [("avg", np.mean), ("max", np.max)])
def test_a_map_in_four_cells(pooling, pool):
    sides = {"third_sum": 8, "fourth": 4, "last_sum": 2}
    for size, side in ((32, sides), (20, {"third_sum": 5, "fourth": 2})):  # of odd sides the cells share the middle
        network = residual_network(size)
        for name, n in side.items():
            map = keras.Model(network.input, network.get_layer(name).output)(images(size)).numpy()
            assert map.shape[1:3] == (n, n)
            first, second = slice(0, -(-n // 2)), slice(n // 2, n)
            cells = [map[:, rows, columns] for rows in (first, second) for columns in (first, second)]
            expected = np.concatenate([pool(each, axis=(1, 2)) for each in cells], axis=1)
            giving = with_outputs(network, [f"{name}/2x2"], pooling)
            backbone = Backbone(giving, image_size=(size, size), pooling=pooling)
            np.testing.assert_allclose(backbone(images(size)), expected, rtol=1e-4, atol=1e-6)
            assert backbone.compute_output_shape((2, size, size, 3)) == (2, 4 * map.shape[-1])


def test_cells_of_what_has_none_are_refused():
    network = residual_network(16)  # whose last map is of one by one
    for layers, pooling in ((["last_sum/2x2"], "avg"), (["fine/2x2"], "first")):
        with pytest.raises(ValueError, match=rf"'{layers[0]}' of an output .*pooling='{pooling}'; expected a map"):
            with_outputs(network, layers, pooling)
    with pytest.raises(ValueError, match=r"the layer 'fine/3x3', which .* lacks"):
        with_outputs(network, ["fine/3x3"])


def test_a_run_may_take_any_neighbouring_maps_of_the_pyramid_whole_or_in_cells():
    whole = keras.applications.MobileNetV2((64, 64, 3), weights=None, include_top=False)
    weights = {layer.name: layer.get_weights() for layer in whole.layers}

    def of(layers):
        backbone = Backbone.from_application("MobileNetV2", None, (64, 64), layers=layers)
        for layer in backbone.network.layers[1:]:
            layer.set_weights(weights.get(layer.name, []))  # cells have none
        return backbone

    backbone, pictures = of("all"), images(64, 2)
    in_cells = ("pyramid.1/2x2",), ("pyramid.2/2x2",), ("pyramid.1/2x2", "pyramid.2/2x2")  # 5,120 of the last are many
    assert [each.parts for each in backbone.choices] == [
        ("pyramid.1",), ("pyramid.2",), ("pyramid.1", "pyramid.2"), in_cells[0], ("pyramid.3",),
        ("pyramid.2", "pyramid.3"), ("pyramid.1", "pyramid.2", "pyramid.3"), *in_cells[1:],
    ]  # fmt: skip
    features = backbone(pictures).numpy()
    for choice in backbone.choices:
        narrow = choice.make()
        found = narrow(pictures).numpy()
        if len(choice.parts) == 1:
            found /= np.linalg.norm(found, axis=1, keepdims=True)
        np.testing.assert_allclose(found, features[:, choice.columns], rtol=1e-4, atol=1e-6)
        # A run that took it is opened by its names, and finds what it cached.
        assert fingerprint(narrow) == fingerprint(of(list(choice.parts)))
    assert fingerprint(backbone.choices[6].make()) == fingerprint(of("pyramid")) == fingerprint(of("auto"))
    assert Backbone.from_application("MobileNetV2", None, (64, 64), layers="auto").choices == ()
    one = Backbone.from_application("MobileNetV2", None, (64, 64), layers="all").choices[1]
    assert one.make().network.layers[-1].output.shape[1:3] == (4, 4)  # nothing behind it is computed


def test_layers_of_a_file_of_a_config(tmp_path):
    keras.applications.MobileNetV2((32, 32, 3), weights=None, alpha=0.35, include_top=False).save(tmp_path / "x.keras")
    own = [f"backbone.path={tmp_path}/x.keras", "backbone.image_size=[32,32]"]
    with pytest.raises(ConfigError, match="layers"):
        load_config("configs/emoji_efficientnet.yaml", [*own, "backbone.layers=all"])
    backbone = build.make_backbone(
        load_config("configs/emoji_efficientnet.yaml", [*own, "backbone.layers=[block_6_expand_relu,out_relu]"])
    )
    assert backbone.compute_output_shape((None, 32, 32, 3)) == (None, 96 + 1280)


def test_a_layer_that_the_network_lacks_is_an_error_of_the_config():
    overrides = ["backbone.weights=null", "backbone.image_size=[32,32]", "backbone.layers=[out_rel]"]
    with pytest.raises(ConfigError, match=r"'out_rel', which .* lacks. Did you mean 'out_relu'"):
        build.make_backbone(load_config("configs/grocery.yaml", overrides))


def test_keras_file_by_pyramid_by_names_and_as_it_is(tmp_path):
    path = str(tmp_path / "network.keras")
    residual_network().save(path)
    widths = {"last": 7, "pyramid": 18}
    for kind, width in widths.items():
        assert Backbone.from_file(path, layers=kind)(images()).shape == (3, width)
    assert Backbone.from_file(path)(images()).shape == (3, 7)
    assert Backbone.from_file(path, layers=["fine", "third"])(images()).shape == (3, 9)
    widths = {each.parts: each.make()(images()).shape[1] for each in Backbone.from_file(path, layers="all").choices}
    assert widths[("pyramid.1", "pyramid.2", "pyramid.3")] == 18
    assert widths[("pyramid.3",)] == 7
    assert widths[("pyramid.1/2x2", "pyramid.2/2x2")] == 44
    assert len(widths) == 6 + 3  # the last map is of two by two
    with pytest.raises(ValueError, match=r"pooling='first'; expected \[B, D\]"):
        Backbone.from_file(path, layers="all", pooling="first")(images())


def test_saved_and_loaded_backbone_gives_the_same_features(tmp_path):
    backbone = Backbone(with_outputs(residual_network(), "pyramid"), image_size=(32, 32))
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, backbone(inputs)).save(tmp_path / "backbone.keras")
    loaded = keras.saving.load_model(tmp_path / "backbone.keras")
    np.testing.assert_array_equal(loaded(images()), backbone(images()))


def test_cache_tells_layers_apart_and_builds_alike():
    def of(kind):
        network = residual_network()  # names such as reshape_3 count up from build to build
        return fingerprint(Backbone(with_outputs(network, kind), image_size=(32, 32)))

    kinds = ["pyramid", ["third_sum", "last_sum"], ["third", "last_sum"], ["last_sum"], ["last_sum/2x2"]]
    first, again = [of(kind) for kind in kinds], [of(kind) for kind in kinds]
    assert first == again
    assert len(set(first)) == len(kinds)


def test_what_cannot_be_followed_is_refused():
    shared = conv(3)
    inputs = keras.Input((16, 16, 3))
    twice = keras.Model(inputs, shared(shared(inputs)))
    with pytest.raises(ValueError, match=r"calls a layer more than once.*Name the layers, or use layers: last"):
        with_outputs(twice, "pyramid")
    vectors = keras.Sequential([keras.Input((16, 16, 3)), conv(3), layers.GlobalAveragePooling2D()])
    with pytest.raises(ValueError, match=r"output is \(None, 3\) with layers='pyramid'; expected maps"):
        with_outputs(vectors, "pyramid")
    with pytest.raises(ValueError, match=r"the layer 'forth', which .* lacks. Did you mean 'fourth'"):
        with_outputs(residual_network(), ["third", "forth"])
    any_size = keras.Sequential([keras.Input((None, None, 3)), conv(3)])
    with pytest.raises(ValueError, match="of a fixed size"):
        with_outputs(any_size, "pyramid")
