"""A full training step against the size of the memory, beside its floor and pytorch-metric-learning.

    python -m benchmarks.step [--rows 1024 65536 ...] [--peer /path/to/its/python] [--json FILE]

D = 1280 features in classes of ten, E = 128, a batch of 32 classes with four items each, AdamW on a linear head, memory
filled. Each variant takes turns with a step whose memory is off, and is gone before the next one: `x off` is their
ratio. The default has 8 hard negatives, 8 random positives and 256 random rows, all others have 32 negatives and 8
positives.

- `default`: as `train.py` does it, hard negatives in the features, from a neighbour table, of the rows that the
  benchmark draws; the memory is frozen, and gives the batch, too. What it takes to search for all rows is a row of
  benchmarks/topk.py.
- `head`: exact mining by the current head; the memory is frozen.
- `features`, `features float16`, ...: exact mining in the features, by storage type.
- `embeddings`: mining in stored embeddings, S rows renewed per step (`refresh`, the column `S`).
- `table`: the same as `features` with a neighbour table.
- `sketch`: mining in a frozen sketch of 64 dimensions, the best 4 k re-ranked by feature score.
- `floor 1280`, `floor 128`: the memory's blocks multiplied at that width, each reduced to a maximum per anchor, and
  the head, forward and backward, on as many rows as are picked.
- `arithmetic of default`, `... head`, `... table`, `... memory off`: what no step of these picks can do without: the
  rows that it embeds, `embedded`, gathered from the memory, and the head on these and on the batch, forward and
  backward; and of `head` all rows through the head once, and their product with the batch. `x arithmetic` is the ratio
  to it.
- `peer`: CrossBatchMemory and ContrastiveLoss of pytorch-metric-learning, in the Python that `--peer` (or the
  environment variable `XBM_KERAS_PEER`) names; see benchmarks/peer.py. `x peer` is the ratio to its step.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gc

import keras
import numpy as np
import tensorflow as tf

from benchmarks import common
from xbm_keras import CircularMemory, HardTopK, Head, InEmbeddings, InFeatures, InSketch, SupConLoss, XBMModel
from xbm_keras.stages.cosine_scores import block_rows
from xbm_keras.stages.hard_top_k.neighbor_table import NeighborTable

D, E, B, NEGATIVES, POSITIVES = 1280, 128, 128, 32, 8
DEFAULT = {"num_negatives": 8, "num_positives": 8, "num_random": 256}
MINING = {
    "default": lambda num_rows: InFeatures(),
    "head": lambda num_rows: InEmbeddings(),
    "features": lambda num_rows: InFeatures(),
    "table": lambda num_rows: InFeatures(),
    "embeddings": lambda num_rows: InEmbeddings(max(num_rows // 64, 256)),
    "sketch": lambda num_rows: InSketch(64),
}
NAMES = [*MINING, "floor", "arithmetic", "peer"]
FROZEN = ("default", "head", "table")
KNOWN = ("default", "table")
PER_CLASS = 10  # rows
DRAWN = 1024  # of which a batch is drawn: classes that are whole
RANK = 100  # of the structure in the random features, whose spectrum falls as that of a network's features does


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_024, 8_192, 65_536, 262_144, 1_048_576])
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--storage", nargs="+", default=["float32"], help="storage types of the memory")
    parser.add_argument("--peer", default=os.environ.get("XBM_KERAS_PEER"))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    results = []
    for num_rows in options.rows:
        results += measure(num_rows, options)
    common.report(results, options)


def measure(num_rows, options) -> list[dict]:
    labels = np.arange(num_rows) // PER_CLASS
    labels[DRAWN:] = np.random.default_rng(1).permutation(labels[DRAWN:])
    features = make_features(num_rows, labels)
    off = step_of(make_model("off", "float32", features, labels), features, labels)
    results = []

    def time(name, variant, **notes):
        times = common.interleaved({name: variant, "off": off}, options.repeats)
        ratio = times[name]["ms"] / times["off"]["ms"]
        results.append({"name": name, "rows": num_rows, **times[name], "x off": ratio, **notes})

    for storage in options.storage:
        suffix = "" if storage == "float32" else f" {storage}"
        for name in options.names:
            if name in MINING:
                model = make_model(name, storage, features, labels)
                notes = {"S": model.top_k.mining.refresh} if name == "embeddings" else {}
                is_counted = name in FROZEN and "arithmetic" in options.names
                num_embedded = count_embedded(model) if is_counted else 0
                time(name + suffix, step_of(model, features, labels), **notes)
                del model
                gc.collect()
                if is_counted:
                    bare = arithmetic_of(features, num_embedded, scans=name == "head")
                    time(f"arithmetic of {name}", bare, embedded=num_embedded)
                    results[-2]["x arithmetic"] = results[-2]["ms"] / results[-1]["ms"]
                    del bare
                    gc.collect()  # which holds a copy of the rows
        if "floor" in options.names:
            time("floor 1280" + suffix, floor_of(tf.cast(features, storage)))
    if "floor" in options.names:
        time("floor 128", floor_of(tf.constant(features[:, :E])))
    with common.Peer(options.peer if "peer" in options.names else None, "step", num_rows) as peer:
        if peer:
            time("peer", peer)
            results = [{**each, "x peer": each["ms"] / results[-1]["ms"]} for each in results]
    if "arithmetic" in options.names:
        time("arithmetic of memory off", arithmetic_of(features, 0, scans=False), embedded=0)
    results.append({"name": "memory off", "rows": num_rows, **common.interleaved({0: off}, options.repeats)[0]})
    return results


def make_features(num_rows: int, labels: np.ndarray | None = None) -> np.ndarray:
    """Unit vectors [N, D] with a falling spectrum, those of one label near each other."""
    random = np.random.default_rng(0)
    axes = (random.standard_normal((RANK, D)) / np.sqrt(1 + np.arange(RANK))[:, None]).astype(np.float32)
    labels = np.arange(num_rows) if labels is None else labels
    centres = random.standard_normal((labels.max() + 1, RANK), np.float32)
    features = np.empty((num_rows, D), np.float32)
    for start in range(0, num_rows, 65_536):
        n = min(65_536, num_rows - start)
        places = centres[labels[start : start + n]] + 0.5 * random.standard_normal((n, RANK), np.float32)
        block = places @ axes + 0.2 * random.standard_normal((n, D), np.float32)
        features[start : start + n] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return features


def make_model(name, storage, features, labels) -> XBMModel:
    """A model and its full memory; the name `off` is of one without."""
    num_rows = len(features)
    memory = CircularMemory(num_rows if name in MINING else 0, storage, frozen=name in FROZEN)
    counts = DEFAULT if name == "default" else {"num_negatives": NEGATIVES, "num_positives": POSITIVES}
    top_k = HardTopK(**counts, mining=MINING.get(name, MINING["head"])(num_rows))
    model = XBMModel(None, Head(E), memory, top_k, SupConLoss())
    model.build({"features": (None, D)})
    top_k.adapt(features[:20_000])
    model.compile(keras.optimizers.AdamW(1e-3), jit_compile=False)
    model.memory.prefill(features, labels, np.arange(num_rows))
    if name in KNOWN:
        table = NeighborTable(memory, top_k.search, top_k.num_known)
        for start in table.starts[: max(1, DRAWN // table.block_rows)]:
            table.fill(start, table.searched(start))
        top_k.table = table
    return model


def drawn_rows(random, num_rows) -> np.ndarray:
    """[B] rows of a batch."""
    classes = random.choice(min(DRAWN, num_rows) // PER_CLASS, B // 4, replace=False)
    return (
        classes[:, None] * PER_CLASS + random.permuted(np.tile(np.arange(PER_CLASS), (B // 4, 1)), axis=1)[:, :4]
    ).ravel()


def step_of(model, features, labels):
    """A step on a batch of the memory's own rows where it is frozen, else of items new to it."""
    train = tf.function(lambda x, y: model.train_step((x, y)))
    random = np.random.default_rng(3)
    count = [len(features)]

    def step():
        drawn = drawn_rows(random, len(features))
        if model.memory.frozen:
            train({"slot": tf.constant(drawn)}, None)["loss"].numpy()
            return
        x = {"features": tf.constant(features[drawn]), "sample_id": tf.range(count[0], count[0] + B, dtype=tf.int64)}
        count[0] += B
        train(x, tf.constant(labels[drawn]))["loss"].numpy()

    return step


