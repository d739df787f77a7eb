"""train.py as a user meets it: what a run leaves, and what is said where it cannot run."""

import errno
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import tomllib

import keras
import numpy as np
import pandas as pd
import pytest
import yaml
from absl import flags
from absl.testing import flagsaver

import xbm_keras
from tests.conftest import ROOT
from xbm_keras.cli import train
from xbm_keras.config.yaml_files import load_config
from xbm_keras.evaluation import wording
from xbm_keras.evaluation.retrieval import evaluate_retrieval
from xbm_keras.experiment import phases, run_folder
from xbm_keras.feature_cache import cache

flags.FLAGS.mark_as_parsed()

SERVE = """
    import sys
    import numpy as np
    import tensorflow as tf
    serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    inputs = np.load(sys.argv[2])
    outputs = [serve(**{name: tf.constant(inputs[:n])})["embeddings"].numpy() for n in (1, 33, 0)]
    assert "xbm_keras" not in sys.modules
    np.savez(sys.argv[3], *outputs)
"""
METRICS = {"recall_at_1", "recall_at_5", "recall_at_10", "map_at_r", "r_precision"}


def serve_in_a_fresh_process(export, inputs, tmp_path):
    """What the SavedModel gives for the first 1, 33 and 0 inputs, loaded by a process that imports TensorFlow alone."""
    np.save(tmp_path / "inputs.npy", inputs)
    files = [str(export), str(tmp_path / "inputs.npy"), str(tmp_path / "outputs.npz")]
    subprocess.run([sys.executable, "-c", textwrap.dedent(SERVE), *files], check=True, cwd=tmp_path)
    with np.load(tmp_path / "outputs.npz") as outputs:
        return list(outputs.values())


def run(config, workdir, *overrides, report=False):
    """train.py with these flags; the metrics of the run."""
    with flagsaver.flagsaver(config=str(config), workdir=str(workdir), set=list(overrides), report=report):
        train.main(["train.py"])
    return json.loads((pathlib.Path(workdir) / "metrics.json").read_text())


def fails(config, workdir, *overrides, capsys):
    """The message on standard error of a run that ends with exit code 2."""
    with (
        pytest.raises(SystemExit) as exit,
        flagsaver.flagsaver(config=str(config), workdir=str(workdir), set=list(overrides)),
    ):
        train.main(["train.py"])
    assert exit.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A config of vectors in which a few directions tell classes apart, and louder ones do not."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    labels = np.repeat([f"klasse {i:02d} ä" for i in range(24)], 12)
    centers = np.repeat(rng.normal(size=(24, 6)) * 1.5, 12, axis=0)
    features = np.concatenate([centers + rng.normal(size=(288, 6)) * 0.6, rng.normal(size=(288, 18)) * 1.5], axis=1)
    roles = np.array(["train", "test"] * 144)
    np.savez(folder / "vectors.npz", features=features.astype(np.float32), label=labels, role=roles)
    config = {
        "data": {"source": "features", "path": str(folder / "vectors.npz"), "split": {"query_column": "role"}},
        "backbone": {"kind": "none"},
        "head": {"embedding_dim": 8},
        "training": {"epochs": 3, "folds": 1, "classes_per_batch": 4, "samples_per_class": 4},
    }
    (folder / "vectors.yaml").write_text(yaml.safe_dump(config))
    return folder / "vectors.yaml"


