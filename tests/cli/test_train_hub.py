"""train.py on keras_hub backbones: texts to a SavedModel that needs neither keras_hub nor this package."""

import json
import sys

import keras
import numpy as np
import PIL.Image
import pytest
import yaml

from tests import hub_presets
from tests.cli.runs import fails, run
from tests.conftest import run_fresh

SERVE = """
import sys
import numpy as np
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
with np.load(sys.argv[2]) as inputs:
    tokens = dict(inputs)
outputs = [serve(**{k: tf.constant(v[:n]) for k, v in tokens.items()})["embeddings"].numpy() for n in (1, 33, 0)]
assert not {"xbm_keras", "keras_hub", "tensorflow_text"} & set(sys.modules)
np.savez(sys.argv[3], *outputs)
"""


def texts():
    """Texts of 12 classes, five each, with another word order; one of them empty."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        own = hub_presets.WORDS[i : i + 4]
        rows += [{"text": " ".join(rng.permutation(own)), "label": f"intent {i}", "id": i} for _ in range(5)]
    return [*rows, {"text": " ", "label": "intent 0", "id": 0}]


def config_of(folder, data, backbone):
    path = folder / "x.yaml"
    training = {"folds": 1, "epochs": 2, "classes_per_batch": 4, "samples_per_class": 4}
    sections = {"head": {"embedding_dim": 4}, "training": training, "cache": {"dir": str(folder / "cache")}}
    path.write_text(yaml.safe_dump({"data": data, "backbone": backbone, **sections}))
    return path


@pytest.fixture
def text_config(tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts()))

    def write(preset):
        return config_of(
            tmp_path,
            {"source": "text", "path": str(tmp_path / "texts.jsonl")},
            {"kind": "keras_hub", "preset": str(preset), "max_length": 8},
        )

    return write


@pytest.fixture
def keras_hub():
    return pytest.importorskip("keras_hub", reason='needs the extra [hub]: pip install ".[hub]"')


def test_texts_end_to_end(keras_hub, text_config, tmp_path):
    config = text_config(hub_presets.tiny_bert(tmp_path / "bert"))
    metrics = run(config, tmp_path / "run")
    assert np.isfinite(metrics["leave_one_out"]["trained"]["map_at_r"])
    about = json.loads((tmp_path / "run/data.json").read_text())
    assert about["skipped"] == {"60": "an empty text"}
    assert sum(about["items"].values()) == 60

    tokenizer = keras_hub.models.TextClassifierPreprocessor.from_preset(str(tmp_path / "run/tokenizer"))
    inputs = tokenizer([row["text"] for row in texts()[:40]])
    tokens = {name: np.asarray(inputs[name], np.int32) for name in ("token_ids", "padding_mask")}
    assert tokens["token_ids"].shape == (40, 8)
    np.savez(tmp_path / "tokens.npz", **tokens)
    run_fresh(SERVE, tmp_path / "run/export/1", tmp_path / "tokens.npz", tmp_path / "served.npz")
    with np.load(tmp_path / "served.npz") as served:
        one, many, none = served.values()
    # The same by hand: the network, the mean over the tokens, the head.
    network = keras_hub.models.Backbone.from_preset(str(tmp_path / "bert"))
    outputs = np.asarray(network({**tokens, "segment_ids": np.zeros((40, 8), np.int32)})["sequence_output"])
    mask = tokens["padding_mask"][..., None]
    features = (outputs * mask).sum(axis=1) / mask.sum(axis=1)
    model = keras.saving.load_model(tmp_path / "run/model.keras")
    assert model.backbone is None
    expected = model.encoder.predict(features, verbose=0)
    np.testing.assert_allclose(one, expected[:1], atol=1e-4)
    np.testing.assert_allclose(many, expected[:33], atol=1e-4)
    assert none.shape == (0, 4)

    again = run(config, tmp_path / "again")
    assert json.loads((tmp_path / "again/data.json").read_text())["read_for_backbone"] == 0
    assert again["leave_one_out"]["frozen"] == metrics["leave_one_out"]["frozen"]


def test_pictures_end_to_end(keras_hub, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / f"photos/class{i % 8}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 255, (20, 17, 3), np.uint8)).save(path)
    preset = hub_presets.tiny_pictures(tmp_path / "dinov2")
    data = {"source": "image_folder", "root": str(tmp_path / "photos")}
    config = config_of(tmp_path, data, {"kind": "keras_hub", "preset": preset, "pooling": "first"})
    run(config, tmp_path / "run", "training.epochs=1", "training.classes_per_batch=3")
    assert (tmp_path / "run/export/1/saved_model.pb").exists()
    assert not (tmp_path / "run/tokenizer").exists()
    assert keras.saving.load_model(tmp_path / "run/model.keras").backbone is None


def test_data_and_network_of_another_kind(keras_hub, text_config, tmp_path, capsys):
    config = text_config(hub_presets.tiny_pictures(tmp_path / "dinov2"))
    assert "data.source 'text' with the preset" in fails(config, tmp_path / "run", capsys=capsys)
    config = text_config(hub_presets.tiny_bert(tmp_path / "bert"))
    data = {"source": "image_folder", "root": "photos"}
    config = config_of(tmp_path, data, yaml.safe_load(config.read_text())["backbone"])
    assert "a network of texts; expected data of its kind" in fails(config, tmp_path / "run", capsys=capsys)


def test_presets_and_texts_that_cannot_be_had(keras_hub, text_config, tmp_path, capsys):
    config = text_config(hub_presets.tiny_bert(tmp_path / "bert"))
    for override, message in [
        (f"backbone.preset={tmp_path}", "of which keras_hub cannot load the Backbone"),
        ("backbone.max_length=129", "takes at most 128 tokens"),
        ("data.path=nope.jsonl", "'nope.jsonl', which is no file"),
        ("data.labels=lable", "did you mean 'label'"),
        ("data.texts=id", "no text but int"),
        ("cache.on_error=raise", "60: an empty text"),
    ]:
        assert message in fails(config, tmp_path / "run", override, capsys=capsys)


def test_without_keras_hub_the_extra_is_named(text_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    message = fails(text_config("bert_tiny_en_uncased"), tmp_path / "run", capsys=capsys)
    assert 'pip install ".[hub]"' in message


def test_what_texts_do_not_go_with(text_config, tmp_path, capsys):
    config = text_config("bert_tiny_en_uncased")
    for override, message in [
        ("views.number=2", "views.number 2 does not go with data.source 'text'"),
        ("backbone.max_length=2", "backbone.max_length: received 2"),
    ]:
        assert message in fails(config, tmp_path / "run", override, capsys=capsys)
    config = config_of(tmp_path, {"source": "text", "path": "x.jsonl"}, {"kind": "file", "path": "x.keras"})
    assert "texts take keras_hub" in fails(config, tmp_path / "run", capsys=capsys)
