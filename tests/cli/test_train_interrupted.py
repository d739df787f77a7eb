"""train.py that is interrupted, cannot write its report, or finds a folder that it cannot use."""

import os
import pathlib
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
from absl.testing import flagsaver

from tests.cli.runs import fails, run
from xbm_keras.config.yaml_files import load_config
from xbm_keras.experiment import phases, run_folder, work


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


def broken(*args, **kwargs):
    raise KeyError("map_at_r")


@pytest.fixture(scope="module")
def unreported(vectors, tmp_path_factory):
    """A run that could not write its report."""
    workdir = tmp_path_factory.mktemp("unreported") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "write_run_report", broken)
        assert run(vectors, workdir, "training.epochs=1", report=True)["phase"] == "refit"
    assert 'raise KeyError("map_at_r")' in (workdir / "report_error.txt").read_text("utf-8")
    return workdir


@pytest.mark.parametrize("culprit", ["write_run_report", "write_projector", "about_items"])
def test_whatever_a_report_raises_it_alone_is_made_anew(unreported, vectors, tmp_path, capsys, monkeypatch, culprit):
    shutil.copytree(unreported, tmp_path / "run")
    left = left_in(tmp_path / "run")
    error = tmp_path / "run/report_error.txt"
    monkeypatch.setattr(work, "OF_ITEMS", work.OF_ITEMS._replace(run=broken))
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, culprit, broken)
        metrics = run(vectors, tmp_path / "run", "training.epochs=1", report=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "The report could not be written: KeyError: 'map_at_r'. The results are complete without it" in said
    assert 'raise KeyError("map_at_r")' in error.read_text("utf-8")
    assert run(vectors, tmp_path / "run", "training.epochs=1", report=True) == metrics
    assert left_in(tmp_path / "run") == left
    assert "MAP@R" in (tmp_path / "run/report.html").read_text("utf-8")
    assert not error.exists()
    assert "holds a finished run" in fails(vectors, tmp_path / "run", "training.epochs=1", capsys=capsys)


def test_a_run_that_fails_before_it_began_leaves_no_folder(vectors, tmp_path, capsys):
    workdir, nowhere = tmp_path / "made/for/it", f"data.path={tmp_path}/nowhere.npz"
    assert "which is no file" in fails(vectors, workdir, nowhere, capsys=capsys)
    assert not (tmp_path / "made").exists()
    workdir.mkdir(parents=True)
    fails(vectors, workdir, nowhere, capsys=capsys)
    assert workdir.exists()  # it was there before


def test_a_checkpoint_that_was_not_whole_yet_is_none(vectors, tmp_path, capsys):
    """Else its run would go on from the start, behind the history of its first try."""
    part = tmp_path / "run/checkpoints/select/1.tmp"
    part.mkdir(parents=True)
    (part / "about.json").write_text("{}")
    with flagsaver.flagsaver(resume="must"):
        said = fails(vectors, tmp_path / "run", "training.epochs=1", capsys=capsys)
    assert "which holds no checkpoint of an unfinished run" in said


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