@pytest.fixture(scope="module")
def finished(vectors, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "first"
    run(vectors, workdir, "training.folds=2", report=True)
    return workdir


def test_a_run_leaves_what_the_readme_says(finished):
    assert {p.name for p in finished.iterdir()} == {
        ".lock", "config.yaml", "data.json", "export", "history.csv", "metrics.json", "model.keras", "report.html",
        "tensorboard",
    }  # fmt: skip
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) == {"leave_one_out", "query_gallery", "validation", "phase"}
    assert metrics["phase"] == "refit"
    chosen = {"start", "shrinkage", "weighting", "total_share", "power", "views", "turned_classes"}
    assert set(metrics["validation"]) == {"leave_one_out", "epoch", *chosen}
    for embeddings in (metrics["leave_one_out"], metrics["query_gallery"], metrics["validation"]["leave_one_out"]):
        assert set(embeddings) == {"frozen", "closed_form", "trained"}
        for name, values in embeddings.items():
            above = {f"map_at_r_above_{each}{end}" for each in ("frozen", "closed_form") for end in ("", "_interval")}
            assert set(values) == METRICS | {"map_at_r_interval"} | (above if name == "trained" else set())
            low, high = values["map_at_r_interval"]
            assert low < values["map_at_r"] < high
        trained, frozen = embeddings["trained"], embeddings["frozen"]
        assert trained["map_at_r_above_frozen"] == pytest.approx(trained["map_at_r"] - frozen["map_at_r"], abs=1e-6)
        assert trained["map_at_r_above_frozen_interval"][0] > 0
    history = pd.read_csv(finished / "history.csv")
    assert history.phase.tolist()[:6] == ["select"] * 3 + ["select_2"] * 3
    mean = [history.val_map_at_r[history.phase == phase].to_numpy() for phase in ("select", "select_2")]
    epoch = metrics["validation"]["epoch"]
    assert epoch in (0, int(np.argmax(np.mean(mean, axis=0))) + 1)
    assert history.phase.tolist().count("refit") == epoch
    assert history.val_map_at_r[history.phase == "select"].notna().all()
    assert json.loads((finished / "data.json").read_text())["classes"] == {"train": 9, "validation": 3, "test": 12}


def test_tensorboard_gets_the_test_embeddings(finished):
    folder = finished / "tensorboard"
    assert 'tensor_path: "trained.tsv"' in (folder / "projector_config.pbtxt").read_text()
    rows = np.loadtxt(folder / "trained.tsv", delimiter="\t")
    items = (folder / "trained-items.tsv").read_text("utf-8").splitlines()
    assert items[0] == "class\titem"
    assert rows.shape == (len(items) - 1, 8) == (144, 8)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)


def test_ctrl_c_in_the_refit_leaves_the_head_of_the_selection(vectors, tmp_path, monkeypatch, capsys):
    fit, heads = phases.fit, []

    def interrupted_the_second_time(config, dataset, model, *rest, **more):
        heads.append(model.head)
        if len(heads) == 2:
            model.head.kernel.assign(0 * model.head.kernel)
            raise KeyboardInterrupt
        fit(config, dataset, model, *rest, **more)

    monkeypatch.setattr(phases, "fit", interrupted_the_second_time)
    with pytest.raises(SystemExit) as exit:
        run(vectors, tmp_path / "run")
    assert exit.value.code == 130
    assert "it was not tested" in capsys.readouterr().err
    saved = keras.saving.load_model(tmp_path / "run/model.keras").head
    np.testing.assert_array_equal(saved.kernel, heads[0].kernel)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_validation_scores_are_of_the_head_of_the_chosen_epoch(vectors, tmp_path, monkeypatch, epoch):
    monkeypatch.setattr(phases, "best_epoch", lambda curves: epoch)  # whatever is best on the first fold alone
    rising = [
        "training.folds=2",
        "training.learning_rate=0.1",
    ]
    validation = run(vectors, tmp_path / "run", *rising)["validation"]
    history = pd.read_csv(tmp_path / "run/history.csv")
    select = history[history.phase == "select"].set_index("epoch")
    assert select.val_map_at_r.nunique() == 3
    assert validation["epoch"] == epoch == (history.phase == "refit").sum()
    scores = validation["leave_one_out"]
    expected = select.val_map_at_r[epoch] if epoch else scores["closed_form"]["map_at_r"]
    assert scores["trained"]["map_at_r"] == pytest.approx(expected, abs=1e-6)


