"""Configs of earlier versions: what they say now, and what is told of keys that left."""

import pathlib

import pytest
import yaml

from xbm_keras.config import retired
from xbm_keras.config.yaml_files import ConfigError, check_config, load_config

EARLIER = sorted((pathlib.Path(__file__).parent / "earlier").glob("*.yaml"))
PICTURES = {"data": {"source": "image_folder", "root": "x"}, "backbone": {"kind": "glyph_net"}}
MINIMAL = {"data": {"source": "features", "path": "x.npz"}, "backbone": {"kind": "none"}}


def of_file(path):
    values = yaml.safe_load(path.read_text("utf-8"))
    values.pop("tuner", None)  # of a search
    return values


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_the_config_of_an_earlier_run_is_that_of_the_same_run_today(path):
    of_then = ["top_k.mine_in=embeddings", "top_k.num_negatives=32", "top_k.num_random=0"]  # the recipe
    own = {
        "default": load_config("configs/default.yaml", ["head.embedding_dim=128", *of_then]),
        "features": load_config(
            "configs/features.yaml",
            ["data.path=vectors.npz", "head.embedding_dim=8", "cache.dir=cache", "training.classes_per_batch=4",
             "training.epochs=2", *of_then],
        ),
        "nested": load_config(
            "configs/compress.yaml",
            ["data.path=vectors.npz", "head.widths=[2,4,8]", "training.epochs=1", "training.steps_per_epoch=3",
             "training.batch_size=32", "top_k.num_neighbors=4", "top_k.num_random=8", "cache.dir=cache"],
        ),
        "search": load_config(
            "configs/features.yaml",
            ["data.path=vectors.npz", "head.embedding_dim=8", "cache.dir=cache", "training.classes_per_batch=4",
             "training.epochs=1", "search.space={memory.memory_size: [0, 64], top_k.mine_in: [features, sketch], "
             "training.learning_rate: {min: 0.0001, max: 0.01, log: true}}", *of_then],
        ),
    }  # fmt: skip
    assert check_config(of_file(path), "x") == own[path.stem]
    of_a_trial = {name: section for name, section in of_file(path).items() if name != "search"}
    assert check_config(of_a_trial, "x").top_k == own[path.stem].top_k


def test_who_names_the_top_k_keys_by_hand_has_random_rows_as_any_other():
    top_k = {"num_negatives": 4, "num_positives": 2, "mine_in": "embeddings", "key_refresh": "exact"}
    assert check_config({**MINIMAL, "top_k": top_k}, "x").top_k.num_random > 0


def with_key(values, key, value):
    """Values with a nested one set."""
    name, *rest = key.split(".", 1)
    inside = with_key(values.get(name, {}), rest[0], value) if rest else value
    return {**values, name: inside}


BASES = {
    "data.data_dir": {"data": {"source": "tfds", "name": "x"}, "backbone": {"kind": "glyph_net"}},
    "data.image_key": {"data": {"source": "tfds", "name": "x"}, "backbone": {"kind": "glyph_net"}},
    "data.": {"data": {"source": "glyphs"}, "backbone": {"kind": "glyph_net"}},
    "backbone.pooling": {**PICTURES, "backbone": {"kind": "keras_applications", "name": "MobileNetV2"}},
    "backbone.": {**PICTURES, "backbone": {"kind": "keras_file", "path": "x"}},
    "": MINIMAL,
}


OF_LOSSES = [(loss, *each) for loss, lefts in retired.LEFT_OF_LOSSES.items() for each in lefts.items()]


@pytest.mark.parametrize(("loss", "key", "left"), [*((None, *each) for each in retired.LEFT.items()), *OF_LOSSES])
def test_a_key_that_left_is_dropped_at_its_default_and_told_else(loss, key, left):
    base = next(values for start, values in BASES.items() if key.startswith(start))
    if loss is not None:
        base = with_key(base, "loss.name", loss)
    now = check_config(base, "x")
    for value in left.defaults:
        assert check_config(with_key(base, key, value), "x") == now
    with pytest.raises(ConfigError) as raised:
        check_config(with_key(base, key, "else"), "x")
    assert f"{key}: received 'else'; this key left, since {left.became}: {left.instead}" in str(raised.value)
    if left.decides_features:
        with pytest.raises(ConfigError, match="this key left"):
            check_config(with_key(base, key, "else"), "x", is_finished=True)
    else:
        assert check_config(with_key(base, key, "else"), "x", is_finished=True) == now
    if loss is None and not left.where:
        with pytest.raises(ConfigError, match=f"search.space with {key}: this key left"):
            check_config({**base, "search": {"space": {key: [1, 2]}}}, "x")


