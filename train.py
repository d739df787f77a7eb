"""Train the head of a frozen network, evaluate it on classes never seen, and export it.

python train.py --config configs/grocery.yaml --workdir runs/grocery --set training.epochs=10
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: no wall of start-up messages

from absl import app, flags

from xbm_keras import experiment, loading, run_folder, terminal
from xbm_keras.config import load_config

CONFIG = flags.DEFINE_string("config", "configs/grocery.yaml", "YAML file that describes the experiment.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; by default runs/<config>-<time>.")
SET = flags.DEFINE_multi_string("set", [], "section.key=value, over the config; repeatable.")
VERBOSE = flags.DEFINE_bool("verbose", False, "Show the messages of the libraries below.")


def main(argv):
    """One experiment, from a config to an exported model."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1]!r}; settings are given as --set section.key=value.")
    terminal.set_up(VERBOSE.value)
    with terminal.readable_errors():
        config = load_config(CONFIG.value, SET.value)
        workdir = run_folder.create(WORKDIR.value, CONFIG.value, config)
        backbone = loading.make_backbone(config)
        dataset = loading.load_dataset(config, backbone)
        run_folder.write_data(workdir, dataset)
        model, metrics = experiment.run(config, dataset, backbone, workdir)
        run_folder.write_model(workdir, model)
        run_folder.export_model(workdir, model, config, metrics)
        run_folder.write_metrics(workdir, metrics)
    terminal.print_results(workdir, metrics)


if __name__ == "__main__":
    app.run(main)
