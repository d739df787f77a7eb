"""train.py on vectors without labels, and with labels that serve the evaluation alone."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml

from tests.cli.runs import fails, means_of, run
from xbm_keras.cli import compress, evaluate, index
from xbm_keras.config.yaml_files import check_config, load_config
from xbm_keras.data.errors import DataError
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.evaluation.retrieval import evaluate_retrieval
from xbm_keras.experiment import loading, saved_run
from xbm_keras.index.coded_search import CodedSearch, read_search_form
from xbm_keras.index.opened_index import OpenedIndex

WIDTHS = [2, 4]


def make_features(num_items=240, width=16):
    """Vectors around a few centres; the first directions hold most."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(12, width)) * np.linspace(2, 0.2, width)
    return (centers[np.arange(num_items) % 12] + 0.5 * rng.normal(size=(num_items, width))).astype("float32")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A config of vectors without labels."""
    folder = tmp_path_factory.mktemp("vectors")
    np.save(folder / "vectors.npy", make_features())
    config = {
        "data": {"source": "features", "path": str(folder / "vectors.npy")},
        "backbone": {"kind": "none"},
        "head": {"widths": WIDTHS},
        "top_k": {"num_neighbors": 8, "num_random": 16},
        "loss": {"name": "similarity_alignment"},
        "training": {"epochs": 4, "folds": 1, "batch_size": 30, "steps_per_epoch": 4},
        "export": {"codes": ["int8", "int4", "binary"]},
    }
    (folder / "vectors.yaml").write_text(yaml.safe_dump(config))
    return folder / "vectors.yaml"


@pytest.fixture(scope="module")
def finished(vectors, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "first"
    run(vectors, workdir, report=True)
    return workdir


def test_what_a_run_held_out_is_what_it_is_measured_by_later(vectors, finished, monkeypatch):
    trained = loading.load_dataset(load_config(str(vectors)), None).splits
    later = saved_run.load_data(str(finished), finds_held_out=True).splits
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(later, name), getattr(trained, name))
    monkeypatch.setattr(loading, "with_neighborhoods_held_out", lambda *args: pytest.fail("reads what trained"))
    np.testing.assert_array_equal(saved_run.load_data(str(finished)).splits.test, trained.test)


def test_without_labels_a_run_says_what_is_kept(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) == {"neighbors", "validation", "phase"}
    codes = {f"trained_{code}{at}" for code in ("int8", "int4", "binary") for at in ("", "@2")}
    assert set(metrics["neighbors"]) == {"closed_form", "closed_form@2", "trained", "trained@2"} | codes
    for embeddings in (metrics["neighbors"], metrics["validation"]["neighbors"]):
        above, interval = (f"neighbor_overlap_at_10_above_closed_form{each}" for each in ("", "_interval"))
        for name, values in embeddings.items():
            names = {"neighbor_overlap_at_1", "neighbor_overlap_at_10", "similarity_rank_correlation"}
            assert set(values) == names | ({above, interval} if name == "trained" else set())
        widths = [
            [values["neighbor_overlap_at_10"] for at, values in embeddings.items() if at.split("@")[0] == each]
            for each in ("trained", "closed_form")
        ]
        assert embeddings["trained"][above] == pytest.approx(np.mean(widths[0]) - np.mean(widths[1]))
        assert embeddings["trained"][interval][0] <= embeddings["trained"][above] <= embeddings["trained"][interval][1]
    kept = {name: values["neighbor_overlap_at_10"] for name, values in metrics["neighbors"].items()}
    assert kept["trained"] > kept["trained@2"] > kept["trained_binary@2"]
    assert kept["trained_int8"] == pytest.approx(kept["trained"], abs=0.05)
    history = pd.read_csv(finished / "history.csv")
    assert history.val_neighbor_overlap_at_10[history.phase == "select"].notna().all()
    about = json.loads((finished / "data.json").read_text())
    assert about["labels"] == []
    assert about["items"] == {"train": 108, "validation": 12, "test": 120}


def test_report_and_model_card_do_without_labels(finished):
    report = (finished / "report.html").read_text("utf-8")
    assert "of the ten nearest neighbours" in report
    assert "What it keeps" in report
    assert "closed form, 2" in report
    for word in ("MAP@R", "R@1", "items of"):
        assert word not in report
    card = (finished / "export/1/model_card.md").read_text("utf-8")
    assert "| overlap@1 | overlap@10 | rank corr. |" in card
    assert "| tested on | 120 items |" in card


def test_there_is_a_signature_for_each_width_and_a_code_beside_the_embedding(finished):
    signatures = tf.saved_model.load(str(finished / "export/1")).signatures
    names = {"serving_default", "serve_features"}
    assert set(signatures) == names | {f"{name}_2" for name in names}
    features = tf.constant(make_features(5))
    full, cut = (signatures[name](features=features) for name in ("serving_default", "serving_default_2"))
    beginning = full["embeddings"].numpy()[:, :2]
    beginning /= np.linalg.norm(beginning, axis=1, keepdims=True)
    np.testing.assert_allclose(cut["embeddings"], beginning, atol=1e-6)
    for out, width in ((full, 4), (cut, 2)):
        np.testing.assert_array_equal(out["embeddings_binary"], np.packbits(out["embeddings"].numpy() > 0, axis=1))
        np.testing.assert_allclose(out["embeddings_int8"], CODES["int8"].of(out["embeddings"]), atol=1)
        assert out["embeddings_int8"].shape == (5, width)


def test_a_finished_run_is_compressed_to_a_promise(finished, tmp_path, capsys):
    run_folder = tmp_path / "copy"
    shutil.copytree(finished, run_folder)
    assert compress.main(["--model", str(run_folder), "--target", "overlap@3 >= 0.9"]) == 0
    told = capsys.readouterr().out
    assert "The fewest bytes that surely keep overlap@3 >= 0.9" in told
    assert "On 120 test items it came to overlap@3 0." in told
    version = run_folder / "export/2"
    form = read_search_form(version)
    features = make_features(5)
    served = tf.saved_model.load(str(version)).signatures["serving_default"](features=tf.constant(features))
    assert served["embeddings"].shape == (5, form.width)
    assert form.width > 4  # more than the run's head has: of the frozen features
    for code in filter(None, (form.search, form.rank)):
        np.testing.assert_array_equal(served[f"embeddings_{code}"], CODES[code].of(served["embeddings"]))
    _is_indexed_in_its_form(run_folder, tmp_path, form, capsys)
    assert "## How to search with it" in (version / "model_card.md").read_text("utf-8")
    assert "bytes of an item that a search reads" in (run_folder / "compress.html").read_text("utf-8")
    assert compress.main(["--model", str(run_folder), "--target", "overlap@3 > 1"]) == 1
    assert "Nothing keeps overlap@3 > 1" in capsys.readouterr().out
    assert not (run_folder / "export/3").exists()
    with pytest.raises(SystemExit) as exit:
        compress.main(["--model", str(run_folder), "--target", "map_at_r >= 0.5"])
    assert exit.value.code == 2
    assert "Ask for overlap@10, which needs no labels" in capsys.readouterr().err


def _is_indexed_in_its_form(run_folder, tmp_path, form, capsys):
    """What the commands find in an index of a compressed run is what a search of its export's codes finds."""
    features, more = make_features(), make_features()[:3] + 0.1
    for name, rows in (("queries", features[:9]), ("more", more), ("gone", more[:2])):
        np.save(tmp_path / f"{name}.npy", rows)
    serve = tf.saved_model.load(str(run_folder / "export/2")).signatures["serve_features"]
    asked = serve(features=tf.constant(features[:9]))["embeddings"].numpy()
    command = lambda name, *words: index.main([name, f"--index={tmp_path}/index", *words])  # noqa: E731
    assert command("build", f"--model={run_folder}") == 0
    ids = [str(i) for i in range(240)]
    steps = [
        (lambda: None, ids, features),
        (
            lambda: command("add", f"--model={run_folder}", f"--vectors={tmp_path}/more.npy"),
            [*ids, *(f"more.npy/{i}" for i in range(3))],
            np.concatenate([features, more]),
        ),
        (
            lambda: command("remove", "0", "17"),
            [*ids[1:17], *ids[18:], *(f"more.npy/{i}" for i in range(3))],
            np.concatenate([features[1:17], features[18:], more]),
        ),
        (
            lambda: (
                (tmp_path / "gone.npy").rename(tmp_path / "more.npy"),
                command("sync", f"--model={run_folder}", f"{tmp_path}/more.npy"),
            ),
            [*ids[1:17], *ids[18:], "more.npy/0", "more.npy/1"],
            np.concatenate([features[1:17], features[18:], more[:2]]),
        ),
    ]
    for change, names, rows in steps:
        change()
        search = CodedSearch.of(serve(features=tf.constant(rows))["embeddings"].numpy(), form)
        positions, similarities = search.find(asked, 4)
        opened = OpenedIndex.newest(tmp_path / "index")
        assert opened.form == form
        assert opened.gallery.ids.tolist() == names
        capsys.readouterr()
        found = command("search", f"--model={run_folder}", "--k=4", "--json", f"--features={tmp_path}/queries.npy")
        assert found == 0
        hits = [json.loads(line)["hits"] for line in capsys.readouterr().out.splitlines()]
        assert [[hit["id"] for hit in each] for each in hits] == np.array(names)[positions].tolist()
        alone = tf.saved_model.load(str(opened.version)).signatures["search"](
            embeddings=tf.constant(asked), k=tf.constant(4)
        )
        assert [[name.decode() for name in row] for row in alone["ids"].numpy()] == np.array(names)[positions].tolist()
        np.testing.assert_allclose(alone["similarities"], similarities, atol=1e-6)


