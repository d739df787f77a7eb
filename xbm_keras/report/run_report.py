"""`report.html` of a run: whether the head helps, where it does not, and how the run went."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from xbm_keras import results
from xbm_keras.costs import Cost
from xbm_keras.data.rows import UnitRows
from xbm_keras.evaluation import embed
from xbm_keras.loading import Dataset
from xbm_keras.report import charts, comparison
from xbm_keras.report.page import (
    Block,
    Cell,
    Code,
    Details,
    Facts,
    Heading,
    Hit,
    Item,
    Page,
    Panels,
    Search,
    Searches,
    Section,
    Table,
    Text,
    Tone,
    Verdict,
    picture_uri,
    write_page,
)
from xbm_keras.stages.head import Head

NUM_FOUND = 5  # neighbours shown per query
NUM_QUERIES = 5  # shown of each kind: best gains, worst losses, drawn at random
NUM_CLASSES_SHOWN, NUM_CLASSES_LISTED = 12, 200
NUM_SKIPPED_LISTED = 50
MAX_TEXT = 160
TONES: Mapping[str, Tone] = {"better": "good", "same": "plain", "worse": "bad"}


@dataclasses.dataclass(frozen=True)
class Test:
    """The test items in both embeddings."""

    dataset: Dataset
    labels: np.ndarray
    """[N] positions in the data's label names."""
    vectors: Mapping[str, np.ndarray]
    """frozen [N, D] and trained [N, E]."""
    protocol: comparison.Protocol
    rankings: Mapping[str, comparison.Rankings]
    """Of both."""

    def name_of(self, label: int) -> str:
        """A class's name; a number alone would say little."""
        name = self.dataset.label_names[label]
        return name if isinstance(name, str) else f"class {name}"


def write_run_report(
    path: str | os.PathLike,
    *,
    title: str,
    command: str,
    about: Mapping[str, str],
    config: str,
    dataset: Dataset,
    head: Head,
    metrics: dict,
    costs: Sequence[Cost],
) -> None:
    """Write the report of a finished run.

    Args:
        path: of the file. `history.csv` is read from beside it.
        title: of the page.
        command: that made the run.
        about: what was run, names and values.
        config: as YAML.
        dataset: the items.
        head: the trained head.
        metrics: the contents of `metrics.json`.
        costs: of the stages.

    Raises:
        DataError: for an item that was readable when its features were computed, and now is not.
        OSError: where the file cannot be written.
    """
    history = pathlib.Path(path).with_name("history.csv")
    test = _test(dataset, head)
    sections = [
        Section("Results", _results(metrics, dataset)),
        Section("What it finds", _searches(test)),
        Section("Classes", _classes(test)),
        Section("Embedding space", _similarities(test)),
        Section("Training", _training(pd.read_csv(history) if history.exists() else None, metrics["validation"])),
        Section("The run", _the_run(command, about, config, dataset, costs)),
    ]
    verdict = results.verdict(metrics)
    tone = TONES[results.outcome(metrics)]
    write_page(path, Page(title, Verdict(verdict, tone), sections, " · ".join([about["Data"], about["Network"]])))


def _test(dataset: Dataset, head: Head) -> Test:
    splits = dataset.splits
    labels, rows = dataset.labels[splits.test], UnitRows(dataset.features, splits.test)
    vectors = {"frozen": np.asarray(rows), "trained": embed(head, rows)}
    protocol = comparison.make_protocol(labels, splits.is_query, splits.is_gallery)
    rankings = {name: comparison.rank(each, labels, protocol, NUM_FOUND) for name, each in vectors.items()}
    return Test(dataset, labels, vectors, protocol, rankings)


def _results(metrics: Mapping, dataset: Dataset) -> list[Block]:
    test = dataset.splits.test
    num_classes = len(np.unique(dataset.labels[test]))
    best_epoch = metrics["validation"]["epoch"]
    caption = f"{len(test):,} test items of {num_classes:,} classes. Higher is better, 1 is perfect."
    return [
        Panels([_scores_table(metrics, caption), charts.scores(metrics, results.PROTOCOLS)]),
        Text(
            "Frozen: the features as the network gives them. Closed form: the head before its first step, computed "
            "from the training items. Trained: the same head after training with the cross-batch memory. R@K: one of "
            "the K nearest items is of the query's class. MAP@R and R-Prec look at as many items as the class has.",
            is_note=True,
        ),
        Details(
            f"The same for the held-out training classes that chose the number of epochs ({best_epoch})",
            [_scores_table(metrics["validation"], "")],
        ),
    ]


def _scores_table(metrics: Mapping, caption: str) -> Table:
    rows: list = []
    for protocol, title in results.PROTOCOLS.items():
        scores = metrics.get(protocol, {})
        if scores:
            rows.append(title)
        for name, values in scores.items():
            cells: list = [name.replace("_", " ")]
            for metric in results.SHOWN:
                best = max(other[metric] for other in scores.values())
                bar = values[metric] if metric == "map_at_r" else None
                cells.append(Cell(f"{values[metric]:.3f}", bar, is_best=f"{values[metric]:.3f}" == f"{best:.3f}"))
            rows.append(cells)
    return Table(["", *results.SHOWN.values()], rows, caption)