def test_one_is_not_true():
    with pytest.raises(ConfigError, match=r"training\.warmup: received False"):
        check_config({**MINIMAL, "training": {"warmup": False}}, "x")
    with pytest.raises(ConfigError, match=r"training\.schedule: .*rate of pairs falls, any other grows"):
        check_config({**MINIMAL, "training": {"schedule": "cosine"}}, "x")


def test_without_labels_the_power_was_one():
    unlabelled = {**MINIMAL, "loss": {"name": "similarity_alignment"}}
    assert check_config({**unlabelled, "head": {"power": 1.0}}, "x") == check_config(unlabelled, "x")
    with pytest.raises(ConfigError, match=r"head\.power: received 1\.0"):
        check_config({**MINIMAL, "head": {"power": 1.0}}, "x")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cache": {"views": 3}}, {"views": {"number": 3}}),
        ({"cache": {"views": 3}, "views": {"number": 1}}, {"views": {"number": 1}}),
        ({"cache": {"turned_classes": True, "flip": False}}, {"views": {"turned_classes": True, "flip": False}}),
        ({"cache": {"engine": "local", "ray_workers": 2}}, {}),
        ({"cache": {"engine": "ray", "ray_workers": 8}}, {"cache": {"ray_workers": 8}}),
        ({"cache": {"engine": "ray"}}, {"cache": {"ray_workers": 2}}),
        ({"training": {"classes_per_batch": 8, "batch_size": 256}}, {"training": {"batch_size": 32}}),
        (
            {"training": {"classes_per_batch": 8, "samples_per_class": 2}},
            {"training": {"batch_size": 16, "samples_per_class": 2}},
        ),
        ({"top_k": {"mine_in": "embeddings", "key_refresh": 64}}, {"top_k": {"mine_in": 64}}),
        ({"top_k": {"mine_in": "sketch", "key_refresh": "exact"}}, {"top_k": {"mine_in": "sketch"}}),
    ],
)
def test_a_renamed_key_says_the_same(given, expected):
    assert check_config({**PICTURES, **given}, "x") == check_config({**PICTURES, **expected}, "x")


TABLE = {"source": "image_table", "root": "x", "table": "y"}
TFDS = {"source": "tfds", "name": "x"}
NETWORK = {"kind": "glyph_net"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({**TABLE, "path_column": "p", "label_column": None}, {**TABLE, "images": "p", "labels": None}),
        ({**TFDS, "label_key": "k", "text_key": None}, {**TFDS, "labels": "k"}),
        ({**TABLE, "split": {"test_classes": ["a"], "test_fraction": 0.3}}, {**TABLE, "split": {"test": ["a"]}}),
        ({**TABLE, "split": {"test_classes": None, "test_fraction": 0.3}}, {**TABLE, "split": {"test": 0.3}}),
    ],
)
def test_a_renamed_key_of_the_data_says_the_same(given, expected):
    now = check_config({"data": given, "backbone": NETWORK}, "x")
    assert now == check_config({"data": expected, "backbone": NETWORK}, "x")


def test_a_text_feature_keeps_its_name():
    network = {"kind": "keras_hub", "preset": "x"}
    texts = {"source": "text", "path": "x.csv", "text_column": "t", "label_column": "l"}
    assert check_config({"data": texts, "backbone": network}, "x").data.texts == "t"
    assert check_config({"data": {**TFDS, "text_key": "t"}, "backbone": network}, "x").data.texts == "t"


@pytest.mark.parametrize("layers", [{}, {"layers": "auto"}])
def test_layers_of_a_finished_run_that_names_none_are_those_of_the_version_that_ran(layers):
    backbone = {"kind": "keras_applications", "name": "MobileNetV2", **layers}

    def read(is_finished, **others):
        values = {"data": {"source": "image_folder", "root": "x"}, "backbone": backbone, **others}
        return check_config(values, "a test", is_finished).backbone.layers

    assert read(is_finished=True) == "pyramid"  # it took all of it
    assert read(is_finished=False) == "auto"
    assert read(is_finished=True, loss={"name": "similarity_alignment"}) == "last"