def test_the_refit_walks_as_many_epochs_to_the_same_rate_and_so_more_steps(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(phases, "best_epoch", lambda curves: 2)
    run(vectors, tmp_path / "run", "training.learning_rate=0.003")
    history = pd.read_csv(tmp_path / "run/history.csv")
    assert history.phase.tolist() == ["select"] * 3 + ["refit"] * 2
    optimizer = keras.saving.load_model(tmp_path / "run/model.keras").optimizer
    assert int(optimizer.iterations.value) == 2 * 9  # batches of 16 for 144 items; to select there were 7, for 108
    assert float(optimizer.learning_rate) == pytest.approx(0.003 * 30 ** (2 / 3 - 1), rel=1e-4)  # two of three epochs


@pytest.mark.parametrize("interrupted", ["select_2", "again", "refit"])
def test_ctrl_c_leaves_a_head_and_its_epoch(vectors, tmp_path, monkeypatch, capsys, interrupted):
    fit, heads = phases.fit, []
    order = ["select", "select_2", "again", "refit"]

    def interrupted_fit(config, dataset, model, *rest, **more):
        if order[len(heads)] == interrupted:
            model.head.kernel.assign(0 * model.head.kernel)
            raise KeyboardInterrupt
        fit(config, dataset, model, *rest, **more)
        heads.append(model.head.get_weights())

    def other_than_the_first_folds(curves):
        own.append(int(np.argmax(curves[0])))
        return 1 if own[0] != 1 else 2

    own = []
    monkeypatch.setattr(phases, "fit", interrupted_fit)
    monkeypatch.setattr(phases, "best_epoch", other_than_the_first_folds)
    with pytest.raises(SystemExit):
        run(vectors, tmp_path / "run", "training.folds=2", "head.start=random")
    said = capsys.readouterr().err
    history = pd.read_csv(tmp_path / "run/history.csv").query("phase == 'select'")
    saved = keras.saving.load_model(tmp_path / "run/model.keras").head
    if interrupted == "refit":
        assert f"of epoch {1 if own[0] != 1 else 2}," in said
        np.testing.assert_array_equal(saved.kernel, heads[2][0])
    else:
        best = int(history.val_map_at_r.argmax()) + 1
        assert f"of epoch {best}," in said
        np.testing.assert_array_equal(saved.kernel, heads[0][0])
        assert own in ([], [best])


def test_a_report_that_cannot_be_written_loses_no_run(vectors, tmp_path, capsys):
    (tmp_path / "run/tensorboard").parent.mkdir()
    (tmp_path / "run/tensorboard").write_text("in the way")
    run(vectors, tmp_path / "run", "training.epochs=0", report=True)
    assert "The report could not be written" in capsys.readouterr().out
    assert (tmp_path / "run/metrics.json").exists()
    assert (tmp_path / "run/export/1/saved_model.pb").exists()


def left_in(workdir):
    """When each file that is no report was written."""
    names = ("metrics.json", "model.keras", "history.csv", "config.yaml", "export/1/saved_model.pb")
    return {name: (workdir / name).stat().st_mtime_ns for name in names}


@pytest.mark.parametrize("culprit", ["write_run_report", "write_projector", "about_items"])
def test_whatever_a_report_raises_it_alone_is_made_anew(vectors, tmp_path, capsys, monkeypatch, culprit):
    def broken(*args, **kwargs):
        raise KeyError("map_at_r")

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, culprit, broken)
        metrics = run(vectors, tmp_path / "run", "training.epochs=1", report=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "The report could not be written: KeyError: 'map_at_r'. The results are complete without it" in said
    error = tmp_path / "run/report_error.txt"
    assert 'raise KeyError("map_at_r")' in error.read_text("utf-8")
    assert metrics["phase"] == "refit"
    left = left_in(tmp_path / "run")
    monkeypatch.setattr(phases, "run", broken)
    assert run(vectors, tmp_path / "run", "training.epochs=1", report=True) == metrics
    assert left_in(tmp_path / "run") == left
    assert "MAP@R" in (tmp_path / "run/report.html").read_text("utf-8")
    assert not error.exists()
    assert "holds a finished run" in fails(vectors, tmp_path / "run", "training.epochs=1", capsys=capsys)


@pytest.mark.parametrize("other", ["training.epochs=2", "--resume=never"])
def test_a_run_that_lacks_its_report_is_not_begun_anew(vectors, tmp_path, capsys, monkeypatch, other):
    monkeypatch.setattr(run_folder, "write_run_report", lambda *args, **kwargs: 1 / 0)
    run(vectors, tmp_path / "run", "training.epochs=0", report=True)
    left = (tmp_path / "run/metrics.json").stat().st_mtime_ns
    overrides, resume = ([], "never") if other.startswith("--") else ([other], "auto")
    with flagsaver.flagsaver(resume=resume):
        said = fails(vectors, tmp_path / "run", *(overrides or ["training.epochs=0"]), capsys=capsys)
    assert "holds a finished run" in said
    assert (tmp_path / "run/metrics.json").stat().st_mtime_ns == left


def test_killed_while_it_writes_its_report_a_run_keeps_all_else(vectors, tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_run_report", killed)
        with pytest.raises(SystemExit) as exit:
            run(vectors, tmp_path / "run", "training.epochs=1", report=True)
    assert exit.value.code == 130
    left = left_in(tmp_path / "run")
    run(vectors, tmp_path / "run", "training.epochs=1", report=True)
    assert left_in(tmp_path / "run") == left
    assert (tmp_path / "run/report.html").exists()
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_checkout_that_is_not_installed_trains(vectors, tmp_path, monkeypatch):
    version = importlib.metadata.version

    def installed(name):
        if name in ("xbm-keras", "xbm_keras", "tensorflow"):  # the second may be installed as tensorflow-cpu
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", installed)
    run(vectors, tmp_path / "run", "training.epochs=0", report=True)
    card, report = (tmp_path / "run" / name for name in ("export/1/model_card.md", "report.html"))
    assert f"xbm-keras {xbm_keras.__version__}, keras {keras.__version__}" in card.read_text("utf-8")
    assert f"xbm-keras {xbm_keras.__version__}" in report.read_text("utf-8")


def test_the_version_has_one_home():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "xbm_keras.__version__"}


def test_whitening_helps_here(finished):
    scores = json.loads((finished / "metrics.json").read_text())["leave_one_out"]
    assert scores["closed_form"]["map_at_r"] > scores["frozen"]["map_at_r"] + 0.1


def test_the_resolved_config_gives_the_same_run(finished, tmp_path):
    metrics = run(finished / "config.yaml", tmp_path / "again")
    first = json.loads((finished / "metrics.json").read_text())
    assert metrics["validation"]["epoch"] == first["validation"]["epoch"]
    for name in ("frozen", "closed_form", "trained"):
        assert metrics["leave_one_out"][name] == pytest.approx(first["leave_one_out"][name], abs=1e-4)


def test_the_saved_model_serves_what_the_model_gives(finished, tmp_path):
    inputs = np.random.default_rng(1).normal(size=(40, 24)).astype(np.float32)
    one, many, none = serve_in_a_fresh_process(finished / "export/1", inputs, tmp_path)
    expected = keras.saving.load_model(finished / "model.keras").encoder.predict(inputs, verbose=0)
    np.testing.assert_allclose(one, expected[:1], atol=1e-5)
    np.testing.assert_allclose(many, expected[:33], atol=1e-5)
    assert none.shape == (0, 8)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)
    size = sum(p.stat().st_size for p in (finished / "export/1/variables").iterdir())
    assert size < 24 * 8 * 4 + 8 * 4 + 3000  # the head and some bookkeeping: no memory, no optimizer


