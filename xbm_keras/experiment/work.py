"""What a run does with its data, which are items with or without classes, or queries and documents."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from xbm_keras.config.schema import Config
from xbm_keras.experiment import loading, pair_folder, pair_loading, pair_phases, phases, run_folder
from xbm_keras.stages.backbone.frozen import Backbone


class Work(NamedTuple):
    """The steps of a run, in their order."""

    load: Callable[[Any, Config, Backbone | None], Any]
    write_data: Callable[[pathlib.Path, Any], None]
    run: Callable
    export: Callable
    write_report: Callable


OF_ITEMS = Work(loading.dataset_of, run_folder.write_data, phases.run, run_folder.export_model, run_folder.write_report)
OF_PAIRS = Work(
    pair_loading.folds_of, pair_folder.write_data, pair_phases.run, pair_folder.export_model, pair_folder.write_report
)


def work_of(config: Config) -> Work:
    """What a config asks for."""
    return OF_PAIRS if config.is_of_pairs else OF_ITEMS
