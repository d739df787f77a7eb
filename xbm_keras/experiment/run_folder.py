"""What a run leaves behind."""

import contextlib
import dataclasses
import datetime
import glob
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence

import filelock
import numpy as np

from xbm_keras.atomic_files import remove_leftovers, versions, write_whole, writing_whole
from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import ConfigError, load_config, public_values, save_config
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.labels import counted, printable
from xbm_keras.data.listing import describe
from xbm_keras.data.sources import DataError
from xbm_keras.evaluation.thresholds import FILE as THRESHOLDS
from xbm_keras.evaluation.thresholds import read_thresholds
from xbm_keras.experiment.build import sized
from xbm_keras.experiment.learning import class_learning_curve, meanwhile
from xbm_keras.experiment.run_facts import about_items, num_classes
from xbm_keras.export import model_card
from xbm_keras.export.saved_model import describe_signatures
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.report.failures import REPORT_ERROR, kept_in
from xbm_keras.report.projector import write_projector
from xbm_keras.report.run_report import AboutRun, write_run_report
from xbm_keras.report.stage_costs import Cost
from xbm_keras.stages.backbone.hub import HubBackbone
from xbm_keras.stages.head.fc_layer import Head

log = logging.getLogger("xbm_keras")
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
FREE = ("training.checkpoint_every_seconds", "training.strategy")  # keys that decide nothing but how it is done
TRAINED_BY = ("data", "backbone", "head", "memory", "top_k", "loss", "training")  # sections; the data say the rest


@contextlib.contextmanager
def claim(workdir: str | None, config_path: str, config: Config, resume: str = "auto") -> Iterator[pathlib.Path]:
    """The folder of a run, which is this process' alone while the block lasts; with `config.yaml`, which runs again.

    Until the block ends without an error the run counts as unfinished.

    Args:
        workdir: the folder. None is the newest one of `runs/<config>-<time>` that holds an unfinished run of this
            config and that no process is at work in, else a new one.
        config_path: names it.
        config: the run.
        resume: "auto" goes on with an unfinished run, "must" refuses to begin a new one, "never" to go on with one.

    Raises:
        ConfigError: if a finished run is there, or one of another config; if another process is at work in the folder,
            or the folder cannot be written.
    """
    if workdir is None:
        workdir = _unfinished_of(config, config_path) if resume != "never" else None
        workdir = workdir or f"runs/{pathlib.Path(config_path).stem}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder = pathlib.Path(workdir)
    if printable(str(workdir)) != str(workdir):  # TensorFlow could not write there
        raise ConfigError(f"Received --workdir {printable(str(workdir))}, which is not UTF-8; expected a path that is.")
    missing = [each for each in (folder, *folder.parents) if not os.path.exists(each)]
    with _locked(folder), _nothing_left_before_it_began(missing):
        try:
            for each in (folder, folder / TENSORBOARD):
                remove_leftovers(each)
            _prepare(folder, config, resume)
        except OSError as error:
            raise _not_writable(folder, error) from error
        yield folder
        shutil.rmtree(folder / CHECKPOINTS)


@contextlib.contextmanager
def _nothing_left_before_it_began(missing: Sequence[pathlib.Path]) -> Iterator[None]:
    """Where a run ends before its data were there, remove its folder again, and those above it that it made."""
    try:
        yield
    finally:
        if missing and not (missing[0] / "data.json").exists():
            shutil.rmtree(missing[0], ignore_errors=True)
            for folder in missing[1:]:
                with contextlib.suppress(OSError):
                    folder.rmdir()


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """No other process gets the folder meanwhile. The system frees it where this one dies."""
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise ConfigError(
            f"Received --workdir {folder}, in which another process is at work; wait for its end, or give another "
            "folder."
        ) from error
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def remove(folder: pathlib.Path) -> None:
    """Remove a run, where there is one. Raises ConfigError where another process is at work in its folder."""
    if folder.exists():
        with _locked(folder):
            shutil.rmtree(folder)


def _not_writable(folder: pathlib.Path, error: OSError) -> ConfigError:
    return ConfigError(f"Received --workdir {folder}, which cannot be written: {error}")


def is_finished(folder: pathlib.Path) -> bool:
    """Whether a run in the folder came to its end, its report included."""
    return (folder / "metrics.json").exists() and not _lacks_report(folder)


def _lacks_report(folder: pathlib.Path) -> bool:
    """Whether all that a run in the folder lacks is its report: it was killed while it wrote it, or could not."""
    is_unfinished = (folder / CHECKPOINTS).is_dir() or (folder / REPORT_ERROR).exists()
    return (folder / "metrics.json").exists() and is_unfinished


