"""The recipe as one call, of vectors, pictures and pairs at hand; and what it refuses."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.small_models import small_backbone
from xbm_keras import Backbone, FittedHead, FittedPairs, fit_head, fit_pairs
from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.data.errors import DataError

SMALL = {"head.embedding_dim": 8, "training.epochs": 2, "training.steps_per_epoch": 3}


@pytest.fixture(scope="module")
def vectors():
    """Twelve classes of twelve, and as many of other classes, that differ in the eight quietest of 32 directions."""
    rng = np.random.default_rng(0)
    labels = np.repeat(list("abcdefghijklmnopqrstuvwx"), 12)
    centers = rng.normal(size=(24, 32)) * (np.arange(32) < 8)
    found = centers.repeat(12, axis=0) + np.where(np.arange(32) < 8, 0.3, 1.5) * rng.normal(size=(288, 32))
    return found.astype(np.float32), labels


@pytest.fixture(scope="module")
def fitted(vectors):
    features, labels = vectors
    return fit_head(features[:144], labels[:144], settings={**SMALL, "training.folds": 1})


def test_it_finds_classes_never_seen_better_than_the_features(fitted, vectors):
    features, labels = vectors
    scores = fitted.evaluate(features[144:], labels[144:])
    assert scores["trained"]["map_at_r"] > scores["frozen"]["map_at_r"] + 0.02
    as_gallery = fitted.evaluate(features[144:150], labels[144:150], features[150:], labels[150:])
    assert set(as_gallery["trained"]) == set(scores["trained"])
    assert json.loads(json.dumps(fitted.scores))["epoch"] in (0, 1, 2)
    norms = np.linalg.norm(fitted.transform(features[:5]), axis=1)
    np.testing.assert_allclose(norms, 1.0, atol=1e-6)


def test_a_head_that_is_worse_than_the_features_is_told(caplog):
    """Classes that differ in all 32 directions, of which eight are kept."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(12, 32)).repeat(12, axis=0) + rng.normal(size=(144, 32))
    with caplog.at_level("INFO", "xbm_keras"):
        fit_head(found, np.arange(144) // 12, settings={**SMALL, "head.embedding_dim": 4})
    assert "2 times, each with others held out" in caplog.text
    assert caplog.text.count("The memory holds all") == 1
    assert "By items held out: The head is WORSE than the frozen features" in caplog.text


def test_saved_loaded_and_exported_it_gives_the_same(fitted, vectors, tmp_path):
    some = vectors[0][:7]
    fitted.save(tmp_path / "head.keras")
    np.testing.assert_array_equal(FittedHead.load(tmp_path / "head.keras").transform(some), fitted.transform(some))
    version = fitted.export(tmp_path / "export", codes=["int8"])
    served = tf.saved_model.load(str(version)).signatures["serving_default"](features=tf.constant(some))
    np.testing.assert_allclose(served["embeddings"], fitted.transform(some), atol=1e-6)


def test_without_labels_neighbours_are_kept(vectors):
    found = fit_head(vectors[0], settings={**SMALL, "head.widths": [4, 8]})
    assert set(found.scores["neighbors"]) >= {"trained@4", "trained"}


def test_features_of_fewer_dimensions_than_the_default_keep_theirs(vectors):
    features, labels = vectors
    few = {"training.epochs": 0}
    assert fit_head(features[:144], labels[:144], settings=few).transform(features[:2]).shape == (2, 32)
    pairs = np.stack([np.arange(100), 100 + np.arange(100)], axis=1)
    found = fit_pairs(features, features, pairs, settings=few)
    assert found.transform(features[:2]).shape == (2, 32)


def test_pictures_pass_the_network_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    pictures = [
        np.full((8, 8, 3), 20 * (i // 6), np.uint8) + rng.integers(0, 9, (8, 8, 3), np.uint8) for i in range(48)
    ]
    settings = {**SMALL, "training.folds": 1, "cache.dir": str(tmp_path)}
    settings |= {"views.number": 2, "views.turned_classes": False}
    backbone = small_backbone()
    found = fit_head(pictures, np.arange(48) // 6, backbone=backbone, settings={**settings, "head.embedding_dim": 3})
    assert found.transform(pictures[:3]).shape == (3, 3)
    assert found.scores["views"] == 2
    monkeypatch.setattr(Backbone, "call", None)  # that a graph were made of once more
    for number in range(1, 7):
        some = rng.integers(0, 255, (number, 7 + number, 9, 3), np.uint8)
        assert found.transform(some).shape == (number, 3)
    with pytest.raises(DataError, match=r"item 1, which cannot be used: an array of shape \(8, 8\)"):
        found.transform([pictures[0], pictures[1][:, :, 0]])


def test_pairs(tmp_path, caplog):
    rng = np.random.default_rng(2)
    documents = rng.normal(size=(90, 16))
    queries = documents[:80] + rng.normal(size=(80, 16))
    pairs = np.stack([np.arange(80), np.arange(80)], axis=1)
    with caplog.at_level("INFO", "xbm_keras"):
        found = fit_pairs(queries, documents, pairs, settings={**SMALL, "head.sides": "two"})
    assert "4 times, each with others held out" in caplog.text
    assert caplog.text.count("The memory holds all") == 1
    assert found.scores["pairs"]["trained"]["ndcg_at_10"] > 0
    scores = found.evaluate(queries, documents, pairs)
    assert set(scores) == {"frozen", "trained"}
    layer = found.model.head.row_layer
    layer.set_weights([-weight for weight in found.model.head.get_weights()[:2]])  # documents pass their own layer
    found.save(tmp_path / "pairs.keras")
    again = FittedPairs.load(tmp_path / "pairs.keras")
    np.testing.assert_array_equal(again.transform_documents(documents), found.transform_documents(documents))
    np.testing.assert_allclose(again.transform_documents(documents), -again.transform(documents), atol=1e-6)


def test_what_cannot_be_used_is_told(vectors, fitted):
    features, labels = vectors
    mistakes = {
        "expected keys of head, memory": lambda: fit_head(features, labels, settings={"data.split.seed": 1}),
        "did you mean 'embedding_dim'": lambda: fit_head(features, labels, settings={"head.embeding_dim": 8}),
        "Received 287 labels for 288 items": lambda: fit_head(features, labels[:-1]),
        "embedding_dim=33 for features of width 32": lambda: fit_head(
            features, labels, settings={"head.embedding_dim": 33}
        ),
        r"expected floats \[N, D\]": lambda: fit_head(features[0], labels[:32], settings=SMALL),
        "each alone in their class": lambda: fit_head(features, np.arange(288), settings=SMALL),
        "features of width 5 for a head that takes 32": lambda: fitted.transform(features[:, :5]),
        r"pairs of shape \(3,\)": lambda: fit_pairs(features, features, np.arange(3), settings=SMALL),
        "none of which says": lambda: fit_pairs(features, features, np.full((3, 2), 999), settings=SMALL),
    }
    for message, call in mistakes.items():
        with pytest.raises((ConfigError, DataError), match=message):
            call()