def test_parts_of_a_transformer_are_those_of_the_version_that_ran():
    pictures = {"source": "image_folder", "root": "x"}

    def parts(backbone, is_finished=False, **others):
        config = {"data": pictures, "backbone": {"kind": "keras_hub", "preset": "x", **backbone}, **others}
        return check_config(config, "x", is_finished).backbone.parts

    assert parts({}) == "auto"
    assert parts({}, is_finished=True) == "pooled"  # it knew no others
    assert parts({"parts": "auto"}, is_finished=True) == "auto"
    assert parts({"pooling": "first"}) == "pooled"
    assert parts({"pooling": "avg", "parts": "auto"}) == "auto"  # as a config is saved
    assert parts({"pooling": "first", "parts": ["gem"]}) == ["gem"]
    assert parts({}, loss={"name": "similarity_alignment"}) == "pooled"


@pytest.mark.parametrize("kind", ["keras_file", "saved_model"])
def test_a_path_tells_a_file_from_a_folder(kind):
    config = check_config({**PICTURES, "backbone": {"kind": kind, "path": "x"}}, "x")
    assert config.backbone.kind == "file"


def test_documents_as_anchors_have_queries_for_negatives():
    pairs = {**MINIMAL, "data": {"source": "pairs", "path": "x"}}
    for anchors, negatives, now in (("queries", "corpus", "corpus"), ("documents", "answers", "queries")):
        training = {"anchors": anchors, "negatives": negatives}
        assert check_config({**pairs, "training": training}, "x").training.negatives == now
    with pytest.raises(ConfigError, match=r"training\.anchors: unknown key"):
        check_config({**pairs, "training": {"anchors": "x"}}, "x")


@pytest.mark.parametrize(
    "section", [{"loss": {"name": "similarity_alignment"}}, {"data": {"source": "pairs", "path": "x"}}]
)
def test_batches_without_labels_and_of_pairs_are_as_large_as_they_were(section):
    config = {**MINIMAL, **section}
    training = {"classes_per_batch": 32, "samples_per_class": 4, "batch_size": 100}
    assert check_config({**config, "training": training}, "x").training.batch_size == 100


@pytest.mark.parametrize(
    ("given", "override", "key", "expected"),
    [
        (
            {"training": {"classes_per_batch": 32, "samples_per_class": 4, "batch_size": 256}},
            "training.batch_size=64", "training.batch_size", 64,
        ),
        ({"training": {"classes_per_batch": 32}}, "training.classes_per_batch=8", "training.batch_size", 32),
        (
            {"data": {"source": "pairs"}, "training": {"anchors": "documents"}},
            "training.negatives=corpus", "training.negatives", "corpus",
        ),
        ({"top_k": {"mine_in": "embeddings", "key_refresh": 64}}, "top_k.mine_in=16", "top_k.mine_in", 16),
        ({"cache": {"engine": "local", "ray_workers": 2}}, "cache.ray_workers=3", "cache.ray_workers", 3),
        ({"views": {"number": 2}}, "cache.views=1", "views.number", 1),
        ({"cache": {"views": 2}}, "cache.views=1", "views.number", 1),
    ],
)  # fmt: skip
def test_an_override_comes_over_old_keys_of_the_file(tmp_path, given, override, key, expected):
    path = tmp_path / "earlier.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **given, "data": {**MINIMAL["data"], **given.get("data", {})}}))
    section, name = key.split(".")
    assert getattr(getattr(load_config(str(path), [override]), section), name) == expected


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"training": {"classes_per_batch": "x"}}, "training.classes_per_batch: unknown key"),
        ({"top_k": {"mine_in": "features", "key_refresh": 64}}, "top_k.key_refresh: unknown key"),
        ({"top_k": {"key_refresh": 64}}, "top_k.key_refresh: unknown key"),
    ],
)
def test_what_says_nothing_is_told(given, told):
    with pytest.raises(ConfigError, match=told):
        check_config({**MINIMAL, **given}, "x")


def test_what_is_given_stays_as_it_was():
    values = {**MINIMAL, "cache": {"views": 1, "engine": "local"}}
    check_config(values, "x")
    assert values["cache"] == {"views": 1, "engine": "local"}
