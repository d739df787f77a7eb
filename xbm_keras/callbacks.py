"""What a run does at the end of each epoch, beside the evaluation."""

import pathlib

import keras
import pandas as pd

from xbm_keras.evaluation import RetrievalEvaluation


class KeepBestHead(keras.callbacks.Callback):
    """Ends with the head of the epoch of the best `val_map_at_r`; epoch 0, the untrained head, is a candidate.

    Only the head is copied: `EarlyStopping(restore_best_weights=True)` would copy the memory at each improvement.

    Args:
        evaluation: stands before this one in the list of callbacks.
        patience: epochs without improvement after which training stops.
    """

    def __init__(self, evaluation: RetrievalEvaluation, patience: int):
        super().__init__()
        self.evaluation = evaluation
        self.patience = patience
        self.epoch = 0

    def on_train_begin(self, logs=None):
        """Epoch 0."""
        self.best = self.evaluation.baseline["val_map_at_r"]
        self.weights = self.model.head.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        """Keep the head where it is the best so far."""
        if logs["val_map_at_r"] > self.best:
            self.epoch, self.best = epoch + 1, logs["val_map_at_r"]
            self.weights = self.model.head.get_weights()
        elif epoch + 1 - self.epoch >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        """Back to the best head."""
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
        old = [pd.read_csv(self.path)] if self.path.exists() else []
        pd.concat([*old, row]).to_csv(self.path, index=False)
