"""What a report shows of the test items: what they find, class by class, and how they lie."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from xbm_keras.data.dataset import Dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.exact_search import pair_similarities
from xbm_keras.evaluation.retrieval import embed
from xbm_keras.report import charts, comparison
from xbm_keras.report.page import (
    Block,
    Cell,
    Details,
    Heading,
    Hit,
    Item,
    PageTable,
    Panels,
    Paragraph,
    QueryResult,
    QueryResults,
    Tone,
    picture_uri,
)
from xbm_keras.stages.head.fc_layer import Head

NUM_FOUND = 5  # neighbours shown per query
NUM_QUERIES = 5  # shown of each kind: best gains, worst losses, drawn at random
NUM_CLASSES_SHOWN, NUM_CLASSES_LISTED = 12, 200
MAX_TEXT = 160


@dataclasses.dataclass(frozen=True)
class TestItems:
    """The test items that have a label, in both embeddings."""

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
        name = str(self.dataset.label_names[label])
        return f"class {name}" if name.lstrip("-").isdigit() else name

    def by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Labels of the queries' classes, how many each has, and their MAP@R, frozen and trained, [C] each."""
        labels = self.labels[self.protocol.queries]
        present, counts = np.unique(labels, return_counts=True)
        sums = (np.bincount(labels, self.rankings[name].map_at_r)[present] for name in ("frozen", "trained"))
        return present, counts, *(each / counts for each in sums)


def rank_test_items(dataset: Dataset, head: Head, by_roles: bool = True) -> TestItems:
    """The test items that have a label under the frozen features and the head, ranked by both.

    Args:
        dataset: the items, of which at least two share a class.
        head: what is compared with the frozen features.
        by_roles: whether queries look for gallery items where the data says who is what, and not for all others.
    """
    dataset = dataset.with_labelled_test()
    splits = dataset.splits
    labels, rows = dataset.labels[splits.test], UnitRows(dataset.features, splits.test)
    vectors = {"frozen": np.asarray(rows), "trained": embed(head, rows)}
    protocol = comparison.make_protocol(labels, *((splits.is_query, splits.is_gallery) if by_roles else ()))
    rankings = {name: comparison.rank(each, labels, protocol, NUM_FOUND) for name, each in vectors.items()}
    return TestItems(dataset, labels, vectors, protocol, rankings)


def searches(test: TestItems) -> list[Block]:
    """Queries with their nearest items: best gains, worst losses, and some drawn at random."""
    before, after = test.rankings["frozen"], test.rankings["trained"]
    queries = test.protocol.queries
    gains, losses = comparison.gains_and_losses(before, after, test.labels[queries], NUM_QUERIES)
    drawn = np.random.default_rng(0).permutation(len(queries))[:NUM_QUERIES].tolist()
    kinds = {"Where the head gains most": gains, "Where it loses most": losses, "Drawn at random": drawn}
    rows = np.array([*gains, *losses, *drawn], int)
    wanted = np.unique([queries[rows], *before.nearest[rows].T, *after.nearest[rows].T])
    labels = [test.name_of(label) for label in test.labels[wanted]]
    items = dict(zip(wanted.tolist(), preview_items(test.dataset, wanted, labels), strict=True))

    def search(row: int) -> QueryResult:
        found = {}
        for name, ranking in test.rankings.items():
            positions = ranking.nearest[row]
            places = np.full(len(positions), queries[row])
            similarities = pair_similarities(test.vectors[name], places, positions)
            hits = zip(positions.tolist(), ranking.hits[row].tolist(), similarities.tolist(), strict=True)
            title = f"{name.capitalize()}: {ranking.hits[row].sum()} of {len(positions)} right"
            found[title] = [Hit(items[position], is_right, value) for position, is_right, value in hits]
        note = f"MAP@R {before.map_at_r[row]:.2f}\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{after.map_at_r[row]:.2f}"
        return QueryResult(items[int(queries[row])], note, found)

    gained = int((after.map_at_r > before.map_at_r).sum())
    lost = int((after.map_at_r < before.map_at_r).sum())
    how = "leave-one-out" if test.protocol.gallery is None else "query/gallery"
    blocks: list[Block] = [
        Paragraph(
            f"Of {len(queries):,} queries ({how}{_sampled(test)}) {gained:,} score higher in MAP@R with the head, "
            f"{lost:,} lower. Each query with its {NUM_FOUND} nearest items, nearest first; ✓ same class, ✗ another."
        )
    ]
    for kind, chosen in kinds.items():
        if chosen:
            blocks += [Heading(kind), QueryResults([search(row) for row in chosen])]
    return blocks


def _sampled(test: TestItems) -> str:
    num, num_all = len(test.protocol.queries), test.protocol.num_all
    return f", drawn from {num_all:,}" if num < num_all else ""


