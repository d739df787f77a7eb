"""`xbm-keras index` on runs: any kind of item, metadata, what came and went, and a new head over the same network."""

import functools
import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml

from tests import hub_presets
from tests.cli.runs import run
from xbm_keras import CircularMemory, HardTopK, Head, SupConLoss, XBMModel
from xbm_keras.atomic_files import versions
from xbm_keras.cli import index
from xbm_keras.evaluation.thresholds import MatchThresholds
from xbm_keras.export.saved_model import export_encoder
from xbm_keras.geometry import unit_rows
from xbm_keras.index.coded_search import SearchForm
from xbm_keras.index.galleries import add_items, write_index
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.opened_index import OpenedIndex


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    keras.utils.save_img(path, np.random.default_rng(seed).uniform(0, 255, (12, 12, 3)), scale=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of pictures: two heads over one network, and one over another."""
    top = tmp_path_factory.mktemp("runs")
    for i in range(32):
        picture(top / f"photos/klasse {i // 4}/{i}.png", seed=i)
    for name, seed in (("net", 0), ("other", 1)):
        keras.utils.set_random_seed(seed)
        layers = [keras.Input((12, 12, 3)), keras.layers.Conv2D(6, 3, activation="relu")]
        keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()]).save(top / f"{name}.keras")
    config = {
        "data": {"source": "image_folder", "root": str(top / "photos"), "split": {"test": 0.4}},
        "backbone": {"kind": "file", "path": str(top / "net.keras"), "image_size": [12, 12]},
        "cache": {"dir": str(top / "cache")},
        "views": {"number": 1, "turned_classes": False},
        "head": {"embedding_dim": 4, "start": "lda", "shrinkage": 0.5},
        "training": {"epochs": 0, "folds": 1, "batch_size": 9, "samples_per_class": 3},
        "export": {"only_if_better": False},
    }
    (top / "photos.yaml").write_text(yaml.safe_dump(config))
    run(top / "photos.yaml", top / "first")
    run(top / "photos.yaml", top / "second", "head.embedding_dim=3")
    run(top / "photos.yaml", top / "third", f"backbone.path={top}/other.keras")
    return top


@pytest.fixture
def command(trained, tmp_path):
    shutil.copytree(trained / "photos", tmp_path / "photos")

    def run_command(name, *words, model="first"):
        with_model = [] if name == "remove" else [f"--model={trained / model}"]
        return index.main([name, f"--index={tmp_path}/index", *with_model, *map(str, words)])

    return run_command


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def refused(capsys, command, *words, **options):
    with pytest.raises(SystemExit) as stopped:
        command(*words, **options)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def opened(tmp_path):
    return OpenedIndex.newest(tmp_path / "index")


def no_network(monkeypatch):
    """Whatever asks the frozen network fails from now on."""

    def fail(*_, **__):
        raise AssertionError("the network ran")

    monkeypatch.setattr("xbm_keras.feature_cache.cache.compute_batches", fail)


def test_sync_takes_up_what_is_new_changed_and_gone_in_one_version(command, tmp_path, capsys, monkeypatch):
    photos = tmp_path / "photos"
    command("build", f"--pictures={photos}")
    first = opened(tmp_path).gallery
    before = dict(zip(first.ids, first.vectors, strict=True))
    assert command("sync", photos) == 0
    assert "nothing has changed; 0 added, 0 changed, 0 gone, 0 left out" in said(capsys)
    assert len(versions(tmp_path / "index")) == 1
    picture(photos / "klasse 0/0.png", seed=100)
    picture(photos / "klasse 9/new.png", seed=101)
    (photos / "klasse 0/1.png").unlink()
    (photos / "klasse 0/2.png").rename(photos / "klasse 0/renamed.png")
    (photos / "bad.png").write_bytes(b"no picture")
    assert command("sync", photos) == 0
    words = said(capsys)
    assert "Left out bad.png" in words
    assert "32 items of width 4; 2 added, 1 changed, 2 gone, 1 left out" in words
    assert len(versions(tmp_path / "index")) == 2
    now = opened(tmp_path)
    after = dict(zip(now.gallery.ids, now.gallery.vectors, strict=True))
    assert set(after) - set(before) == {"klasse 9/new.png", "klasse 0/renamed.png"}
    np.testing.assert_allclose(after["klasse 0/renamed.png"], before["klasse 0/2.png"], atol=1e-6)
    assert not np.allclose(after["klasse 0/0.png"], before["klasse 0/0.png"])
    no_network(monkeypatch)
    assert command("sync", photos) == 0
    assert "nothing has changed; 0 added, 0 changed, 0 gone, 1 left out" in said(capsys)
    assert len(versions(tmp_path / "index")) == 2


def test_a_folder_that_vanished_does_not_empty_the_index(command, tmp_path, capsys):
    command("build", f"--pictures={tmp_path}/photos")
    picture(tmp_path / "others/a.png", seed=7)
    command("add", f"--pictures={tmp_path}/others")
    shutil.rmtree(tmp_path / "photos")
    for why in ("is no folder", "holds no pictures"):
        told = refused(capsys, command, "sync", tmp_path / "photos")
        assert why in told
        assert "say --allow_empty" in told
        (tmp_path / "photos").mkdir(exist_ok=True)
    assert len(opened(tmp_path)) == 33
    assert command("sync", tmp_path / "photos", "--allow_empty") == 0
    assert "1 item of width 4; 0 added, 0 changed, 32 gone, 0 left out" in said(capsys)
    assert opened(tmp_path).gallery.ids.tolist() == ["others/a.png"]


def test_through_an_exported_model_alone_it_syncs_as_well(command, trained, tmp_path, capsys):
    command("build", f"--pictures={tmp_path}/photos", model="first/export/1")
    by_export = opened(tmp_path).gallery
    picture(tmp_path / "photos/klasse 0/0.png", seed=100)
    assert command("sync", tmp_path / "photos", model="first/export/1") == 0
    assert "32 items of width 4; 0 added, 1 changed, 0 gone, 0 left out" in said(capsys)
    picture(tmp_path / "photos/klasse 0/0.png", seed=0)
    assert command("sync", tmp_path / "photos", model="first") == 0  # the run itself finds the same
    both = dict(zip(opened(tmp_path).gallery.ids, opened(tmp_path).gallery.vectors, strict=True))
    np.testing.assert_allclose([both[each] for each in by_export.ids], by_export.vectors, atol=1e-5)


def test_a_new_head_embeds_the_items_anew_without_the_network(command, trained, tmp_path, capsys, monkeypatch):
    command("build")
    old = opened(tmp_path)
    no_network(monkeypatch)
    assert command("reembed", model="second") == 0
    new = opened(tmp_path)
    assert new.about["width"] == 3
    assert new.gallery.items.equals(old.gallery.items)
    assert new.model != old.model
    monkeypatch.undo()
    command("build", model="second")
    np.testing.assert_allclose(new.gallery.vectors, opened(tmp_path).gallery.vectors, atol=1e-6)
    command("build", "--form=float16")
    assert command("reembed", model="second") == 0
    assert opened(tmp_path).form == SearchForm(3, "float16")  # in the form that it had
    np.testing.assert_allclose(opened(tmp_path).gallery.vectors, new.gallery.vectors, atol=1e-3)
    assert "is of another network than this run" in refused(capsys, command, "reembed", model="third")
    command("build", f"--pictures={tmp_path}/photos", model="first/export/1")
    assert "does not know its network" in refused(capsys, command, "reembed", model="second")
    command("build")
    shutil.copytree(trained, tmp_path / "runs")
    text = (tmp_path / "runs/second/config.yaml").read_text()
    (tmp_path / "runs/second/config.yaml").write_text(text.replace(f"{trained}/cache", f"{tmp_path}/none"))
    assert "32 items of which have no features" in refused(capsys, command, "reembed", model=tmp_path / "runs/second")


def test_items_in_codes_are_mapped_labelled_and_exported(tmp_path, capsys):
    rng, ids, labels = np.random.default_rng(0), [f"i{i}" for i in range(60)], [f"class {i % 6}" for i in range(60)]
    old = unit_rows((rng.normal(size=(6, 8))[np.arange(60) % 6] + 0.2 * rng.normal(size=(60, 8))).astype("float32"))
    new = old @ np.linalg.qr(rng.normal(size=(8, 8)))[0].astype("float32")
    bands = np.ones((1, 3))
    thresholds = MatchThresholds(np.array([0.5]), bands, bands, bands, 10, 5)
    form = SearchForm(8, "int4", "float16", 2)
    write_index(tmp_path / "old", Gallery.of(old, ids, labels), "m", form=SearchForm(8, "int8"))
    write_index(tmp_path / "index", Gallery.of(new[:40], ids[:40], labels[:40]), "n", form=form, thresholds=thresholds)
    assert index.main(["map", f"--index={tmp_path}/old", f"--to={tmp_path}/index"]) == 0
    now = opened(tmp_path)
    assert (now.form, now.thresholds.threshold_for(0.9)) == (form, 0.5)
    assert now.gallery.ids.tolist() == ids
    assert np.einsum("ne,ne->n", now.gallery.vectors, new).min() > 0.99
    add_items(tmp_path / "index", Gallery.of(new[:3], ["a", "b", "c"]), "n")
    assert index.main(["label", f"--index={tmp_path}/index", f"--output={tmp_path}/labels.csv"]) == 0
    assert pd.read_csv(tmp_path / "labels.csv").suggestion.tolist() == labels[:3]
    capsys.readouterr()
    export = ["export", f"--index={tmp_path}/index", "--to=parquet", f"--output={tmp_path}/items.parquet"]
    assert index.main(export) == 0
    assert "this index holds 8 dimensions, int4, best 2 k ranked by float16" in said(capsys)
    found = np.array(pd.read_parquet(tmp_path / "items.parquet").vector.tolist(), "float32")
    np.testing.assert_array_equal(found, opened(tmp_path).gallery.vectors)


def test_a_search_with_another_model_is_refused(command, trained, tmp_path, capsys):
    command("build")
    np.save(tmp_path / "rows.npy", np.ones((1, 6), np.float32))
    for words in ([f"--features={tmp_path}/rows.npy"], [tmp_path / "photos/klasse 0/0.png"]):
        assert "expected one model" in refused(capsys, command, "search", *words, model="second")
    assert "embedded by the model" in refused(capsys, command, "sync", tmp_path / "photos", model="second")


def test_metadata_come_back_with_each_hit(command, tmp_path, capsys):
    table = tmp_path / "about.csv"
    table.write_text("id,price,label\nklasse 0/0.png,1.10,fruit\nklasse 0/1.png,,\nnobody,3,\n")
    assert command("build", f"--pictures={tmp_path}/photos", f"--metadata={table}") == 0
    assert "1 row of no item here" in said(capsys)
    query = tmp_path / "photos/klasse 0/0.png"
    assert command("search", "--k=1", "--json", query, tmp_path / "nowhere.png") == 0
    found, failed = map(json.loads, capsys.readouterr().out.splitlines())
    (hit,) = found["hits"]
    assert (hit["id"], hit["label"], hit["metadata"]) == ("klasse 0/0.png", "fruit", {"price": "1.10"})
    assert hit["similarity"] == pytest.approx(1, abs=1e-5)
    assert failed["hits"] == []
    assert failed["error"].startswith("no picture that can be read")
    assert command("search", "--k=1", query) == 0
    assert capsys.readouterr().out.splitlines()[1] == "  1.0000  klasse 0/0.png  fruit  price=1.10"
    command("build", f"--pictures={tmp_path}/photos")
    capsys.readouterr()
    command("search", "--k=1", query)  # its label, the folder's name, stands in the id
    assert capsys.readouterr().out.splitlines()[1] == "  1.0000  klasse 0/0.png"


def test_a_line_tells_a_label_unless_folders_of_the_id_do():
    for id, label, expected in (
        ("10", "1", "10  1"), ("1/10.png", "1", "1/10.png"), ("s/a/b/c.png", "a/b", "s/a/b/c.png"), ("1", "", "1"),
    ):  # fmt: skip
        assert index.told_of({"id": id, "label": label, "metadata": {}}) == expected


def test_hits_say_whether_they_are_matches(command, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tf.saved_model, "load", functools.cache(tf.saved_model.load))
    query = tmp_path / "photos/klasse 0/0.png"
    model = shutil.copytree(trained / "first/export/1", tmp_path / "export/1")
    (model / "thresholds.json").unlink(missing_ok=True)
    command("build", f"--pictures={tmp_path}/photos", model=model)
    assert "has no thresholds.json" in refused(capsys, command, "search", "--precision=0.9", query, model=model)
    bands = np.array([[0.5, 0.4, 0.6], [1.0, 0.99, 1.0]])  # right half of the time from 0 on, always from 0.99999 on
    MatchThresholds(np.array([0.0, 0.99999]), bands, bands, bands, 10, 5).write(model)
    capsys.readouterr()
    assert command("search", "--k=32", "--json", "--precision=0.9", query, model=model) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert [hit["is_match"] for hit in hits] == [hit["similarity"] >= 0.99999 for hit in hits]
    assert hits[0]["is_match"]
    assert not hits[-1]["is_match"]
    assert command("search", "--k=32", "--precision=0.9", query, model=model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("(no match)")
    command("build", f"--pictures={tmp_path}/photos", model=model)
    (model / "thresholds.json").rename(tmp_path / "thresholds.json")  # the index holds them from now on
    assert command("search", "--k=32", "--precision=0.9", query, model=model) == 0
    (tmp_path / "thresholds.json").rename(model / "thresholds.json")
    command("build", f"--pictures={tmp_path}/photos", "--form=3 int8", model=model)
    assert "32 items of width 4, held as 3 dimensions, int8; it takes the place" in said(capsys)
    message = refused(capsys, command, "search", "--precision=0.9", query, model=model)
    assert "held as 3 dimensions, int8, while the thresholds" in message
    assert command("search", "--k=1", query, model=model) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1:] == ["klasse", "0/0.png"]


def test_texts_are_built_synced_and_found_by_a_text(tmp_path, capsys):
    pytest.importorskip("keras_hub", reason="needs the extra [hub]")
    from xbm_keras.stages.backbone.hub import HubBackbone

    backbone = HubBackbone.from_preset(hub_presets.tiny_bert(tmp_path / "bert"), max_length=32)
    keras.utils.set_random_seed(0)
    model = XBMModel(backbone, Head(4), CircularMemory(8), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 16)})
    export_encoder(model, tmp_path / "run/export")
    backbone.save_tokenizer(tmp_path / "run/tokenizer")
    texts = {"clock": "what time is it", "music": "play a song", "empty": " ", "fun": "tell me a joke"}
    table = tmp_path / "texts.csv"

    def write(texts):
        rows = [{"id": each, "text": text, "year": len(text)} for each, text in texts.items()]
        pd.DataFrame(rows).to_csv(table, index=False)

    def command(name, *words):
        return index.main([name, f"--model={tmp_path}/run", f"--index={tmp_path}/index", *words])

    write(texts)
    assert command("build", f"--texts={table}") == 0
    assert "an empty text" in said(capsys)
    assert command("search", "--k=1", "--json", "--text=tell me a joke", "--text=play a song") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["query"] for each in found] == ["tell me a joke", "play a song"]
    assert [each["hits"][0]["id"] for each in found] == ["fun", "music"]
    known = [{"year": "14", "text": "tell me a joke"}, {"year": "11", "text": "play a song"}]
    assert [each["hits"][0]["metadata"] for each in found] == known
    command("search", "--k=1", "--text=play a song")
    assert capsys.readouterr().out.splitlines()[1].endswith("  music  play a song  year=11")
    write(texts | {"clock": "book a flight", "new": "what is the weather"})
    assert command("sync", str(table)) == 0
    assert "4 items of width 4; 1 added, 1 changed, 0 gone, 1 left out" in said(capsys)
    other = HubBackbone.from_preset(str(tmp_path / "bert"), max_length=32)
    keras.utils.set_random_seed(1)
    model = XBMModel(other, Head(4), CircularMemory(8), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 16)})
    export_encoder(model, tmp_path / "run/export")
    assert "expected one model" in refused(capsys, command, "search", "--text=tell me a joke")


def test_a_path_says_what_lies_there(tmp_path):
    pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "texts.parquet")
    pd.DataFrame({"features": [[1.0]]}).to_parquet(tmp_path / "rows.parquet")
    kinds = {"": "pictures", "gone": "pictures", "a.csv": "texts", "a.jsonl": "texts", "a.npy": "vectors"}
    kinds |= {"texts.parquet": "texts", "rows.parquet": "vectors"}
    assert {name: index.kind_of(str(tmp_path / name)) for name in kinds} == kinds
