"""Runs that chose parts of their network and are started again: they keep these, and their config.yaml."""

import keras
import numpy as np
import pytest
import yaml

from tests.cli.runs import fails, run
from xbm_keras.cli import train, tune
from xbm_keras.config.yaml_files import load_config
from xbm_keras.experiment import build, chosen_parts, loading, resuming, run_folder
from xbm_keras.report.failures import REPORT_ERROR
from xbm_keras.tuning import load_data

layers = keras.layers


class Killed(BaseException):
    """Nothing in the library catches it."""


def killed(*args, **kwargs):
    raise Killed


@pytest.fixture
def config(tmp_path):
    """Pictures of 12 classes, and a convolutional network of two resolutions."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    fine = layers.Conv2D(6, 3, 2, padding="same")(inputs)
    keras.Model(inputs, layers.Conv2D(7, 3, 2, padding="same")(fine)).save(tmp_path / "network.keras")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 6)
    images = rng.uniform(0, 255, (12, 16, 16, 3))[labels] + rng.normal(size=(72, 16, 16, 3)) * 60
    np.savez(tmp_path / "x.npz", images=np.clip(images, 0, 255).astype(np.uint8), label=labels)
    network = {"kind": "file", "path": str(tmp_path / "network.keras"), "image_size": [16, 16], "layers": "auto"}
    values = {
        "data": {"source": "image_array", "path": str(tmp_path / "x.npz")},
        "backbone": network,
        "head": {"embedding_dim": 4, "start": "lda", "shrinkage": 0.5},
        "training": {"epochs": 2, "folds": 1, "batch_size": 16, "checkpoint_every_seconds": 0.0},
        "views": {"number": 1, "turned_classes": False},
        "cache": {"dir": str(tmp_path / "cache")},
    }
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def unfinished(config, tmp_path, monkeypatch):
    """Makes the folder of a run that was killed before its model was written."""

    def make(*overrides):
        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "write_model", killed)
            with pytest.raises(Killed):
                run(config, tmp_path / "run", *overrides)
        assert run_folder.has_checkpoint(tmp_path / "run")
        return tmp_path / "run"

    return make


def layers_of(folder):
    return load_config(str(folder / "config.yaml")).backbone.layers


def make_older(folder):
    """As a version left it that chose nothing, whose config says "auto"."""
    file = folder / "config.yaml"
    values = yaml.safe_load(file.read_text())
    values["backbone"]["layers"] = "auto"
    file.write_text(yaml.safe_dump(values))
    return file.read_bytes()


def test_a_run_that_goes_on_keeps_its_parts_from_the_start(config, unfinished, tmp_path, monkeypatch):
    undisturbed = run(config, tmp_path / "undisturbed")
    folder = unfinished()
    taken = layers_of(folder)
    assert isinstance(taken, list)
    monkeypatch.setattr(train, "choose_parts", killed)
    with monkeypatch.context() as patch:  # while its data are read
        patch.setattr(loading, "with_training_views", killed)
        with pytest.raises(Killed):
            run(config, folder, "views.number=2")
    assert layers_of(folder) == taken
    assert run(config, folder) == undisturbed
    assert undisturbed["validation"]["parts"] == taken
    assert layers_of(folder) == taken


def test_a_run_of_a_version_that_chose_nothing_goes_on_as_it_was(config, unfinished, tmp_path, monkeypatch):
    undisturbed = run(config, tmp_path / "undisturbed", "backbone.layers=pyramid")
    folder = unfinished("backbone.layers=pyramid")
    make_older(folder)
    monkeypatch.setattr(train, "choose_parts", killed)
    assert run(config, folder) == undisturbed


def test_a_run_that_lacks_its_report_keeps_its_config(config, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    metrics = run(config, folder, "backbone.layers=pyramid")
    before = make_older(folder)
    (folder / REPORT_ERROR).write_text("")
    monkeypatch.setattr(train, "choose_parts", killed)
    assert run(config, folder, report=True) == metrics
    assert (folder / "report.html").exists()
    assert (folder / "config.yaml").read_bytes() == before


def test_other_parts_are_refused_and_leave_the_config(config, unfinished, capsys):
    folder = unfinished("backbone.layers=pyramid")
    before = make_older(folder)
    assert "of the same parts of the network" in fails(config, folder, "backbone.layers=[pyramid.2]", capsys=capsys)
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(("saved", "given", "taken"), [
    ("[class,gem]", "auto", ["class", "gem"]),
    ("auto", "auto", "auto"),
    ("auto", "[class,patches]", ["class", "patches"]),
])  # fmt: skip
def test_parts_of_a_transformer_are_kept_in_the_same_way(tmp_path, saved, given, taken):
    config = load_config("birds_dinov2", [f"backbone.parts={given}"])
    assert resuming.begun_config(tmp_path, config) is None
    run_folder.save_config(load_config("birds_dinov2", [f"backbone.parts={saved}"]), tmp_path / "config.yaml")
    assert resuming.begun_config(tmp_path, config) is None
    (tmp_path / "metrics.json").write_text("{}")
    begun = resuming.begun_config(tmp_path, config)
    assert begun.backbone.parts == taken
    assert begun.model_copy(update={"backbone": config.backbone}) == config


def test_a_worker_of_a_search_chooses_nothing_that_its_chief_has_chosen(config, monkeypatch):
    of_user = ["views.number=auto", "views.turned_classes=auto"]
    given = load_config(str(config), of_user)
    chosen, data = load_data(given, build.make_whole_backbone(given))
    arguments = tune.choices_as_arguments(given, chosen)
    assert arguments[::2] == ["--set"] * 3
    of_worker = load_config(str(config), [*of_user, *arguments[1::2]])
    assert of_worker.backbone.layers == list(data.parts.chosen)
    monkeypatch.setattr(chosen_parts, "_by_class", killed)
    again, same = load_data(of_worker, build.make_whole_backbone(of_worker))
    assert again == chosen
    np.testing.assert_array_equal(
        same.features[:], data.features[: len(same.keys)]
    )  # without views, which are not taken
    assert tune.choices_as_arguments(of_worker, again) == []
