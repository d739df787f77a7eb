"""train.py on folders of pictures: small ones, with what goes wrong in practice, and real photos."""

import errno
import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import yaml

from tests.cli.runs import fails, folder_of_pictures, run, serve_in_a_fresh_process
from tests.conftest import ROOT
from xbm_keras.feature_cache import cache


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"kind": "keras_applications", "name": "MobileNetv2"}, "Did you mean 'MobileNetV2'"),
        ({"kind": "keras_applications", "name": "MobileNetV2", "weights": "nope.h5"}, "'nope.h5', which is no file"),
        ({"kind": "file", "path": "nope.keras"}, "'nope.keras', which is no file"),
        ({"kind": "file", "path": "."}, "holds no saved_model.pb"),
    ],
)
def test_backbones_that_cannot_be_had(tmp_path, capsys, backbone, message):
    data = {"source": "image_folder", "root": folder_of_pictures(tmp_path / "photos")}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"data": data, "backbone": backbone}))
    assert message in fails(tmp_path / "x.yaml", tmp_path / "run", capsys=capsys)


def test_empty_folders_are_told(tmp_path, capsys):
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalMaxPooling2D()])
    network.save(tmp_path / "net.keras")
    backbone = {"kind": "file", "path": str(tmp_path / "net.keras"), "image_size": [8, 8]}
    (tmp_path / "x.yaml").write_text(
        yaml.safe_dump({"data": {"source": "image_folder", "root": str(tmp_path)}, "backbone": backbone})
    )
    said = fails(tmp_path / "x.yaml", tmp_path / "run", "head.embedding_dim=3", capsys=capsys)
    assert "holds no pictures in folders" in said


def test_a_folder_with_a_corrupt_picture_and_a_lonely_one(photos, tmp_path, capsys):
    run(photos, tmp_path / "run", report=True)
    report = (tmp_path / "run/report.html").read_text("utf-8")
    assert "1 item skipped: an empty file (1)." in report
    assert report.count("data:image/webp;base64,") > 20
    about = json.loads((tmp_path / "run/data.json").read_text())
    assert about["skipped"] == {"klasse 1/2.png": "an empty file"}
    assert about["classes_with_one_item"] == ["alone"]
    assert sum(about["items"].values()) == 47
    assert about["read_for_backbone"] == 48
    said = " ".join(capsys.readouterr().out.split())
    assert "1 item skipped" in said
    assert "1 class with one item" in said


def test_a_full_disk_is_told(photos, tmp_path, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "write_shard", full)
    assert "is full; free some space" in fails(photos, tmp_path / "run", capsys=capsys)


@pytest.mark.parametrize(("scale", "message"), [(0.0, "constant features"), (float("inf"), "NaN or infinite features")])
def test_a_backbone_that_gives_nothing_is_told(photos, tmp_path, capsys, scale, message):
    network = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Rescaling(scale)])
    network.save(tmp_path / "net.keras")
    said = fails(photos, tmp_path / "run", "head.embedding_dim=3", capsys=capsys)
    assert "klasse 0/1.png" in said
    assert message in said


def test_too_few_classes_are_told(photos, tmp_path, capsys):
    for label in range(2, 8):
        shutil.rmtree(tmp_path / f"my photos/klasse {label}")
    assert "expected at least 4 to train on" in fails(photos, tmp_path / "run", capsys=capsys)


def test_tables_and_tfds_names_that_do_not_exist_are_told(photos, tmp_path, capsys):
    (tmp_path / "y.csv").write_text("path,label\nnope.jpg,1\n")
    for data, message in (
        ({"source": "image_table", "root": str(tmp_path), "table": "x.csv"}, "which is no file"),
        ({"source": "image_table", "root": str(tmp_path), "table": "y.csv"}, "none of whose 1 path is a file"),
        ({"source": "image_array", "path": "x.npz"}, "'x.npz', which is no file"),
        ({"source": "tfds", "name": "no_such_things"}, "which TFDS cannot give"),
    ):
        config = yaml.safe_load(photos.read_text()) | {"data": data}
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
        assert message in fails(tmp_path / "x.yaml", tmp_path / "run", capsys=capsys)