def results_of(workdir: pathlib.Path) -> dict | None:
    """The contents of `metrics.json`, where a run left all but its report; else None."""
    file = workdir / "metrics.json"
    return read_record(file) if file.exists() else None


def read_record(file: pathlib.Path) -> dict:
    """What a run wrote into a `.json` of its folder. Raises ConfigError where that is damaged."""
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"Received {file}, which is damaged: {error}; expected it as the run wrote it. Give another --workdir, and "
            "the run is done anew."
        ) from error


def _prepare(folder: pathlib.Path, config: Config, resume: str) -> None:
    if (folder / "metrics.json").exists():
        saved = folder / "config.yaml"
        if not _lacks_report(folder) or resume == "never" or _differences(load_config(str(saved)), config):
            raise ConfigError(
                f"Received --workdir {folder}, which holds a finished run; give another folder, or remove it."
            )
        log.info("The run in %s lacks its report alone.", folder)
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
        return
    is_begun = (folder / CHECKPOINTS).is_dir()
    if has_checkpoint(folder) and resume != "never":
        if differences := _differences(load_config(str(folder / "config.yaml")), config):
            raise ConfigError(
                f"Received --workdir {folder}, which holds an unfinished run of another config:\n"
                + "".join(f"  {line}\n" for line in differences)
                + "Go on with the same config, give another folder, or start anew with --resume=never."
            )
        log.info("Going on with the unfinished run in %s; --resume=never would start anew.", folder)
    elif resume == "must":
        raise ConfigError(
            f"Received --resume=must with --workdir {folder}, which holds no checkpoint of an unfinished run; leave "
            "--resume out to start one."
        )
    else:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        for leftover in ("history.csv", "data.json", "report.html", THRESHOLDS, REPORT_ERROR):
            (folder / leftover).unlink(missing_ok=True)
        save_config(config, folder / "config.yaml")  # of a run that goes on only once its data are the same
    if is_begun:  # by a process that was killed after the training
        shutil.rmtree(folder / "export", ignore_errors=True)
    (folder / CHECKPOINTS).mkdir(exist_ok=True)


def _unfinished_of(config: Config, config_path: str) -> str | None:
    """The newest unfinished run of this config that no process is at work in."""
    name = glob.escape(pathlib.Path(config_path).stem)
    for folder in sorted(pathlib.Path("runs").glob(f"{name}-*"), reverse=True):
        with contextlib.suppress(ConfigError):
            if has_checkpoint(folder) and not _differences(load_config(str(folder / "config.yaml")), config):
                with _locked(folder):
                    return str(folder)
    return None


