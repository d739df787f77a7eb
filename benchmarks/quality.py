"""How good are the embeddings of classes never seen, against every simple way to make them?

    python -m benchmarks.quality --configs configs/grocery.yaml configs/omniglot.yaml configs/clinc150.yaml

Every trained row holds out classes of the training side to choose its number of epochs, with the first seed, is trained
on all of them with each seed, and sees the test classes once. Parts of the network are chosen once for all rows, views,
start and its values for the trained ones; the others get the items without views. `--peer-python` names the Python of
an environment with pytorch-metric-learning. Mean and standard deviation over the seeds; leave-one-out. Intervals are of
95 %, by bootstrap over the classes, of each row and of what it is above the recipe's start and above memory off. With
--by-epoch trained rows tell the test classes after each epoch, whose best is what no run can know.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import pathlib
import statistics
import subprocess
import tempfile
import unittest.mock

import keras
import matplotlib.pyplot
import numpy as np
import tensorflow as tf

from benchmarks import common
from xbm_keras import XBMModel
from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import load_config
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.evaluation.metrics import map_at_r
from xbm_keras.evaluation.retrieval import RetrievalEvaluation, embed, evaluate_retrieval, score_queries
from xbm_keras.experiment import build, chosen_head, held_out, loading, phases, selection
from xbm_keras.experiment.chosen_parts import choose_parts
from xbm_keras.geometry import unit_length, unit_rows
from xbm_keras.model.labels_and_ids import read_batch
from xbm_keras.stages.circular_memory import replicas

CLOSED_FORMS = ("pca", "whiten", "lda", "nda")
START = "start (default)"
EXPANDED = {"start, alpha query expansion": False, "start, and database augmentation": True}
NUM_EXPANDED, ALPHA = 5, 3.0  # nearest items that are mixed in, and the power of their similarities
PEER = pathlib.Path(__file__).with_name("quality_peer.py")
PEER_LOSSES = ("contrastive", "multi_similarity")
HARDEST = ["top_k.mine_in=embeddings", "top_k.num_negatives=32", "top_k.num_random=0"]
RANDOM = ["top_k.mine_in=features", "top_k.num_random=256"]
ALL = ["top_k.num_negatives=all", "top_k.num_positives=all", "top_k.num_random=0"]
CLASSICAL = "classical XBM (stale embeddings)"
OFF = "memory off"
FOUND = "MAP@R of each test item"
TRAINED = {
    OFF: ["memory.memory_size=0", *ALL],
    CLASSICAL: ["memory.prefill=false", *HARDEST, "top_k.mine_in=features"],  # all it holds
    "32 hardest in features": [*HARDEST, "top_k.mine_in=features"],
    "32 hardest in embeddings": HARDEST,
    "8 hardest in features, 256 at random (default)": ["top_k.num_negatives=8", *RANDOM],
    "256 at random": ["top_k.num_negatives=0", *RANDOM],
}


class ClassicalXBM(XBMModel):
    """Memory of embeddings as they were when their batch passed, without gradient (arXiv 1912.06798)."""

    def build(self, input_shape):
        """As `XBMModel`, with a memory as wide as the embeddings."""
        if not self.memory.built:
            self.memory.build((None, self.head.embedding_dim))
        super().build(input_shape)

    def call(self, inputs, training=False):
        """As `XBMModel`, whose memory is as wide as the features."""
        features = unit_length(inputs["features"])
        return {"features": features, "embeddings": self.head(features)}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Enqueue the batch's embeddings, and compare with what the memory holds."""
        batch = read_batch(x, y, y_pred["features"], self, training)
        anchors = y_pred["embeddings"]  # [B, E]
        rows = self.memory.enqueue(tf.stop_gradient(anchors), batch.wanted, batch.ids)  # [M, E]
        picks = self.top_k(anchors, rows, batch.wanted, batch.ids)  # [B, T]
        similarities = tf.einsum("be,bte->bt", anchors, rows.take(picks.indices))
        return replicas.masked_mean(self.pair_loss(similarities, picks), self.pair_loss.valid_anchors(picks))


def main():
    options = common.parser(__doc__)
    options.add_argument("--configs", nargs="+", default=["configs/grocery.yaml"])
    options.add_argument("--set", nargs="+", default=[], help="section.key=value, over each config")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", nargs="+", help="names of rows")
    options.add_argument("--peer-python", help="of an environment with pytorch-metric-learning")
    options.add_argument("--folds", type=int, help="that choose the epochs; by default as many as train.py takes")
    options.add_argument("--by-epoch", action="store_true", help="test classes after each epoch")
    options.add_argument("--sweep", action="store_true", help="memory sizes and k instead of the table")
    options.add_argument("--picture", help="of the sweep, an .svg or .png to write")
    options = options.parse_args()
    results = []
    for path in options.configs:
        rows = (sweep if options.sweep else table)(path, *load(path, options), options)
        results += [{"data": pathlib.Path(path).stem, **row} for row in rows]
    common.report(results, options)
    if options.picture:
        draw(results, options.picture)