def test_a_saved_model_as_backbone(photos, tmp_path):
    keras.saving.load_model(tmp_path / "net.keras").export(tmp_path / "saved", verbose=False)
    backbone = {"kind": "file", "path": str(tmp_path / "saved"), "image_size": [12, 12]}
    config = yaml.safe_load(photos.read_text()) | {"backbone": backbone}
    (tmp_path / "saved.yaml").write_text(yaml.safe_dump(config))
    metrics = run(tmp_path / "saved.yaml", tmp_path / "run", "training.epochs=0")
    plain = run(photos, tmp_path / "plain", "training.epochs=0")
    assert metrics["leave_one_out"]["frozen"] == plain["leave_one_out"]["frozen"]

    pictures = np.random.default_rng(0).uniform(0, 255, (33, 12, 12, 3)).astype(np.float32)
    _, served, none = serve_in_a_fresh_process(tmp_path / "run/export/1", pictures, tmp_path)
    expected = keras.saving.load_model(tmp_path / "plain/model.keras").encoder.predict(pictures, verbose=0)
    np.testing.assert_allclose(served, expected, atol=1e-5)
    assert none.shape == (0, 4)
    head_only = keras.saving.load_model(tmp_path / "run/model.keras")
    assert head_only.backbone is None
    assert head_only.encoder.predict(np.ones((2, 6)), verbose=0).shape == (2, 4)


def grocery_config(data_dir, tmp_path, classes, per_class):
    """configs/grocery.yaml on a few pictures of a few classes of each side."""
    table = pd.read_csv(data_dir / "grocery/labels.csv")
    sides = [names.class_name.unique()[:classes] for _, names in table.groupby("openset_split_interleaved")]
    table = table[table.class_name.isin(np.concatenate(sides))].groupby("class_name").head(per_class)
    table.to_csv(tmp_path / "some.csv", index=False)
    return [f"data.table={tmp_path}/some.csv", f"cache.dir={tmp_path}/cache", "training.batch_size=16"]


@pytest.mark.slow
def test_end_to_end_on_real_photos(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("XBM_KERAS_DATA", str(data_dir))
    config = ROOT / "configs/grocery.yaml"
    overrides = [*grocery_config(data_dir, tmp_path, classes=6, per_class=8), "training.folds=1"]
    # Rather than trying what so few photos would do with; test_train_glyphs lets the default run try.
    overrides += ["views.number=2", "views.turned_classes=false", "head.start=lda", "head.shrinkage=0.5"]
    metrics = run(config, tmp_path / "run", *overrides, "training.epochs=2", "data.split.query_column=null")
    assert metrics["leave_one_out"]["trained"]["map_at_r"] > 0.4
    about = json.loads((tmp_path / "run/data.json").read_text())
    assert sum(about["items"].values()) == 96
    assert about["read_for_backbone"] == 96 + 48  # a view of each training photo

    photos = sorted((data_dir / "grocery/test/Avocado").glob("*.jpg"))[:20] * 2
    images = np.stack([np.asarray(keras.utils.load_img(path), np.float32) for path in photos])
    one, many, none = serve_in_a_fresh_process(tmp_path / "run/export/1", images, tmp_path)
    model = keras.saving.load_model(tmp_path / "run/model.keras")
    expected = model.encoder.predict(images, verbose=0)
    assert np.abs(one - expected[:1]).max() < 1e-5
    assert np.abs(many - expected[:33]).max() < 1e-5
    assert none.shape == (0, 128)


@pytest.mark.slow
def test_the_scores_of_the_readme(data_dir, tmp_path):
    """All grocery photos, default recipe; frozen scores of the last layer measured by an independent script."""
    root = ROOT
    environment = {**os.environ, "XBM_KERAS_DATA": str(data_dir)}

    def metrics_of(name, *overrides):
        command = [sys.executable, "train.py", "--config=configs/grocery.yaml", f"--workdir={tmp_path}/{name}"]
        overrides = [f"--set={each}" for each in (f"cache.dir={tmp_path}/cache", *overrides)]
        subprocess.run([*command, *overrides], check=True, cwd=root, env=environment)
        return json.loads((tmp_path / name / "metrics.json").read_text())

    last = metrics_of("last", "backbone.layers=last", "training.epochs=0", "head.start=pca")
    assert last["leave_one_out"]["frozen"]["map_at_r"] == pytest.approx(0.500, abs=0.005)
    assert last["query_gallery"]["frozen"]["recall_at_1"] == pytest.approx(0.783, abs=0.005)
    metrics = metrics_of("run")
    assert metrics["leave_one_out"]["trained"]["map_at_r"] >= 0.61
    assert metrics["query_gallery"]["trained"]["recall_at_1"] >= 0.85
