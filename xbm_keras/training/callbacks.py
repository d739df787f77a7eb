"""What a run does at the end of each epoch, beside the evaluation."""

import logging
import pathlib
import time

import keras
import numpy as np
import pandas as pd

from xbm_keras.atomic_files import write_whole
from xbm_keras.evaluation.retrieval import HeadEvaluation
from xbm_keras.evaluation.wording import SCORES
from xbm_keras.progress import Bar

log = logging.getLogger("xbm_keras")
SECONDS_BETWEEN_LINES = 10


class KeepBestHead(keras.callbacks.Callback):
    """Ends with the head of the epoch of the best score; epoch 0, the untrained head, is a candidate.

    Only the head is copied: `EarlyStopping(restore_best_weights=True)` would copy the memory at each improvement.

    Args:
        evaluation: stands before this one in the list of callbacks.
        patience: epochs without improvement after which training stops.
        monitor: name of the score in the logs, higher is better.
    """

    def __init__(self, evaluation: HeadEvaluation, patience: int, monitor: str = "val_map_at_r"):
        super().__init__()
        self.evaluation = evaluation
        self.patience = patience
        self.monitor = monitor
        self.epoch = 0
        self.weights: list | None = None
        self.scores: list[float] = []
        """Of all epochs so far, epoch 0 first."""
        self.of_queries: np.ndarray | None = None
        """[n], what the best score is the mean of, where the evaluation tells it."""

    def on_train_begin(self, logs=None):
        """Epoch 0."""
        if self.weights is None:
            self.restore(0, [self.evaluation.baseline[self.monitor]], self.model.head.get_weights())
            self.of_queries = self.evaluation.of_queries

    def score_start(self) -> None:
        """Epoch 0, where there is no other: what `fit` begins with."""
        self.evaluation.set_model(self.model)
        for callback in (self.evaluation, self):
            callback.on_train_begin()

    def restore(self, epoch: int, scores: list[float], weights: list) -> None:
        """Go on from what was kept before: the best epoch, the scores of all so far, the best head's weights."""
        self.epoch, self.best, self.scores, self.weights = epoch, scores[epoch], scores, weights

    def on_epoch_end(self, epoch, logs=None):
        """Keep the head where it is the best so far."""
        self.scores.append(logs[self.monitor])
        if logs[self.monitor] > self.best:
            self.epoch, self.best = epoch + 1, logs[self.monitor]
            self.weights = self.model.head.get_weights()
            self.of_queries = self.evaluation.of_queries
        elif epoch + 1 - self.epoch >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        """Back to the best head; to be called, too, where an exception ended the training."""
        if self.weights is not None:
            self.model.head.set_weights(self.weights)


class HistoryCsv(keras.callbacks.Callback):
    """Appends each epoch's logs to a CSV file, written anew each time, so that an interrupted run keeps its history."""

    def __init__(self, path: pathlib.Path, phase: str):
        super().__init__()
        self.path = path
        self.phase = phase

    def on_epoch_end(self, epoch, logs=None):
        """Write."""
        row = pd.DataFrame([{"phase": self.phase, "epoch": epoch + 1, **(logs or {})}])
        # As text: older pandas do not read each digit of a number again.
        old = [pd.read_csv(self.path, dtype=str)] if self.path.exists() else []
        write_whole(self.path, pd.concat([*old, row]).to_csv(index=False))


class TrainingProgress(keras.callbacks.Callback):
    """Advances a bar by steps and notes the scores; where there is no terminal, a line every now and then.

    Args:
        bar: of as many steps as the epochs have in all.
        kept: which head is the best so far, where one is chosen; it stands before this one in the list of callbacks.
    """

    def __init__(self, bar: Bar, kept: KeepBestHead | None = None):
        super().__init__()
        self.bar, self.kept = bar, kept
        self.last_line = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        """No step of it is done."""
        self.num_done = 0

    def on_train_batch_end(self, batch, logs=None):
        """The steps up to this one, by its number in the epoch, are done."""
        self.bar.advance(batch + 1 - self.num_done)
        self.num_done = batch + 1

    def on_epoch_end(self, epoch, logs=None):
        """Note loss and score."""
        parts = [f"epoch {epoch + 1}/{self.params['epochs']}"]
        if self.kept is not None:
            score, kept = logs[self.kept.monitor], self.kept
            best = f"epoch {kept.epoch}" if kept.epoch else "the start"
            parts.append(f"{SCORES[kept.monitor][0]} {score:.4f} (best {kept.best:.4f}, {best})")
        parts.append(f"loss {logs['loss']:.4f}")
        self.bar.advance(0, ", ".join(parts))
        log.debug("%s: %s", parts[0], ", ".join(f"{name} {value:.4f}" for name, value in logs.items()))
        if self.bar.progress is None and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            log.info("%s: %s", self.bar.title, self.bar.note)