def load(path: str, options) -> tuple[Dataset, Dataset, Config]:
    """The items, the same with the views that the default recipe chooses, and the config with what it chooses."""
    config = load_config(path, options.set)
    backbone = build.make_whole_backbone(config)
    viewed = loading.with_training_views(config, loading.load_dataset(config, backbone), backbone)
    config, viewed, _ = choose_parts(config, viewed, backbone)
    config, dataset = selection.choose(config, viewed)
    return viewed.keeping_views(False, False), dataset, config


def table(path: str, plain: Dataset, dataset: Dataset, chosen: Config, options) -> list[dict]:
    """One row for each way, the given features first."""
    rows = []

    def is_wanted(name: str) -> bool:
        return not options.only or name in options.only

    def closed_form(name: str, head: chosen_head.HeadChoice, data: Dataset) -> dict:
        everything = data.with_views(train)
        kernel, bias = chosen_head.make_start(head, chosen_head.closed_forms_of(data, everything, head.power))
        vectors = np.asarray(UnitRows(data.features, data.splits.test, head.power)) @ kernel + bias
        return {**summary(name, [scores_of(data, vectors)]), **parameters(head)}

    splits = plain.splits
    train = np.union1d(splits.train, splits.validation)
    mean = np.mean(UnitRows(plain.features, train), axis=0)
    test = np.asarray(UnitRows(plain.features, splits.test))
    for name, vectors in (("frozen", test), ("centred", test - mean)):
        if is_wanted(name):
            rows.append(summary(name, [scores_of(plain, vectors)]))
    folds = held_out.HeldOutFolds(plain)
    for start in filter(is_wanted, CLOSED_FORMS):
        head = selection.choose_start(load_config(path, [*options.set, f"head.start={start}"]).head, plain, folds)
        rows.append(closed_form(start, head, plain))
    if is_wanted(START):
        views = f"views.number={chosen.views.number} views.turned_classes={chosen.views.turned_classes}"
        rows.append({**closed_form(START, chosen.head, dataset), "chosen": views})
    for name, both in filter(lambda each: is_wanted(each[0]), EXPANDED.items()):
        kernel, bias = chosen_head.make_start(
            chosen.head, chosen_head.closed_forms_of(dataset, dataset.with_views(train), chosen.head.power)
        )
        plain_rows = unit_rows(np.asarray(UnitRows(dataset.features, splits.test, chosen.head.power)) @ kernel + bias)
        found = expanded_scores(plain_rows, dataset.labels[splits.test], both)
        rows.append(summary(name, [{"MAP@R": float(np.nanmean(found)), FOUND: found}]))
    for name, overrides in filter(lambda each: is_wanted(each[0]), TRAINED.items()):
        with unittest.mock.patch.object(build, "XBMModel", ClassicalXBM if name == CLASSICAL else XBMModel):
            if options.by_epoch:
                rows.append({"name": name, **by_epoch(path, dataset, chosen, overrides, options)})
            else:
                rows.append(summary(name, trained(path, dataset, chosen, overrides, options)))
    for loss in PEER_LOSSES if options.peer_python else ():
        for given in (None, selection.choose_start(load_config(path, options.set).head, plain, folds)):
            name = f"pytorch-metric-learning, {loss} + memory, {'our' if given else 'random'} start"
            if is_wanted(name):
                rows.append(summary(name, peer(options, plain, loss, given, chosen.head.embedding_dim)))
    return with_intervals(rows, plain.labels[splits.test])


def with_intervals(rows: list[dict], labels: np.ndarray) -> list[dict]:
    """The same rows, where each query's MAP@R is replaced by intervals over the classes, of it and of differences."""
    found = {row["name"]: row.pop(FOUND) for row in rows if FOUND in row}
    for row in filter(lambda each: each["name"] in found, rows):
        values = found[row["name"]]
        asked = ~np.isnan(values)  # the others have nothing to find
        row["95 %"] = "{:.3f} to {:.3f}".format(*bootstrap_interval(values[asked], labels[asked]))
        for other in (START, OFF):
            if other in found and other != row["name"]:
                above = (values - found[other])[asked]
                told = "{:+.4f} ({:+.4f} to {:+.4f})".format(above.mean(), *bootstrap_interval(above, labels[asked]))
                row[f"above {other}"] = told
    return rows


