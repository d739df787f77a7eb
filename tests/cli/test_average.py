"""Averages of views in what is done with a finished run: exported, indexed, searched, and measured."""

import functools
import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
import yaml

from tests.cli.runs import fails, run
from xbm_keras.cli import compress, embed, evaluate, export, index
from xbm_keras.evaluation.retrieval import evaluate_retrieval
from xbm_keras.experiment import saved_run
from xbm_keras.geometry import unit_rows
from xbm_keras.index.exported_model import ExportedModel, exported_by
from xbm_keras.index.opened_index import OpenedIndex


def picture(path, label, seed):
    """A ramp of a colour of its class, brighter at one side, with noise."""
    rng, path = np.random.default_rng(seed), path / f"klasse {label}/{seed}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    color = np.random.default_rng(1000 + label).uniform(40, 200, 3)
    ramp = np.linspace(0.5, 1.2, 17)[None, :, None]
    pixels = np.clip(ramp * color + rng.normal(size=(14, 17, 3)) * 60, 0, 255)
    keras.utils.save_img(path, pixels, scale=False)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A run of pictures, exported plain as version 1 and with averages as version 2, and another head beside it."""
    top = tmp_path_factory.mktemp("runs")
    for i in range(48):
        picture(top / "photos", i // 6, i)
    keras.utils.set_random_seed(0)
    layers = [keras.Input((12, 12, 3)), keras.layers.Conv2D(6, 3, activation="relu"), keras.layers.MaxPooling2D(5)]
    keras.Sequential([*layers, keras.layers.Flatten()]).save(top / "net.keras")
    config = {
        "data": {"source": "image_folder", "root": str(top / "photos"), "split": {"test": 0.5}},
        "backbone": {"kind": "file", "path": str(top / "net.keras"), "image_size": [12, 12]},
        "cache": {"dir": str(top / "cache")},
        "views": {"number": 1, "turned_classes": False},
        "head": {"embedding_dim": 4, "start": "lda", "shrinkage": 0.5},
        "training": {"epochs": 0, "folds": 1, "batch_size": 9, "samples_per_class": 3},
    }
    (top / "photos.yaml").write_text(yaml.safe_dump(config))
    run(top / "photos.yaml", top / "run")
    assert export.main([f"--model={top}/run", "--set=export.average=[crops,flip]"]) == 0
    run(top / "photos.yaml", top / "other", "head.embedding_dim=3", "export.average=[crops]")
    return top


loaded = functools.cache(ExportedModel)


def by_export(version, folder, ids):
    return loaded(version).embed([(folder / each).read_bytes() for each in ids])[0]


def refused(capsys, main, *words):
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, words)))
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_an_index_holds_what_the_export_gives_by_cache_or_by_itself(top, tmp_path, monkeypatch):
    photos = top / "photos"
    for model, words in (
        ("run", [f"--pictures={photos}"]), ("run/export/2", [f"--pictures={photos}"]), ("run", ["--items=all"]),
    ):  # fmt: skip
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        assert index.main(["build", f"--model={top / model}", f"--index={folder}", *words]) == 0
        gallery = OpenedIndex.newest(folder).gallery
        assert len(gallery.ids) == 48
        np.testing.assert_allclose(gallery.vectors, by_export(top / "run/export/2", photos, gallery.ids), atol=1e-5)
    plain = by_export(top / "run/export/1", photos, gallery.ids)
    assert np.abs(gallery.vectors - plain).max() > 1e-3

    def fail(*_, **__):
        raise AssertionError("the network ran")

    monkeypatch.setattr("xbm_keras.feature_cache.cache.compute_batches", fail)
    assert index.main(["build", f"--model={top}/run", f"--index={tmp_path}/again", f"--pictures={photos}"]) == 0


def test_what_is_found_and_synced_is_averaged_too(top, tmp_path, capsys):
    shutil.copytree(top / "photos", tmp_path / "photos")
    command = [f"--model={top}/run", f"--index={tmp_path}/index"]
    assert index.main(["build", *command, f"--pictures={tmp_path}/photos"]) == 0
    picture(tmp_path / "photos", 3, 99)
    assert index.main(["sync", *command, f"{tmp_path}/photos"]) == 0
    capsys.readouterr()
    assert index.main(["search", *command, "--k=1", "--json", f"{tmp_path}/photos/klasse 3/99.png"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["hits"]
    assert hit["id"] == "klasse 3/99.png"
    assert hit["similarity"] == pytest.approx(1, abs=1e-5)
    query = tmp_path / "photos/klasse 3/99.png"
    told = refused(capsys, index.main, "search", f"--model={top}/run/export/1", command[1], query)
    assert "expected one model" in told
    told = refused(capsys, index.main, "search", *command, "--precision=0.9", query)
    assert "not of exports that average views" in told
    assert embed.main([f"--model={top}/run", f"--input={tmp_path}/photos", f"--output={tmp_path}/v.npy"]) == 0
    found = dict(zip(pd.read_csv(tmp_path / "v.csv").id, np.load(tmp_path / "v.npy"), strict=True))
    gallery = OpenedIndex.newest(tmp_path / "index").gallery
    np.testing.assert_allclose([found[each] for each in gallery.ids], gallery.vectors, atol=1e-5)


def test_a_new_head_that_averages_embeds_anew_from_cached_views(top, tmp_path, capsys, monkeypatch):
    shutil.copytree(top / "photos", tmp_path / "photos")
    photos = f"--pictures={tmp_path}/photos"
    index.main(["build", f"--model={top}/run/export/1", f"--index={tmp_path}/index", photos])
    picture(tmp_path / "photos", 3, 100)
    index.main(["build", f"--model={top}/run", f"--index={tmp_path}/first", photos])
    assert index.main(["build", f"--model={top}/other", f"--index={tmp_path}/other", photos]) == 0
    monkeypatch.setattr("xbm_keras.feature_cache.cache.compute_batches", None)
    assert index.main(["reembed", f"--model={top}/other", f"--index={tmp_path}/first"]) == 0
    found, expected = (OpenedIndex.newest(tmp_path / name).gallery for name in ("first", "other"))
    assert found.ids.tolist() == expected.ids.tolist()
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-6)
    monkeypatch.undo()
    plain = shutil.copytree(top / "run", tmp_path / "plain")
    shutil.rmtree(plain / "export/2")
    picture(tmp_path / "photos", 3, 101)
    index.main(["build", f"--model={plain}", f"--index={tmp_path}/index", photos])
    told = refused(capsys, index.main, "reembed", f"--model={top}/other", f"--index={tmp_path}/index")
    assert "1 item of which have no features" in told
    assert "and of their views" in told


def test_what_averages_give_is_told_with_an_interval(top, tmp_path, capsys):
    command = [f"--model={top}/run", f"--output={tmp_path}/scores.json", f"--embed={tmp_path}/v.npy"]
    assert evaluate.main([*command, "--average", "crops", "flip"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    scores = json.loads((tmp_path / "scores.json").read_text())["leave_one_out"]
    table = pd.read_csv(tmp_path / "v.csv")
    photos = top / "photos"
    averaged = by_export(top / "run/export/2", photos, table.key)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), averaged, atol=1e-5)
    labels = table.label.to_numpy(str)
    assert scores["trained_averaged"]["map_at_r"] == pytest.approx(evaluate_retrieval(averaged, labels)["map_at_r"])
    plain, others = by_export(top / "run/export/1", photos, table.key), np.arange(len(table))
    alone = [
        evaluate_retrieval(averaged[[i]], labels[[i]], plain[others != i], labels[others != i])["map_at_r"]
        for i in others
    ]
    assert scores["trained_averaged_queries"]["map_at_r"] == pytest.approx(np.mean(alone))
    for name, where in (
        ("trained_averaged", "in queries and gallery"),
        ("trained_averaged_queries", "in queries alone"),
    ):
        more = scores[name]["map_at_r"] - scores["trained"]["map_at_r"]
        assert scores[name]["map_at_r_above_trained"] == pytest.approx(more)
        low, high = scores[name]["map_at_r_above_trained_interval"]
        assert low <= more <= high
        assert f"Averaged {where}, leave-one-out:" in out
        assert f"MAP@R {more:+.3f} (95 % interval over classes {low:+.3f} to {high:+.3f})" in out
    assert evaluate.main(command) == 0
    assert "Averaged" not in capsys.readouterr().out
    assert set(json.loads((tmp_path / "scores.json").read_text())["leave_one_out"]) == {"frozen", "trained"}


def test_pictures_without_labels_can_be_embedded_and_not_scored(top, tmp_path, capsys, monkeypatch):
    (tmp_path / "bare").mkdir()
    for i, path in enumerate(sorted((top / "photos").rglob("*.png"))[:9]):
        shutil.copy(path, tmp_path / f"bare/{i}.png")
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(9)]})
    table.to_csv(tmp_path / "bare/table.csv", index=False)
    data = {"source": "image_table", "root": str(tmp_path / "bare"), "table": "table.csv", "labels": None}
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump({"data": data}))
    command = [f"--model={top}/run", f"--config={tmp_path}/bare.yaml", "--items=all", "--average", "flip", "crops"]
    monkeypatch.setattr(saved_run, "average_views", None)  # which the network runs for
    assert "data without labels" in refused(capsys, evaluate.main, *command)
    table.assign(label=table.index).to_csv(tmp_path / "bare/table.csv", index=False)
    told = refused(capsys, evaluate.main, *command, "--set=data.labels=label")
    assert "9 labelled items, no two of which share a class" in told
    monkeypatch.undo()
    assert evaluate.main([*command, f"--embed={tmp_path}/v.npy"]) == 0
    expected = by_export(top / "run/export/2", tmp_path / "bare", table.path)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)


def test_views_are_asked_of_pictures_alone(vectors, tmp_path, capsys):
    told = fails(vectors, tmp_path / "run", "export.average=[crops]", capsys=capsys)
    assert "export.average ['crops'] does not go with data.source 'features'; it takes pictures" in " ".join(
        told.split()
    )


def test_a_network_that_names_no_size_is_told_before_it_runs(top, tmp_path, capsys):
    keras.saving.load_model(top / "net.keras").export(tmp_path / "saved", verbose=False)
    values = "backbone.image_size=null", f"backbone.path={tmp_path}/saved", "export.average=[flip]"
    told = fails(top / "photos.yaml", tmp_path / "run", *values, capsys=capsys)
    assert "Give backbone.image_size" in " ".join(told.split())
    layers = [keras.Input((None, None, 3)), keras.layers.Conv2D(6, 3), keras.layers.GlobalAveragePooling2D()]
    keras.Sequential(layers).save(tmp_path / "any.keras")
    run = shutil.copytree(top / "other", tmp_path / "sizeless")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["backbone"] |= {"path": f"{tmp_path}/any.keras", "image_size": None}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for i in range(4):
        (tmp_path / f"small/{i % 2}").mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(tmp_path / f"small/{i % 2}/{i}.png", np.full((12, 12, 3), 50 * i), scale=False)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"data": config["data"] | {"root": f"{tmp_path}/small"}}))
    words = f"--model={run}", f"--config={tmp_path}/small.yaml", "--items=all", "--average", "flip"
    assert "names no size of its pictures" in refused(capsys, evaluate.main, *words)


def test_vectors_are_evaluated_by_a_run_whose_export_averages(top, tmp_path, capsys):
    """The run's `export.average` says nothing of them."""
    head = saved_run.load_head(str(top / "other"))
    features = np.random.default_rng(0).normal(size=(12, head.kernel.shape[0])).astype(np.float32)
    np.savez(tmp_path / "x.npz", features=features, label=np.arange(12) % 3)
    data = {"source": "features", "path": str(tmp_path / "x.npz")}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"data": data}))
    command = [f"--model={top}/other", f"--config={tmp_path}/x.yaml", "--items=all", f"--embed={tmp_path}/v.npy"]
    assert evaluate.main(command) == 0
    index.main(["build", *command[:3], f"--index={tmp_path}/index"])
    found = OpenedIndex.newest(tmp_path / "index").gallery.vectors
    np.testing.assert_allclose(found, np.load(tmp_path / "v.npy"), atol=1e-6)
    told = refused(capsys, evaluate.main, *command, "--average", "crops")
    assert "--average with data.source 'features'; expected pictures" in told


