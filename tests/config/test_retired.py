"""Configs of earlier versions: what they say now, and what is told of keys that left."""

import pathlib

import pytest
import yaml

from xbm_keras.config import retired
from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import ConfigError, check_config, load_config

EARLIER = sorted((pathlib.Path(__file__).parent / "earlier").glob("*.yaml"))
MINIMAL = {"data": {"source": "features", "path": "x.npz"}, "backbone": {"kind": "none"}}


def of_file(path):
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_the_config_of_an_earlier_run_is_that_of_the_same_run_today(path):
    own = {
        "default": load_config("configs/default.yaml"),
        "features": load_config(
            "configs/features.yaml",
            ["data.path=vectors.npz", "head.embedding_dim=8", "cache.dir=cache", "training.classes_per_batch=4",
             "training.epochs=2"],
        ),
        "nested": load_config(
            "configs/compress.yaml",
            ["data.path=vectors.npz", "head.widths=[2,4,8]", "training.epochs=1", "training.steps_per_epoch=3",
             "training.batch_size=32", "top_k.num_neighbors=4", "top_k.num_random=8", "cache.dir=cache"],
        ),
    }  # fmt: skip
    assert load_config(str(path)) == own[path.stem]


@pytest.mark.parametrize("key", retired.LEFT)
def test_a_key_that_left_is_dropped_at_its_default_and_told_else(key):
    section, name = key.rsplit(".", 1)
    left = retired.LEFT[key]
    for value in (*left.defaults, "else"):
        values = {**MINIMAL, section: {name: value}}
        if value != "else":
            assert check_config(values, "x") == check_config(MINIMAL, "x")
            continue
        with pytest.raises(ConfigError) as raised:
            check_config(values, "x")
        assert f"{key}: received 'else'; this key left, since {left.became}: {left.instead}" in str(raised.value)
        if not left.decides_features:
            assert check_config(values, "x", is_finished=True) == check_config(MINIMAL, "x")
        with pytest.raises(ConfigError, match=f"search.space with {key}: this key left"):
            check_config({**MINIMAL, "search": {"space": {key: [1, 2]}}}, "x")


def test_one_is_not_true():
    with pytest.raises(ConfigError, match=r"training\.warmup: received False"):
        check_config({**MINIMAL, "training": {"warmup": False}}, "x")


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
    ],
)
def test_a_renamed_key_says_the_same(given, expected):
    pictures = {"data": {"source": "image_folder", "root": "x"}, "backbone": {"kind": "glyph_net"}}
    assert check_config({**pictures, **given}, "x") == check_config({**pictures, **expected}, "x")


def test_no_retired_key_is_one_of_today():
    for key in (*retired.RENAMED, *retired.LEFT):
        section, name = key.split(".")[0], key.split(".")[-1]
        assert name not in Config.model_fields[section].default.__class__.model_fields, key


def test_what_is_given_stays_as_it_was():
    values = {**MINIMAL, "cache": {"views": 1, "engine": "local"}}
    check_config(values, "x")
    assert values["cache"] == {"views": 1, "engine": "local"}
