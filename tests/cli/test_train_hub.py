"""train.py on keras_hub backbones: texts to a SavedModel that needs neither keras_hub nor this package."""

import importlib
import json
import sys

import keras
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import tensorflow as tf
import yaml

from tests import hub_presets
from tests.cli.runs import fails, folder_of_pictures, run
from tests.conftest import ROOT
from tests.fresh_processes import run_fresh
from xbm_keras.cli import evaluate, index
from xbm_keras.config.yaml_files import load_config
from xbm_keras.experiment import saved_run
from xbm_keras.experiment.build import make_backbone, make_whole_backbone
from xbm_keras.geometry import unit_length
from xbm_keras.stages.backbone import hub, vision_parts

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
    training = {"folds": 1, "epochs": 2, "batch_size": 16}
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


def write_pairs(folder):
    """Questions and answers of the same words, in another order; an empty answer, and one that nobody asked for."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    own = [hub_presets.WORDS[i % 16 : i % 16 + 4] + hub_presets.WORDS[i // 16 : i // 16 + 2] for i in range(48)]
    lines = [{"_id": f"d{i}", "title": "", "text": " ".join(rng.permutation(words))} for i, words in enumerate(own)]
    lines += [{"_id": "empty", "text": " "}, {"_id": "alone", "text": "a"}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = [{"_id": f"q{i}", "text": " ".join(rng.permutation(words))} for i, words in enumerate(own)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    (folder / "qrels").mkdir()
    for split, rows in (("train", range(30)), ("test", range(30, 48))):
        pairs = [f"q{i}\td{i}\t1\n" for i in rows] + ["q0\tempty\t1\n"] * (split == "train")
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(pairs))


def test_questions_and_answers_end_to_end(keras_hub, tmp_path, monkeypatch):
    """Texts of both sides to an index that a client with the run's tokenizer searches."""
    write_pairs(tmp_path / "pairs")
    data = {"source": "pairs", "path": str(tmp_path / "pairs"), "query_prefix": "the "}
    backbone = {"kind": "keras_hub", "preset": str(hub_presets.tiny_bert(tmp_path / "bert")), "max_length": 12}
    config = config_of(tmp_path, data, backbone)
    plain = ["training.batch_size=8", "export.only_if_better=false", "head.sides=two"]
    metrics = run(config, tmp_path / "run", *plain)
    assert np.isfinite(metrics["pairs_unseen_documents"]["trained"]["ndcg_at_10"])
    about = json.loads((tmp_path / "run/data.json").read_text())
    assert about["documents"] == 49
    assert about["skipped"] == {"documents empty": "an empty text"}
    assert about["read_for_backbone"] == 48 + 49
    run(config, tmp_path / "again", *plain, "training.epochs=0")
    assert json.loads((tmp_path / "again/data.json").read_text())["read_for_backbone"] == 0
    run(config, tmp_path / "other", *plain, "training.epochs=0", "data.query_prefix=")
    assert json.loads((tmp_path / "other/data.json").read_text())["read_for_backbone"] == 48  # queries without a prefix

    index.main(["build", "--index", str(tmp_path / "run/index"), "--model", str(tmp_path / "run")])
    (tmp_path / "run/index/1").rename(tmp_path / "run/index/10")
    (tmp_path / "run/index/9").mkdir()  # an older version
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    client = importlib.import_module("search_texts")
    asked = [json.loads(line)["text"] for line in (tmp_path / "pairs/queries.jsonl").read_text().splitlines()]
    asked = [f"the {text}" for text in asked]
    answers = client.search(tmp_path / "run", asked, k=49)
    assert list(map(dict, client.search(tmp_path / "run", asked[:2], k=3))) == [
        pytest.approx(dict(each[:3]), abs=1e-5) for each in answers[:2]
    ]
    evaluate.main(["--model", str(tmp_path / "run"), "--items", "all", "--embed", str(tmp_path / "v.npy")])
    queries, documents = (np.load(tmp_path / f"v.{name}.npy") for name in ("queries", "documents"))
    names = pd.read_csv(tmp_path / "v.documents.csv").id.tolist()
    for vector, found in zip(queries, answers, strict=True):
        expected = documents @ vector
        assert [value for _, value in found] == pytest.approx(np.sort(expected)[::-1], abs=1e-5)
        assert dict(found)[names[0]] == pytest.approx(expected[0], abs=1e-5)