def test_a_finished_run_is_evaluated_and_indexed(finished, tmp_path):
    arguments = [
        "--model",
        str(finished),
        "--output",
        str(tmp_path / "scores.json"),
        "--embed",
        str(tmp_path / "v.npy"),
    ]
    assert evaluate.main(arguments) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    of_run = json.loads((finished / "metrics.json").read_text())["neighbors"]["trained"]
    expected = {
        name: value for name, value in of_run.items() if "above_closed_form" not in name
    }  # of which it has none
    assert scores["neighbors"]["trained"] == pytest.approx(expected, abs=1e-3)
    assert np.load(tmp_path / "v.npy").shape == (120, 4)
    assert pd.read_csv(tmp_path / "v.csv").label.isna().all()
    assert index.main(["build", "--model", str(finished), "--index", str(tmp_path / "index")]) == 0


def test_labels_serve_the_evaluation_alone(vectors, tmp_path):
    labels = {"right": np.arange(240) % 12, "shuffled": np.random.default_rng(1).permutation(240) % 12}
    runs = {}
    for name, label in labels.items():
        np.savez(tmp_path / f"{name}.npz", features=make_features(), label=label)
        overrides = [f"data.path={tmp_path / name}.npz", "training.epochs=2"]
        runs[name] = run(vectors, tmp_path / name, *overrides)
    assert runs["right"]["neighbors"] == runs["shuffled"]["neighbors"]
    right, shuffled = (runs[name]["leave_one_out"] for name in labels)
    assert set(right) == {"frozen", *runs["right"]["neighbors"]}
    assert right["trained"]["map_at_r"] > shuffled["trained"]["map_at_r"] + 0.2


