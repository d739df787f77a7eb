"""The model that is tuned on queries and documents: a trial is the selection phase of train.py."""

from collections.abc import Sequence

import keras
import numpy as np

from xbm_keras.config.schema import Config
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.experiment import pair_phases
from xbm_keras.experiment.build import sized
from xbm_keras.experiment.pair_loading import load_pairs
from xbm_keras.experiment.pair_starts import PairHead, choose_pair_start
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.tuning.hypermodel import HeadHyperModel


def load_pair_folds(config: Config, backbone: Backbone | None = None) -> tuple[Config, list[PairDataset]]:
    """The config, in which it is chosen how wide the head is, and the data `search.folds` times, each time with other
    queries held out. Raises DataError."""
    training = config.training.model_copy(update={"folds": config.search.folds, "refit": True})
    folds = load_pairs(config.model_copy(update={"training": training}), backbone)
    return sized(config, folds[0].queries.shape[1]), folds


class PairHyperModel(HeadHyperModel):
    """As `HeadHyperModel`, of queries and documents: the score is nDCG@10 of held-out queries, over the whole corpus.

    Args:
        config: what is not searched.
        folds: the data, each time with other queries held out; their scores are averaged.

    Raises:
        ConfigError: for a space that does not fit the config.
    """

    def __init__(self, config: Config, folds: Sequence[PairDataset]):
        super().__init__(config, folds)
        self._pair_heads: dict[str, PairHead] = {}

    @property
    def score(self) -> str:
        """What trials are compared by."""
        return pair_phases.MONITOR

    @property
    def num_rows(self) -> int:
        """Documents that the memory may hold."""
        return len(pair_phases.Roles(self.config, self.folds[0], self.folds[0].splits.train).rows)

    @property
    def width(self) -> int:
        """D."""
        return self.folds[0].queries.shape[1]

    @property
    def first(self) -> Config:
        """The config: the default space varies no start."""
        return self.config

    def _start(self, config: Config, fold: int) -> XBMModel:
        key = config.head.model_dump_json()
        if key not in self._pair_heads:
            self._pair_heads[key] = choose_pair_start(config.head, self.folds)
        config = self._for_trial(config, self._pair_heads[key])
        dataset = self.folds[fold]
        return pair_phases.start_model(config, dataset, None, dataset.splits.train)

    def _fit_fold(
        self, config: Config, fold: int, model: XBMModel, callbacks: Sequence[keras.callbacks.Callback] = ()
    ) -> dict[str, float]:
        best = pair_phases.select(config, self.folds[fold], model, callbacks, show_progress=False)
        return {self.score: float(np.max(best.scores)), "epoch": best.epoch}
