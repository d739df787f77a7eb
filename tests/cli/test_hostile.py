"""Whatever is given: it runs, or it ends in one clear error. Never a traceback, and nothing that is read is run."""

import contextlib
import copy
import pathlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import yaml
from absl import flags
from absl.testing import flagsaver

from xbm_keras.cli import train
from xbm_keras.config.yaml_files import ConfigError, check_config, load_config
from xbm_keras.data.sources import DataError, ImageFolder, UnreadableItem
from xbm_keras.experiment.loading import load_dataset

flags.FLAGS.mark_as_parsed()
PLAIN = {"data": {"source": "features", "path": "x.npz"}, "backbone": {"kind": "none"}}
DEFAULTS = check_config(PLAIN, "x").model_dump()
KEYS = [(section, key) for section, values in DEFAULTS.items() for key in values or ()]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@hypothesis.given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=3))
@hypothesis.settings(max_examples=300)
def test_any_value_of_any_key_is_taken_or_told(changes):
    values = copy.deepcopy(PLAIN)
    for (section, key), value in changes:
        values.setdefault(section, {})[key] = value
    with contextlib.suppress(ConfigError):
        check_config(values, "x.yaml")


NUMBERS = [-1, 0, 1, 2, 3, 5, 9, 11, 72, 2**16, 2**31 - 1, 2**31, 2**32, 10**30]
NUMBERS += [-0.5, 1e-300, 1e-9, 0.3, 1.0, 1.5, 1e9, 1e39, 1e300, float("inf"), float("nan")]
WORDS = [
    "",
    "auto",
    "all",
    "null",
    "item",
    "role",
    "random",
    "identity",
    "pca",
    "whiten",
    "local",
    "nda",
    "residual",
    "mlp",
]
WORDS += [
    "hardest",
    "easiest",
    "features",
    "sketch",
    "cosine",
    "int8",
    "float16",
    "[1,4]",
    "[4,1]",
    "[0]",
]
SLOW = ("training.epochs", "training.steps_per_epoch")  # in which more is longer alone
SETTINGS = st.tuples(
    st.sampled_from([f"{s}.{k}" for s, k in KEYS if s not in ("cache", "backbone", "search")] + ["data.split.by"]),
    st.sampled_from(NUMBERS) | st.sampled_from(WORDS),
).filter(lambda setting: setting[0] not in SLOW)


@pytest.mark.slow
@hypothesis.given(st.sampled_from(["supcon", "similarity_alignment", "triplet"]), st.lists(SETTINGS, max_size=2))
@hypothesis.settings(max_examples=100, suppress_health_check=list(hypothesis.HealthCheck))
def test_any_setting_trains_or_is_told(tmp_path_factory, loss, settings):
    folder = tmp_path_factory.mktemp("run")
    labels = np.repeat(np.arange(12), 6)
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(12, 6))[labels], rng.normal(size=(72, 4))], axis=1)
    np.savez(folder / "x.npz", features=features.astype("float32"), label=labels, role=["train", "test"] * 36)
    training = {"epochs": 1, "steps_per_epoch": 2, "folds": 1, "batch_size": 6, "samples_per_class": 2}
    config = {**PLAIN, "data": {"source": "features", "path": str(folder / "x.npz")}, "head": {"embedding_dim": 4}}
    (folder / "x.yaml").write_text(yaml.safe_dump({**config, "training": training, "loss": {"name": loss}}))
    given = {"config": str(folder / "x.yaml"), "workdir": str(folder / "run"), "report": False}
    with flagsaver.flagsaver(**given, set=[f"{key}={value}" for key, value in settings]):
        assert exit_code_of(lambda: train.main(["train.py"])) in (0, 2)


def exit_code_of(main):
    try:
        main()
    except SystemExit as exit:
        return exit.code
    return 0


@hypothesis.given(VALUES)
def test_any_document_is_taken_or_told(tmp_path_factory, document):
    path = tmp_path_factory.mktemp("any") / "x.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True), "utf-8")
    with pytest.raises(ConfigError):
        load_config(str(path))