@pytest.mark.parametrize(("labels", "widths"), [("classes", []), ("ids", ["head.widths=null", "head.embedding_dim=4"])])
def test_labels_of_any_kind_come_to_a_report(vectors, tmp_path, capsys, labels, widths):
    label = np.arange(240) % 12 if labels == "classes" else np.arange(240)
    np.savez(tmp_path / "x.npz", features=make_features(), label=label)
    overrides = [f"data.path={tmp_path}/x.npz", "training.epochs=1", "export.codes=[]", *widths]
    metrics = run(vectors, tmp_path / "run", *overrides, report=True)
    assert ("leave_one_out" in metrics) == (labels == "classes")
    report = (tmp_path / "run/report.html").read_text("utf-8")
    assert ("MAP@R" in report) == (labels == "classes")
    assert not (tmp_path / "run/report_error.txt").exists()
    assert ("No two of 120 items share a class" in " ".join(capsys.readouterr().out.split())) == (labels == "ids")


def test_items_without_a_label_train_and_are_not_scored_by_label(vectors, tmp_path, capsys):
    label = np.arange(240) % 12
    label[::5] = -1
    np.savez(tmp_path / "x.npz", features=make_features(), label=label)
    metrics = run(vectors, tmp_path / "run", f"data.path={tmp_path}/x.npz", "training.epochs=1", report=True)
    assert "those of 192 items serve the evaluation alone" in " ".join(capsys.readouterr().out.split())
    about = json.loads((tmp_path / "run/data.json").read_text())
    assert about["labels"] == list(range(12))
    assert about["unlabelled"] == 48
    assert sum(about["items"].values()) == 240
    test = saved_run.load_data(str(tmp_path / "run")).splits.test
    assert about["classes"]["test"] == len(np.unique(label[test][label[test] >= 0]))
    frozen = evaluate_retrieval(make_features()[test][label[test] >= 0], label[test][label[test] >= 0])
    assert means_of(metrics["leave_one_out"]["frozen"]) == pytest.approx(frozen, abs=1e-6)
    assert "What it finds" in (tmp_path / "run/report.html").read_text("utf-8")
    assert evaluate.main(["--model", str(tmp_path / "run"), "--embed", str(tmp_path / "v.npy"), "--items", "all"]) == 0
    named = pd.read_csv(tmp_path / "v.csv")
    assert named.label.isna().tolist() == (label < 0).tolist()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.arange(239), "239 labels for 240 items"),
        (np.zeros((240, 3)), "has the shape (240, 3); expected one label per item"),
        (np.array([None, "a"] * 120, object), "'label' of"),
    ],
)
def test_labels_that_cannot_be_used_are_told_not_dropped(vectors, tmp_path, capsys, label, message):
    np.savez(tmp_path / "x.npz", features=make_features(), label=label)
    assert message in fails(vectors, tmp_path / "run", f"data.path={tmp_path}/x.npz", capsys=capsys)


