"""How good are the embeddings of classes never seen, against every simple way to make them?

    python -m benchmarks.quality --configs configs/grocery.yaml configs/omniglot.yaml configs/clinc150.yaml

Every trained row holds out classes of the training side to choose its epoch, is trained again on all of them, and sees
the test classes once. `--peer-python` names the Python of an environment with pytorch-metric-learning; its rows are
left out without one. Mean and standard deviation over the seeds; leave-one-out.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import pathlib
import statistics
import subprocess
import tempfile
import unittest.mock

import numpy as np
import tensorflow as tf

from benchmarks import common
from xbm_keras import XBMModel, experiment, loading
from xbm_keras.config import load_config
from xbm_keras.data.rows import UnitRows
from xbm_keras.evaluation import evaluate_retrieval
from xbm_keras.loading import Dataset

CLOSED_FORMS = ("pca", "whiten", "lda", "nda")
PEER = pathlib.Path(__file__).with_name("quality_peer.py")
PEER_LOSSES = ("contrastive", "multi_similarity", "nt_xent", "triplet")
TRAINED = {
    "memory off": ["memory.memory_size=0", "top_k.num_negatives=all", "top_k.num_positives=all"],
    "classical XBM (stale embeddings)": ["memory.prefill=false"],
    "random start": ["head.start=random", "training.learning_rate=0.001"],
    "top-k in features": ["top_k.mine_in=features"],
    "top-k in embeddings (default)": [],
}


class ClassicalXBM(XBMModel):
    """Memory of embeddings as they were when their batch passed, without gradient (arXiv 1912.06798)."""

    def build(self, input_shape):
        """As `XBMModel`, with a memory as wide as the embeddings."""
        if not self.memory.built:
            self.memory.build((None, self.head.embedding_dim))
        super().build(input_shape)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Enqueue the batch's embeddings, and compare with what the memory holds."""
        labels, ids = self._labels_and_ids(x, y, y_pred)
        anchors = y_pred["embeddings"]  # [B, E]
        rows = self.memory.enqueue(tf.stop_gradient(anchors), labels, ids, jit_compile=self.jit_compile)  # [M, E]
        picks = self.top_k(anchors, rows, labels, ids)  # [B, T]
        similarities = tf.einsum("be,bte->bt", anchors, rows.take(picks.indices))
        is_valid = self.pair_loss.valid_anchors(picks)
        count = tf.reduce_sum(tf.cast(is_valid, tf.float32))
        return tf.reduce_sum(tf.where(is_valid, self.pair_loss(similarities, picks), 0.0)) / tf.maximum(count, 1.0)


def main():
    options = common.parser(__doc__)
    options.add_argument("--configs", nargs="+", default=["configs/grocery.yaml"])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", nargs="+", help="names of rows")
    options.add_argument("--peer-python", help="of an environment with pytorch-metric-learning")
    options.add_argument("--sweep", action="store_true", help="memory sizes and k instead of the table")
    options = options.parse_args()
    results = []
    for path in options.configs:
        dataset = load(path)
        rows = sweep(path, dataset, options.seeds) if options.sweep else table(path, dataset, options)
        results += [{"data": pathlib.Path(path).stem, **row} for row in rows]
    common.report(results, options)


def load(path: str) -> Dataset:
    config = load_config(path)
    return loading.load_dataset(config, loading.make_backbone(config))


def table(path: str, dataset: Dataset, options) -> list[dict]:
    """One row for each way, the given features first."""
    rows = []

    def is_wanted(name: str) -> bool:
        return not options.only or name in options.only

    train = np.sort(np.concatenate([dataset.splits.train, dataset.splits.validation]))
    mean = np.mean(UnitRows(dataset.features, train), axis=0)
    test = np.asarray(UnitRows(dataset.features, dataset.splits.test))
    for name, vectors in (("frozen", test), ("centred", test - mean)):
        if is_wanted(name):
            rows.append(summary(name, [scores_of(dataset, vectors)]))
    wanted = [start for start in CLOSED_FORMS if is_wanted(start)]
    if wanted:
        of_train = experiment.closed_forms_of(dataset, dataset.splits.train)
        of_all = experiment.closed_forms_of(dataset, train)
    for start in wanted:
        head = experiment.choose_start(load_config(path, [f"head.start={start}"]).head, of_train, dataset)
        kernel, bias = experiment.make_start(head, of_all)
        rows.append(summary(start, [scores_of(dataset, test @ kernel + bias)]))
    for name, overrides in TRAINED.items():
        if is_wanted(name):
            kind = ClassicalXBM if name.startswith("classical") else XBMModel
            runs = [run(path, dataset, [*overrides, f"training.seed={s}"], kind) for s in range(options.seeds)]
            rows.append(summary(name, runs))
    if options.peer_python:
        for loss in PEER_LOSSES:
            for start in ("random", "nda"):
                name = f"pytorch-metric-learning, {loss} + memory, {start} start"
                if is_wanted(name):
                    seeds = range(options.seeds)
                    rows.append(summary(name, [peer(options.peer_python, dataset, loss, start, s) for s in seeds]))
    return rows