def test_the_card_tells_what_it_costs_and_no_threshold_of_plain_pictures_is_taken_over(top):
    card = " ".join((top / "run/export/2/model_card.md").read_text().split())
    assert "Each picture passes the network 4 times" in card
    assert "(mirrored, centre of 7 eighths, centre of 6 eighths)" in card
    assert "passes the network" not in (top / "run/export/1/model_card.md").read_text()
    assert (top / "run/thresholds.json").exists()
    assert [(top / f"run/export/{n}/thresholds.json").exists() for n in (1, 2)] == [True, False]
    assert not (top / "other/export/1/thresholds.json").exists()


def test_other_runtimes_are_refused_averages(top, tmp_path, capsys):
    words = f"--model={top}/other", f"--output={tmp_path}/x.onnx"
    assert "expected none. Such a file takes pictures at the network's size" in refused(capsys, export.main, *words)
    words = f"--model={top}/run", f"--output={tmp_path}/x.tflite", "--set=export.average=[flip]"
    assert "--set export.average=[]" in refused(capsys, export.main, *words)
    assert not list(tmp_path.iterdir())


def test_what_is_compressed_keeps_its_promise_by_plain_embeddings(top, tmp_path, capsys):
    workdir = shutil.copytree(top / "other", tmp_path / "other")
    assert compress.main([f"--model={workdir}", "--target=overlap@1 >= 0.1"]) == 0
    assert "This version embeds each picture as it is" in " ".join(capsys.readouterr().out.split())
    version = exported_by(workdir)
    assert version.name == "2"
    assert not (version / "average.json").exists()
    assert "passes the network" not in (version / "model_card.md").read_text()
    model = ExportedModel(version)
    ids = sorted(str(path.relative_to(top / "photos")) for path in (top / "photos").rglob("*.png"))[:3]
    features = saved_run.load_data(str(workdir), all_test=True)
    rows = np.stack([features.features[int(np.flatnonzero(features.keys == each)[0])] for each in ids])
    np.testing.assert_allclose(
        by_export(version, top / "photos", ids), model.embed_features(unit_rows(rows)), atol=1e-5
    )