def test_without_epochs_the_start_is_the_head(vectors, tmp_path):
    metrics = run(vectors, tmp_path / "run", "training.epochs=0", "head.shrinkage=0.9", "export.codes=[]")
    kept = metrics["neighbors"]
    above = {
        f"neighbor_overlap_at_10_above_closed_form{each}": value for each, value in (("", 0), ("_interval", [0, 0]))
    }
    assert kept["trained"] == kept["closed_form"] | above
    assert kept["trained@2"] == kept["closed_form@2"]
    chosen = metrics["validation"]
    assert (chosen["epoch"], chosen["start"], chosen["shrinkage"]) == (0, "local", 0.9)


def test_nested_widths_with_labels(vectors, tmp_path):
    np.savez(tmp_path / "x.npz", features=make_features(), label=np.arange(240) % 12)
    config = {
        "data": {"source": "features", "path": str(tmp_path / "x.npz")},
        "backbone": {"kind": "none"},
        "head": {"widths": WIDTHS, "start": "lda", "shrinkage": 0.5},
        "training": {"epochs": 1, "folds": 1, "batch_size": 16},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    metrics = run(tmp_path / "x.yaml", tmp_path / "run", report=True)
    names = {"frozen", "closed_form", "closed_form@2", "trained", "trained@2"}
    assert set(metrics["leave_one_out"]) == set(metrics["validation"]["leave_one_out"]) == names
    assert "trained, 2" in (tmp_path / "run/report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.name=supcon", "top_k.num_neighbors=null"], "top_k.num_neighbors"),
        (["head.start=lda"], "head.start 'lda' does not go with loss.name 'similarity_alignment'"),
        (["top_k.num_negatives=3"], "top_k.num_negatives: unknown key; did you mean 'num_neighbors'?"),
        (["data.split.by=class"], "without labels and split.by 'class'; set data.split.by=item"),
        (["head.widths=[4,2]"], "expected ascending whole numbers, the last of which is 2"),
        (["head.nesting=sequential"], "head.nesting: received 'sequential'; this key left"),
        (["memory.memory_size=20"], "smaller than the batch of 30 (training.batch_size)"),
        (["export.codes=[int2]"], "export.codes"),
        (["head.widths=[2,17]"], "head.widths=[2, 17] for features of width 16"),
    ],
)
def test_what_cannot_run_is_told(vectors, tmp_path, capsys, overrides, message):
    assert message in fails(vectors, tmp_path / "run", *overrides, capsys=capsys)


def test_a_loss_with_labels_names_the_one_without(vectors, tmp_path, capsys):
    config = yaml.safe_load(vectors.read_text())
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({k: config[k] for k in ("data", "backbone")}))
    assert "--set loss.name=similarity_alignment" in fails(tmp_path / "x.yaml", tmp_path / "run", capsys=capsys)


@pytest.mark.slow
def test_the_resolved_config_gives_the_same_run(finished, tmp_path):
    again = run(finished / "config.yaml", tmp_path / "again")
    assert again == json.loads((finished / "metrics.json").read_text())


@pytest.mark.parametrize(("num_items", "part"), [(44, "validation"), (9, "test")])
def test_too_few_items_to_compare_neighbours_among_are_told_before_the_network_runs(
    tmp_path, monkeypatch, num_items, part
):
    np.save(tmp_path / "pictures.npy", np.zeros((num_items, 8, 8), np.uint8))
    monkeypatch.setattr(loading, "compute_features", lambda *_, **__: pytest.fail("the network ran"))
    config = {
        "data": {"source": "image_array", "path": str(tmp_path / "pictures.npy"), "labels": None},
        "backbone": {"kind": "glyph_net"},
        "loss": {"name": "similarity_alignment"},
    }
    if part == "test":
        config["data"]["split"] = {"test": 0.2}
        monkeypatch.setattr(loading, "VALIDATION_WITHOUT_LABELS", 0.5)
    with pytest.raises(DataError, match=f"{part} items; expected at least 3.*data.split.test"):
        loading.load_dataset(check_config(config, "x"), None)