def sweep(path: str, dataset: Dataset, seeds: int) -> list[dict]:
    """What memory size and k do, in batches of few classes."""
    few = ["training.classes_per_batch=8", "training.samples_per_class=4"]
    rows = []
    for size in (0, 64, 256, 1024, 4096, 65_536):
        overrides = [*few, f"memory.memory_size={size}"]
        runs = [run(path, dataset, [*overrides, f"training.seed={seed}"]) for seed in range(seeds)]
        rows.append({**summary(f"memory {size}", runs), "memory_size": size})
    for k in (1, 4, 16, 64, 256):
        runs = [run(path, dataset, [*few, f"top_k.num_negatives={k}", f"training.seed={s}"]) for s in range(seeds)]
        rows.append({**summary(f"k {k}", runs), "k": k})
    return rows


def run(path: str, dataset: Dataset, overrides: list[str], kind=XBMModel) -> dict[str, float]:
    """Train and test by the config and what differs from it."""
    config = load_config(path, overrides)
    with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.object(experiment, "XBMModel", kind):
        _, metrics = experiment.run(config, dataset, None, pathlib.Path(folder))
    scores = {"MAP@R": metrics["leave_one_out"]["trained"]["map_at_r"]}
    if "query_gallery" in metrics:
        scores["query/gallery R@1"] = metrics["query_gallery"]["trained"]["recall_at_1"]
    return scores | {"epochs": metrics["validation"]["epoch"]}


def scores_of(dataset: Dataset, vectors: np.ndarray) -> dict[str, float]:
    """Of test vectors [n test, E]."""
    splits = dataset.splits
    labels = dataset.labels[splits.test]
    scores = {"MAP@R": evaluate_retrieval(vectors, labels)["map_at_r"]}
    if splits.is_query is not None:
        q, g = splits.is_query, splits.is_gallery
        scores["query/gallery R@1"] = evaluate_retrieval(vectors[q], labels[q], vectors[g], labels[g])["recall_at_1"]
    return scores


def peer(python: str, dataset: Dataset, loss: str, start: str, seed: int) -> dict[str, float]:
    """The same by pytorch-metric-learning, in a process of its own."""
    splits = dataset.splits
    arrays = {}
    for name in ("train", "validation", "test"):
        positions = getattr(splits, name)
        arrays[name] = np.asarray(UnitRows(dataset.features, positions))
        arrays[f"{name}_labels"] = dataset.labels[positions]
    for name, positions in (("select", splits.train), ("refit", np.concatenate([splits.train, splits.validation]))):
        if start != "random":
            closed_form = getattr(experiment.closed_forms_of(dataset, positions), start)(128)
            arrays[f"{name}_kernel"], arrays[f"{name}_bias"] = closed_form.scaled()
    with tempfile.TemporaryDirectory() as folder:
        given, made = pathlib.Path(folder, "given.npz"), pathlib.Path(folder, "made.npz")
        np.savez(given, **arrays)
        subprocess.run([python, str(PEER), str(given), str(made), loss, str(seed)], check=True)
        with np.load(made) as result:
            return scores_of(dataset, result["embeddings"]) | {"epochs": int(result["epochs"])}


def summary(name: str, runs: list[dict[str, float]]) -> dict:
    """Mean and standard deviation, in one cell."""
    print(json.dumps({"name": name, "runs": runs}), flush=True)
    row: dict = {"name": name}
    for key in runs[0]:
        values = [each[key] for each in runs]
        mean = statistics.mean(values)
        if key == "epochs":
            row[key] = f"{mean:.1f}"
        else:
            row[key] = f"{mean:.3f}" + (f" ({statistics.stdev(values):.3f})" if len(values) > 1 else "")
    return row


if __name__ == "__main__":
    main()
