"""Search for the best memory size, k, loss and head for your data, then train and export the best as train.py would.

python tune.py --config configs/clinc150.yaml --workdir runs/search --max_trials 60
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: no wall of start-up messages

import pathlib
import shutil

from absl import app, flags

from xbm_keras import experiment, export, loading, run_folder, terminal
from xbm_keras.config import load_config
from xbm_keras.tuning import HeadHyperModel, Search, SearchError, load_folds, take_role, work

CONFIG = flags.DEFINE_string("config", "configs/clinc150.yaml", "YAML file that describes the experiment.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go; the same folder goes on with a search.", required=True
)
MAX_TRIALS = flags.DEFINE_integer("max_trials", 60, "Trials in all.", lower_bound=1)
TUNER = flags.DEFINE_enum("tuner", "bayesian", ["bayesian", "hyperband", "random", "grid"], "How trials are chosen.")
SET = flags.DEFINE_multi_string("set", [], "section.key=value, over the config; repeatable.")
CHIEF = flags.DEFINE_string("chief", None, "HOST:PORT at which to hand out trials to workers, and run none here.")
WORKER = flags.DEFINE_string("worker", None, "HOST:PORT of a chief, whose trials to run.")
VERBOSE = flags.DEFINE_bool("verbose", False, "Show the messages of the libraries below.")


def main(argv):
    """One search, and its best config from training to an exported model."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1]!r}; settings are given as --set section.key=value.")
    terminal.set_up(VERBOSE.value)
    with terminal.readable_errors(SearchError):
        role = take_role(CHIEF.value, WORKER.value)
        config = load_config(CONFIG.value, SET.value)
        backbone = loading.make_backbone(config)
        folds = load_folds(config, backbone)
        hypermodel = HeadHyperModel(config, folds)
        if role == "worker":
            return work(hypermodel)
        search = Search(hypermodel, pathlib.Path(WORKDIR.value), TUNER.value, MAX_TRIALS.value)
        search.run(is_chief=role == "chief")
        for name, each in (("default", search.default_config()), ("best", search.best_config())):
            train(each, folds[0], backbone, search.workdir / name)
    return search.print_results()


def train(config, dataset, backbone, workdir):
    """What train.py does, unless it is done."""
    if (workdir / "metrics.json").exists():
        if load_config(workdir / "config.yaml") == config:
            return
        shutil.rmtree(workdir)  # of a shorter search, whose best was another
    run_folder.create(str(workdir), CONFIG.value, config)
    run_folder.write_data(workdir, dataset)
    model, metrics = experiment.run(config, dataset, backbone, workdir)
    run_folder.write_model(workdir, model)
    export.export_encoder(model, workdir / "export")
    run_folder.write_metrics(workdir, metrics)


if __name__ == "__main__":
    app.run(main)