def test_the_metrics_are_those_of_the_model(finished, vectors):
    model = keras.saving.load_model(finished / "model.keras")
    with np.load(vectors.with_name("vectors.npz")) as data:
        is_test = ~np.isin(data["label"], train_classes(finished, data["label"]))
        embeddings = model.encoder.predict(data["features"][is_test], verbose=0)
        expected = evaluate_retrieval(embeddings, data["label"][is_test])
    found = json.loads((finished / "metrics.json").read_text())["leave_one_out"]["trained"]
    assert found == pytest.approx(expected, abs=1e-6)


def train_classes(workdir, labels):
    """The classes whose items are in the memory: all training classes, after the refit."""
    model = keras.saving.load_model(workdir / "model.keras")
    names = np.array(json.loads((workdir / "data.json").read_text())["labels"])
    return names[np.unique(model.memory.read().labels.numpy())]


def test_test_classes_never_enter_the_memory(finished, vectors):
    with np.load(vectors.with_name("vectors.npz")) as data:
        assert len(train_classes(finished, data["label"])) == 12


def test_zero_epochs_exports_the_closed_form(vectors, tmp_path):
    metrics = run(vectors, tmp_path / "run", "training.epochs=0")
    scores = metrics["leave_one_out"]
    assert scores["trained"] == scores["closed_form"]
    assert metrics["validation"]["epoch"] == 0
    assert (tmp_path / "run/export/1/saved_model.pb").exists()


