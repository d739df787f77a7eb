"""What published methods give on the same vectors and splits as ours, beside frozen features and our own default.

    python -m benchmarks.pair_peers --config configs/medquad.yaml
    python -m benchmarks.pair_peers --config configs/scifact.yaml --steps 600 --every 20 --rates 1e-4 3e-4 1e-3

Each is written from the formulas of its text, in batches of 64 queries with one of their documents each, with Adam. The
validation queries of all folds choose learning rate and at most one weight (first seed), and the number of steps (each
seed); then it trains anew on training and validation queries, and is tested once. What texts leave open is read thus:
means in place of sums, over features too, so that weights do not hang on the batch; a constant learning rate; residual
layers start from zero, thus from the frozen features.

- `adapter`: the linear adapter of queries of LlamaIndex (`EmbeddingAdapterFinetuneEngine`): a D x D matrix without bias
  from the identity, documents as they are, multiple negatives ranking loss (Henderson et al., arXiv 1705.00652; cosine,
  scale 20), where other documents of the batch that answer a query are negatives too. Its batches are of 10 by default.
- `adapter, random`: the same with 64 random documents of the corpus as negatives, one draw for a batch, but for those
  that answer the query.
- `search-adaptor` (Yoon et al., ACL 2024, arXiv 2310.08750): one residual layer `x + f(x)` of both sides; ranking loss,
  `(y_ij - y_ik) log(1 + exp(s_ik - s_ij))` over documents with `y_ij > y_ik`; recovery loss, the absolute difference
  from the frozen features; prediction loss, the absolute difference of a query from what a predictor makes of its
  document. Left open: where negatives come from (here the batch), the layer (here linear; so is the predictor, from the
  identity). Recovery and prediction have one weight, which is chosen.
- `matryoshka-adaptor`, supervised (Yoon et al., EMNLP 2024, arXiv 2407.20243): a residual layer; absolute differences
  of the similarities of documents, frozen and cut to each nested width, over the pairs of the batch and over nearest
  neighbours; recovery loss; the ranking loss at each nested width, whose weight is chosen, that of the others is 1.
  Left open: the widths (here 64, 128, 256 and D; scored at 128), the neighbours (here the 10 nearest of the corpus).
- `smec` (Zhang et al., EMNLP 2025, arXiv 2510.12474): one FC layer from D to 128; the ranking loss (equation 8), and
  the absolute differences of frozen and reduced similarities to the top k of a memory of frozen features (equation 7),
  whose weight is chosen. Left open: the start (here the principal directions of the corpus), what enters the memory
  (here queries and documents of the batch; it is filled with random documents before), its size and k (here 5,000 and
  10). Width by width training and the choice of dimensions, which serve many widths, are not a part of it.

- `dive`, as far as the abstract of arXiv 2605.20689 says it, which alone was at hand: a hinge loss of triplets, with no
  gradient once a triplet keeps a margin, and NT-Xent between learned projections of one embedding, as between views
  of it, among the embeddings of the batch. Left open: margin (here 0.2) and triplets (here all of the batch), the
  projections (here four from D to 128, from the principal directions of the corpus and random numbers of a tenth of
  their size, of which the embedding is the mean). The weight of NT-Xent, at temperature 0.05, is chosen.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools
import pathlib
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from benchmarks import common
from benchmarks.pair_adapters import BATCH, PEERS, Peer
from xbm_keras.config.yaml_files import load_config
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.evaluation.pairs import evaluate_pairs
from xbm_keras.experiment import pair_loading, pair_phases
from xbm_keras.report.stage_costs import Costs

PATIENCE = 5  # looks at the validation queries
PROTOCOLS = ("pairs", "pairs_unseen_documents")


def main():
    options = common.parser(__doc__)
    options.add_argument("--config", default="configs/medquad.yaml")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    options.add_argument("--rates", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3])
    options.add_argument("--steps", type=int, default=2000, help="at most")
    options.add_argument("--every", type=int, default=100, help="steps between two looks at the validation queries")
    options.add_argument("--set", nargs="+", default=[], help="section.key=value, over the config")
    options = options.parse_args()
    folds = pair_loading.load_pairs(load_config(options.config, options.set), None)
    results = ours(options, folds)
    for name in options.peers:
        results.append(peer(options, [Data(fold) for fold in folds], name))
        print(results[-1], flush=True)
    common.report(results, options)


def ours(options, folds) -> list[dict]:
    """Rows of frozen features, closed form and our default."""
    found = []
    for seed in options.seeds:
        config = load_config(options.config, [*options.set, f"training.seed={seed}"])
        with tempfile.TemporaryDirectory() as folder:
            found.append(pair_phases.run(config, folds, None, pathlib.Path(folder), Costs())[1])
    epochs = [each["validation"]["epoch"] for each in found]
    about = {"frozen": "-", "closed_form": found[0]["validation"]["start"], "trained": f"epochs {epochs}"}
    rows = [_row(n, [{p: each[p][n] for p in PROTOCOLS if p in each} for each in found], about[n]) for n in about]
    print(*rows, sep="\n", flush=True)
    return rows


def peer(options, folds: list["Data"], name: str) -> dict:
    """The row of one method: chosen, trained anew and tested for each seed."""
    begun, make, (first, *_) = time.perf_counter(), PEERS[name], options.seeds
    dataset, scores, steps = folds[0].dataset, [], []

    def curve(seed, rate, weight):
        return np.mean([validation_curve(make(fold, weight, seed), rate, options) for fold in folds], axis=0)

    curves = {each: curve(first, *each) for each in itertools.product(options.rates, make.weights)}
    rate, weight = max(curves, key=lambda each: curves[each].max())
    data = Data(dataset, np.union1d(dataset.splits.train, dataset.splits.validation))
    for seed in options.seeds:
        chosen = curves[rate, weight] if seed == first else curve(seed, rate, weight)
        steps.append(int(chosen.argmax()) * options.every)
        model = make(data, weight, seed)
        trainer(model, rate)(steps[-1])
        scores.append(test(model))
    chosen = f"steps {steps}, rate {rate:g}" + (f", weight {weight:g}" if len(make.weights) > 1 else "")
    return _row(f"{name}, {model.width}", scores, chosen) | {"minutes": round((time.perf_counter() - begun) / 60, 1)}


def _row(name: str, scores: list[dict], chosen: str) -> dict:
    row = {"name": name}
    for protocol, title in zip(PROTOCOLS, ("all", "unseen documents"), strict=True):
        found = [each[protocol] for each in scores if protocol in each]
        if found:
            values = [each["ndcg_at_10"] for each in found]
            low, high = found[0]["ndcg_at_10_interval"]
            row[title] = f"{np.mean(values):.4f} ({np.std(values):.4f})"
            row[f"{title}, interval"] = f"{low:.3f}..{high:.3f}"
    return row | {"chosen": chosen}


def validation_curve(model: Peer, rate: float, options) -> np.ndarray:
    """nDCG@10 of the validation queries from none to all steps; what patience leaves out is as the last."""
    step, validation = trainer(model, rate), model.data.dataset.splits.validation
    scores = [evaluate(model, validation).mean()]
    while len(scores) <= min(options.steps // options.every, np.argmax(scores) + PATIENCE):
        step(options.every)
        scores.append(evaluate(model, validation).mean())
    return np.pad(scores, (0, options.steps // options.every + 1 - len(scores)), mode="edge")


def test(model: Peer) -> dict:
    """nDCG@10 and its interval by both protocols, as `compare_pairs` has them."""
    dataset = model.data.dataset
    values, is_unseen = evaluate(model, dataset.splits.test), dataset.is_unseen(dataset.splits.test, model.data.trained)
    found = {"pairs": values, "pairs_unseen_documents": values[is_unseen]}
    return {
        p: {"ndcg_at_10": v.mean(), "ndcg_at_10_interval": bootstrap_interval(v)} for p, v in found.items() if len(v)
    }


def evaluate(model: Peer, queries: np.ndarray) -> np.ndarray:
    """[q] nDCG@10 over the whole corpus."""
    data = model.data
    embedded = model.embed_queries(tf.gather(data.queries, queries)), model.embed_documents(data.documents)
    return evaluate_pairs(*(each.numpy() for each in embedded), *data.dataset.pairs.relevant(queries))["ndcg_at_10"]


class Data:
    """Unit features, and the documents that answer the queries that train."""

    def __init__(self, dataset, trained: np.ndarray | None = None):
        self.dataset = dataset
        self.trained = dataset.splits.train if trained is None else trained
        self.queries = tf.constant(UnitRows(dataset.queries, np.arange(len(dataset.queries)))[:], tf.float32)
        self.documents = tf.constant(UnitRows(dataset.documents, np.arange(len(dataset.documents)))[:], tf.float32)
        self.relevant, grades = dataset.pairs.relevant(self.trained)
        self.grades, self.width = tf.constant(grades, tf.float32), int(self.queries.shape[1])

    def draw(self, rng: np.random.Generator, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Places among the queries that train, each as often as another, and one document of each, [steps, B]."""
        epochs = -(-steps * BATCH // len(self.trained))
        order = np.concatenate([rng.permutation(len(self.trained)) for _ in range(epochs)])[: steps * BATCH]
        documents = self.relevant[order, rng.integers((self.relevant >= 0).sum(axis=1)[order])]
        return order.reshape(steps, -1), documents.reshape(steps, -1)

    def relevance(self, places, documents):
        """[B, C] grades of documents for queries, 0 where they do not answer."""
        is_it = tf.gather(self.relevant, places)[:, :, None] == documents  # [B, P, C]
        return tf.reduce_sum(tf.where(is_it, tf.gather(self.grades, places)[:, :, None], 0.0), axis=1)


def trainer(model: Peer, rate: float):
    """What takes so many steps of Adam."""
    keras.utils.set_random_seed(int(model.rng.integers(1 << 31)))
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(model.variables)

    @tf.function(reduce_retracing=True)
    def run(places, documents):
        for i in tf.range(tf.shape(places)[0]):
            with tf.GradientTape() as tape:
                loss = model.loss(places[i], documents[i])
            optimizer.apply(tape.gradient(loss, model.variables, unconnected_gradients="zero"))

    def train(steps):
        if steps:
            run(*map(tf.constant, model.data.draw(model.rng, steps)))

    return train


if __name__ == "__main__":
    main()