def expanded_scores(vectors: np.ndarray, labels: np.ndarray, both: bool) -> np.ndarray:
    """Leave-one-out MAP@R of each item where queries, or both sides, are mixed with their nearest items, by similarity.

    It is NaN where there is nothing to find.

    Queries that are the items themselves are expanded from all others, which are the database (Radenovic et al., "Fine-
    tuning CNN Image Retrieval", PAMI 2019, section 3.4; Arandjelovic and Zisserman, CVPR 2012, section 5).
    """
    mixed = np.empty_like(vectors)
    for start in range(0, len(vectors), 1024):
        similarities = vectors[start : start + 1024] @ vectors.T
        here = np.arange(len(similarities))
        similarities[here, start + here] = -1
        nearest = np.argpartition(-similarities, NUM_EXPANDED, axis=1)[:, :NUM_EXPANDED]
        weights = np.maximum(np.take_along_axis(similarities, nearest, axis=1), 0) ** ALPHA
        mixed[start : start + 1024] = np.einsum("bn,bnd->bd", weights, vectors[nearest])
    mixed = unit_rows(vectors + mixed)
    if both:
        return scores_of_queries(mixed, labels)
    # Expanded queries against plain items: the own one, which is near, is left out.
    classes = np.unique(labels, return_inverse=True)[1]
    similarities = mixed @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    relevant = np.bincount(classes)[classes] - 1
    hits = classes[np.argsort(-similarities, axis=1)[:, : max(1, relevant.max())]] == classes[:, None]
    return np.where(relevant > 0, map_at_r(hits, np.maximum(relevant, 1)), np.nan)


