"""Is the peak memory of training the rows of the memory plus a constant?

    python -m benchmarks.memory [--rows 65536 262144 1048576] [--storage float16] [--json FILE]

Each size in a process of its own, D = 1280, E = 128, batch 128: the memory is filled, five steps are taken, and one
checkpoint of the weights is written. `rows MB` are the bytes of the features in the memory.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib
import subprocess
import sys
import tempfile

from benchmarks import common

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[65_536, 262_144, 1_048_576])
    parser.add_argument("--storage", default="float16")
    parser.add_argument("--mine-in", default="features")
    parser.add_argument("--one", action="store_true", help="measure in this process, print the peak memory, and end")
    options = parser.parse_args()
    if options.one:
        print(one(options.rows[0], options))
        return
    results = []
    for num_rows in options.rows:
        how = ["--storage", options.storage, "--mine-in", options.mine_in]
        command = [sys.executable, "-m", "benchmarks.memory", "--one", "--rows", str(num_rows), *how]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows_mb, peak_mb = num_rows * 1280 * BYTES[options.storage] / 1e6, float(done.stdout.split()[-1])
        name = f"{options.mine_in} {options.storage}"
        results.append(
            {"name": name, "rows": num_rows, "rows MB": rows_mb, "peak MB": peak_mb, "rest MB": peak_mb - rows_mb}
        )
    common.report(results, options)


def one(num_rows, options) -> float:
    import keras
    import numpy as np
    import tensorflow as tf

    from xbm_keras import CircularMemory, HardTopK, Head, InEmbeddings, InFeatures, InSketch, SupConLoss, XBMModel

    mining = {"features": InFeatures(), "sketch": InSketch(64), "embeddings": InEmbeddings(4096)}[options.mine_in]
    memory = CircularMemory(num_rows, options.storage)
    model = XBMModel(None, Head(128), memory, HardTopK(32, 8, mining=mining), SupConLoss())
    model.build({"features": (None, 1280)})
    model.compile(keras.optimizers.AdamW(1e-3), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    block = common.unit_vectors(4096, 1280, seed=0)
    for start in range(0, num_rows, len(block)):
        numbers = np.arange(start, min(start + len(block), num_rows))
        memory.prefill(np.roll(block, start // len(block), axis=1)[: len(numbers)], numbers // 10, numbers)
    train = tf.function(lambda x, y: model.train_step((x, y)))
    for i in range(5):
        ids = tf.range(num_rows + i * 128, num_rows + i * 128 + 128, dtype=tf.int64)
        train({"features": tf.constant(block[i * 128 : i * 128 + 128]), "sample_id": ids}, ids // 4)["loss"].numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(pathlib.Path(folder) / "checkpoint.weights.h5")
    return common.peak_mb()


if __name__ == "__main__":
    main()
