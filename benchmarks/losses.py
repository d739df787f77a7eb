"""How good are the pair losses on frozen features, and which of them profit from the memory and from few, hard picks?

    python -m benchmarks.losses --config configs/clinc150.yaml

Test classes are not looked at: the numbers are the leave-one-out MAP@R of the validation classes at the best epoch,
less that of the closed form, which every run starts from and which is a candidate itself. Each loss runs at its default
parameters in three ways, each with its own learning rate, the best of `--rates` with the first seed (constant over the
run, so that one traced step serves them all):

- `off`: no memory, pairs from the batch
- `on`: the memory, the 32 hardest negatives and 8 random positives
- `many`: the same memory, the 512 hardest negatives
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from benchmarks import common
from xbm_keras.config.yaml_files import load_config
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.retrieval import RetrievalEvaluation
from xbm_keras.experiment import build, chosen_head, loading, phases, selection
from xbm_keras.stages.pair_losses import LOSSES
from xbm_keras.training.callbacks import KeepBestHead

WAYS = {
    "off": ["memory.memory_size=0"],
    "on": ["top_k.mine_in=embeddings", "top_k.num_random=0", "top_k.num_negatives=32"],
    "many": ["top_k.mine_in=embeddings", "top_k.num_random=0", "top_k.num_negatives=512"],
}


def main():
    options = common.parser(__doc__)
    options.add_argument("--config", default="configs/clinc150.yaml")
    losses = [name for name, loss in LOSSES.items() if loss.uses_labels]
    options.add_argument("--losses", nargs="+", default=losses, choices=losses)
    options.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options.add_argument("--rates", nargs="+", type=float, default=[3e-5, 1e-4, 3e-4, 1e-3])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--power", type=float, help="of the features; by default what held-out classes choose")
    options.add_argument("--set", nargs="+", default=[], help="section.key=value, over the config")
    options = options.parse_args()
    config = load_config(options.config, options.set)
    dataset = loading.load_dataset(config, build.make_backbone(config))
    head = chosen_head.HeadChoice(**config.head.model_dump(), power=options.power or "auto")
    head = selection.choose_start(head, dataset)
    config = config.model_copy(update={"head": head})
    start = phases.start_model(config, dataset, None, dataset.splits.train).head.get_weights()
    results = []
    for loss in options.losses:
        result = {"name": loss}
        for way in options.ways:
            # The closed form is computed once, above.
            config = load_config(options.config, [*options.set, *WAYS[way], f"loss.name={loss}"])
            config = config.model_copy(update={"head": head.model_copy(update={"start": "random"})})
            trial = Trial(config, dataset, start)
            gains = {rate: trial.gain(rate, options.seeds[0]) for rate in options.rates}
            rate = max(gains, key=gains.get)
            gains = [gains[rate]] + [trial.gain(rate, seed) for seed in options.seeds[1:]]
            result |= {way: f"{np.mean(gains):+.4f} ({np.std(gains):.4f})", f"rate, {way}": rate}
        print(result, flush=True)
        results.append(result)
    common.report(results, options)


class Trial:
    """One loss in one way; its step is traced once for all rates and seeds."""

    def __init__(self, config, dataset, start: list[np.ndarray]):
        self.config, self.dataset, self.start = config, dataset, start
        self.model = phases.start_model(config, dataset, None, dataset.splits.train)
        self.model.compile(keras.optimizers.AdamW(1.0, weight_decay=0.0))
        validation = dataset.splits.validation
        self.evaluation = RetrievalEvaluation(UnitRows(dataset.features, validation), dataset.labels[validation])

    def gain(self, rate: float, seed: int) -> float:
        """MAP@R of the validation classes at the best epoch, less that of the start."""
        model, training = self.model, self.config.training.model_copy(update={"seed": seed})
        model.head.set_weights(self.start)
        for variable in model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        model.optimizer.learning_rate = rate
        model.top_k.seed_generator.state.assign([seed, 0])
        config = self.config.model_copy(update={"training": training})
        best = KeepBestHead(self.evaluation, training.patience)
        callbacks = [self.evaluation, best]
        phases.fit(config, self.dataset, model, self.dataset.splits.train, training.epochs, callbacks, False)
        return best.best - self.evaluation.baseline["val_map_at_r"]


if __name__ == "__main__":
    main()