@pytest.mark.parametrize("text", ["'0'", "3.5", "- a", "", "a: [b", "\x00"])
def test_a_document_without_sections_is_told(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("widths", [[], [None], [None, None], [8, None], ["a", 3], [[8], 16], [16, 8]])
def test_widths_that_are_none_are_told(widths):
    with pytest.raises(ConfigError, match="widths"):
        check_config({**PLAIN, "head": {"widths": widths}}, "x.yaml")


def test_a_config_cannot_run_code(tmp_path):
    (tmp_path / "x.yaml").write_text(f"data: !!python/object/apply:pathlib.Path.touch [{tmp_path}/made]\n")
    with pytest.raises(ConfigError, match="cannot be read as a config"):
        load_config(str(tmp_path / "x.yaml"))
    assert not (tmp_path / "made").exists()


def features_of(tmp_path, features, labels, **options):
    """The data set of a file in a folder whose name has spaces and other letters."""
    path = tmp_path / "mes données 数据" / "a b.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, features=features, label=labels)
    return load_dataset(
        check_config({**PLAIN, "data": {"source": "features", "path": str(path), **options}}, "x"), None
    )


GOOD = np.random.default_rng(0).normal(size=(24, 5))
EIGHT = np.repeat(np.arange(8), 3)


def with_value(value, row=3):
    features = GOOD.copy()
    features[row] = value
    return features


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (with_value(np.nan), EIGHT),
        (with_value(-np.inf), EIGHT),
        (with_value(0.0), EIGHT),
        (GOOD[:, 0], EIGHT),
        (GOOD[:0], EIGHT[:0]),
        (GOOD[:, :0], EIGHT),
        (GOOD[:, :, None], EIGHT),
        (GOOD.astype(str), EIGHT),
        (GOOD.astype(complex), EIGHT),
        (GOOD.astype(object), EIGHT),
        (GOOD, EIGHT[:-1]),
        (GOOD, np.zeros(24, int)),  # one class
        (GOOD, np.arange(24)),  # one item each
        (GOOD, EIGHT.astype(object)),
        (GOOD, np.where(EIGHT == 2, np.inf, EIGHT)),
        (GOOD, np.full(24, np.nan)),
        (GOOD, np.full(24, "")),
        (GOOD, np.full(24, -1)),
        (GOOD, EIGHT.astype(complex)),
        (GOOD, EIGHT[0]),
        (GOOD, np.eye(8)[EIGHT]),
        (GOOD, np.zeros(24, [("a", int)])),
        (GOOD, GOOD),
    ],
    ids=[
        "NaN", "infinite", "zeros", "one dimension", "no items", "no width", "three dimensions", "text", "complex",
        "objects", "fewer labels", "one class", "one item each", "labels of objects", "infinite labels",
        "all labels NaN", "all labels empty", "all labels -1", "complex labels", "one label", "one-hot", "structured",
        "vectors",
    ],
)  # fmt: skip
def test_features_and_labels_that_cannot_be_used(tmp_path, features, labels):
    with pytest.raises((ConfigError, DataError)) as error:
        features_of(tmp_path, features, labels)
    assert str(error.value).startswith("Received")


@pytest.mark.parametrize(
    "labels",
    [
        EIGHT + 2**40,
        np.array(["ab", "ß", "日本", "a b", "\n", "é", "e\u0301", "-1"])[EIGHT],
        EIGHT.astype(np.uint8),
        EIGHT.astype(float),
        EIGHT[:, None],
        np.array([f"{i:03}" for i in EIGHT], "S"),
    ],
    ids=["large", "text", "uint8", "whole floats", "column", "bytes"],
)
def test_labels_that_are_unusual_but_fine(tmp_path, labels):
    dataset = features_of(tmp_path, GOOD, labels)
    assert len(dataset.label_names) == 8
    assert dataset.labels.dtype == np.int64


def pictures(folder):
    """Files by name, and whether they are pictures."""
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    noise.save(folder / "plain.jpg")
    noise.save(folder / "wrong extension.png", "JPEG")
    noise.convert("CMYK").save(folder / "cmyk.jpg")
    noise.convert("L").save(folder / "grey.png")
    noise.convert("P").save(folder / "palette ü.gif")
    noise.convert("RGBA").save(folder / "transparent.png")
    PIL.Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(folder / "16 bit.png")
    noise.resize((1, 1)).save(folder / "1x1.png")
    noise.resize((20_000, 3)).save(folder / "wide.png")
    noise.save(folder / "animated.gif", save_all=True, append_images=[noise.rotate(90)])
    good = {path.name for path in folder.iterdir()}
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no picture")
    (folder / "truncated.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:300])
    return good


def test_every_kind_of_picture_is_read_or_named(tmp_path):
    folder = tmp_path / "my photos" / "klasse ä"
    folder.mkdir(parents=True)
    good = pictures(folder)
    source = ImageFolder(str(folder.parent))
    read = dict(zip(source.items.keys, source.read(list(range(len(source.items.keys))), np.asarray), strict=True))
    assert {pathlib.PurePath(key).name for key in read} == good | {"empty.jpg", "text.jpg", "truncated.jpg"}
    for key, item in read.items():
        if pathlib.PurePath(key).name in good:
            assert item.ndim == 3, key
            assert item.shape[-1] == 3
        else:
            assert isinstance(item, UnreadableItem), key
            assert str(item)
