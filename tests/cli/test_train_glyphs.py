"""The default experiment, which needs no data, through train.py."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.cli.runs import run
from tests.conftest import ROOT
from xbm_keras.cli import train
from xbm_keras.config.yaml_files import find_config, load_config
from xbm_keras.data.glyphs import Glyphs
from xbm_keras.experiment import build
from xbm_keras.stages.backbone.frozen import GLYPH_NET

CONFIG = ROOT / "configs/default.yaml"


def test_the_default_experiment_with_few_characters(tmp_path):
    settings = [f"cache.dir={tmp_path}/cache", "data.max_classes=40", "training.epochs=1", "training.folds=1"]
    settings += ["views.number=1", "views.turned_classes=false"]  # which so few characters would try
    metrics = run(CONFIG, tmp_path / "run", *settings)
    assert set(metrics) == {"leave_one_out", "query_gallery", "validation", "phase"}
    about = json.loads((tmp_path / "run/data.json").read_text())
    assert about["classes"] == {"train": 15, "validation": 5, "test": 20}
    assert about["skipped"] == {}
    assert about["read_for_backbone"] == sum(about["items"].values())

    serve = tf.saved_model.load(tmp_path / "run/export/1").signatures["serving_default"]
    pictures = np.stack([Glyphs(max_classes=3).load(i) for i in range(4)]).astype(np.float32)
    assert serve(inputs=tf.constant(pictures))["embeddings"].shape == (4, 128)


def test_it_is_the_default():
    assert find_config(train.CONFIG.default).read_text() == CONFIG.read_text()


def test_the_shipped_network_is_small_and_knows_characters_it_never_saw(tmp_path):
    assert GLYPH_NET.stat().st_size < 1_000_000
    backbone = build.make_backbone(load_config(str(CONFIG)))
    source = Glyphs(max_classes=30)
    features = backbone(np.stack([source.load(i) for i in range(len(source.items.keys))])).numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similarities = features @ features.T
    np.fill_diagonal(similarities, -1)
    labels = source.items.labels
    assert np.mean(labels[similarities.argmax(1)] == labels) > 0.9
    assert backbone.image_size == (48, 48)


def test_a_colour_picture_of_another_size_is_taken():
    backbone = build.make_backbone(load_config(str(CONFIG)))
    assert backbone(np.zeros((2, 30, 70, 3), np.uint8)).shape == (2, 576)


@pytest.mark.slow
def test_the_scores_of_the_default_experiment(tmp_path):
    metrics = run(CONFIG, tmp_path / "run", f"cache.dir={tmp_path}/cache")
    for protocol in ("leave_one_out", "query_gallery"):
        frozen, closed_form, trained = (metrics[protocol][name]["map_at_r"] for name in metrics[protocol])
        assert frozen + 0.02 < closed_form
        assert closed_form + 0.02 < trained
