"""Exact top-k of a batch against a memory: the streamed one beside its floor, TensorFlow's own and FAISS.

    python -m benchmarks.topk [--rows 65536 1048576] [--json FILE]

- `ours`: `streamed_top_k` with classes masked, as a training step calls it.
- `sampled`: `sampled_top_k` of the same, as a neighbour table is searched where k is large.
- `floor`: the same blocks multiplied, each reduced to a maximum per anchor.
- `tf`: `tf.matmul` and `tf.math.top_k` of the whole score matrix, nothing masked.
- `faiss`: `IndexFlatIP`, nothing masked; its index holds a copy of the rows.

`all s`: seconds for all rows as anchors, a batch after another: with `--batch 512`, which is the block that a neighbour
table is searched by, what the table takes.

Needs `pip install ".[bench]"` for FAISS.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import faiss
import numpy as np
import tensorflow as tf

from benchmarks import common
from xbm_keras.stages.circular_memory.ring import Rows
from xbm_keras.stages.cosine_scores import Keys, block_rows
from xbm_keras.stages.hard_top_k.candidates import Candidates
from xbm_keras.stages.hard_top_k.sampled import is_quicker, sampled_top_k
from xbm_keras.stages.hard_top_k.streamed import Search, streamed_top_k


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[65_536, 262_144, 1_048_576])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    results = []
    for num_rows in options.rows:
        results += measure(num_rows, options)
    common.report(results, options)


def measure(num_rows, options) -> list[dict]:
    """Median times of all variants for one size, and a check that the picks agree."""
    rows = common.unit_vectors(num_rows, options.width, seed=0)
    anchors = common.unit_vectors(options.batch, options.width, seed=1)
    labels = np.random.default_rng(2).integers(0, max(num_rows // 10, 2), num_rows)
    memory = Rows(tf.constant(rows), tf.constant(labels), tf.range(num_rows, dtype=tf.int64), tf.fill([num_rows], True))
    anchor_labels = tf.constant(np.repeat(labels[: options.batch // 4], 4))
    index = faiss.IndexFlatIP(options.width)
    index.add(rows)
    width = min(block_rows(options.width, options.batch), num_rows)

    def codes_and_search():
        among = Candidates.of(memory, anchor_labels, tf.fill([options.batch], tf.constant(-1, tf.int64)))
        return among.codes, Search(options.k, 1.0, among.other_classes, common_code=among.common_code)

    @tf.function
    def ours(x):
        codes, search = codes_and_search()
        return streamed_top_k(Keys(x, memory.block), codes, [search])[0]

    def sampled(x):
        return sampled_top_k(Keys(x, memory.block, memory.take), *codes_and_search())

    @tf.function
    def floor(x):
        def step(i, best):
            scores = tf.matmul(memory.block(i * width, width), x, transpose_b=True)
            return i + 1, tf.maximum(best, tf.reduce_max(scores, axis=0))

        return tf.while_loop(
            lambda i, _: i < num_rows // width, step, (0, tf.fill([options.batch], -1.0)), parallel_iterations=2
        )[1]

    @tf.function
    def whole(x):
        return tf.math.top_k(tf.matmul(x, memory.features, transpose_b=True), options.k)

    x = tf.constant(anchors)
    times = common.interleaved(
        {
            "ours": lambda: ours(x)[0].numpy(),
            **({"sampled": lambda: sampled(x)[0].numpy()} if is_quicker(options.k, num_rows) else {}),
            "floor": lambda: floor(x).numpy(),
            "tf": lambda: whole(x)[0].numpy(),
            "faiss": lambda: index.search(anchors, options.k),
        },
        options.repeats,
    )
    return [
        {
            "name": name,
            "rows": num_rows,
            **each,
            "x floor": each["ms"] / times["floor"]["ms"],
            "all s": each["ms"] * num_rows / options.batch / 1e3,
        }
        for name, each in times.items()
    ]


if __name__ == "__main__":
    main()