def has_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a run was killed in the folder after it had begun to train."""
    return any(versions(phase) for phase in (folder / CHECKPOINTS).glob("*"))


def _differences(saved: Config, config: Config) -> list[str]:
    """Keys that decide what is trained, and their values there and here."""
    there, here = (_flat(c.model_dump(include=set(TRAINED_BY))) for c in (saved, config))
    for key in ("head.embedding_dim", "backbone.parts", "backbone.layers"):
        if "auto" in (there.get(key), here.get(key)):
            here[key] = there.get(key)  # which may be what it came to; a checkpoint, or data.json, tells if not
    return [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in {**there, **here}
        if there.get(key) != here.get(key) and key not in FREE
    ]


def _flat(values: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def write_data(workdir: pathlib.Path, dataset: Dataset) -> None:
    """Write `data.json`: the labels by number, how many items do what, what was skipped and why.

    Raises:
        DataError: where an unfinished run in the folder was of other data.
    """
    file, digest = workdir / "data.json", _digest(dataset)
    if file.exists() and read_record(file).get("digest") != digest:
        raise DataError(
            f"Received data that changed since the unfinished run in {workdir} began; expected the same items, labels "
            "and features, of the same parts of the network. Bring them back, or start anew with --resume=never."
        )
    splits = dataset.splits
    everything = np.arange(len(dataset.keys))
    counts = np.bincount(dataset.labels[dataset.labelled(everything)], minlength=len(dataset.label_names))
    about: dict = {
        "labels": dataset.label_names,
        "items": {name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
        "classes": {name: num_classes(dataset, getattr(splits, name)) for name in ("train", "validation", "test")},
        "classes_with_one_item": [dataset.label_names[i] for i in np.flatnonzero(counts == 1)],
        "in_no_part": len(np.setdiff1d(everything, np.concatenate([splits.train, splits.validation, splits.test]))),
        "unlabelled": dataset.num_unlabelled,
        "same_content": {name: dataclasses.asdict(found) for name, found in dataset.duplicates.items()},
        "skipped": dataset.skipped,
        "ignored": getattr(dataset.source, "ignored", {}),
        "folders_without_pictures": getattr(dataset.source, "without_pictures", []),
        "read_for_backbone": dataset.num_computed,
        "parts_of_network": dataset.parts and dataset.parts._asdict(),
        "digest": digest,
    }
    write_whole(file, printable(json.dumps(about, indent=1, ensure_ascii=False)))  # names of files may be no UTF-8
    for key, noun, what in (("skipped", "item", "skipped"), ("classes_with_one_item", "class", "with one item")):
        if about[key]:
            log.warning("%s %s; see data.json.", counted(len(about[key]), noun), what)
    if left_out := describe(about["ignored"], about["folders_without_pictures"]):
        log.warning("Left out in data.root: %s.", left_out)
    if about["in_no_part"]:
        left_out = counted(about["in_no_part"], "item")
        log.warning("Left out by data.split, neither to train nor to validate nor to test: %s.", left_out)
    for name, found in dataset.duplicates.items():
        if found.num_items:
            such = " and ".join(found.examples[0][:2])
            what = name.replace("_", " ")
            log.warning(
                "%s of the same %s: %s, such as %s; all are kept: see data.json.",
                counted(found.num_items, "item"),
                counted(found.num_contents, "content"),
                what,
                such,
            )


def _digest(dataset: Dataset) -> str:
    """Of items, labels, roles and some of the features."""
    digest, splits = hashlib.sha256(), dataset.splits
    some = np.linspace(0, len(dataset.labels) - 1, num=min(len(dataset.labels), 64), dtype=np.int64)
    arrays = (splits.train, splits.validation, splits.test, dataset.labels, dataset.sample_ids, dataset.features[some])
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_model(workdir: pathlib.Path, model: XBMModel) -> None:
    """Write `model.keras`, and of a model of texts `tokenizer/`."""
    backbone = model.backbone
    if isinstance(backbone, HubBackbone) and backbone.modality == "text":
        backbone.save_tokenizer(workdir / "tokenizer")
    write_keras_file(model, workdir / "model.keras")


def write_keras_file(model: XBMModel, path: str | pathlib.Path) -> None:
    """Write a `.keras` file, whole or not at all.

    A backbone that is a SavedModel or of keras_hub is left out: Keras files cannot hold the one, nor the preprocessing
    of the other.
    """
    backbone = model.backbone
    if backbone is not None and (backbone.is_saved_model or isinstance(backbone, HubBackbone)):
        model = model.without_backbone()
    with writing_whole(path) as side:
        model.save(side)


def export_model(
    workdir: pathlib.Path,
    model: XBMModel,
    config: Config,
    metrics: dict,
    add_files: Callable[[pathlib.Path], None] | None = None,
) -> pathlib.Path:
    """Write the next `export/<version>/`, with `model_card.md`, `thresholds.json` and the names of `labels.json`.

    What else is to be added may replace these. Averages of views have no thresholds: the run has those of plain ones.
    """
    about, config = read_record(workdir / "data.json"), sized(config, model.memory.feature_dim)

    def describe(version: pathlib.Path) -> None:
        values, recipe = config.model_dump(mode="json"), public_values(config)
        card = model_card.render_card(values, recipe, about, metrics, describe_signatures(version))
        write_whole(version / "model_card.md", card)
        if (thresholds := read_thresholds(workdir)) and not config.export.average:  # of other similarities
            thresholds.write(version)
        if "labels" in about:
            write_whole(version / "labels.json", json.dumps(about["labels"], indent=1, ensure_ascii=False))
        if add_files is not None:
            add_files(version)

    return config.export.make(model=model, folder=workdir / "export", add_files=describe)


def write_metrics(workdir: pathlib.Path, metrics: dict) -> None:
    """Write `metrics.json`, last of all but the report: it marks a run's results as complete."""
    write_whole(workdir / "metrics.json", json.dumps(metrics, indent=1))


def write_report(
    workdir: pathlib.Path, config: Config, dataset: Dataset, head: Head, metrics: dict, costs: Sequence[Cost]
) -> None:
    """Write `report.html`, and the test embeddings for TensorBoard's projector; where they cannot be made, say why.

    The run itself is finished by then. The same command makes the report alone anew.
    """
    again = f"To make it anew: the same command with --workdir {workdir}"
    with kept_in(workdir, again), meanwhile(class_learning_curve, config, dataset, metrics["validation"]) as learning:
        about, shown = about_items(config, dataset, metrics), model_card.as_yaml(public_values(config))
        write_run_report(workdir / "report.html", AboutRun(about, shown, metrics, learning, costs), dataset, head)
        write_projector(workdir / TENSORBOARD, dataset, head)
