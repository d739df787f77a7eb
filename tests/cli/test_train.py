"""train.py as a user meets it: what a run leaves, and what is said where it cannot run."""

import importlib.metadata
import json
import tomllib

import keras
import numpy as np
import pandas as pd
import pytest

import xbm_keras
from tests.cli.runs import METRICS, fails, means_of, run, serve_in_a_fresh_process
from tests.conftest import ROOT
from xbm_keras.cli import export as export_command
from xbm_keras.config import yaml_files
from xbm_keras.evaluation import wording
from xbm_keras.evaluation.retrieval import evaluate_retrieval
from xbm_keras.experiment import phases, work


def test_a_run_leaves_what_the_readme_says(finished):
    assert {p.name for p in finished.iterdir()} == {
        ".lock", "config.yaml", "data.json", "export", "held_out_head.npz", "history.csv", "metrics.json",
        "model.keras", "report.html", "tensorboard", "thresholds.json",
    }  # fmt: skip
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) == {"leave_one_out", "query_gallery", "validation", "phase"}
    assert metrics["phase"] == "refit"
    chosen = {"start", "shrinkage", "weighting", "total_share", "power", "views", "turned_classes", "tried"}
    assert set(metrics["validation"]) == {"leave_one_out", "epoch", "held_out", "folds", *chosen}
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


@pytest.mark.parametrize("epoch", [0, 2])
def test_the_chosen_epoch_is_scored_and_refitted(vectors, tmp_path, monkeypatch, epoch):
    """The refit walks as many epochs to the same rate, and so more steps."""
    monkeypatch.setattr(phases, "best_epoch", lambda curves: epoch)  # whatever is best on the first fold alone
    validation = run(vectors, tmp_path / "run", "training.folds=2", "training.learning_rate=0.1")["validation"]
    history = pd.read_csv(tmp_path / "run/history.csv")
    assert history.phase.tolist() == ["select"] * 3 + ["select_2"] * 3 + ["refit"] * epoch
    select = history[history.phase == "select"].set_index("epoch")
    assert select.val_map_at_r.nunique() == 3
    assert validation["epoch"] == epoch
    scores = validation["leave_one_out"]
    expected = select.val_map_at_r[epoch] if epoch else scores["closed_form"]["map_at_r"]
    assert scores["trained"]["map_at_r"] == pytest.approx(expected, abs=1e-6)
    optimizer = keras.saving.load_model(tmp_path / "run/model.keras").optimizer
    assert int(optimizer.iterations.value) == epoch * 9  # batches of 16 for 144 items; to select there were 7, for 108
    assert float(optimizer.learning_rate) == pytest.approx(0.1 * 30 ** (epoch / 3 - 1), rel=1e-4)


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


def test_the_package_that_is_installed_holds_the_configs(monkeypatch):
    monkeypatch.chdir(ROOT)
    setuptools = pytest.importorskip("setuptools", "77")
    command = setuptools.distutils.core.run_setup("setup.py", stop_after="config").get_command_obj("build_py")
    command.ensure_finalized()
    assert {"xbm_keras", "xbm_keras.stages.hard_top_k", "xbm_keras.cli", "xbm_keras.configs"} <= set(command.packages)
    assert command.get_package_dir("xbm_keras.configs") == "configs"
    assert command.package_data["xbm_keras.configs"] == ["*.yaml"]
    assert yaml_files.PRESETS[1].parts[-2:] == ("xbm_keras", "configs")


def test_the_version_has_one_home():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "xbm_keras.__version__"}


def test_whitening_helps_here(finished):
    scores = json.loads((finished / "metrics.json").read_text())["leave_one_out"]
    assert scores["closed_form"]["map_at_r"] > scores["frozen"]["map_at_r"] + 0.1


def test_the_config_that_is_kept_is_that_of_the_run(finished, vectors):
    """And a second run of one config is the same to the last digit: tests/cli/test_resume.py."""
    given = yaml_files.load_config(str(vectors), ["training.folds=2", "head.start=auto", "head.shrinkage=auto"])
    assert yaml_files.load_config(str(finished / "config.yaml")) == given


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
    assert means_of(found) == pytest.approx(expected, abs=1e-6)


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
    assert means_of(scores["trained"]) == means_of(scores["closed_form"])
    assert metrics["validation"]["epoch"] == 0
    assert (tmp_path / "run/export/1/saved_model.pb").exists()


def test_a_rate_that_ruins_the_head_leaves_the_start(vectors, tmp_path):
    metrics = run(vectors, tmp_path / "run", "training.learning_rate=100.0", "head.start=auto", "head.shrinkage=auto")
    assert metrics["validation"]["epoch"] == 0
    trained, start = (metrics["leave_one_out"][name] for name in ("trained", "closed_form"))
    assert {name: trained[name] for name in start} == start
    assert trained["map_at_r_above_closed_form_interval"] == [0, 0]