def test_a_rate_that_ruins_the_head_leaves_the_start(vectors, tmp_path):
    metrics = run(vectors, tmp_path / "run", "training.learning_rate=100.0")
    assert metrics["validation"]["epoch"] == 0
    trained, start = (metrics["leave_one_out"][name] for name in ("trained", "closed_form"))
    assert {name: trained[name] for name in start} == start
    assert trained["map_at_r_above_closed_form_interval"] == [0, 0]


@pytest.mark.parametrize(
    "overrides",
    [
        ["memory.memory_size=0", "loss.name=multi_similarity", "loss.base=0.4"],
        ["memory.memory_size=64", "memory.prefill=false", "memory.storage_dtype=float16", "loss.name=nt_xent"],
        ["top_k.mine_in=features", "training.refit=false", "loss.name=circle"],
        ["top_k.num_negatives=all", "top_k.num_positives=all", "head.start=random", "loss.name=smooth_ap"],
        ["loss.name=contrastive", "head.kind=residual"],
        ["loss.name=triplet", "head.kind=mlp"],
        ["loss.name=info_nce", "top_k.mine_in=sketch", "head.embedding_dim=4"],
        ["data.split.by=item", "loss.name=recall_surrogate"],
    ],
    ids=lambda overrides: ",".join(overrides),
)
def test_recipes_run(vectors, tmp_path, overrides):
    metrics = run(vectors, tmp_path / "run", "training.epochs=1", *overrides)
    assert np.isfinite(metrics["leave_one_out"]["trained"]["map_at_r"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.epoch=3"], "did you mean 'epochs'"),
        (["data.path=nope.npz"], "'nope.npz', which is no file"),
        (["data.labels=lable"], "did you mean 'label'"),
        (["data.labels=null"], "without labels"),
        (["data.split.column=part"], "column 'part', which the data does not have"),
        (["data.split.num_train_classes=2"], "2 training and 22 test classes"),
        (["head.embedding_dim=25"], "embedding_dim=25 for features of width 24"),
        (["head.embedding_dim=25", "head.kind=residual"], "embedding_dim=25 for features of width 24"),
        (["head.widths=[8,25]", "head.embedding_dim=25"], "embedding_dim=25 for features of width 24"),
        (["data.split.by=item", "data.split.test=[a]"], "does not go with by 'item'"),
        (["training.seed=-1"], "training.seed: received -1"),
        (["memory.memory_size=8"], "smaller than the batch"),
    ],
)
def test_what_cannot_run_is_told(vectors, tmp_path, capsys, overrides, message):
    assert message in fails(vectors, tmp_path / "run", *overrides, capsys=capsys)


