"""The model that is tuned, after KerasTuner's conventions: a trial is the selection phase of train.py."""

import functools
import time
from collections.abc import Sequence

import keras
import keras_tuner
import numpy as np
import psutil
import tensorflow as tf

from xbm_keras.config.schema import Config, HeadConfig, Neighbors
from xbm_keras.config.yaml_files import check_config
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.retrieval import embed, score_queries
from xbm_keras.experiment import phases
from xbm_keras.experiment.build import make_source, sized, sized_for
from xbm_keras.experiment.chosen_head import ChosenHead, closed_forms_of
from xbm_keras.experiment.chosen_parts import choose_parts
from xbm_keras.experiment.held_out import HeldOutFolds
from xbm_keras.experiment.loading import dataset_of, with_training_views
from xbm_keras.experiment.selection import choose, choose_start
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.stages.head.starts import ClosedForms
from xbm_keras.training.callbacks import KeepBestHead
from xbm_keras.tuning.query_scores import QueryScores
from xbm_keras.tuning.space import check_space, declare, default_space, trial_values


def load_data(config: Config, backbone: Backbone | None = None, source=None) -> tuple[Config, Dataset]:
    """What a search is of.

    Args:
        config: of the search.
        backbone: its frozen network; None for vectors.
        source: the items, by default made of the config.

    Returns:
        The config, in which it is chosen which parts of the network and which views of pictures train and how wide the
        head is, and the data.

    Raises:
        DataError: for data that cannot be used.
    """
    source = make_source(config) if source is None else source
    config = sized_for(config, source, backbone)
    dataset = with_training_views(config, dataset_of(source, config, backbone), backbone)
    config, dataset, _ = choose_parts(config, dataset, backbone)
    config = sized(config, dataset.features.shape[1])  # where the network did not tell it
    if len(dataset.view_rows) and "auto" in (config.views.number, config.views.turned_classes):
        chosen, dataset = choose(config, dataset)
        config = config.model_copy(update={"views": chosen.views})
    return config, dataset


