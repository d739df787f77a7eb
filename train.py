"""Train the head of a frozen network, evaluate it on classes never seen, and export it.

python train.py --config configs/grocery.yaml --workdir runs/grocery --set training.epochs=10
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported: no wall of start-up messages

from absl import app, flags, logging

from xbm_keras import NonFiniteFeatures, experiment, run_folder
from xbm_keras.config import ConfigError, load_config
from xbm_keras.data.sources import DataError
from xbm_keras.export import export_encoder

CONFIG = flags.DEFINE_string("config", "configs/grocery.yaml", "YAML file that describes the experiment.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; by default runs/<config>-<time>.")
SET = flags.DEFINE_multi_string("set", [], "section.key=value, over the config; repeatable.")


def main(argv):
    """One experiment, from a config to an exported model."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1]!r}; settings are given as --set section.key=value.")
    try:
        config = load_config(CONFIG.value, SET.value)
        workdir = run_folder.create(WORKDIR.value, CONFIG.value, config)
        backbone = experiment.make_backbone(config)
        dataset = experiment.load_dataset(config, backbone)
        run_folder.write_data(workdir, dataset)
        model, metrics = experiment.run(config, dataset, backbone, workdir)
        run_folder.write_model(workdir, model)
        export_encoder(model, workdir / "export")
        run_folder.write_metrics(workdir, metrics)
    except (ConfigError, DataError, NonFiniteFeatures) as error:
        logging.error("%s", error)
        sys.exit(2)
    run_folder.print_results(workdir, metrics)


if __name__ == "__main__":
    app.run(main)
