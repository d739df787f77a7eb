"""`xbm-keras evaluate`, `.export` and `.index` on a finished run."""

import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml

from tests.cli.runs import means_of
from tests.export.test_saved_model import stored_dtypes
from xbm_keras import atomic_files
from xbm_keras.cli import duplicates, evaluate, export, index
from xbm_keras.config.yaml_files import check_config, load_config, save_config
from xbm_keras.experiment import run_folder, saved_run
from xbm_keras.experiment.loading import load_dataset
from xbm_keras.export import model_card
from xbm_keras.index.exported_model import exported_by, fingerprint_of
from xbm_keras.index.galleries import read_index


@pytest.fixture
def other_data(vectors, tmp_path):
    """A config of three classes, which are too few to train on."""
    with np.load(vectors.with_name("vectors.npz")) as data:
        chosen = np.isin(data["label"], np.unique(data["label"])[:3])
        np.savez(tmp_path / "other.npz", **{name: data[name][chosen] for name in data.files})
    config = yaml.safe_load(vectors.read_text())
    config["data"]["path"] = str(tmp_path / "other.npz")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "other.yaml"


def test_the_scores_of_the_run_come_again(finished, tmp_path, capsys):
    assert evaluate.main([f"--model={finished}", f"--output={tmp_path}/scores.json"]) == 0
    scores, run = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", finished / "metrics.json"))
    for protocol in ("leave_one_out", "query_gallery"):
        for name in ("frozen", "trained"):
            found, expected = (means_of(each[protocol][name]) for each in (scores, run))
            assert found == pytest.approx(expected, abs=1e-6)
    assert "leave-one-out" in capsys.readouterr().out


def test_duplicates_of_the_data_of_a_run(vectors, finished, tmp_path):
    with np.load(vectors.with_name("vectors.npz")) as data:
        content = dict(data)
    content["features"][40] = content["features"][3]
    np.savez(tmp_path / "copied.npz", **content)
    arguments = [f"--model={finished}", f"--set=data.path={tmp_path}/copied.npz", f"--output={tmp_path}/found"]
    assert duplicates.main([*arguments, "--min_score=0.9999"]) == 0
    (row,) = pd.read_csv(tmp_path / "found.csv").query("kind == 'other_label'").to_dict("records")
    assert (row["label"], row["other_label"], row["identical"]) == ("klasse 00 ä", "klasse 03 ä", True)
    assert "1 pair of near-duplicates under different labels" in (tmp_path / "found.html").read_text("utf-8")


def test_items_that_trained_are_told(vectors, finished, other_data, tmp_path, capsys, monkeypatch):
    about = json.loads((finished / "data.json").read_text())["items"]
    number = about["train"] + about["validation"]
    monkeypatch.chdir(vectors.parent)  # the same place by another path
    evaluate.main([f"--model={finished}", "--items=all", "--set=data.path=vectors.npz"])
    out = capsys.readouterr().out
    assert "All items" in out
    assert f"{number} of these 288 items trained or chose the head" in out
    for words in (["--items=test"], ["--items=all", f"--config={other_data}"]):
        evaluate.main([f"--model={finished}", *words])
        out = capsys.readouterr().out
        assert ("Test items" in out) == (words[0] == "--items=test")
        assert "trained or chose" not in out


def test_who_trained_is_told_where_the_data_are_still_those_of_the_run(tmp_path):
    """By item, with items that have no label and took no part."""
    features, label = np.random.default_rng(0).normal(size=(48, 4)), np.repeat(np.arange(4), 12)
    label[:5] = -1

    def count(rows):
        np.savez(tmp_path / "x.npz", features=features[rows], label=label[rows])
        return saved_run.count_trained(str(tmp_path), saved_run.load_data(str(tmp_path), all_test=True))

    data = {"source": "features", "path": f"{tmp_path}/x.npz", "split": {"by": "item"}}
    config = check_config({"data": data, "backbone": {"kind": "none"}, "head": {"embedding_dim": 2}}, "x")
    save_config(config, tmp_path / "config.yaml")
    assert count(np.arange(48)) == 0  # the run says nothing of its data
    run_folder.write_data(tmp_path, load_dataset(config, None))
    items = json.loads((tmp_path / "data.json").read_text())["items"]
    assert sum(items.values()) == 43
    assert count(np.arange(48)) == items["train"] + items["validation"]
    assert count(np.arange(47)) == 0  # others would have trained
    assert count(np.arange(7)) == 0  # nobody could have