def _searches(test: Test) -> list[Block]:
    before, after = test.rankings["frozen"], test.rankings["trained"]
    queries = test.protocol.queries
    gains, losses = comparison.gains_and_losses(before, after, test.labels[queries], NUM_QUERIES)
    drawn = np.random.default_rng(0).permutation(len(queries))[:NUM_QUERIES].tolist()
    kinds = {"Where the head gains most": gains, "Where it loses most": losses, "Drawn at random": drawn}
    rows = np.array([*gains, *losses, *drawn], int)
    wanted = np.unique([queries[rows], *before.nearest[rows].T, *after.nearest[rows].T])
    items = dict(zip(wanted.tolist(), _items(test, wanted), strict=True))

    def search(row: int) -> Search:
        found = {}
        for name, ranking in test.rankings.items():
            positions = ranking.nearest[row]
            pairs = np.stack([np.full(len(positions), queries[row]), positions], axis=1)
            similarities = comparison.pair_similarities(test.vectors[name], pairs)
            hits = zip(positions.tolist(), ranking.hits[row].tolist(), similarities.tolist(), strict=True)
            title = f"{name.capitalize()}: {ranking.hits[row].sum()} of {len(positions)} right"
            found[title] = [Hit(items[position], is_right, value) for position, is_right, value in hits]
        note = f"MAP@R {before.map_at_r[row]:.2f} → {after.map_at_r[row]:.2f}"
        return Search(items[int(queries[row])], note, found)

    gained = int((after.map_at_r > before.map_at_r).sum())
    lost = int((after.map_at_r < before.map_at_r).sum())
    how = "leave-one-out" if test.protocol.gallery is None else "query/gallery"
    blocks: list[Block] = [
        Text(
            f"Of {len(queries):,} queries ({how}{_sampled(test)}) {gained:,} score higher in MAP@R with the head, "
            f"{lost:,} lower. Each query with its {NUM_FOUND} nearest items, nearest first; ✓ same class, ✗ another."
        )
    ]
    for kind, chosen in kinds.items():
        if chosen:
            blocks += [Heading(kind), Searches([search(row) for row in chosen])]
    return blocks


def _sampled(test: Test) -> str:
    num, num_all = len(test.protocol.queries), test.protocol.num_all
    return f", drawn from {num_all:,}" if num < num_all else ""


def _items(test: Test, rows: np.ndarray) -> list[Item]:
    """Previews of test items."""
    positions = test.dataset.splits.test[rows]
    labels = [test.name_of(label) for label in test.labels[rows]]
    keys = [str(key) for key in test.dataset.keys[positions]]
    shown = test.dataset.preview(positions, _preview)
    if shown is None:
        return [Item(label, f"item {key}") for label, key in zip(labels, keys, strict=True)]
    pairs = zip(labels, keys, shown, strict=True)
    return [Item(label, key, **{kind: content}) for label, key, (kind, content) in pairs]


def _preview(item: np.ndarray | str) -> tuple[str, str]:
    """A picture made small as soon as it is read, or a text."""
    return ("text", charts.clipped(item, MAX_TEXT)) if isinstance(item, str) else ("picture", picture_uri(item))


def _classes(test: Test) -> list[Block]:
    queries = test.protocol.queries
    labels = test.labels[queries]
    before, after = test.rankings["frozen"].map_at_r, test.rankings["trained"].map_at_r
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    frozen, trained = (np.bincount(labels, each)[present] / counts[present] for each in (before, after))
    mistaken = _mistaken_for(test)
    order = np.argsort(trained, kind="stable")
    rows: list[list[Cell | str]] = []
    for i in order[:NUM_CLASSES_LISTED]:
        change = trained[i] - frozen[i]
        tone: Tone = "plain" if abs(change) < 0.005 else "good" if change > 0 else "bad"
        rows.append(
            [
                charts.clipped(test.name_of(present[i]), 40),
                f"{counts[present[i]]:,}",
                f"{frozen[i]:.3f}",
                Cell(f"{trained[i]:.3f}", trained[i]),
                Cell(f"{change:+.3f}", tone=tone),
                charts.clipped(mistaken.get(int(present[i]), ""), 40),
            ]
        )
    columns = ["Class", "Queries", "Frozen", "Trained", "Change", "Most often mistaken for"]
    higher, lower = int((trained > frozen).sum()), int((trained < frozen).sum())
    blocks: list[Block] = [
        Text(f"MAP@R by class, the worst first. {higher:,} of {len(present):,} classes gained, {lower:,} lost."),
        Table(columns, rows[:NUM_CLASSES_SHOWN], text_columns=columns[-1:]),
    ]
    if rows[NUM_CLASSES_SHOWN:]:
        more = f"{len(rows) - NUM_CLASSES_SHOWN} further classes"
        if len(present) > len(rows):
            more += f" of {len(present) - NUM_CLASSES_SHOWN:,}"
        blocks.append(Details(more, [Table(columns, rows[NUM_CLASSES_SHOWN:], text_columns=columns[-1:])]))
    return blocks