def preview_items(dataset: Dataset, rows: np.ndarray, labels: Sequence[str] | None = None) -> list[Item]:
    """Previews of test items; without labels they are headed by their keys."""
    positions = dataset.splits.test[rows]
    keys = [str(key) for key in dataset.keys[positions]]
    shown = dataset.preview(positions, _preview)
    if labels is None:
        labels = [f"item {key}" if shown is None else "" for key in keys]
        keys = ["" if shown is None else key for key in keys]
    if shown is None:
        return [Item(label, key and f"item {key}") for label, key in zip(labels, keys, strict=True)]
    pairs = zip(labels, keys, shown, strict=True)
    return [Item(label, key, **{kind: content}) for label, key, (kind, content) in pairs]


def _preview(item: np.ndarray | str) -> tuple[str, str]:
    """A picture made small as soon as it is read, or a text."""
    return ("text", charts.clipped(item, MAX_TEXT)) if isinstance(item, str) else ("picture", picture_uri(item))


def classes(test: TestItems) -> list[Block]:
    """Scores by class, the worst first, and what each is mistaken for."""
    present, counts, frozen, trained = test.by_class()
    mistaken = _mistaken_for(test)
    order = np.argsort(trained, kind="stable")
    rows: list[list[Cell | str]] = []
    for i in order[:NUM_CLASSES_LISTED]:
        change = trained[i] - frozen[i]
        tone: Tone = "plain" if abs(change) < 0.005 else "good" if change > 0 else "bad"
        rows.append(
            [
                charts.clipped(test.name_of(present[i]), 40),
                f"{counts[i]:,}",
                f"{frozen[i]:.3f}",
                Cell(f"{trained[i]:.3f}", trained[i]),
                Cell(f"{change:+.3f}", tone=tone),
                charts.clipped(mistaken.get(int(present[i]), ""), 40),
            ]
        )
    columns = ["Class", "Queries", "Frozen", "Trained", "Change", "Most often mistaken for"]
    higher, lower = int((trained > frozen).sum()), int((trained < frozen).sum())
    blocks: list[Block] = [
        Paragraph(f"MAP@R by class, the worst first. {higher:,} of {len(present):,} classes gained, {lower:,} lost."),
        PageTable(columns, rows[:NUM_CLASSES_SHOWN], text_columns=columns[-1:]),
    ]
    if rows[NUM_CLASSES_SHOWN:]:
        more = f"{len(rows) - NUM_CLASSES_SHOWN} further classes"
        if len(present) > len(rows):
            more += f" of {len(present) - NUM_CLASSES_SHOWN:,}"
        blocks.append(Details(more, [PageTable(columns, rows[NUM_CLASSES_SHOWN:], text_columns=columns[-1:])]))
    return blocks


def _mistaken_for(test: TestItems) -> dict[int, str]:
    """By class: the class of most of the wrong items that its queries find with the trained head."""
    ranking = test.rankings["trained"]
    own = np.repeat(test.labels[test.protocol.queries], ranking.hits.shape[1])
    wrong = ~ranking.hits.ravel()
    found = test.labels[ranking.nearest.ravel()]
    counts: dict[int, collections.Counter] = collections.defaultdict(collections.Counter)
    for label, other in zip(own[wrong].tolist(), found[wrong].tolist(), strict=True):
        counts[label][other] += 1
    return {label: test.name_of(others.most_common(1)[0][0]) for label, others in counts.items()}


def embedding_space(test: TestItems) -> list[Block]:
    """Similarities of pairs, and a map."""
    same, other = comparison.draw_pairs(test.labels)
    blocks: list[Block] = []
    if len(same) and len(other):
        similarities = {
            name: (pair_similarities(vectors, *same.T), pair_similarities(vectors, *other.T))
            for name, vectors in test.vectors.items()
        }
        rates = {name: comparison.order_rate(*parts) for name, parts in similarities.items()}
        blocks += [
            Heading("Similarities"),
            Paragraph(
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
        Paragraph(
            f"{len(rows):,} test items of {len(labels)} classes, from the worst to the best: their first two "
            "principal components. TensorBoard's projector shows all of them, in 3-D, or by t-SNE or UMAP.",
        ),
        Panels(charts.maps(embeddings, codes, [test.name_of(label) for label in labels])),
    ]


def _map_items(test: TestItems) -> tuple[list[int], np.ndarray]:
    """Up to ten classes, evenly from the worst to the best, and rows of their items."""
    present, _, _, scores = test.by_class()
    ordered = present[np.argsort(scores, kind="stable")]
    chosen = ordered[np.unique(np.linspace(0, len(ordered) - 1, 10).astype(int))]
    rng = np.random.default_rng(0)
    per_class = comparison.MAX_MAP_ITEMS // len(chosen)
    rows = [rng.permutation(np.flatnonzero(test.labels == label))[:per_class] for label in chosen]
    return chosen.tolist(), np.concatenate(rows)