def scores_of_queries(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Leave-one-out MAP@R of each item, [n]; NaN where there is nothing to find."""
    order, found = score_queries(vectors, labels)
    scores = np.full(len(labels), np.nan)
    scores[order] = found["map_at_r"]
    return scores


def parameters(head: chosen_head.HeadChoice) -> dict:
    """The start of a head and its parameters."""
    return {name: getattr(head, name) for name in ("start", "power", *chosen_head.PARAMETERS.get(head.start, ()))}


def sweep(path: str, plain: Dataset, dataset: Dataset, chosen: Config, options) -> list[dict]:
    """What memory size and k do, in batches of few classes."""
    few = ["training.batch_size=32", "training.epochs=5", *HARDEST]
    rows = []
    for size in (0, 64, 256, 1024, len(dataset.with_views(np.union1d(plain.splits.train, plain.splits.validation)))):
        overrides = [*few, f"memory.memory_size={size}"]
        rows.append(
            {**summary(f"memory {size}", trained(path, dataset, chosen, overrides, options)), "memory_size": size}
        )
    for k in (1, 4, 16, 64, 256):
        overrides = [*few, f"top_k.num_negatives={k}"]
        rows.append({**summary(f"k {k}", trained(path, dataset, chosen, overrides, options)), "k": k})
    return with_intervals(rows, plain.labels[plain.splits.test])


def draw(results: list[dict], path: str) -> None:
    """MAP@R over memory size and over k, a line for each data set."""
    figure, axes = matplotlib.pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, key, name in zip(axes, ("memory_size", "k"), ("memory size", "hardest negatives, k"), strict=True):
        for data in dict.fromkeys(row["data"] for row in results):
            rows = [row for row in results if row["data"] == data and key in row]
            sizes = [row[key] for row in rows]
            means = [float(row["MAP@R"].split()[0]) for row in rows]
            spreads = [float(row["MAP@R"].split("(")[1][:-1]) if "(" in row["MAP@R"] else 0 for row in rows]
            axis.errorbar(range(len(sizes)), means, spreads, marker="o", capsize=3, label=data)
        axis.set_xticks(range(len(sizes)), ["off" if size == 0 else f"{size:,}" for size in sizes])
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("MAP@R, classes never seen")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def trained(path: str, dataset: Dataset, chosen: Config, overrides: list[str], options) -> list[dict]:
    """Scores of each seed by the config, what was chosen for it, and what differs from it."""
    config = load_config(path, [*options.set, *overrides]).model_copy(update={"head": chosen.head})
    splits = dataset.splits
    curves = []
    for fold in held_out.held_out(dataset, options.folds or "auto"):
        model = phases.start_model(config, fold, None, fold.with_views(fold.splits.train))
        curves.append(phases.select(config, fold, model, show_progress=False).scores)
    epoch = selection.best_epoch(curves)
    everything = dataset.with_views(np.union1d(splits.train, splits.validation))
    runs = []
    for seed in range(options.seeds if epoch else 1):  # without a step there is nothing random
        config = load_config(path, [*options.set, *overrides, f"training.seed={seed}"])
        config = config.model_copy(update={"head": chosen.head})
        model = phases.start_model(config, dataset, None, everything)
        phases.fit(config, dataset, model, everything, epoch, show_progress=False)
        vectors = embed(model.head, UnitRows(dataset.features, splits.test))
        runs.append(scores_of(dataset, vectors) | {"epochs": epoch})
    return runs


def by_epoch(path: str, dataset: Dataset, chosen: Config, overrides: list[str], options) -> dict:
    """MAP@R of the test classes after each epoch, the start first, of a head that all training classes train."""
    splits, curves = dataset.splits, []
    test = UnitRows(dataset.features, splits.test), dataset.labels[splits.test]
    everything = dataset.with_views(np.union1d(splits.train, splits.validation))
    for seed in range(options.seeds):
        config = load_config(path, [*options.set, *overrides, f"training.seed={seed}"])
        config = config.model_copy(update={"head": chosen.head})
        model = phases.start_model(config, dataset, None, everything)
        evaluation, scores = RetrievalEvaluation(*test), []
        noting = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs, to=scores: to.append(logs["val_map_at_r"])
        )
        phases.fit(config, dataset, model, everything, config.training.epochs, [evaluation, noting], False)
        curves.append([evaluation.baseline["val_map_at_r"], *scores])
    bests = [max(curve) for curve in curves]
    spread = f" ({statistics.stdev(bests):.3f})" if len(bests) > 1 else ""
    told = " ".join(f"{score:.3f}" for score in np.mean(curves, axis=0))
    return {"best": f"{statistics.mean(bests):.4f}{spread}", "MAP@R by epoch": told}


def scores_of(dataset: Dataset, vectors: np.ndarray) -> dict:
    """Of test vectors [n test, E]: means, and the MAP@R of each."""
    splits = dataset.splits
    labels = dataset.labels[splits.test]
    found = scores_of_queries(vectors, labels)
    scores = {"MAP@R": float(np.nanmean(found)), FOUND: found}
    if splits.is_query is not None:
        q, g = splits.is_query, splits.is_gallery
        scores["query/gallery R@1"] = evaluate_retrieval(vectors[q], labels[q], vectors[g], labels[g])["recall_at_1"]
    return scores


def peer(options, dataset: Dataset, loss: str, head: chosen_head.HeadChoice | None, width: int) -> list[dict]:
    """The same by pytorch-metric-learning, in a process of its own; from a closed form, or from a random start."""
    splits = dataset.splits
    power = head.power if head else 1.0
    arrays = {"width": np.array(width)}
    for name in ("train", "validation", "test"):
        positions = getattr(splits, name)
        arrays[name] = np.asarray(UnitRows(dataset.features, positions, power))
        arrays[f"{name}_labels"] = dataset.labels[positions]
    for name, positions in (("select", splits.train), ("refit", np.concatenate([splits.train, splits.validation]))):
        if head:
            closed_form = chosen_head.make_start(head, chosen_head.closed_forms_of(dataset, positions, power))
            arrays[f"{name}_kernel"], arrays[f"{name}_bias"] = closed_form.scaled()
    with tempfile.TemporaryDirectory() as folder:
        given, made = pathlib.Path(folder, "given.npz"), pathlib.Path(folder, "made.npz")
        np.savez(given, **arrays)
        subprocess.run([options.peer_python, str(PEER), str(given), str(made), loss, str(options.seeds)], check=True)
        with np.load(made) as result:
            epochs = int(result["epochs"])
            return [scores_of(dataset, vectors) | {"epochs": epochs} for vectors in result["embeddings"]]


def summary(name: str, runs: list[dict]) -> dict:
    """Mean and standard deviation, in one cell; of each query the mean."""
    told = [{key: value for key, value in run.items() if key != FOUND} for run in runs]
    print(json.dumps({"name": name, "runs": told}), flush=True)
    row: dict = {"name": name, FOUND: np.mean([run[FOUND] for run in runs], axis=0)}
    for key in told[0]:
        values = [each[key] for each in runs]
        mean = statistics.mean(values)
        if key == "epochs":
            row[key] = f"{mean:.1f}"
        else:
            row[key] = f"{mean:.3f}" + (f" ({statistics.stdev(values):.3f})" if len(values) > 1 else "")
    return row


if __name__ == "__main__":
    main()
