"""What the bar of a training says."""

from xbm_keras.progress import Bar
from xbm_keras.training.callbacks import KeepBestHead, TrainingProgress


def test_the_best_may_be_the_start():
    bar, kept = Bar("training", 2, "steps"), KeepBestHead(evaluation=None, patience=5)
    progress = TrainingProgress(bar, kept)
    progress.set_params({"epochs": 2})
    kept.restore(0, [0.5], [])
    progress.on_epoch_end(0, {"val_map_at_r": 0.4, "loss": 1.0})
    assert bar.note == "epoch 1/2, MAP@R 0.4000 (best 0.5000, the start), loss 1.0000"
    kept.restore(2, [0.5, 0.4, 0.6], [])
    progress.on_epoch_end(1, {"val_map_at_r": 0.6, "loss": 0.5})
    assert bar.note == "epoch 2/2, MAP@R 0.6000 (best 0.6000, epoch 2), loss 0.5000"
