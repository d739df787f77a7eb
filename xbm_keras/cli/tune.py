"""`tune.py`: one search, and its best config from training to an exported model."""

import json
import logging
import pathlib
import shutil
import sys

from absl import flags

from xbm_keras.cli.train import CONFIG, RESUME, SET, VERBOSE, WORKDIR, stages_of, train
from xbm_keras.atomic_files import writing_folder
from xbm_keras.cli import terminal
from xbm_keras.config import schema
from xbm_keras.config.yaml_files import load_config
from xbm_keras.experiment import build, devices, run_folder
from xbm_keras.experiment.work import work_of
from xbm_keras.report.page import retitle
from xbm_keras.report.stage_costs import Costs
from xbm_keras.tuning import (
    HeadHyperModel,
    HeadSearch,
    PairHyperModel,
    SearchError,
    load_data,
    load_pair_data,
    local_workers,
    take_role,
    work,
)

log = logging.getLogger("xbm_keras")
MAX_TRIALS = flags.DEFINE_integer("max_trials", 60, "Trials in all; more than before go on.", lower_bound=1)
TUNER = flags.DEFINE_enum("tuner", "bayesian", ["bayesian", "hyperband", "random", "grid"], "How trials are chosen.")
CHIEF = flags.DEFINE_string("chief", None, "HOST:PORT at which to hand out trials to workers, and run none here.")
PARALLEL = flags.DEFINE_integer("parallel", 1, "Trials that run at a time, each in a process.", lower_bound=1)
WORKER = flags.DEFINE_string("worker", None, "HOST:PORT of a chief, whose trials to run.")


def main(argv):
    """One search, and its best config from training to an exported model."""
    terminal.set_up(VERBOSE.value)
    with terminal.readable_errors(SearchError):
        role = take_role(CHIEF.value, WORKER.value, PARALLEL.value)
        given = config = load_config(CONFIG.value, SET.value)
        devices.make_strategy(config.training)  # or an error, before features are computed
        workdir = pathlib.Path(WORKDIR.value or f"runs/{pathlib.Path(CONFIG.value).stem}-search")
        source = build.make_source(config)
        backbone = build.make_whole_backbone(config)
        if config.is_of_pairs:
            hypermodel = PairHyperModel(*load_pair_data(config, backbone))
            data = work_of(config).load(source, config, backbone)
        else:
            config, data = load_data(config, backbone, source)
            backbone = build.make_backbone(config) if data.parts else backbone  # that gives what was chosen
            hypermodel = HeadHyperModel(config, data)
        if role == "worker":
            work(hypermodel)
            return
        search = HeadSearch(hypermodel, workdir, TUNER.value, MAX_TRIALS.value, RESUME.value)
        command = [sys.executable, *sys.argv, *choices_as_arguments(given, config)]
        with local_workers(command, PARALLEL.value, workdir / "workers") as workers:
            search.run(is_chief=role == "chief", workers=workers)
        train_once("The config as it is", search.default_config(), data, backbone, workdir / "default")
        train_once("The best", search.best_config(), data, backbone, workdir / "best", like=workdir / "default")
        search.write_page()
    search.print_results()


def choices_as_arguments(given: schema.Config, chosen: schema.Config) -> list[str]:
    """By which a worker chooses no second time what this process has chosen: parts of the network, and views."""
    keys = [("backbone", build.key_of_parts(given)), ("views", "number"), ("views", "turned_classes")]
    arguments = []
    for section, key in keys:
        before, after = (getattr(getattr(config, section), key or "", None) for config in (given, chosen))
        if before != after:
            arguments += ["--set", f"{section}.{key}={json.dumps(after)}"]
    return arguments


def train_once(which, config, data, backbone, workdir, like=None):
    """What train.py does, where it is not done yet, there or in another folder of the same config."""
    if (workdir / "config.yaml").exists() and load_config(str(workdir / "config.yaml")) != config:
        run_folder.remove(workdir)  # of a shorter search, whose best was another
    if run_folder.is_finished(workdir):
        return
    if like is not None and load_config(str(like / "config.yaml")) == config:
        run_folder.remove(workdir)  # what an unfinished run left
        with writing_folder(workdir) as side:
            shutil.copytree(like, side, dirs_exist_ok=True)
            if (side / "report.html").exists():
                retitle(side / "report.html", workdir.name)
    else:
        log.info("%s, from training to export, in %s:", which, workdir)
        with run_folder.claim(str(workdir), CONFIG.value, config):
            train(config, data, backbone, workdir, Costs(stages_of(config, has_data=True)), saved=config)