@pytest.mark.parametrize("part", ["", "export", "export/1", "model.keras"])
def test_a_model_is_named_by_its_run_its_export_or_a_version(finished, monkeypatch, part):
    assert saved_run.run_of(str(finished / part)) == finished
    assert exported_by(finished / part) == finished / "export/1"
    monkeypatch.chdir(finished / "export/1")
    assert saved_run.load_head("..").embedding_dim == saved_run.load_head(str(finished)).embedding_dim


def test_an_export_that_was_moved_serves_without_its_run(finished, tmp_path, capsys):
    shutil.copytree(finished / "export", tmp_path / "elsewhere")
    assert exported_by(tmp_path / "elsewhere") == tmp_path / "elsewhere/1"
    with pytest.raises(SystemExit):
        evaluate.main([f"--model={tmp_path}/elsewhere/1"])
    assert "holds no model.keras; expected the workdir of a run" in capsys.readouterr().err
    for nothing in ("nowhere", "."):
        with pytest.raises(ValueError, match="expected the workdir of a run, its export, or a version of it"):
            exported_by(tmp_path / nothing)


def test_any_data_can_be_evaluated_and_embedded(finished, other_data, tmp_path, capsys):
    command = [f"--model={finished}", f"--config={other_data}", "--items=all", f"--embed={tmp_path}/vectors.npy"]
    assert evaluate.main([*command, f"--output={tmp_path}/scores.json"]) == 0
    assert "vectors.csv:keyandlabelofeach" in "".join(capsys.readouterr().out.split())  # lines break anywhere
    with np.load(tmp_path / "other.npz") as data:
        expected = keras.saving.load_model(finished / "model.keras").encoder.predict(data["features"], verbose=0)
        labels = data["label"].tolist()
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-5)
    listed = pd.read_csv(tmp_path / "vectors.csv")
    assert listed.label.tolist() == labels
    assert listed.key.tolist() == list(range(36))


