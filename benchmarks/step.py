"""A full training step against the size of the memory, beside its floor and pytorch-metric-learning.

    python -m benchmarks.step [--rows 1024 65536 ...] [--peer /path/to/its/python] [--json FILE]

D = 1280 features in classes of ten, E = 128, a batch of 32 classes with four items each, Adam on a linear head, memory
filled. Steps are made as `train.py` makes them, 16 in a call of Keras' own training function, so that a step's own work
is timed, and not what is around each call; of more than 65,536 rows one, where a step looks at all of them. Batches are
made beforehand, the peer's too. Each variant takes turns with one whose memory is off, and is gone before the next one:
`x off` is their ratio. The default has 8 hard negatives, 8 random positives and 256 random rows, all others have 32
negatives and 8 positives.

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
- `arithmetic of default`, `... head`, `... table`, `... memory off`: what a step of these picks computes. The
  rows that it embeds, `embedded`, are gathered from the memory; they and the batch pass the head and are made of unit
  length, the anchors are multiplied with their picks, and the loss is taken, forward and backward; Adam moves the head;
  and of `head` all rows pass it once, and are multiplied with the batch. Unit length, similarities and loss are the
  package's own. Nothing is searched, looked up, drawn, checked or noted. `x arithmetic` is the ratio to it.
- `products of default`, `... head`, `... table`: of that the gathers, products and Adam alone: no row is made of unit
  length, and the loss is the sum of the similarities.
- `peer`: CrossBatchMemory and ContrastiveLoss of pytorch-metric-learning, in the Python that `--peer` (or the
  environment variable `XBM_KERAS_PEER`) names; see benchmarks/peer.py. `x peer` is the ratio to its step.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gc
import itertools

import numpy as np
import tensorflow as tf

from benchmarks import common
from xbm_keras import CircularMemory, HardTopK, Head, InEmbeddings, InFeatures, InSketch, Picks, SupConLoss, XBMModel
from xbm_keras.geometry import unit_length
from xbm_keras.model.fused_adam import FusedAdam
from xbm_keras.stages.cosine_scores import block_rows, scores_of_picks
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
BATCHES = 16  # that are at hand
STEPS = 16  # in a call
ROWS_OF_CALLS = 65_536  # up to which calls are of several steps, where a step's work grows with the rows
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
    off = steps_of(make_model("off", "float32", features, labels), features, labels, STEPS)
    results = []

    def time(name, variant, steps, **notes):
        times = common.interleaved({name: variant, "off": off}, options.repeats)
        of_step, of_off = (
            {key: each / n for key, each in times[k].items()} for k, n in ((name, steps), ("off", STEPS))
        )
        results.append({"name": name, "rows": num_rows, **of_step, "x off": of_step["ms"] / of_off["ms"], **notes})

    def steps_in_a_call(name):
        return STEPS if name in KNOWN or num_rows <= ROWS_OF_CALLS else 1

    for storage in options.storage:
        suffix = "" if storage == "float32" else f" {storage}"
        for name in options.names:
            if name in MINING:
                model, steps = make_model(name, storage, features, labels), steps_in_a_call(name)
                notes = {"S": model.top_k.mining.refresh} if name == "embeddings" else {}
                is_counted = name in FROZEN and "arithmetic" in options.names
                rows, picks = picked_rows(model) if is_counted else ((), None)
                time(name + suffix, steps_of(model, features, labels, steps), steps, **notes)
                del model
                gc.collect()
                if is_counted:
                    held = tf.constant(features)
                    for what in ("arithmetic", "products"):
                        bare = arithmetic_of(held, rows, picks, steps, name == "head", what == "products")
                        time(f"{what} of {name}", bare, steps, embedded=len(rows))
                    results[-3]["x arithmetic"] = results[-3]["ms"] / results[-2]["ms"]
                    del bare, held
                    gc.collect()  # a copy of the rows
        if "floor" in options.names:
            time("floor 1280" + suffix, floor_of(tf.cast(features, storage)), 1)
    if "floor" in options.names:
        time("floor 128", floor_of(tf.constant(features[:, :E])), 1)
    steps = steps_in_a_call("peer")
    with common.Peer(options.peer if "peer" in options.names else None, "step", num_rows, steps) as peer:
        if peer:
            time("peer", peer, steps)
            results = [{**each, "x peer": each["ms"] / results[-1]["ms"]} for each in results]
    if "arithmetic" in options.names:
        of_batch = tf.constant(labels[:B][:, None] == labels[:B])
        picks = Picks(tf.zeros([B, B], tf.int64), of_batch, ~tf.eye(B, dtype=tf.bool), tf.zeros([B, B]))
        time("arithmetic of memory off", arithmetic_of(features, (), picks, STEPS, scans=False), STEPS, embedded=0)
    alone = common.interleaved({0: off}, options.repeats)[0]
    results.append({"name": "memory off", "rows": num_rows, **{key: each / STEPS for key, each in alone.items()}})
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


def steps_of(model, features, labels, steps):
    """A call of so many steps, on batches of the memory's own rows where it is frozen, else of items new to it."""
    random, num_rows = np.random.default_rng(3), len(features)
    batches = np.stack([drawn_rows(random, num_rows) for _ in range(BATCHES)])
    drawn, x, y = tf.constant(batches), tf.constant(features[batches]), tf.constant(labels[batches])  # [BATCHES, B]

    def batch(i):
        if model.memory.frozen:
            return {"slot": drawn[i % BATCHES]}
        ids = num_rows + i * B + tf.range(B, dtype=tf.int64)
        return {"features": x[i % BATCHES], "sample_id": ids}, y[i % BATCHES]

    data = iter(tf.data.Dataset.counter().map(batch).prefetch(STEPS))
    model.compile(FusedAdam(1e-3), jit_compile=False, steps_per_execution=steps)
    model.make_train_function()
    return lambda: model.train_function(data)["loss"].numpy()


