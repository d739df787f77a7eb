"""How good are the pair losses on frozen features, and which of them profit from the memory and from few, hard picks?

    python -m benchmarks.losses --config configs/clinc150.yaml

Test classes are not looked at: a fifth of the training classes is held out, and the numbers are the leave-one-out MAP@R
of those at the best epoch, less that of the closed form, which every run starts from and which is a candidate itself.
Each loss runs at its default parameters in three ways, each with its own learning rate, the best of `--rates` with the
first seed:

- `off`: no memory, pairs from the batch
- `on`: memory of all training items, the 32 hardest negatives and 8 random positives
- `many`: the same memory, the 512 hardest negatives
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import math

import keras
import numpy as np

from benchmarks import common
from xbm_keras import experiment, loading
from xbm_keras.callbacks import KeepBestHead
from xbm_keras.config import load_config
from xbm_keras.data.batches import PKSampler, batch_dataset
from xbm_keras.data.rows import UnitRows
from xbm_keras.evaluation import RetrievalEvaluation

WAYS = {"off": ["memory.memory_size=0"], "on": [], "many": ["top_k.num_negatives=512"]}


def main():
    options = common.parser(__doc__)
    options.add_argument("--config", default="configs/clinc150.yaml")
    options.add_argument("--losses", nargs="+", default=sorted(experiment.LOSSES), choices=sorted(experiment.LOSSES))
    options.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options.add_argument("--rates", nargs="+", type=float, default=[1e-4, 3e-4, 1e-3])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--set", nargs="+", default=[], help="section.key=value, over the config")
    options = options.parse_args()
    dataset, results = None, []
    for loss in options.losses:
        result = {"name": loss}
        for way in options.ways:
            config = load_config(options.config, [f"loss.name={loss}", *WAYS[way], *options.set])
            dataset = dataset or loading.load_dataset(config, loading.make_backbone(config))
            trial = Trial(config, dataset, options.epochs)
            gains = {rate: trial.gain(rate, options.seeds[0]) for rate in options.rates}
            rate = max(gains, key=gains.get)
            gains = [gains[rate]] + [trial.gain(rate, seed) for seed in options.seeds[1:]]
            result |= {way: f"{np.mean(gains):+.4f} ({np.std(gains):.4f})", f"rate, {way}": rate}
        print(result, flush=True)
        results.append(result)
    common.report(results, options)


class Trial:
    """One loss in one way; its step is traced once for all rates and seeds."""

    def __init__(self, config, dataset, epochs: int):
        self.config, self.dataset, self.epochs = config, dataset, epochs
        self.model = experiment.start_model(config, dataset, None, dataset.splits.train)
        self.start = self.model.head.get_weights()
        validation = dataset.splits.validation
        self.evaluation = RetrievalEvaluation(UnitRows(dataset.features, validation), dataset.labels[validation])

    def gain(self, rate: float, seed: int) -> float:
        """MAP@R of the validation classes at the best epoch, less that of the start."""
        model, positions, c = self.model, self.dataset.splits.train, self.config.training
        model.head.set_weights(self.start)
        for variable in model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        model.optimizer.learning_rate.assign(rate)
        model.top_k.seed_generator.state.assign([seed, 0])
        labels = self.dataset.labels[positions]
        sampler = PKSampler(labels, min(c.classes_per_batch, len(np.unique(labels))), c.samples_per_class, seed)
        batches = batch_dataset(
            UnitRows(self.dataset.features, positions), labels, self.dataset.sample_ids[positions], sampler
        )
        steps = c.steps_per_epoch or math.ceil(len(positions) / sampler.batch_size)
        best = KeepBestHead(self.evaluation, patience=3)
        model.fit(
            batches,
            steps_per_epoch=steps,
            epochs=self.epochs,
            callbacks=[self.evaluation, best],
            verbose=0,
            shuffle=False,
        )
        return best.best - self.evaluation.baseline["val_map_at_r"]


if __name__ == "__main__":
    main()