class HeadHyperModel(keras_tuner.HyperModel):
    """Builds and fits the model of a config with some of its keys changed.

    Args:
        config: what is not searched. Its `search.space` names the keys, else `default_space` does.
        dataset: the data; trials are scored by its validation classes.

    Raises:
        ConfigError: for a space that does not fit the config.

    Example:
        >>> config = load_config("configs/clinc150.yaml")
        >>> hypermodel = HeadHyperModel(*load_data(config))
        >>> tuner = keras_tuner.RandomSearch(hypermodel, hypermodel.objective, max_trials=20, directory="search")
        >>> tuner.search()
        >>> best = hypermodel.config_of(tuner.get_best_hyperparameters()[0])
    """

    def __init__(self, config: Config, dataset):
        super().__init__(name="head")
        self.config = config
        self.dataset = dataset
        self.query_scores: QueryScores | None = None
        """Of the last `fit` or `evaluate`."""
        self.objective = keras_tuner.Objective(self.score, "max")
        self._heads: dict[str, ChosenHead] = {}
        self._closed_forms: dict[float, ClosedForms] = {}
        self.space = config.search.space or default_space(config, self.num_rows)
        check_space(config, self.space)

    @property
    def score(self) -> str:
        """What trials are compared by."""
        return "val_neighbor_overlap_at_10" if self.config.is_without_labels else "val_map_at_r"

    @property
    def num_rows(self) -> int:
        """Training items."""
        return len(self.dataset.with_views(self.dataset.splits.train))

    @property
    def width(self) -> int:
        """D."""
        return self.dataset.features.shape[1]

    @functools.cached_property
    def _held_out(self) -> HeldOutFolds:
        return HeldOutFolds(self.dataset, not self.config.is_without_labels)

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Register the whole search space."""
        declare(hp, self.first, self.space)

    @functools.cached_property
    def first(self) -> Config:
        """The config whose values the first trial takes: the default space has no "auto", so what it stands for."""
        if self.config.search.space or self.config.is_without_labels:
            return self.config
        return self.config.model_copy(update={"head": self._chosen(self.config.head)})

    def _chosen(self, head: HeadConfig) -> ChosenHead:
        """With nothing "auto"; that scores many heads: once for all trials."""
        key = head.model_dump_json()
        if key not in self._heads:
            self._heads[key] = choose_start(head, self.dataset, self._held_out)
        return self._heads[key]

    def config_of(self, hp: keras_tuner.HyperParameters) -> Config:
        """The config of a trial. Raises ConfigError for a combination that cannot be run."""
        return check_config(trial_values(self.config, self.space, hp.values), "This combination")

    def build(self, hp: keras_tuner.HyperParameters) -> XBMModel:
        """The compiled model before its first step.

        Raises:
            ConfigError: for a combination that cannot be run.
            keras_tuner.errors.FailedTrialError: where it would need more memory than there is.
        """
        if not hp.space:  # an oracle's has it
            self.declare_hyperparameters(hp)
        config = self.config_of(hp)
        self._check_memory(config)
        return self._start(config)

    def fit(self, hp: keras_tuner.HyperParameters, model: XBMModel, *args, callbacks=(), **kwargs) -> dict[str, float]:
        """Train, and score the best epoch's head on the validation classes.

        Args:
            hp: the trial's values.
            model: from `build`.
            args: of `Tuner.search`; not used, the data is the hypermodel's own.
            callbacks: of the tuner.
            kwargs: the same; `epochs` is a key of the config.

        Returns:
            Metrics for the oracle: `val_map_at_r`, `val_recall_at_1`, `epoch` and `seconds`. Without labels
            `val_neighbor_overlap_at_10`, by which the epoch is chosen, in place of the first two.
        """
        return self._fit(self.config_of(hp), model, callbacks)

    def evaluate(self, config: Config) -> dict[str, float]:
        """The same metrics of any config of the same data, such as the one without changes."""
        self._check_memory(config)
        return self._fit(config, self._start(config))

    def _check_memory(self, config: Config) -> None:
        need = estimate_bytes(config, self.num_rows, self.width)
        free = psutil.virtual_memory().available
        if need > free and not tf.config.list_physical_devices("GPU"):  # a GPU raises an error; a CPU kills the process
            raise keras_tuner.errors.FailedTrialError(
                f"It needs about {need / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free."
            )

    def _fit(
        self, config: Config, model: XBMModel, callbacks: Sequence[keras.callbacks.Callback] = ()
    ) -> dict[str, float]:
        began = time.monotonic()
        metrics, self.query_scores = self._scores(config, model, callbacks)
        return {**{name: float(value) for name, value in metrics.items()}, "seconds": time.monotonic() - began}

    def _start(self, config: Config) -> XBMModel:
        dataset = self.dataset
        head = self._chosen(config.head)
        config = self._for_trial(config, head)
        train, power = dataset.with_views(dataset.splits.train), head.power
        if head.start == "random":
            return phases.start_model(config, dataset, None, train)
        if power not in self._closed_forms:
            self._closed_forms[power] = closed_forms_of(dataset, train, power)
        return phases.start_model(config, dataset, None, train, self._closed_forms[power])

    def _for_trial(self, config: Config, head: HeadConfig) -> Config:
        training = config.training
        if training.strategy == "auto":  # a trial is small, and others run beside it
            training = training.model_copy(update={"strategy": "none"})
        return config.model_copy(update={"head": head, "training": training})

    def _scores(
        self, config: Config, model: XBMModel, callbacks: Sequence[keras.callbacks.Callback]
    ) -> tuple[dict[str, float], QueryScores | None]:
        dataset = self.dataset
        best = phases.select(config, dataset, model, callbacks, show_progress=False)
        if config.is_without_labels:
            return of_best(self.score, best)
        validation = dataset.labelled(dataset.splits.validation)
        labels = dataset.labels[validation]
        order, found = score_queries(embed(model.head, UnitRows(dataset.features, validation)), labels)
        metrics = {f"val_{name}": found[name].mean() for name in ("map_at_r", "recall_at_1")}
        return {**metrics, "epoch": best.epoch}, QueryScores(found["map_at_r"], labels[order])


def of_best(score: str, best: KeepBestHead) -> tuple[dict[str, float], QueryScores | None]:
    """The best epoch and its score, of the start where no epoch was asked for; and of each query, where it is known."""
    if not best.scores:
        best.score_start()
    found = best.of_queries
    each = None if found is None else QueryScores(found, np.arange(len(found)))  # each is drawn by itself
    return {score: float(best.best), "epoch": best.epoch}, each


def estimate_bytes(config: Config, num_rows: int, width: int) -> int:
    """Main memory that training needs beside the features: an upper bound of the large tensors, float32.

    Args:
        config: of the run.
        num_rows: training items.
        width: D of the features.
    """
    batch_size = config.training.batch_size
    rows = min(config.memory.memory_size, num_rows) or batch_size
    k = config.top_k
    counts = (k.num_neighbors,) if isinstance(k, Neighbors) else (k.num_negatives, k.num_positives)
    num_picks = batch_size * sum(rows if count == "all" else count for count in counts) + k.num_random
    embedding_dim = config.head.embedding_dim
    elements = (
        2 * rows * width  # the memory, and its rows as the step reads them
        + 8 * batch_size * rows  # scores, masks and preferences
        + 4 * rows * embedding_dim  # all rows through the head, and the gradient
        + 2 * min(rows, num_picks) * (width + embedding_dim)  # the picks, each once, and the gradient
        + 4 * num_picks * embedding_dim  # the picks of each anchor, and the gradient
    )
    return 4 * elements