def test_pictures_end_to_end(keras_hub, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / f"photos/class{i % 8}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 255, (20, 17, 3), np.uint8)).save(path)
    preset = hub_presets.tiny_pictures(tmp_path / "dinov2")
    data = {"source": "image_folder", "root": str(tmp_path / "photos")}
    config = config_of(tmp_path, data, {"kind": "keras_hub", "preset": preset})
    # All parts are what a run chooses from; one of a version that chose nothing has its rule in its config.
    given = load_config(str(config))
    widths = [
        make(given).compute_output_shape((None, None, None, 3))[1] for make in (make_backbone, make_whole_backbone)
    ]
    assert widths == [16 + 16, 16 + 16 + 16 + 16]
    fast = ["training.epochs=1", "training.batch_size=12", "views.number=2", "views.turned_classes=false"]
    metrics = run(config, tmp_path / "run", *fast, report=True)
    assert (tmp_path / "run/export/1/saved_model.pb").exists()
    assert not (tmp_path / "run/tokenizer").exists()
    assert keras.saving.load_model(tmp_path / "run/model.keras").backbone is None
    # Which parts were taken, everywhere where it is told.
    chosen, tried = metrics["validation"]["parts"], metrics["validation"]["tried_parts"]
    assert sorted(tried) == sorted(map(" + ".join, vision_parts.CHOICES))
    assert load_config(str(tmp_path / "run/config.yaml")).backbone.parts == chosen
    named = f"its parts {' + '.join(chosen)}"
    assert named in (tmp_path / "run/export/1/model_card.md").read_text()
    page = (tmp_path / "run/report.html").read_text()
    assert "Parts of the network" in page
    assert named in page
    assert f"Taken: {' + '.join(chosen)}, " in page
    # What serves is the network with these parts alone, and the head.
    serve = tf.saved_model.load(str(tmp_path / "run/export/1")).signatures["serving_default"]
    paths = sorted((tmp_path / "photos").rglob("*.png"))
    pictures = np.stack([np.asarray(PIL.Image.open(path)) for path in paths]).astype(np.float32)
    backbone = hub.HubBackbone.from_preset(preset, parts=chosen)
    expected = saved_run.load_head(str(tmp_path / "run"))(unit_length(backbone(pictures)))
    np.testing.assert_allclose(serve(tf.constant(pictures))["embeddings"], expected, atol=1e-4)
    # The cache has them: no picture passes the network again, nor for another run of what this one came to.
    evaluate.main(["--model", str(tmp_path / "run"), "--items", "all", "--embed", str(tmp_path / "v.npy")])
    names = pd.read_csv(tmp_path / "v.csv").key
    vectors = dict(zip(names, np.load(tmp_path / "v.npy"), strict=True))
    for path, vector in zip(paths, np.asarray(expected), strict=True):
        np.testing.assert_allclose(vectors[path.relative_to(tmp_path / "photos").as_posix()], vector, atol=1e-4)
    again = run(tmp_path / "run/config.yaml", tmp_path / "again")
    assert json.loads((tmp_path / "again/data.json").read_text())["read_for_backbone"] == 0
    assert again["leave_one_out"] == metrics["leave_one_out"]


def test_data_and_network_of_another_kind(keras_hub, text_config, tmp_path, capsys):
    config = text_config(hub_presets.tiny_pictures(tmp_path / "dinov2"))
    assert "data.source 'text' with the preset" in fails(config, tmp_path / "run", capsys=capsys)
    config = text_config(hub_presets.tiny_bert(tmp_path / "bert"))
    data = {"source": "image_folder", "root": folder_of_pictures(tmp_path / "photos")}
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