def test_vectors_of_fewer_dimensions_than_the_default_keep_theirs(vectors, tmp_path):
    run(vectors, tmp_path / "run", "training.epochs=0", "head.embedding_dim=auto")
    assert "head:\n  embedding_dim: auto\n" in (tmp_path / "run/config.yaml").read_text()  # which runs again
    assert export_command.main(["--model", str(tmp_path / "run")]) == 0
    for version in ("1", "2"):
        card = (tmp_path / "run/export" / version / "model_card.md").read_text()
        assert "# Embedding model, 24 dimensions" in card


@pytest.mark.parametrize(
    "overrides",
    [
        ["memory.memory_size=0", "loss.name=multi_similarity", "loss.beta=40"],
        ["memory.memory_size=64", "memory.prefill=false", "memory.storage_dtype=float16", "loss.name=nt_xent"],
        ["top_k.num_negatives=all", "top_k.num_positives=all", "head.start=random", "loss.name=smooth_ap"],
        ["loss.name=contrastive", "head.kind=residual", "top_k.mine_in=features"],
        ["loss.name=triplet", "head.kind=mlp", "top_k.mine_in=sketch", "head.embedding_dim=4"],
        ["data.split.by=item", "loss.name=recall_surrogate"],
    ],
    ids=lambda overrides: ",".join(overrides),
)
def test_recipes_run(vectors, tmp_path, overrides):
    metrics = run(vectors, tmp_path / "run", "training.epochs=1", "training.refit=false", *overrides)
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
        (["head.widths=[8,25]", "head.embedding_dim=25"], "head.widths=[8, 25] for features of width 24"),
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

        monkeypatch.setattr(work, "OF_ITEMS", work.OF_ITEMS._replace(run=run))

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

    monkeypatch.setattr(work, "OF_ITEMS", work.OF_ITEMS._replace(run=run))
    assert "needs more memory than there is: Unable to allocate" in fails(vectors, tmp_path / "run", capsys=capsys)


def test_bad_vectors_are_named(vectors, tmp_path, capsys):
    with np.load(vectors.with_name("vectors.npz")) as data:
        arrays = dict(data)
    arrays["features"][17] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    message = fails(vectors, tmp_path / "run", f"data.path={tmp_path}/bad.npz", capsys=capsys)
    assert "1 feature vector of NaN, infinite or all zero values: 17;" in message


def test_a_finished_run_is_not_overwritten(finished, vectors, capsys):
    before = (finished / "metrics.json").read_bytes()
    assert "holds a finished run" in fails(vectors, finished, capsys=capsys)
    assert (finished / "metrics.json").read_bytes() == before


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
    assert "neither to train nor to validate nor to test: 12 items." in told
    assert "3 items of the same 1 content: in train and test, such as 0 and 200; all are kept" in told


def test_the_verdict_says_when_training_made_it_worse():
    def verdict(frozen, closed_form, trained, epoch=1):
        scores = {"frozen": frozen, "closed_form": closed_form, "trained": trained}
        by_class = {name: {"map_at_r": value} for name, value in scores.items()}
        tone, said = wording.verdict({"leave_one_out": by_class, "validation": {"epoch": epoch}})
        return f"{tone}: {said}"

    assert "bad: The head is WORSE than the frozen features: MAP@R 0.400 against 0.500" in verdict(0.5, 0.45, 0.4)
    made_worse = "but training made it worse than its closed form start, by 0.050: use training.epochs=0"
    assert f"plain: The head is 0.100 MAP@R above the frozen features, {made_worse}" in verdict(0.5, 0.65, 0.6)
    by_start = "good: The head is 0.100 MAP@R above the frozen features, by its closed form alone"
    assert f"{by_start}: training changed next to nothing." in verdict(0.5, 0.6, 0.6004)
    assert f"{by_start}: no epoch of training was better on held-out classes." in verdict(0.5, 0.6, 0.6, epoch=0)
    assert "plain: The head changes next to nothing: MAP@R 0.600, frozen 0.600" in verdict(0.6, 0.5, 0.6004)
    gained = "MAP@R above the frozen features"
    assert verdict(0.5, 0.6, 0.7) == f"good: The head is 0.200 {gained}, and 0.100 above its closed form."
    assert verdict(0.6, 0.5, 0.7) == f"good: The head is 0.100 {gained}."


@pytest.mark.parametrize(("start", "tone"), [(0.5, "good"), (0.6005, "plain"), (0.7, "bad")])
def test_the_verdict_without_labels_is_by_the_neighbours_that_are_kept(start, tone):
    kept = {"closed_form": start - 0.1, "closed_form@2": start + 0.1, "trained": 0.5, "trained@2": 0.7}
    metrics = {"neighbors": {name: {"neighbor_overlap_at_10": value} for name, value in kept.items()}}
    found, said = wording.verdict(metrics)
    assert found == tone
    assert said.startswith("Over its 2 widths the trained head keeps 60.0% of the ten nearest neighbours, ")
