"""What storage types, the sketch and stored keys do to the picks, and to the trained head.

    python -m benchmarks.picks [--configs configs/clinc150.yaml configs/omniglot.yaml] [--seeds 3]

- `recall`: of the 32 hardest negatives in the space that is mined, found with float32 rows and the current head, the
  share that is picked; the mean over the batches of an epoch that follows one of training.
- `MAP@R`: leave-one-out, of the validation classes at the best epoch; the mean over the seeds. Test classes are not
  looked at.
- `keys of M/64`: embeddings as stored keys, a 64th of them renewed per step.

With `--shortlists 64 128 512` in place of all that: after each epoch of exact mining in the embeddings, the share of an
item's 32 hardest negatives by the current head that are among its so many hardest by the head at the start (`start`),
and by the frozen features (`features`); the mean over 512 items.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools
import pathlib
import unittest.mock

import numpy as np
import tensorflow as tf

from benchmarks import common
from xbm_keras import HardTopK, InEmbeddings, InFeatures
from xbm_keras.config.yaml_files import load_config
from xbm_keras.data.batches import batch_dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.retrieval import RetrievalEvaluation, embed
from xbm_keras.experiment import build, loading, phases, selection
from xbm_keras.training.callbacks import KeepBestHead

FEATURES, EMBEDDINGS, SKETCH = (f"top_k.mine_in={space}" for space in ("features", "embeddings", "sketch"))
HARDEST = ["top_k.num_negatives=32", "top_k.num_random=0"]
WAYS = {
    "features, float32": [FEATURES],
    "features, float16": [FEATURES, "memory.storage_dtype=float16"],
    "features, bfloat16": [FEATURES, "memory.storage_dtype=bfloat16"],
    "features, int8": [FEATURES, "memory.storage_dtype=int8"],
    "sketch of 64, best 4 k again": [SKETCH],
    "sketch of 64, best 2 k again": [SKETCH],
    "sketch of 32, best 4 k again": [SKETCH],
    "embeddings, exact": [EMBEDDINGS],
    "embeddings, int8 rows": [EMBEDDINGS, "memory.storage_dtype=int8"],
    "embeddings, keys of M/64": ["top_k.mine_in={}"],
}
SKETCHES = {"sketch of 64, best 2 k again": (64, 2), "sketch of 32, best 4 k again": (32, 4)}
"""Dimensions, and of how many k the best are ranked again; else 64 and 4."""


def main():
    options = common.parser(__doc__)
    options.add_argument("--configs", nargs="+", default=["configs/clinc150.yaml", "configs/omniglot.yaml"])
    options.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--shortlists", nargs="+", type=int, default=[], help="measure what lists of these sizes hold")
    options = options.parse_args()
    results = []
    for path in options.configs:
        config = load_config(path)
        dataset = loading.load_dataset(config, build.make_backbone(config))
        head = selection.choose_start(config.head, dataset)
        if options.shortlists:
            data = {"data": pathlib.Path(path).stem}
            config = config.model_copy(update={"head": head})
            results += [{**data, **each} for each in shares(config, dataset, options.shortlists)]
            continue
        for way in options.ways:
            overrides = [each.format(max(1, len(dataset.splits.train) // 64)) for each in [*HARDEST, *WAYS[way]]]
            runs = []
            for seed in range(options.seeds):
                config = load_config(path, [*overrides, f"training.seed={seed}"]).model_copy(update={"head": head})
                dim, rerank = SKETCHES.get(way, (64, 4))
                with unittest.mock.patch.object(build, "SKETCH_DIM", dim):
                    runs.append(run(config, dataset, rerank))
            recall, score = np.mean(runs, axis=0)
            results.append({"data": pathlib.Path(path).stem, "name": way, "recall": recall, "MAP@R": round(score, 4)})
            print(results[-1], flush=True)
    common.report(results, options)


def run(config, dataset, rerank: int) -> tuple[float, float]:
    """Recall of the picks after an epoch, and MAP@R of the validation classes at the best one."""
    train, validation = dataset.splits.train, dataset.splits.validation
    model = phases.start_model(config, dataset, None, train)
    model.rerank = rerank
    evaluation = RetrievalEvaluation(UnitRows(dataset.features, validation), dataset.labels[validation])
    best = KeepBestHead(evaluation, config.training.patience)
    phases.fit(config, dataset, model, train, 1, [evaluation, best], False)
    recall = recall_of(config, dataset, model)
    phases.fit(config, dataset, model, train, config.training.epochs, [evaluation, best], False, first_epoch=1)
    return recall, best.best


def shares(config, dataset, sizes) -> list[dict]:
    """What shortlists hold after each epoch."""
    train = dataset.splits.train
    model = phases.start_model(config, dataset, None, train)
    rows, labels = UnitRows(dataset.features, train), dataset.labels[train]
    some = np.random.default_rng(0).permutation(len(train))[:512]

    def hardest(vectors, k):
        scores = np.where(labels[some, None] == labels, -2.0, vectors[some] @ vectors.T)
        return np.argsort(-scores, axis=1)[:, :k]

    lists = {"start": hardest(embed(model.head, rows), max(sizes)), "features": hardest(rows[:], max(sizes))}
    results = []
    for epoch in range(config.training.epochs):
        phases.fit(config, dataset, model, train, epoch + 1, (), False, first_epoch=epoch)
        sought = hardest(embed(model.head, rows), 32)
        results.append({"epoch": epoch + 1})
        for (name, each), size in itertools.product(lists.items(), sizes):
            found = [np.isin(a, b).mean() for a, b in zip(sought, each[:, :size], strict=True)]
            results[-1][f"{name} {size}"] = float(np.mean(found))
        print(results[-1], flush=True)
    return results


def recall_of(config, dataset, model) -> float:
    train = dataset.splits.train
    sampler = build.make_sampler(config, dataset.labels[train])
    rows, ids = UnitRows(dataset.features, train), dataset.sample_ids[train]
    place_of = {int(each): i for i, each in enumerate(ids)}
    order = [place_of[int(each)] for each in model.memory.sample_ids.numpy()]
    whole = model.memory.read()._replace(features=tf.constant(np.asarray(rows)[order]), scales=None, variable=None)
    in_embeddings = isinstance(model.top_k.mining, InEmbeddings)
    exact = HardTopK(
        model.top_k.num_negatives, model.top_k.num_positives, mining=InEmbeddings() if in_embeddings else InFeatures()
    )

    @tf.function
    def share(features, labels, sample_ids):
        stored = model.memory.read()._replace(num_new=tf.constant(0))  # as a step that enqueues nothing
        items, space = (labels, sample_ids), {"anchors": model.head(features), "embed": model.head}
        picked, sought = model.top_k(features, stored, *items, **space), exact(features, whole, *items, **space)
        (picked, _), (sought, is_sought) = (negatives_of(each) for each in (picked, sought))
        is_found = tf.reduce_any(sought[:, :, None] == picked[:, None, :], axis=2) & is_sought
        return tf.reduce_sum(tf.cast(is_found, tf.float32)) / tf.reduce_sum(tf.cast(is_sought, tf.float32))

    batches = batch_dataset(rows, dataset.labels[train], ids, sampler, 0).take(20)
    return float(np.mean([share(x["features"], y, x["sample_id"]) for x, y in batches]))


def negatives_of(picks):
    is_negative = picks.is_valid & ~picks.is_positive
    return tf.where(is_negative, picks.indices, -1), is_negative


if __name__ == "__main__":
    main()
