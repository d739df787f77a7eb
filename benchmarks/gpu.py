"""Training steps on a GPU, in one bounded command: prefill, time of a step, and memory against the size of the rows.

    python -m benchmarks.gpu [--seconds 480] [--peer /path/to/its/python] [--json FILE]
    python -m benchmarks.gpu --rows 2048 --steps 3        # a dry run on a CPU

D = 1280 features, E = 128, a batch of 128, 32 negatives and 8 random positives, AdamW on a linear head, memory filled.
Every combination of `--rows`, `--storage`, `--mine_in` and `--compile` is measured, until `--seconds` are over; what
is left out, or does not fit, is said.

- `prefill s`: to fill the memory from the host's.
- `first s`: the first step, traced and compiled.
- `ms`: median of the other steps, each waited for.
- `peak MB`, `peak / rows`: most memory of the device while steps ran, and as a multiple of the memory's rows: near 1,
  beside what scores and keys take, the rows are updated where they are; 2 is a copy of them. On a CPU the first is of
  the whole process, and says little.
- `peer`: CrossBatchMemory and ContrastiveLoss of pytorch-metric-learning on the same device, whose rows have E numbers;
  in the Python that `--peer` (or the environment variable `XBM_KERAS_PEER`) names, or in this one. See
  benchmarks/peer.py.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import gc
import importlib.util
import itertools
import pathlib
import statistics
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from benchmarks import common
from benchmarks.step import NEGATIVES, POSITIVES, B, D, E, make_features
from xbm_keras import CircularMemory, HardTopK, Head, InEmbeddings, InFeatures, SupConLoss, XBMModel

BLOCK = 8_192  # different rows; a memory of more holds them several times
PER_CLASS = 4


class Repeated:
    """Rows [N, ...] that repeat a block, made when they are read: a million of them need not be held."""

    def __init__(self, block: np.ndarray, num_rows: int):
        self.block = block
        self.num_rows = num_rows
        self.shape = (num_rows, *block.shape[1:])

    def __len__(self):
        return self.num_rows

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.block[np.arange(*rows.indices(self.num_rows)) % len(self.block)]


def main():
    end = time.monotonic()
    options = _options()
    end += options.seconds
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # else nothing is left for the peer
    print(f"Device: {'GPU' if gpus else 'CPU: no GPU was found, and what follows says nothing of one'}.")
    features = make_features(BLOCK)
    results, left_out = [], []
    combinations = itertools.product(options.rows, options.storage, options.mine_in, options.compile)
    for combination in combinations:
        if time.monotonic() > end:
            left_out.append(combination)
            continue
        results.append(measure(*combination, features, options.steps, end, bool(gpus)))
        print(
            *(f"{key} {value:.4g}" if isinstance(value, float) else value for key, value in results[-1].items()),
            flush=True,
        )
    for rows in options.rows if "peer" in options.names else ():
        if time.monotonic() > end:
            left_out.append(("peer", rows))
        elif options.peer:
            results.append(measure_peer(rows, options, end))
        else:
            print("Left out: the peer, since neither this Python has pytorch-metric-learning nor --peer names one.")
            break
    common.report(results, options)
    for combination in left_out:
        print("Left out, since the time was over:", *combination)


def measure(num_rows, storage, mine_in, how, features, num_steps, end, has_gpu) -> dict:
    """One combination."""
    result = {"name": f"{mine_in} {storage} {how}", "rows": num_rows}
    gc.collect()
    keras.backend.clear_session()
    try:
        model = make_model(num_rows, storage, mine_in, how)
        start = time.perf_counter()
        model.memory.prefill(
            Repeated(features, num_rows), np.arange(num_rows) % len(features) // PER_CLASS, np.arange(num_rows)
        )
        model.memory.num_enqueued.numpy()
        result["prefill s"] = time.perf_counter() - start
        _reset_peak(has_gpu)
        times = []
        for x, y in batches(features, num_rows, num_steps + 1):
            start = time.perf_counter()
            model.train_on_batch(x, y)  # its numbers are those of the host: the step is over
            times.append(time.perf_counter() - start)
            if time.monotonic() > end and len(times) > 1:
                break
    except tf.errors.ResourceExhaustedError:
        return {**result, "steps": "does not fit"}
    rows_mb = sum(_bytes(weight) for weight in model.memory.weights) / 1e6
    peak = _peak_mb(has_gpu)
    result |= {"steps": len(times) - 1, "first s": times[0], "ms": statistics.median(times[1:]) * 1e3}
    return {**result, "rows MB": rows_mb, "peak MB": peak, **({"peak / rows": peak / rows_mb} if has_gpu else {})}


def make_model(num_rows, storage, mine_in, how) -> XBMModel:
    """A model whose memory is empty."""
    mining = {"features": InFeatures, "embeddings": InEmbeddings}[mine_in]()
    memory, top_k = CircularMemory(num_rows, storage), HardTopK(NEGATIVES, POSITIVES, mining=mining)
    model = XBMModel(None, Head(E), memory, top_k, SupConLoss())
    model.build({"features": (None, D)})
    model.compile(keras.optimizers.AdamW(1e-3), jit_compile=how == "xla")
    return model


def batches(features, num_rows, count):
    """Of 32 classes, four items each, new to the memory."""
    random = np.random.default_rng(3)
    for i in range(count):
        classes = random.choice(len(features) // PER_CLASS, B // PER_CLASS, replace=False)
        drawn = (classes[:, None] * PER_CLASS + np.arange(PER_CLASS)).ravel()
        ids = num_rows + i * B + np.arange(B)
        yield {"features": features[drawn], "sample_id": ids}, np.repeat(classes, PER_CLASS)


def measure_peer(num_rows, options, end) -> dict:
    """The peer's step."""
    result = {"name": "peer", "rows": num_rows}
    start = time.perf_counter()
    with common.Peer(options.peer, "step", num_rows) as peer:
        result["prefill s"] = time.perf_counter() - start
        times = []
        for _ in range(options.steps + 1):
            times.append(peer()[0])
            if time.monotonic() > end and len(times) > 1:
                break
        peak = peer.device_peak_mb()
    result |= {"steps": len(times) - 1, "first s": times[0] / 1e3, "ms": statistics.median(times[1:])}
    return {**result, "rows MB": num_rows * (4 * E + 8) / 1e6, "peak MB": peak}


def _bytes(weight: keras.Variable) -> int:
    return int(np.prod(weight.shape)) * tf.as_dtype(weight.dtype).size


def _reset_peak(has_gpu: bool) -> None:
    if has_gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
    else:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on that of the process


def _peak_mb(has_gpu: bool) -> float:
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6 if has_gpu else common.peak_mb()


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[65_536, 1_048_576])
    parser.add_argument("--storage", nargs="+", default=["float32", "float16"], help="storage types of the memory")
    parser.add_argument("--mine_in", nargs="+", default=["features", "embeddings"])
    parser.add_argument("--compile", nargs="+", default=["graph", "xla"], choices=["graph", "xla"])
    parser.add_argument("--names", nargs="*", default=["peer"], choices=["peer"], help="what else; nothing for nothing")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=480.0, help="after which nothing new is begun")
    here = sys.executable if importlib.util.find_spec("pytorch_metric_learning") else None
    parser.add_argument("--peer", default=os.environ.get("XBM_KERAS_PEER", here))
    return parser.parse_args()


if __name__ == "__main__":
    main()