def count_embedded(model) -> int:
    """Rows that a step embeds for its picks: all of a small memory, else each that is picked, once."""
    memory, head = model.memory, model.head
    if model.top_k.most_rows(B, memory.memory_size) == memory.memory_size:
        return memory.memory_size
    features, labels, sample_ids = memory.items(drawn_rows(np.random.default_rng(3), memory.memory_size))
    of_head = {"anchors": head(features), "embed": head.on_rows}
    pick = tf.function(lambda: model.top_k(features, memory.read(), labels, sample_ids, **of_head).indices)
    return len(np.unique(pick()))


def arithmetic_of(features, num_embedded, scans):
    """Gathers as many rows, and passes them and a batch through the head, forward and backward; scans all, if so.

    The loss, of which only the products cost something, is returned too: a graph leaves out what nobody asks for.
    """
    kernel, rows = tf.Variable(tf.random.normal([D, E])), tf.constant(features)
    drawn = tf.constant(np.random.default_rng(4).choice(len(features), num_embedded, replace=False), tf.int64)
    anchors = tf.random.normal([E, B])
    block = min(block_rows(D, B), len(features))

    @tf.function
    def arithmetic():
        best = tf.zeros([B])
        for start in range(0, len(features) - block + 1, block) if scans else ():
            scores = tf.matmul(tf.matmul(rows[start : start + block], kernel), anchors)
            best = tf.maximum(best, tf.reduce_max(scores, axis=0))
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.nn.l2_loss(tf.matmul(x, kernel)) for x in (tf.gather(rows, drawn), rows[:B])])
        return tape.gradient(loss, kernel), loss, best

    return lambda: arithmetic()[0].numpy()


def floor_of(rows):
    """The bare products: blocks of the rows with the batch, and the head with the picks."""
    num_rows, width = rows.shape
    block = min(block_rows(width, B), num_rows)
    anchors = tf.cast(rows[:B], tf.float32)
    kernel = tf.Variable(tf.random.normal([D, E]))
    picks = tf.random.normal([min(B * (NEGATIVES + POSITIVES), num_rows) + B, D])

    @tf.function
    def floor():
        def step(i, best):
            part = tf.cast(tf.slice(rows, [i * block, 0], [block, -1]), tf.float32)
            return i + 1, tf.maximum(best, tf.reduce_max(tf.matmul(part, anchors, transpose_b=True), axis=0))

        start = (tf.constant(0), tf.fill([B], -1.0))
        best = tf.while_loop(lambda i, _: i < num_rows // block, step, start, parallel_iterations=1)[1]
        with tf.GradientTape() as tape:
            loss = tf.nn.l2_loss(tf.matmul(picks, kernel))
        return best, tape.gradient(loss, kernel)

    return lambda: floor()[1].numpy()


if __name__ == "__main__":
    main()
