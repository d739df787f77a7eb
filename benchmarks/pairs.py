"""What training on queries and documents gives, with the memory off and on, over memory sizes and over k.

    python -m benchmarks.pairs --config configs/medquad.yaml                     # table: three seeds, test queries
    python -m benchmarks.pairs --config configs/medquad.yaml --curves            # over memory size and k
    python -m benchmarks.pairs --config configs/scifact.yaml --by-epoch          # test queries, however far one trains
    python -m benchmarks.pairs --plot docs/pairs_memory_and_k.svg --json X.json  # the picture of such curves

Start and number of epochs are chosen on held-out queries, whose documents answer none that train; the memory off may
take eight times the epochs, and 256 queries a batch beside 64, at two rates; held-out queries choose of these too. The
curves are of ten epochs, of a memory that documents of the whole corpus fill, but for one point: all that answer
training queries. With --by-epoch nothing is chosen but the start: the best epoch of a row is the best on test queries.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import pathlib
import tempfile

import keras
import numpy as np

from benchmarks import common
from xbm_keras.config.yaml_files import load_config
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.pair_scores import PairEvaluation
from xbm_keras.experiment import pair_loading, pair_phases
from xbm_keras.experiment.pair_starts import choose_pair_start
from xbm_keras.report.stage_costs import Costs

OFF = ["memory.memory_size=0", "training.epochs=80", "training.patience=20"]
LARGE = [*OFF, "training.batch_size=256"]
WAYS = {
    "memory off": [OFF, LARGE, [*LARGE, "training.learning_rate=3e-3"]],
    "memory on": [[]],
    "memory on, the corpus": [["training.negatives=corpus"]],
    "memory on, queries alone": [["head.sides=query", "head.widths=null", "head.embedding_dim={width}"]],
}
SIZES = (0, 256, 1024, 4096, 16_384)
KS = (1, 4, 16, 32, 64, 256)


def main():
    options = common.parser(__doc__)
    options.add_argument("--config", default="configs/medquad.yaml")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options.add_argument("--set", nargs="+", default=[], help="section.key=value, over the config")
    options.add_argument("--curves", action="store_true", help="over memory size and k")
    options.add_argument("--by-epoch", action="store_true", help="test queries after each epoch")
    options.add_argument("--plot", help="draw the curves that --json holds into this .svg")
    options = options.parse_args()
    if options.plot:
        plot(json.loads(pathlib.Path(options.json).read_text())["results"], options.plot)
        return
    rows_of = by_epoch if options.by_epoch else table
    results = curves(options) if options.curves else [row for way in options.ways for row in rows_of(options, way)]
    common.report(results, options)


def table(options, way: str) -> list[dict]:
    """Rows of one way: of each embedding nDCG@10 of test queries, mean and spread over seeds."""
    found = []
    for seed in options.seeds:
        tried = [train(options, each, seed) for each in WAYS[way]]
        found.append(max(tried, key=lambda metrics: metrics["validation"]["pairs"]["trained"]["ndcg_at_10"]))
    names = ["frozen", "closed_form", *(n for n in found[0]["pairs"] if n.startswith("trained"))]
    rows = []
    for name in names:
        row = {"way": way, "embedding": name, "epochs": [each["validation"]["epoch"] for each in found]}
        for protocol in ("pairs", "pairs_unseen_documents"):
            values = [each[protocol][name]["ndcg_at_10"] for each in found if protocol in each]
            row[protocol] = f"{np.mean(values):.4f} ({np.std(values):.4f})"
        row["interval, first seed"] = [round(x, 4) for x in found[0]["pairs"][name]["ndcg_at_10_interval"]]
        rows.append(row)
        print(row, flush=True)
    return rows


def by_epoch(options, way: str) -> list[dict]:
    """A row for each setting of one way: nDCG@10 of test queries after each epoch, the mean over seeds."""
    rows = []
    for overrides in WAYS[way]:
        found = [_scores_by_epoch(config_of(options, overrides, seed)) for seed in options.seeds]
        means, best = np.mean(found, axis=0), [int(each[:, 0].argmax()) for each in found]
        bests = [each[epoch, 0] for each, epoch in zip(found, best, strict=True)]
        row = {"way": way, "set": " ".join(overrides) or "-", "best epochs": best}
        row["all, best epoch"] = f"{np.mean(bests):.4f} ({np.std(bests):.4f})"
        for i, name in enumerate(("all", "unseen documents")):
            row[name] = " ".join(f"{score:.3f}" for score in means[:, i])
        rows.append(row)
        print(row, flush=True)
    return rows


def _scores_by_epoch(config) -> np.ndarray:
    """[epochs + 1, 2] of all test queries, and of those whose documents never trained."""
    folds = pair_loading.load_pairs(config, None)
    dataset = folds[0]
    config = config.model_copy(update={"head": choose_pair_start(config.head, folds)})
    trained, test = np.union1d(dataset.splits.train, dataset.splits.validation), dataset.splits.test
    corpus = UnitRows(dataset.documents, np.arange(len(dataset.documents)))
    parts = {"all": test, "unseen": test[dataset.is_unseen(test, trained)]}
    evaluations = [
        PairEvaluation(UnitRows(dataset.queries, part), corpus, *dataset.pairs.relevant(part), prefix=f"{name}_")
        for name, part in parts.items()
    ]
    rows: list[dict] = []
    noting = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: rows.append(dict(logs)))
    model = pair_phases.start_model(config, dataset, None, trained)
    pair_phases.fit(config, dataset, model, trained, config.training.epochs, [*evaluations, noting], False)
    rows.insert(0, {name: value for each in evaluations for name, value in each.baseline.items()})
    return np.array([[row[f"{name}_ndcg_at_10"] for name in parts] for row in rows])


def curves(options) -> list[dict]:
    """nDCG@10 of test queries over the memory's size at the config's k, and over k with the whole corpus."""
    rows = []
    fixed = ["training.epochs=10", "training.refit=false", "training.folds=1", "training.negatives=corpus"]
    ways = [("memory_size", size, [f"memory.memory_size={size}"]) for size in SIZES]
    ways.insert(-1, ("memory_size", "answers", ["training.negatives=answers"]))
    ways += [("num_negatives", k, [f"top_k.num_negatives={k}"]) for k in KS]
    for key, value, overrides in ways:
        found = [train(options, [*fixed, *overrides], s) for s in options.seeds]
        scores = [each["pairs"]["trained"]["ndcg_at_10"] for each in found]
        rows.append({"key": key, "value": value, "ndcg_at_10": [round(score, 4) for score in scores]})
        rows[-1]["frozen"] = round(found[0]["pairs"]["frozen"]["ndcg_at_10"], 4)
        rows[-1]["closed_form"] = round(found[0]["pairs"]["closed_form"]["ndcg_at_10"], 4)
        print(rows[-1], flush=True)
    return rows


def train(options, overrides: list[str], seed: int) -> dict:
    """The metrics of one run."""
    config = config_of(options, overrides, seed)
    with tempfile.TemporaryDirectory() as folder:
        folds = pair_loading.load_pairs(config, None)
        return pair_phases.run(config, folds, None, pathlib.Path(folder), Costs())[1]


def config_of(options, overrides: list[str], seed: int):
    """The config with these changes."""
    width = pair_loading.load_pairs(load_config(options.config, options.set), None)[0].queries.shape[1]
    given = [*options.set, *(each.format(width=width) for each in overrides), f"training.seed={seed}"]
    return load_config(options.config, given)


def plot(rows: list[dict], path: str) -> None:
    """Two panels: mean and range over seeds, beside frozen features and closed form."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    titles = {"memory_size": "memory size, rows", "num_negatives": "k, hardest documents per query"}
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        chosen = [row for row in rows if row["key"] == key]
        means, lows, highs = ([f(row["ndcg_at_10"]) for row in chosen] for f in (np.mean, np.min, np.max))
        names = [{0: "off", "answers": "answers"}.get(row["value"]) or f"{row['value']:,}" for row in chosen]
        panel.plot(names, means, marker="o", color="#2a6fb0", label="trained")
        panel.fill_between(names, lows, highs, color="#2a6fb0", alpha=0.2, linewidth=0)
        panel.annotate("trained", (0.02, means[0]), xycoords=("axes fraction", "data"), xytext=(0, 10),
                       textcoords="offset points", fontsize=8, color="#2a6fb0")  # fmt: skip
        for name, color in (("closed_form", "#777777"), ("frozen", "#bb5533")):
            panel.axhline(chosen[0][name], color=color, linestyle="--", linewidth=1)
            panel.annotate(name.replace("_", " "), (0.02, chosen[0][name]), xycoords=("axes fraction", "data"),
                           xytext=(0, 3), textcoords="offset points", fontsize=8, color=color)  # fmt: skip
        panel.set_xlabel(title)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("nDCG@10 of test queries")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