@pytest.mark.parametrize("name", ["vectors.csv", "vectors", "."])  # of a .csv the table would be written over it
def test_vectors_go_into_an_npy_alone(finished, tmp_path, capsys, name):
    with pytest.raises(SystemExit) as raised:
        evaluate.main([f"--model={finished}", f"--embed={tmp_path / name}"])
    assert raised.value.code == 2
    assert "expected a path that ends in .npy" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "holds no config.yaml"),
        (lambda folder: (folder / "model.keras").unlink(), "holds no model.keras"),
    ],
)
def test_what_is_no_run_is_told(finished, tmp_path, capsys, change, message):
    shutil.copytree(finished, tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(SystemExit):
        evaluate.main([f"--model={tmp_path}/run"])
    assert message in capsys.readouterr().err


def test_features_of_another_width_are_told(finished, other_data, tmp_path, capsys):
    with np.load(tmp_path / "other.npz") as data:
        np.savez(tmp_path / "other.npz", **{**data, "features": data["features"][:, :5]})
    with pytest.raises(SystemExit):
        evaluate.main([f"--model={finished}", f"--config={other_data}", "--items=all"])
    assert "features of width 5 for a head that takes 24" in capsys.readouterr().err


def test_an_index_of_the_runs_own_data(finished, vectors, tmp_path):
    command = ["build", f"--model={finished}", f"--index={tmp_path}/index"]
    assert index.main(command) == 0
    gallery, about, _ = read_index(tmp_path / "index")
    with np.load(vectors.with_name("vectors.npz")) as data:
        expected = keras.saving.load_model(finished / "model.keras").encoder.predict(data["features"], verbose=0)
        assert gallery.labels.tolist() == data["label"].tolist()
    np.testing.assert_allclose(gallery.vectors, expected, atol=1e-5)
    assert about["model"] == fingerprint_of(finished / "export/1")
    assert index.main([*command, "--items=test"]) == 0
    assert read_index(tmp_path / "index")[1]["items"] == 144


def test_a_run_is_exported_again(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    assert export.main([f"--model={tmp_path}/run", "--set=export.weights=float16"]) == 0
    assert capsys.readouterr().out.split()[-1] == str(tmp_path / "run/export/2")
    assert tf.float16 in {dtype for _, dtype in stored_dtypes(tmp_path / "run/export/2")}
    assert "weights: float16" in (tmp_path / "run/export/2/model_card.md").read_text()
    (tmp_path / "run/metrics.json").unlink()
    with pytest.raises(SystemExit):
        export.main([f"--model={tmp_path}/run"])
    assert "expected a finished run" in capsys.readouterr().err


def test_a_version_is_seen_once_it_is_whole(finished, tmp_path, monkeypatch):
    exports = shutil.copytree(finished, tmp_path / "run") / "export"
    whole = {path.relative_to(exports / "1") for path in (exports / "1").rglob("*")}
    seen, render, sync = [], model_card.render_card, atomic_files.sync

    def looked_at(function):
        def called(*args):
            seen.append(atomic_files.versions(exports))
            return function(*args)

        return called

    def fails(*args):
        seen.append(atomic_files.versions(exports))
        raise RuntimeError("no card")

    monkeypatch.setattr(model_card, "render_card", fails)
    with pytest.raises(RuntimeError, match="no card"):
        export.main([f"--model={tmp_path}/run"])
    assert {path.name for path in exports.iterdir()} == {"1", "batching.config"}
    monkeypatch.setattr(model_card, "render_card", looked_at(render))
    monkeypatch.setattr(atomic_files, "sync", looked_at(sync))  # the last of them of the list of names
    assert export.main([f"--model={tmp_path}/run"]) == 0
    assert seen.pop() == [exports / "1", exports / "2"]
    assert set(map(tuple, seen)) == {(exports / "1",)}
    assert {path.relative_to(exports / "2") for path in (exports / "2").rglob("*")} == whole


@pytest.mark.parametrize("sections", ["the data alone", "a whole config"])
def test_vectors_without_labels_are_embedded_and_indexed_by_a_run_with_labels(
    finished,
    vectors,
    tmp_path,
    capsys,
    sections,
):
    with np.load(vectors.with_name("vectors.npz")) as data:
        np.save(tmp_path / "bare.npy", data["features"][:50])
        expected = keras.saving.load_model(finished / "model.keras").encoder.predict(data["features"][:50], verbose=0)
    config = {"data": {"source": "features", "path": str(tmp_path / "bare.npy")}}
    if sections == "a whole config":
        config |= {"backbone": {"kind": "none"}, "loss": {"name": "triplet"}, "cache": {"dtype": "float16"}}
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(config))
    of_data = [f"--model={finished}", f"--config={tmp_path}/bare.yaml"]
    assert evaluate.main([*of_data, f"--embed={tmp_path}/vectors.npy"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-5)
    assert "no labels to split by: all 50 items are taken" in " ".join(capsys.readouterr().out.split())
    assert evaluate.main([*of_data, "--items=all", f"--embed={tmp_path}/all.npy"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "all.npy"), np.load(tmp_path / "vectors.npy"))
    assert index.main(["build", *of_data, f"--index={tmp_path}/index"]) == 0
    np.testing.assert_allclose(read_index(tmp_path / "index")[0].vectors, expected, atol=1e-5)
    assert set(read_index(tmp_path / "index")[0].labels) == {""}


@pytest.mark.parametrize(("run_loss", "layers"), [("supcon", "pyramid"), ("similarity_alignment", "last")])
@pytest.mark.parametrize("other_loss", ["supcon", "similarity_alignment"])
@pytest.mark.parametrize("saved", ["now", "before layers were saved resolved"])
def test_the_network_is_the_runs_whatever_the_data_are(tmp_path, monkeypatch, run_loss, layers, other_loss, saved):
    network = {"kind": "keras_applications", "name": "MobileNetV2", "weights": None, "image_size": [96, 96]}
    data = {"source": "image_folder", "root": "x"}
    own = {"data": data, "backbone": network, "loss": {"name": run_loss}}
    if saved == "now" and run_loss == "supcon":  # what it chose
        layers = ["pyramid.1", "pyramid.2"]
        own["backbone"] = {**network, "layers": layers}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(own))
    if saved == "now":
        save_config(load_config(str(tmp_path / "config.yaml")), tmp_path / "config.yaml")
        assert yaml.safe_load((tmp_path / "config.yaml").read_text())["backbone"]["layers"] == layers
    other = {
        "data": {**data, "root": "y"},
        "backbone": {**network, "image_size": [64, 64]},
        "loss": {"name": other_loss},
    }
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    seen = []
    monkeypatch.setattr(saved_run, "make_backbone", lambda config: seen.append(config.backbone))
    monkeypatch.setattr(saved_run, "load_dataset", lambda config, *args, **kwargs: seen.append(config.data.root))
    saved_run.load_data(str(tmp_path), str(tmp_path / "other.yaml"))
    saved_run.load_data(str(tmp_path), overrides=["data.root=z", f"loss.name={other_loss}"])
    assert seen[1::2] == ["y", "z"]
    assert [(each.layers, each.image_size) for each in seen[::2]] == [(layers, [96, 96])] * 2


def test_a_key_of_the_data_that_does_not_exist_is_told(finished, capsys):
    for key, near in (("dat.path", "'data'"), ("data.pth", "'path'")):
        with pytest.raises(SystemExit):
            evaluate.main([f"--model={finished}", f"--set={key}=x"])
        assert f"did you mean {near}" in capsys.readouterr().err
