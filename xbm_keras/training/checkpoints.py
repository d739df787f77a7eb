"""Checkpoints of a training: all that its next step depends on, each written whole or not at all."""

import itertools
import json
import pathlib
import time

import keras
import tensorflow as tf

from xbm_keras.atomic_files import delete_older, new_version, versions, write_whole
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.stages.hard_top_k.by_relevance import RelevantTopK
from xbm_keras.training.callbacks import KeepBestHead

KEPT = 2  # of each training: the newest, and the one before it


class CheckpointError(ValueError):
    """A checkpoint that does not belong to this model, or none that can be read."""


class Checkpoints(keras.callbacks.Callback):
    """Saves a training at the end of an epoch, and restores it: `fit` then goes on as if nothing had happened.

    A checkpoint holds the head, the memory with its counter, mining keys, the state of the random positives, the
    optimizer, the best head so far and the history. A memory that no step changes is left out. Batches are a function
    of seed and step, so their order needs no state. The learning rate is one, too: its schedule is noted, and no
    training goes on under another.

    Stands behind all other callbacks in the list. Call `restore` before `fit`.

    Args:
        folder: of this training, `folder/<number>/` each.
        every_seconds: at most so often. The end of the training is always saved.
        history: a file that other callbacks write; it is saved and put back with the rest.
    """

    def __init__(self, folder: pathlib.Path, every_seconds: float, history: pathlib.Path):
        super().__init__()
        self.folder = folder
        self.every_seconds = every_seconds
        self.history = history
        self.best: KeepBestHead | None = None
        self._saved_at = time.monotonic()

    def restore(self, model: XBMModel, best: KeepBestHead | None = None) -> int:
        """Put the newest checkpoint into a model that was built and compiled; the epochs that are done, 0 without one.

        Args:
            model: of the same arguments as the saved one.
            best: what keeps the best head, saved along.

        Raises:
            CheckpointError: where the checkpoint is of another model or schedule, or damaged; the difference is named.
        """
        self.best = best
        saved = versions(self.folder)
        for version in reversed(saved):
            try:
                return self._read(version, model)
            except CheckpointError:
                raise
            except (OSError, ValueError, TypeError, LookupError, AssertionError, tf.errors.OpError) as error:
                reason = error  # whatever damaged files raise; and on to the one before
        if saved:
            raise CheckpointError(
                f"Received {self.folder}, none of whose checkpoints can be read: {reason}. Remove the folder to train "
                "from the start."
            )
        return 0

    def _read(self, version: pathlib.Path, model: XBMModel) -> int:
        about = json.loads((version / "about.json").read_text("utf-8"))
        _refuse_others(version, about["variables"], _describe(model))
        _refuse_other_rates(version, about.get("learning_rate"), model)
        best_head = [tf.Variable(weight) for weight in model.head.get_weights()] if self.best else []
        saved = tf.train.Checkpoint(variables=_variables(model), best_head=best_head)
        saved.read(str(version / "variables")).assert_existing_objects_matched()
        if self.best:
            self.best.restore(about["best_epoch"], about["scores"], [weight.numpy() for weight in best_head])
        write_whole(self.history, (version / self.history.name).read_bytes())
        return about["epoch"]

    def on_epoch_end(self, epoch, logs=None):
        """Save, where it is time, or the last epoch."""
        is_last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if is_last or time.monotonic() - self._saved_at >= self.every_seconds:
            self._write(self.params["epochs"] if is_last else epoch + 1)
            self._saved_at = time.monotonic()

    def _write(self, epoch: int) -> None:
        about: dict = {"epoch": epoch, "learning_rate": _rate(self.model), "variables": _describe(self.model)}
        best_head = []
        if self.best:
            about |= {"best_epoch": self.best.epoch, "scores": self.best.scores}
            best_head = [tf.Variable(weight) for weight in self.best.weights or []]
        with new_version(self.folder) as version:
            saved = tf.train.Checkpoint(variables=_variables(self.model), best_head=best_head)
            try:
                saved.write(str(version / "variables"))
            except tf.errors.OpError as error:  # such as a full disk
                raise OSError(f"{version} cannot be written: {error.message}") from error
            write_whole(version / "about.json", json.dumps(about, indent=1))
            write_whole(version / self.history.name, self.history.read_bytes())
        delete_older(self.folder, KEPT)


def _changing(model: XBMModel) -> list[keras.Variable]:
    """What training changes. Positions, not names, tell them apart: Keras numbers the names within a process."""
    constant = [] if model.backbone is None else list(model.backbone.variables)
    if model.memory.frozen:
        constant += model.memory.variables
    ids = {id(variable) for variable in constant}
    return [v for v in (*model.variables, *model.optimizer.variables) if id(v) not in ids]


def _variables(model: XBMModel) -> list[tf.Variable]:
    return [v.value for v in _changing(model)]


def _describe(model: XBMModel) -> list[list]:
    """Name, dtype and shape of each."""
    return [[v.name, v.dtype, list(v.shape)] for v in _changing(model)]


def _refuse_others(version: pathlib.Path, saved: list[list], expected: list[list]) -> None:
    pairs = itertools.zip_longest(saved, expected, fillvalue=["nothing", "", []])
    differences = [f"{a[0]} {a[1]} {a[2]} for {b[0]} {b[1]} {b[2]}" for a, b in pairs if a[1:] != b[1:]]
    if differences:
        raise CheckpointError(
            f"Received {version}, a checkpoint of another model: it holds {', '.join(differences)}. Expected one of "
            "the same config and version of the package; go on with those, or start anew with --resume=never."
        )


def _rate(model: XBMModel) -> dict | float:
    """The learning rate; of a schedule its parameters."""
    rate = model.optimizer.get_config()["learning_rate"]
    return rate["config"] if isinstance(rate, dict) else rate


def _refuse_other_rates(version: pathlib.Path, saved: dict | float | None, model: XBMModel) -> None:
    """Earlier versions noted none: the rate of classes grew as it does, that of queries and documents grew as well."""
    if saved is None and not isinstance(model.top_k, RelevantTopK):
        return
    if saved != _rate(model):
        raise CheckpointError(
            f"Received {version}, a checkpoint of another learning rate, {saved or 'that of an earlier version'}. "
            f"Expected {_rate(model)}; start anew with --resume=never, or go on with the config and version of the "
            "package that it is of."
        )
