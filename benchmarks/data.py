"""Is the feature cache worth it, does the step ever wait for data, and does extraction stay flat in memory?

    python -m benchmarks.data --config configs/grocery.yaml

- `epoch, uncached`: decode a batch of photos, pass the backbone, take the step; median of three, times steps.
- `epoch, cached`: the same epoch from cached features.
- `epoch, slots`: the same epoch from the rows of the prefilled memory, of which a batch names the slots alone.
- `wait for data`, `wait for slots`: share of these epochs' time that the loop spends in `next(batches)`, in percent.
- `extraction`: peak memory of a process that caches N generated pictures, for two N.
"""

import math
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf

from benchmarks import common
from xbm_keras.config.yaml_files import load_config
from xbm_keras.data.batches import PKSampler, batch_dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.experiment import build, loading, phases
from xbm_keras.training.memory_batches import training_batches

UNCACHED_STEPS = 3
PICTURES = (2_000, 8_000)


def main():
    options = common.parser(__doc__)
    options.add_argument("--config", default="configs/grocery.yaml")
    options.add_argument("--extract", type=int, help="cache so many generated pictures, print the peak memory, and end")
    options = options.parse_args()
    if options.extract:
        print(peak_memory_of_extraction(options.extract))
        return
    results = epochs(options.config)
    for count in PICTURES:
        command = [sys.executable, "-m", "benchmarks.data", "--extract", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results.append({"name": "extraction", "rows": count, "peak MB": float(done.stdout.split()[-1])})
    common.report(results, options)


def epochs(path: str) -> list[dict]:
    config = load_config(path)
    backbone = build.make_backbone(config)
    dataset = loading.load_dataset(config, backbone)
    positions = dataset.splits.train
    model = phases.start_model(config, dataset, backbone, positions)
    rows, labels = UnitRows(dataset.features, positions), dataset.labels[positions]
    c = config.training
    sampler = PKSampler(labels, min(config.classes_per_batch, len(np.unique(labels))), c.samples_per_class, c.seed)
    steps = math.ceil(len(rows) / sampler.batch_size)
    step = tf.function(lambda *data: model.train_step(data))

    def timed(dataset) -> tuple[float, float]:
        """Seconds of an epoch, and the share of it in which the loop waits for data; medians of five."""
        batches = iter(dataset)
        step(*next(batches))
        seconds, waits = [], []
        for _ in range(5):
            start, waited = time.perf_counter(), 0.0
            for _ in range(steps):
                before = time.perf_counter()
                data = next(batches)
                waited += time.perf_counter() - before
                step(*data)["loss"].numpy()
            seconds.append(time.perf_counter() - start)
            waits.append(waited / seconds[-1])
        return statistics.median(seconds), statistics.median(waits)

    ids = dataset.sample_ids[positions]
    fast, wait = timed(batch_dataset(rows, labels, ids, sampler))
    in_memory, wait_in_memory = timed(training_batches(model, rows, labels, ids, sampler, c.seed))

    source = build.make_source(config)
    wanted = {str(key): i for i, key in enumerate(source.items.keys)}
    network = tf.function(backbone)
    uncached = []
    for i in range(UNCACHED_STEPS + 1):
        start = time.perf_counter()
        picked = positions[sampler(i)]
        order = np.argsort([wanted[key] for key in dataset.keys[picked]])
        pictures = np.stack(list(source.read([wanted[dataset.keys[p]] for p in picked[order]], backbone.prepare)))
        f = network(tf.constant(pictures))
        y = dataset.labels[picked[order]]
        step({"features": f, "sample_id": tf.constant(dataset.sample_ids[picked[order]])}, tf.constant(y))[
            "loss"
        ].numpy()
        uncached.append((time.perf_counter() - start) * steps)
    slow = statistics.median(uncached[1:])
    return [
        {"name": "epoch, uncached", "rows": len(rows), "ms": slow * 1e3},
        {"name": "epoch, cached", "rows": len(rows), "ms": fast * 1e3, "ratio": slow / fast},
        {"name": "epoch, slots", "rows": len(rows), "ms": in_memory * 1e3, "ratio": slow / in_memory},
        {"name": "wait for data", "rows": len(rows), "percent": wait * 100},
        {"name": "wait for slots", "rows": len(rows), "percent": wait_in_memory * 100},
    ]


def peak_memory_of_extraction(count: int) -> float:
    """Peak memory in MB of this process after it cached so many pictures."""
    import keras

    from xbm_keras import Backbone
    from xbm_keras.data.sources import Items, RandomAccess
    from xbm_keras.feature_cache.cache import compute_features

    class Generated(RandomAccess):
        items = Items(np.arange(count).astype(str), None, {})

        def stamp(self, position):
            return None

        def digest(self, position):
            return f"{position:064x}"

        def load(self, position):
            return np.random.default_rng(position).integers(0, 255, (128, 128, 3), np.uint8)

    network = keras.applications.MobileNetV2((96, 96, 3), 0.35, include_top=False, weights=None, pooling="avg")
    with tempfile.TemporaryDirectory() as folder:
        compute_features(Generated(), Backbone(network, "MobileNetV2", (96, 96)), str(pathlib.Path(folder)))
    # Not getrusage: its maximum begins with that of the process that started this one.
    peak = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1e3


if __name__ == "__main__":
    main()
