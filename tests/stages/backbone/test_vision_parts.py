"""Parts of the tokens of a vision transformer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import hub_presets
from tests.stages.backbone.test_hub import keras_hub, photos, small_model
from xbm_keras.feature_cache.cache import fingerprint
from xbm_keras.stages.backbone import vision_parts
from xbm_keras.stages.backbone.hub import HubBackbone


def tokens_by_hand(network, family, pictures):
    """Normalised tokens of the last blocks, of their layers one by one."""
    if family in ("DINOV2", "DINOV3"):
        name = {"DINOV2": "images", "DINOV3": "pixel_values"}[family]
        blocks = keras.Model(network.input, [network.pyramid_outputs[f"stage{i}"] for i in range(2, 6)])(
            {name: pictures}
        )
        return [np.asarray(network.layernorm(each)) for each in blocks]
    if family == "ViT":
        x, encoder = network.get_layer("vit_patching_and_embedding")(pictures), network.get_layer("vit_encoder")
        layers, norm = encoder.encoder_layers, encoder.layer_norm
    else:
        vision = network.vision_encoder
        x, layers = vision.embedding(pictures), vision.encoder_layers
        x = vision.pre_layer_norm(x) if family == "CLIP" else x
        norm = vision.layer_norm if family == "CLIP" else vision.post_layer_norm
    blocks = []
    for layer in layers:
        x = layer(x)
        blocks.append(np.asarray(norm(x)))
    return blocks[-4:]


@pytest.mark.parametrize(
    ("family", "num_first"), [("DINOV2", 3), ("DINOV3", 3), ("ViT", 1), ("CLIP", 1), ("SigLIP", 0)]
)
def test_parts_of_vision_transformers(tmp_path, family, num_first):
    preset = hub_presets.tiny_pictures(tmp_path, family, num_layers=5, registers=2)
    network = keras_hub.models.Backbone.from_preset(preset)
    converted = keras_hub.layers.ImageConverter.from_preset(preset)(photos())
    blocks = tokens_by_hand(network, family, converted)
    patches = blocks[-1][:, num_first:]
    assert patches.shape == (3, 4, 16)
    first = [block[:, 0] if num_first else block.mean(axis=1) for block in blocks]
    pooled = hasattr(network, "get_vision_embeddings")
    parts = {
        "class": np.asarray(network.get_vision_embeddings(converted)) if pooled else first[-1],
        "patches": patches.mean(axis=1),
        "gem": (np.maximum(patches, 1e-6) ** 3).mean(axis=1) ** (1 / 3),
        "blocks": np.concatenate(first, axis=1),
    }
    unit = {name: part / np.linalg.norm(part, axis=1, keepdims=True) for name, part in parts.items()}
    every = HubBackbone.from_preset(preset, parts=list(parts))
    expected = np.concatenate(list(unit.values()), axis=1)
    np.testing.assert_allclose(every(photos()), expected, atol=2e-5)
    assert every.compute_output_shape((None, None, None, 3)) == (None, expected.shape[1])
    prepared = np.stack([every.prepare(photo) for photo in photos()])
    np.testing.assert_allclose(every.as_function()(prepared), expected, atol=2e-5)
    auto = HubBackbone.from_preset(preset, parts="auto")
    np.testing.assert_allclose(auto(photos()), np.concatenate([unit["class"], unit["patches"]], axis=1), atol=2e-5)
    np.testing.assert_allclose(HubBackbone.from_preset(preset, parts=["class"])(photos()), parts["class"], atol=1e-4)
    seen = [fingerprint(each) for each in (every, auto, auto.remake(), HubBackbone.from_preset(preset))]
    assert seen[1] == seen[2]
    assert len(set(seen)) == 3


def test_fingerprints_tell_parts_apart(pictures):
    parts = [["class"], ["patches"], ["gem"], ["patches", "class"], ["class", "patches"]]
    assert len({fingerprint(HubBackbone.from_preset(pictures, parts=each)) for each in parts}) == len(parts)


@pytest.mark.parametrize("family", ["DINOV2", "ViT", "CLIP", "SigLIP"])
def test_choices_are_columns_of_all_parts(tmp_path, family):
    """And each is the network that a config with these parts would make, so that both have one cache."""
    preset = hub_presets.tiny_pictures(tmp_path, family, num_layers=4)
    every = HubBackbone.from_preset(preset, parts="all")
    features = np.asarray(every(photos()))
    width = 6 if family == "CLIP" else 16
    assert features.shape == (3, width + 16 + 16 + 64)
    parts = [choice.parts for choice in every.choices]
    assert sorted(parts) == sorted(vision_parts.CHOICES)
    assert [len(choice.columns) for choice in every.choices] == sorted(len(each.columns) for each in every.choices)
    for choice in every.choices:
        alone = choice.make()
        expected = features[:, choice.columns]
        found = np.asarray(alone(photos()))
        if len(choice.parts) == 1:
            found = found / np.linalg.norm(found, axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=2e-5)
        named = HubBackbone.from_preset(preset, parts=list(choice.parts))
        assert fingerprint(alone) == fingerprint(named) == fingerprint(alone.remake())
        assert not alone.choices
    assert fingerprint(every.remake()) == fingerprint(every) != fingerprint(named)


def test_there_is_no_choice_where_there_are_no_parts(bert):
    assert HubBackbone.from_preset(bert, parts="all").choices == ()


def test_a_model_of_parts_exports(pictures, tmp_path):
    model = small_model(HubBackbone.from_preset(pictures, parts="auto"))
    model.build({"features": (None, 32)})
    model.encoder.export(str(tmp_path / "export"), verbose=False)
    serve = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"]
    (served,) = serve(tf.constant(photos())).values()
    np.testing.assert_allclose(served, model.encoder(photos()), atol=1e-5)


def test_parts_of_what_has_none(bert, tmp_path):
    assert HubBackbone.from_preset(bert, parts="auto").modality == "text"
    with pytest.raises(ValueError, match=r"Received parts class with .*, which takes texts; leave them out"):
        HubBackbone.from_preset(bert, parts=["class"])
    with pytest.raises(ValueError, match="each one of 'class', 'patches', 'gem', 'blocks'"):
        HubBackbone.from_preset(bert, parts=["middle"])