def picked_rows(model) -> tuple[np.ndarray, Picks]:
    """Of a step: the rows that it embeds, all of a small memory, else each that is picked once; and the picks, whose
    indices are places among these."""
    memory, head = model.memory, model.head
    features, labels, sample_ids = memory.items(drawn_rows(np.random.default_rng(3), memory.memory_size))
    of_head = {"anchors": head(features), "embed": head.on_rows}
    picks = model.top_k(features, memory.read(), labels, sample_ids, **of_head)
    if model.top_k.most_rows(B, memory.memory_size) == memory.memory_size:
        return np.arange(memory.memory_size), picks._replace(shared=None)
    rows, places = np.unique(picks.indices, return_inverse=True)
    return rows, picks._replace(indices=tf.constant(places.reshape(B, -1)))


def arithmetic_of(features, rows, picks, steps, scans, products_alone=False):
    """A call of so many steps that only compute; `rows` and `picks` as `picked_rows` gives them.

    What is computed has an effect, and each step is of other rows: a graph leaves out what nobody asks for, and does
    what does not change once.
    """
    kernel, memory, taken = tf.Variable(tf.random.normal([D, E])), tf.convert_to_tensor(features), tf.constant(rows)
    as_unit, loss = (tf.identity, lambda s, _: s) if products_alone else (unit_length, SupConLoss())
    optimizer = FusedAdam(1e-3)
    optimizer.build([kernel])
    block = min(block_rows(D, B), len(features))
    is_whole = len(rows) == len(features)

    def similarities(i):
        anchors = as_unit(tf.matmul(memory[i * B % (len(features) - B) :][:B], kernel))
        if not len(rows):
            return tf.matmul(anchors, anchors, transpose_b=True)
        embedded = memory if is_whole else tf.gather(memory, (taken + i) % len(features))
        embedded = as_unit(tf.matmul(embedded, kernel))
        if is_whole:
            return tf.gather(tf.matmul(anchors, embedded, transpose_b=True), picks.indices, batch_dims=1)
        shared = embedded[: picks.num_shared] if picks.num_shared else None  # any of them
        return scores_of_picks(anchors, tf.gather(embedded, picks.own), shared)

    def step(i, best):
        for start in range(0, len(features) - block + 1, block) if scans and not is_whole else ():
            some = tf.matmul(memory[start : start + block], kernel)
            best = tf.maximum(best, tf.reduce_max(tf.matmul(some, some[:B], transpose_b=True), axis=0))
        with tf.GradientTape() as tape:
            mean = tf.reduce_mean(loss(similarities(i), picks))
        optimizer.apply([tape.gradient(mean, kernel)], [kernel])
        return i + 1, best

    count = itertools.count(0, steps)

    @tf.function
    def arithmetic(first):
        start = first, tf.zeros([B])
        return tf.while_loop(lambda i, _: i < first + steps, step, start, parallel_iterations=1)[1]

    return lambda: arithmetic(tf.constant(next(count), tf.int64)).numpy()


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