def test_what_a_stage_refuses_is_told_and_what_is_a_fault_is_not_hidden(vectors, tmp_path, capsys, monkeypatch):
    def refuses(message):
        def run(*args):
            raise ValueError(message)

        monkeypatch.setattr(phases, "run", run)

    refuses("Received k=3; expected 2. Use 2.")
    assert fails(vectors, tmp_path / "run", capsys=capsys) == "Error: Received k=3; expected 2. Use 2.\n"
    refuses(
        "Exception encountered when calling HardTopK.call().\n\n\x1b[1mReceived k=3.\nUse 2.\x1b[0m\n\nArguments: x"
    )
    assert fails(vectors, tmp_path / "run", capsys=capsys) == "Error: Received k=3.\nUse 2.\n"
    refuses("operands could not be broadcast together")
    with pytest.raises(ValueError, match="operands"):
        run(vectors, tmp_path / "run")


def test_too_little_memory_is_told(vectors, tmp_path, capsys, monkeypatch):
    def run(*args):
        raise np._core._exceptions._ArrayMemoryError((10**9, 10**9), np.dtype("f4"))

    monkeypatch.setattr(phases, "run", run)
    assert "needs more memory than there is: Unable to allocate" in fails(vectors, tmp_path / "run", capsys=capsys)


def test_bad_vectors_are_named(vectors, tmp_path, capsys):
    with np.load(vectors.with_name("vectors.npz")) as data:
        arrays = dict(data)
    arrays["features"][17] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    message = fails(vectors, tmp_path / "run", f"data.path={tmp_path}/bad.npz", capsys=capsys)
    assert "1 feature vectors that are NaN, infinite or all zero: 17;" in message


def test_a_finished_run_is_not_overwritten(finished, vectors, capsys):
    before = (finished / "metrics.json").read_bytes()
    assert "holds a finished run" in fails(vectors, finished, capsys=capsys)
    assert (finished / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("name", ["metrics.json", "data.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null"])
def test_a_damaged_record_of_a_run_is_told(vectors, tmp_path, capsys, name, content):
    config = load_config(str(vectors))
    with pytest.raises(KeyError), run_folder.claim(str(tmp_path), "x", config):
        raise KeyError  # killed
    (tmp_path / "metrics.json").write_text("{}")  # all but the report is done
    (tmp_path / name).write_bytes(content)
    assert f"{name}, which is damaged" in fails(vectors, tmp_path, capsys=capsys)


def test_a_workdir_that_is_not_utf_8(vectors, tmp_path, capsys):
    message = fails(vectors, tmp_path / os.fsdecode(b"\xe9"), capsys=capsys)
    assert "\\udce9, which is not UTF-8" in message
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_cannot_be_made(vectors, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails(vectors, tmp_path / "file/run", capsys=capsys)
    for folder in ("/proc/run", "/sys/run"):  # read-only for everybody, root included
        if pathlib.Path(folder).parent.is_dir():
            assert "cannot be written" in fails(vectors, folder, capsys=capsys)


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
    (tmp_path / "x.yaml").write_text(
        yaml.safe_dump({"data": {"source": "image_folder", "root": str(tmp_path)}, "backbone": backbone})
    )
    assert message in fails(tmp_path / "x.yaml", tmp_path / "run", capsys=capsys)


def test_what_is_left_out_or_doubtful_is_counted(vectors, tmp_path, capsys):
    with np.load(vectors.with_name("vectors.npz")) as given:
        arrays = dict(given)
    names = arrays["label"].copy()
    arrays["label"][[5, 100]] = ""
    arrays["features"][200] = arrays["features"][201] = arrays["features"][0]
    number = np.unique(names, return_inverse=True)[1]
    arrays["part"] = np.where(number < 12, "train", np.where(number < 23, "test", "spare"))
    np.savez(tmp_path / "x.npz", **arrays)
    data = [f"data.path={tmp_path}/x.npz", "data.split.column=part", "training.epochs=1"]
    run(vectors, tmp_path / "run", *data)
    about = json.loads((tmp_path / "run/data.json").read_text())
    assert about["unlabelled"] == 2
    assert about["in_no_part"] == 12
    assert sum(about["items"].values()) == 288 - 12 - 2
    same = {"num_contents": 1, "num_items": 3, "examples": [["0", "200", "201"]]}
    assert about["same_content"] == {"in_several_classes": same, "in_train_and_test": same}
    told = " ".join(capsys.readouterr().out.split())
    assert "2 of 288 items have no label and are left out" in told
    assert "12 item(s) neither train nor validate nor test" in told
    assert "3 item(s) of the same 1 content(s) are in train and test, such as 0 and 200; all are kept" in told


def test_empty_folders_are_told(tmp_path, capsys):
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalMaxPooling2D()])
    network.save(tmp_path / "net.keras")
    backbone = {"kind": "file", "path": str(tmp_path / "net.keras"), "image_size": [8, 8]}
    (tmp_path / "x.yaml").write_text(
        yaml.safe_dump({"data": {"source": "image_folder", "root": str(tmp_path)}, "backbone": backbone})
    )
    said = fails(tmp_path / "x.yaml", tmp_path / "run", "head.embedding_dim=3", capsys=capsys)
    assert "holds no pictures in folders" in said


