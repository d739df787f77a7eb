"""Vectors of unseen classes in fewer dimensions, by every simple way and by ours: what is kept, and what it costs.

    python -m benchmarks.compress --configs configs/compress_clinc150.yaml configs/compress_grocery.yaml

`--ways` makes some of the rows only. No row but the scores sees a label. `queries/s` is exact search for the ten
nearest of random vectors of that width (`--rows` of them). Mean and standard deviation over the seeds, where there is
chance.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from benchmarks import common
from xbm_keras.config.yaml_files import load_config
from xbm_keras.data import dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.exact_search import nearest
from xbm_keras.evaluation.neighbors import FrozenNeighbors
from xbm_keras.evaluation.retrieval import embed, evaluate_retrieval
from xbm_keras.experiment import build, loading, phases
from xbm_keras.stages.head.starts import ClosedForms, Start

WAYS = (
    "truncation",
    "random projection",
    "PCA",
    "local whitening",
    "Matryoshka-Adaptor",
    "Matryoshka-Adaptor after PCA",
    "ours",
)


def main():
    options = common.parser(__doc__)
    options.add_argument("--configs", nargs="+", default=["configs/compress_clinc150.yaml"])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    options.add_argument("--rows", type=int, default=100_000, help="gallery of the search that is timed")
    options.add_argument("--set", nargs="+", default=[], help="section.key=value, over the configs")
    options = options.parse_args()
    results, speeds = [], {}
    for path in options.configs:
        config = load_config(path, options.set)
        dataset = loading.load_dataset(config, build.make_backbone(config))
        splits, widths = dataset.splits, config.head.widths
        train = np.asarray(UnitRows(dataset.features, np.sort(np.concatenate([splits.train, splits.validation]))))
        test, labels = np.asarray(UnitRows(dataset.features, splits.test)), dataset.labels[splits.test]
        frozen = FrozenNeighbors(test, ks=(10,))
        closed_forms = ClosedForms(train, np.zeros(len(train), int))
        ways = {}
        for name in options.ways:
            if name == "truncation":
                ways[name] = [test]
            elif name == "random projection":
                ways[name] = [test @ random_projection(test.shape[1], max(widths), seed) for seed in options.seeds]
            elif name == "PCA":
                ways[name] = [project(test, closed_forms.pca(max(widths)))]
            elif name == "local whitening":
                ways[name] = [project(test, closed_forms.local(max(widths)))]
            elif name == "Matryoshka-Adaptor":
                ways[name] = [adapted(train, test, widths, seed) for seed in options.seeds]
            elif name == "Matryoshka-Adaptor after PCA":
                start = closed_forms.pca(max(widths))
                ways[name] = [adapted(project(train, start), project(test, start), widths, s) for s in options.seeds]
            else:
                ways[name] = [trained(path, dataset, test, [*options.set, f"training.seed={s}"]) for s in options.seeds]
        for width in [*widths, test.shape[1]]:
            if width not in speeds:
                speeds[width] = queries_per_second(width, options.rows)
            for name, runs in {"frozen": [test]}.items() if width == test.shape[1] else ways.items():
                scores = [scores_of(vectors[:, :width], labels, frozen) for vectors in runs]
                results.append(
                    {
                        "data": pathlib.Path(path).stem.removeprefix("compress_"),
                        "width": width,
                        "name": name,
                        **{key: spread([each[key] for each in scores]) for key in scores[0]},
                        "bytes per item": 4 * width,
                        "queries/s": f"{speeds[width]:,.0f}",
                    }
                )
    common.report(results, options)


def scores_of(vectors: np.ndarray, labels: np.ndarray, frozen: FrozenNeighbors) -> dict[str, float]:
    return {
        "MAP@R": evaluate_retrieval(vectors, labels)["map_at_r"],
        "overlap@10": frozen.score(vectors)["neighbor_overlap_at_10"],
    }


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def random_projection(width: int, embedding_dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(width, embedding_dim))


def project(vectors: np.ndarray, start: Start) -> np.ndarray:
    return vectors @ start.kernel + start.bias


def trained(path: str, dataset: dataset.Dataset, test: np.ndarray, overrides: list[str]) -> np.ndarray:
    """By the config."""
    config = load_config(path, overrides)
    model = phases.start_model(config, dataset, None, dataset.splits.train)
    phases.select(config, dataset, model)
    return embed(model.head, test)


def adapted(
    train: np.ndarray,
    vectors: np.ndarray,
    widths: list[int],
    seed: int,
    k: int = 10,
    batch_size: int = 128,
    epochs: int = 10,
) -> np.ndarray:
    """Matryoshka-Adaptor without labels, arXiv 2407.20243, section 3: `f + MLP(f)`, as wide as its input.

    The loss is the sum over the widths of the mean absolute change of similarity to the k nearest items and of all
    pairs of the batch, and the reconstruction `|f - f'|`; all with weight 1.
    """
    keras.utils.set_random_seed(seed)
    width = train.shape[1]
    mlp = keras.Sequential(
        [
            keras.Input((width,)),
            keras.layers.Dense(width, "relu"),
            keras.layers.Dense(width, kernel_initializer="zeros"),
        ]
    )
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, epochs * (len(train) // batch_size)))
    optimizer.build(mlp.trainable_variables)
    neighbors = nearest(train, k=k)[0]
    rows = tf.constant(train, tf.float32)

    def cosines(x, y):
        return tf.einsum("...e,...e->...", tf.math.l2_normalize(x, -1), tf.math.l2_normalize(y, -1))

    @tf.function
    def step(batch, near):
        before, near_before = tf.gather(rows, batch), tf.gather(rows, near)  # [B, D], [B, k, D]
        with tf.GradientTape() as tape:
            after = before + mlp(before)
            near_after = near_before + tf.reshape(mlp(tf.reshape(near_before, [-1, width])), tf.shape(near_before))
            loss = tf.reduce_mean(tf.abs(after - before))
            for w in widths:
                changes = cosines(after[:, None, :w], near_after[:, :, :w]) - cosines(before[:, None], near_before)
                pairs = cosines(after[:, None, :w], after[None, :, :w]) - cosines(before[:, None], before[None])
                loss += tf.reduce_mean(tf.abs(changes)) + tf.reduce_mean(tf.abs(pairs))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, mlp.trainable_variables), mlp.trainable_variables, strict=True)
        )

    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(train))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            batch = order[start : start + batch_size]
            step(tf.constant(batch), tf.constant(neighbors[batch]))
    return vectors + mlp.predict(vectors, verbose=0)


def queries_per_second(width: int, num_rows: int, num_queries: int = 960) -> float:
    """Exact search for the ten nearest, on all cores."""
    gallery, queries = common.unit_vectors(num_rows, width, 0), common.unit_vectors(num_queries, width, 1)
    nearest(queries[:96], gallery)
    start = time.perf_counter()
    nearest(queries, gallery)
    return num_queries / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
