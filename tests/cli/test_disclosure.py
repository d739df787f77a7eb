"""What a run gives to others says nothing of the environment, and of where its author keeps things."""

import sys
import zipfile

import keras
import numpy as np
import pytest
import yaml

from tests.cli.runs import run
from tests.conftest import ROOT
from xbm_keras.cli import export, index
from xbm_keras.config.yaml_files import check_config, load_config, public_values
from xbm_keras.export import model_card

SECRET = "s3cr3t"
OWN = ("config.yaml", ".lock")  # that run again, and stay with their author


def contents(folder):
    """Name and bytes of all files, those inside of archives included."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in OWN:
            yield str(path.relative_to(folder)), path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    yield from ((f"{path.name}:{name}", archive.read(name)) for name in archive.namelist())


@pytest.fixture(params=["keras_file", "saved_model"])
def config(request, tmp_path, monkeypatch):
    """Of pictures, a network and a cache in folders of a secret name, some told by the environment."""
    top = tmp_path / SECRET
    rng = np.random.default_rng(0)
    for label in range(9):
        color = rng.uniform(0, 255, 3)
        for i in range(6):
            path = top / f"photos/class {label}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(path, np.clip(color + rng.normal(size=(12, 12, 3)) * 25, 0, 255), scale=False)
    (top / "photos/class 0/bad.png").write_bytes(b"no picture")
    network = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Conv2D(6, 3, activation="relu")])
    name = f"{SECRET} net" + (".keras" if request.param == "keras_file" else "")
    network.save(top / name) if request.param == "keras_file" else network.export(top / name, verbose=False)
    monkeypatch.setenv("XBM_TEST_ROOT", str(top / "photos"))
    monkeypatch.setenv("XBM_TEST_TOP", str(top))
    values = {
        "data": {
            "source": "image_folder",
            "root": "${oc.env:XBM_TEST_ROOT}",
            "split": {"test": ["class 0", "class 1", "class 2"]},
        },
        "backbone": {"kind": request.param, "path": f"${{oc.env:XBM_TEST_TOP}}/{name}", "image_size": [12, 12]},
        "cache": {"dir": "${oc.env:XBM_TEST_TOP}/cache"},
        "views": {"number": 1, "turned_classes": False},
        "head": {"embedding_dim": 3, "start": "lda", "shrinkage": 0.5},
        "training": {"epochs": 1, "folds": 1, "batch_size": 4, "samples_per_class": 2},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "x.yaml"


def test_nothing_that_is_given_away_holds_a_path_or_what_the_environment_says(config, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    override = "data.split.seed=4"
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config={config}", f"--workdir={workdir}", f"--set={override}"])
    run(config, workdir, override, report=True)
    cards = ["export/1/model_card.md"]
    if (tmp_path / SECRET / f"{SECRET} net.keras").exists():  # what follows a run reads its export, of any network
        assert export.main([f"--model={workdir}"]) == 0
        index.main(["build", f"--model={workdir}", f"--index={workdir}/index"])
        cards.append("export/2/model_card.md")
    told = dict(contents(workdir))
    assert {"report.html", *cards, "data.json"} <= set(told)
    for name, content in told.items():
        for hidden in (SECRET, str(tmp_path)):
            assert hidden.encode() not in content, (name, hidden)
    for page in ("report.html", *cards):
        text = told[page].decode("utf-8")
        assert "seed: 4" in text
        assert "class 0" not in text.split("image_folder")[-1]
        assert "image_folder" in text
        assert "SHA-256" in text


def test_choices_numbers_and_known_names_are_shown():
    values = {
        "data": {"source": "tfds", "name": "cars196", "labels": SECRET},
        "backbone": {"kind": "keras_applications", "name": "MobileNetV2", "weights": f"/{SECRET}.h5", "layers": ["a"]},
        "head": {"start": "lda", "shrinkage": 0.3},
        "loss": {"name": "triplet"},
        "export": {"codes": ["int8"]},
        "cache": {"dir": SECRET, "ray_workers": 3},
        "search": {"space": {"training.seed": {"values": [1, 2]}}},
    }
    shown = public_values(check_config(values, "x"))
    assert SECRET not in str(shown)
    assert shown["data"]["name"] == "cars196"
    assert shown["data"]["split"]["seed"] == 0
    assert shown["backbone"] == {
        "kind": "keras_applications", "name": "MobileNetV2", "layers": ["a"], "image_size": [224, 224]
    }  # fmt: skip
    assert shown["head"]["start"] == "lda"
    assert shown["loss"]["name"] == "triplet"
    assert (shown["cache"]["ray_workers"], "dir" in shown["cache"]) == (3, False)
    assert "search" not in shown


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_show_no_path(path, monkeypatch):
    monkeypatch.setenv("XBM_KERAS_DATA", f"/{SECRET}")
    monkeypatch.setenv("XBM_KERAS_MINILM", f"/{SECRET}/minilm")
    config = load_config(str(path))
    values = config.model_dump()
    said = str(public_values(config)) + model_card.network_of(values["backbone"]) + model_card.data_of(values["data"])
    assert SECRET not in said
    assert "shared" not in said


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({"kind": "none"}, "none: it takes vectors that another model gave"),
        ({"kind": "glyph_net"}, "`glyph_net`"),
        ({"kind": "keras_applications", "name": "ResNet50", "weights": "imagenet", "image_size": [8, 9]},
         "`ResNet50`, weights `imagenet`, pictures at 8x9"),
        ({"kind": "keras_applications", "name": "ResNet50", "weights": None}, "`ResNet50`"),
        ({"kind": "keras_applications", "name": "ResNet50", "weights": f"/{SECRET}"},
         "`ResNet50`, weights of a file that is no longer there"),
        ({"kind": "keras_hub", "preset": "all_minilm_l6_v2_en"}, "`keras_hub`, weights `all_minilm_l6_v2_en`"),
        ({"kind": "keras_hub", "preset": "hf://sentence/minilm"}, "`keras_hub`, weights `hf://sentence/minilm`"),
        ({"kind": "keras_hub", "preset": f"../{SECRET}"}, "`keras_hub`, weights of a file that is no longer there"),
    ],
)  # fmt: skip
def test_what_a_network_is_called(backbone, expected):
    assert model_card.network_of(backbone) == expected


def test_files_are_told_by_their_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.keras").write_bytes(b"abc")
    folder = tmp_path / "all_minilm_l6_v2_en"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/a").write_bytes(b"abc")
    of_file = model_card.network_of({"kind": "file", "path": "net.keras"})
    assert of_file == "`file`, weights of a file with SHA-256 ba7816bf8f01cfea"  # of "abc", FIPS 180-2
    of_folder = model_card.network_of({"kind": "keras_hub", "preset": "all_minilm_l6_v2_en"})
    assert of_folder.startswith("`keras_hub`, weights of a folder with SHA-256 ")
    (folder / "inner/a").rename(folder / "inner/b")
    assert model_card.network_of({"kind": "keras_hub", "preset": "all_minilm_l6_v2_en"}) != of_folder
    of_parts = model_card.network_of({"kind": "keras_hub", "preset": "dinov2_small", "parts": ["class", "gem"]})
    assert of_parts == "`keras_hub`, weights `dinov2_small`, its parts class + gem"