@pytest.fixture
def photos(tmp_path):
    """A config of a folder with eight classes of pictures in a colour of their own, and what goes wrong in practice."""
    rng = np.random.default_rng(0)
    for label in range(8):
        color = rng.uniform(0, 255, 3)
        for i in range(6):
            path = tmp_path / f"my photos/klasse {label}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(color + rng.normal(size=(12, 10 + i, 3)) * 25, 0, 255)
            keras.utils.save_img(path, pixels, scale=False)
    (tmp_path / "my photos/alone").mkdir()
    (tmp_path / "my photos/klasse 0/0.png").rename(tmp_path / "my photos/alone/only.png")
    (tmp_path / "my photos/klasse 1/2.png").write_bytes(b"")
    network = keras.Sequential(
        [keras.Input((12, 12, 3)), keras.layers.Conv2D(6, 3, activation="relu"), keras.layers.BatchNormalization()]
    )
    network.save(tmp_path / "net.keras")
    config = {
        "data": {"source": "image_folder", "root": str(tmp_path / "my photos"), "split": {"test": 0.4}},
        "backbone": {"kind": "file", "path": str(tmp_path / "net.keras"), "image_size": [12, 12]},
        "cache": {"dir": str(tmp_path / "cache")},
        "views": {"number": 1, "turned_classes": False},
        "head": {"embedding_dim": 4},
        "training": {"epochs": 1, "folds": 1, "classes_per_batch": 3, "samples_per_class": 3},
    }
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "photos.yaml"


def test_a_folder_with_a_corrupt_picture_and_a_lonely_one(photos, tmp_path, capsys):
    run(photos, tmp_path / "run", report=True)
    report = (tmp_path / "run/report.html").read_text("utf-8")
    assert "1 item(s) were skipped: an empty file (1)." in report
    assert report.count("data:image/webp;base64,") > 20
    about = json.loads((tmp_path / "run/data.json").read_text())
    assert about["skipped"] == {"klasse 1/2.png": "an empty file"}
    assert about["classes_with_one_item"] == ["alone"]
    assert sum(about["items"].values()) == 47
    assert about["read_for_backbone"] == 48
    said = " ".join(capsys.readouterr().out.split())
    assert "1 item(s) skipped" in said
    assert "1 class(es) with one item" in said
    assert "klasse 1/2.png: an empty file" in fails(photos, tmp_path / "no", "cache.on_error=raise", capsys=capsys)


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
    for data, message in (
        ({"source": "image_table", "root": str(tmp_path), "table": "x.csv"}, "which is no file"),
        ({"source": "image_array", "path": "x.npz"}, "'x.npz', which is no file"),
        ({"source": "tfds", "name": "no_such_things", "data_dir": str(tmp_path)}, "which TFDS cannot give"),
    ):
        config = yaml.safe_load(photos.read_text()) | {"data": data}
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
        assert message in fails(tmp_path / "x.yaml", tmp_path / "run", capsys=capsys)