def _mistaken_for(test: Test) -> dict[int, str]:
    """By class: the class of most of the wrong items that its queries find with the trained head."""
    ranking = test.rankings["trained"]
    own = np.repeat(test.labels[test.protocol.queries], ranking.hits.shape[1])
    wrong = ~ranking.hits.ravel()
    found = test.labels[ranking.nearest.ravel()]
    counts: dict[int, collections.Counter] = collections.defaultdict(collections.Counter)
    for label, other in zip(own[wrong].tolist(), found[wrong].tolist(), strict=True):
        counts[label][other] += 1
    return {label: test.name_of(others.most_common(1)[0][0]) for label, others in counts.items()}


def _similarities(test: Test) -> list[Block]:
    same, other = comparison.draw_pairs(test.labels)
    blocks: list[Block] = []
    if len(same) and len(other):
        similarities = {
            name: (comparison.pair_similarities(vectors, same), comparison.pair_similarities(vectors, other))
            for name, vectors in test.vectors.items()
        }
        rates = {name: comparison.order_rate(*parts) for name, parts in similarities.items()}
        blocks += [
            Heading("Similarities"),
            Text(
                "Pairs of test items. The less the two curves overlap, the better a threshold tells the classes apart."
            ),
            Panels(charts.histograms(similarities, rates)),
        ]
    labels, rows = _map_items(test)
    embeddings = {name: vectors[rows] for name, vectors in test.vectors.items()}
    numbers = {label: i for i, label in enumerate(labels)}
    codes = np.array([numbers[label] for label in test.labels[rows].tolist()])
    return [
        *blocks,
        Heading("Map"),
        Text(
            f"{len(rows):,} test items of {len(labels)} classes, from the worst to the best: their first two "
            "principal components. TensorBoard's projector shows all of them, in 3-D, or by t-SNE or UMAP.",
        ),
        Panels(charts.maps(embeddings, codes, [test.name_of(label) for label in labels])),
    ]


def _map_items(test: Test) -> tuple[list[int], np.ndarray]:
    """Up to ten classes, evenly from the worst to the best, and rows of their items."""
    labels = test.labels[test.protocol.queries]
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    scores = np.bincount(labels, test.rankings["trained"].map_at_r)[present] / counts[present]
    ordered = present[np.argsort(scores, kind="stable")]
    chosen = ordered[np.unique(np.linspace(0, len(ordered) - 1, 10).astype(int))]
    rng = np.random.default_rng(0)
    per_class = comparison.MAX_MAP_ITEMS // len(chosen)
    rows = [rng.permutation(np.flatnonzero(test.labels == label))[:per_class] for label in chosen]
    return chosen.tolist(), np.concatenate(rows)


def _training(history: pd.DataFrame | None, validation: Mapping) -> list[Block]:
    if history is None:
        return [Text("No epoch was trained: the head is its start.")]
    return [Panels(charts.curves(history, validation["leave_one_out"], validation["epoch"]))]


def _the_run(
    command: str, about: Mapping[str, str], config: str, dataset: Dataset, costs: Sequence[Cost]
) -> list[Block]:
    columns = ["Stage", "Time", "Peak memory"]
    has_gpu = any(cost.gpu_peak_mb is not None for cost in costs)
    rows = []
    for cost in costs:
        row = [cost.stage, _time(cost.seconds), "" if cost.peak_mb is None else f"{cost.peak_mb:,.0f} MB"]
        rows.append([*row, f"{cost.gpu_peak_mb:,.0f} MB"] if has_gpu else row)
    blocks: list[Block] = [
        Code(command),
        Facts(about),
        Table([*columns, *["GPU memory"] * has_gpu], rows, "Peak memory is the process's so far."),
    ]
    if dataset.skipped:
        listed = list(dataset.skipped.items())[:NUM_SKIPPED_LISTED]
        reasons = collections.Counter(dataset.skipped.values()).most_common(3)
        said = ", ".join(f"{reason} ({count:,})" for reason, count in reasons)
        table = Table(["Item", "Why"], [[key, reason] for key, reason in listed], text_columns=["Why"])
        more = f" The first {len(listed)}:" if len(listed) < len(dataset.skipped) else ""
        blocks.append(Details(f"{len(dataset.skipped):,} item(s) were skipped: {said}.{more}", [table]))
    else:
        blocks.append(Text("No item was skipped."))
    return [*blocks, Details("The whole config", [Code(config)])]


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"
