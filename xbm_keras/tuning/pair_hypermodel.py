"""The model that is tuned on queries and documents: a trial is the selection phase of train.py."""

from collections.abc import Sequence

import keras

from xbm_keras.config.schema import Config
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.experiment import pair_phases
from xbm_keras.experiment.build import sized
from xbm_keras.experiment.pair_loading import load_pairs
from xbm_keras.experiment.pair_starts import PairHead, choose_pair_start
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.tuning.hypermodel import HeadHyperModel, of_best
from xbm_keras.tuning.query_scores import QueryScores


def load_pair_data(config: Config, backbone: Backbone | None = None) -> tuple[Config, PairDataset]:
    """What a search is of: the config, in which it is chosen how wide the head is, and the data. Raises DataError."""
    training = config.training.model_copy(update={"folds": 1})
    dataset = load_pairs(config.model_copy(update={"training": training}), backbone)[0]
    return sized(config, dataset.queries.shape[1]), dataset


class PairHyperModel(HeadHyperModel):
    """As `HeadHyperModel`, of queries and documents: the score is nDCG@10 of held-out queries, over the whole corpus.

    Args:
        config: what is not searched.
        dataset: the data; trials are scored by its held-out queries.

    Raises:
        ConfigError: for a space that does not fit the config.
    """

    def __init__(self, config: Config, dataset: PairDataset):
        super().__init__(config, dataset)
        self._pair_heads: dict[str, PairHead] = {}

    @property
    def score(self) -> str:
        """What trials are compared by."""
        return pair_phases.MONITOR

    @property
    def num_rows(self) -> int:
        """Documents that the memory may hold."""
        return len(pair_phases.Roles(self.config, self.dataset, self.dataset.splits.train).rows)

    @property
    def width(self) -> int:
        """D."""
        return self.dataset.queries.shape[1]

    @property
    def first(self) -> Config:
        """The config: the default space varies no start."""
        return self.config

    def _start(self, config: Config) -> XBMModel:
        key = config.head.model_dump_json()
        if key not in self._pair_heads:
            self._pair_heads[key] = choose_pair_start(config.head, [self.dataset])
        config = self._for_trial(config, self._pair_heads[key])
        return pair_phases.start_model(config, self.dataset, None, self.dataset.splits.train)

    def _scores(
        self, config: Config, model: XBMModel, callbacks: Sequence[keras.callbacks.Callback]
    ) -> tuple[dict[str, float], QueryScores | None]:
        best = pair_phases.select(config, self.dataset, model, callbacks, show_progress=False)
        return of_best(self.score, best)
