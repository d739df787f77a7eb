"""Does the time of an enqueue depend on the size of the memory?

    python -m benchmarks.enqueue [--rows 1024 1048576] [--json FILE]

- `graph`, `xla`: a batch of 128 rows written over the oldest ones, half of their ids in the memory already. The memory
  is not read, so the time is that of the writing and of finding the older rows of these ids.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from benchmarks import common
from xbm_keras import CircularMemory

B = 128


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_024, 8_192, 65_536, 262_144, 1_048_576])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    variants = {
        (name, rows): enqueue_of(name, rows, options.width) for name in ("graph", "xla") for rows in options.rows
    }
    times = common.interleaved(variants, options.repeats)
    common.report([{"name": name, "rows": rows, **each} for (name, rows), each in times.items()], options)


def enqueue_of(name, num_rows, width):
    memory = CircularMemory(num_rows)
    memory.build((None, width))
    features = tf.constant(common.unit_vectors(B, width, seed=0))
    labels = tf.range(B, dtype=tf.int64)
    for start in range(0, num_rows, 1024):
        ids = np.arange(start, min(start + 1024, num_rows))
        memory.enqueue(tf.zeros([len(ids), width]), tf.constant(ids), tf.constant(ids))

    @tf.function(jit_compile=name == "xla")
    def enqueue(ids):
        memory.enqueue(features, labels, ids)
        return memory.num_enqueued.value + 0

    random = np.random.default_rng(1)
    return lambda: enqueue(tf.constant(random.integers(0, 2 * num_rows, B))).numpy()


if __name__ == "__main__":
    main()