def test_a_saved_model_as_backbone(photos, tmp_path):
    keras.saving.load_model(tmp_path / "net.keras").export(tmp_path / "saved", verbose=False)
    backbone = {"kind": "file", "path": str(tmp_path / "saved"), "image_size": [12, 12]}
    config = yaml.safe_load(photos.read_text()) | {"backbone": backbone}
    (tmp_path / "saved.yaml").write_text(yaml.safe_dump(config))
    metrics = run(tmp_path / "saved.yaml", tmp_path / "run")
    plain = run(photos, tmp_path / "plain")
    assert metrics["leave_one_out"]["frozen"] == plain["leave_one_out"]["frozen"]

    pictures = np.random.default_rng(0).uniform(0, 255, (33, 12, 12, 3)).astype(np.float32)
    _, served, none = serve_in_a_fresh_process(tmp_path / "run/export/1", pictures, tmp_path)
    _, expected, _ = serve_in_a_fresh_process(tmp_path / "plain/export/1", pictures, tmp_path)
    np.testing.assert_allclose(served, expected, atol=1e-5)
    assert none.shape == (0, 4)
    head_only = keras.saving.load_model(tmp_path / "run/model.keras")
    assert head_only.backbone is None
    assert head_only.encoder.predict(np.ones((2, 6)), verbose=0).shape == (2, 4)


def test_the_verdict_says_when_training_made_it_worse():
    def verdict(frozen, closed_form, trained):
        scores = {"frozen": frozen, "closed_form": closed_form, "trained": trained}
        tone, said = wording.verdict({"leave_one_out": {name: {"map_at_r": value} for name, value in scores.items()}})
        return f"{tone}: {said}"

    assert "bad: The head is WORSE than the frozen features: MAP@R 0.400 against 0.500" in verdict(0.5, 0.45, 0.4)
    made_worse = "but training made it worse than its closed form start, by 0.050: use training.epochs=0"
    assert f"plain: The head is 0.100 MAP@R above the frozen features, {made_worse}" in verdict(0.5, 0.65, 0.6)
    by_start = "good: The head is 0.100 MAP@R above the frozen features, by its closed form alone"
    assert by_start in verdict(0.5, 0.6, 0.6004)
    assert "plain: The head changes next to nothing: MAP@R 0.600, frozen 0.600" in verdict(0.6, 0.5, 0.6004)
    gained = "good: The trained head is 0.100 MAP@R above the best of the others"
    assert f"{gained} (closed form), and 0.200 above the frozen" in verdict(0.5, 0.6, 0.7)
    assert f"{gained} (frozen)" in verdict(0.6, 0.5, 0.7)


@pytest.mark.parametrize(("start", "tone"), [(0.5, "good"), (0.6005, "plain"), (0.7, "bad")])
def test_the_verdict_without_labels_is_by_the_neighbours_that_are_kept(start, tone):
    kept = {"closed_form": start - 0.1, "closed_form@2": start + 0.1, "trained": 0.5, "trained@2": 0.7}
    metrics = {"neighbors": {name: {"neighbor_overlap_at_10": value} for name, value in kept.items()}}
    found, said = wording.verdict(metrics)
    assert found == tone
    assert said.startswith("Over its 2 widths the trained head keeps 60.0% of the ten nearest neighbours, ")


def grocery_config(data_dir, tmp_path, classes, per_class):
    """configs/grocery.yaml on a few pictures of a few classes of each side."""
    table = pd.read_csv(data_dir / "grocery/labels.csv")
    sides = [names.class_name.unique()[:classes] for _, names in table.groupby("openset_split_interleaved")]
    table = table[table.class_name.isin(np.concatenate(sides))].groupby("class_name").head(per_class)
    table.to_csv(tmp_path / "some.csv", index=False)
    return [f"data.table={tmp_path}/some.csv", f"cache.dir={tmp_path}/cache", "training.classes_per_batch=4"]


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
