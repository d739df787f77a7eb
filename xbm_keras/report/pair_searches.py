"""What a report shows of test queries: which documents they find, and where the head gains and loses.

Letters: Q queries, P relevant documents of a query at most.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.exact_search import nearest
from xbm_keras.evaluation.graded_metrics import ndcg_at_k
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.evaluation.pairs import ranks_of_relevant
from xbm_keras.evaluation.retrieval import embed
from xbm_keras.report import pair_charts
from xbm_keras.report.charts import clipped
from xbm_keras.report.page import (
    Block,
    Cell,
    Heading,
    Hit,
    Item,
    PageTable,
    Panels,
    Paragraph,
    QueryResult,
    QueryResults,
    Tone,
)
from xbm_keras.stages.head.fc_layer import Head

MAX_QUERIES = 5_000
NUM_FOUND = 5  # documents shown per query
NUM_SHOWN = 5  # queries of each kind: best gains, worst losses, drawn at random
MAX_TEXT = 4_000
SAME = 1e-6  # of nDCG: no difference
GROUPS = {
    "1 answer": (1, 1),
    "2 answers": (2, 2),
    "3 to 5 answers": (3, 5),
    "6 to 10 answers": (6, 10),
    "more answers": (11, np.inf),
}


@dataclasses.dataclass(frozen=True)
class TestQueries:
    """Test queries, and where the documents that answer them rank in both embeddings."""

    dataset: PairDataset
    queries: np.ndarray
    """[Q] positions."""
    num_all: int
    """Test queries there are; more than Q where they were drawn."""
    relevant: np.ndarray
    """[Q, P] positions of documents, and -1."""
    is_unseen: np.ndarray
    """[Q] bool: none of these documents answers a query that trained."""
    vectors: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """frozen and trained: of the queries [Q, E], and of all documents [N, E]."""
    ranks: Mapping[str, np.ndarray]
    """[Q, P], 1 for the first document, and 0 where `relevant` is -1."""
    scores: Mapping[str, np.ndarray]
    """nDCG@10, [Q]."""

    @property
    def gain(self) -> np.ndarray:
        """nDCG@10 of the trained head less that of the frozen features, [Q]."""
        return self.scores["trained"] - self.scores["frozen"]

    @property
    def drawn(self) -> str:
        """How many of how many, for people."""
        num = f"{len(self.queries):,} test queries"
        return num if len(self.queries) == self.num_all else f"{num}, drawn from {self.num_all:,},"


def rank_test_queries(dataset: PairDataset, head: Head, trained_on: np.ndarray) -> TestQueries:
    """The test queries under the frozen features and the head, over the whole corpus.

    Args:
        dataset: the data.
        head: what is compared with the frozen features.
        trained_on: positions of the queries that trained.
    """
    queries = dataset.splits.test
    if len(queries) > MAX_QUERIES:
        queries = np.sort(np.random.default_rng(0).choice(queries, MAX_QUERIES, replace=False))
    relevant, grades = dataset.pairs.relevant(queries)
    rows = UnitRows(dataset.queries, queries), UnitRows(dataset.documents)
    vectors = {
        "frozen": (rows[0][:], rows[1][:]),
        "trained": (embed(head, rows[0]), embed(head, rows[1], of_rows=True)),
    }
    ranks = {name: ranks_of_relevant(*each, relevant) for name, each in vectors.items()}
    scores = {name: ndcg_at_k(each, grades, 10) for name, each in ranks.items()}
    is_unseen = dataset.is_unseen(queries, trained_on)
    return TestQueries(dataset, queries, len(dataset.splits.test), relevant, is_unseen, vectors, ranks, scores)


def searches(test: TestQueries) -> list[Block]:
    """Queries with the documents that they find first: drawn at random, largest gains, largest losses."""
    climb = _first_ranks(test.ranks["frozen"]) - _first_ranks(test.ranks["trained"])
    order = np.lexsort((climb, test.gain))
    drawn = np.random.default_rng(0).permutation(len(test.queries))[:NUM_SHOWN].tolist()
    kinds = {
        "Where the head gains most": _of_different_answers(test, order[::-1][test.gain[order[::-1]] > SAME]),
        "Where it loses most": _of_different_answers(test, order[test.gain[order] < -SAME]),
        "Drawn at random": drawn,
    }
    rows = np.array([row for chosen in kinds.values() for row in chosen])
    found = {name: nearest(queries[rows], documents, NUM_FOUND) for name, (queries, documents) in test.vectors.items()}
    results = [
        _result(test, row, {name: (positions[i], values[i]) for name, (positions, values) in found.items()})
        for i, row in enumerate(rows.tolist())
    ]
    blocks: list[Block] = [
        Paragraph(
            f"Each query with the {NUM_FOUND} documents that it finds first, among {len(test.dataset.documents):,}. "
            "✓ answers the query; ✗ was judged, and does not; · was not judged. A click on a text shows all of it."
        )
    ]
    for kind, chosen in kinds.items():
        if chosen:
            blocks += [Heading(kind), QueryResults(results[: len(chosen)])]
            results = results[len(chosen) :]
    return blocks


def _of_different_answers(test: TestQueries, order: np.ndarray) -> list[int]:
    """The first rows in this order, none of which shares its first document with one before it."""
    _, first = np.unique(test.relevant[order, 0], return_index=True)
    return order[np.sort(first)[:NUM_SHOWN]].tolist()


def _result(test: TestQueries, row: int, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> QueryResult:
    """A query, where what answers it ranks, and what it finds."""
    pairs, query = test.dataset.pairs, int(test.queries[row])
    judged = pairs.query == query
    grades = dict(zip(pairs.document[judged].tolist(), pairs.grade[judged].tolist(), strict=True))
    num_relevant = sum(grade > 0 for grade in grades.values())
    rankings = {}
    for name, (positions, similarities) in found.items():
        hits = []
        for position, similarity in zip(positions.tolist(), similarities.tolist(), strict=True):
            grade = grades.get(position)
            hits.append(Hit(_document(test, position, grade), None if grade is None else grade > 0, similarity))
        count = sum(bool(hit.is_right) for hit in hits)
        rankings[f"{name.capitalize()}: {count} of {num_relevant} found"] = hits
    before, after = (each[row] for each in test.scores.values())
    first, then = (_first_ranks(each[row]) for each in test.ranks.values())
    note = f"nDCG@10 {before:.2f} → {after:.2f}; first answer at rank {first:,} → {then:,}"
    note += "" if test.is_unseen[row] else "; seen in training"
    query_id, texts = str(pairs.queries.ids[query]), pairs.queries.texts
    item = Item(f"query {query_id}", "", text=None if texts is None else clipped(texts[query] or "", MAX_TEXT))
    return QueryResult(item, note, rankings)


def _first_ranks(ranks: np.ndarray) -> np.ndarray:
    """The rank of the first document that answers, [Q] or of one query alone."""
    return np.where(ranks > 0, ranks, np.iinfo(np.int64).max).min(axis=-1)


def _document(test: TestQueries, position: int, grade: float | None) -> Item:
    documents = test.dataset.pairs.documents
    name = f"document {documents.ids[position]}"
    graded = "" if grade in (None, 0, 1) else f"grade {grade:g}"
    if documents.texts is None:
        return Item(graded, name)
    return Item(", ".join(filter(None, [name, graded])), name, text=clipped(documents.texts[position] or "", MAX_TEXT))


def change(value: float, ends: Sequence[float]) -> Cell:
    """A difference with its interval, coloured where that excludes 0."""
    low, high = ends
    tone: Tone = "good" if low > 0 else "bad" if high < 0 else "plain"
    return Cell(f"{value:+.3f}", tone=tone, note=f"[{low:+.3f}, {high:+.3f}]")


def gains(test: TestQueries) -> list[Block]:
    """How many queries gain, lose and stay; by what trained, and by how many documents answer them."""
    groups = _groups(test)
    counts: dict[str, tuple[int, int, int]] = {}
    rows: list = []
    for name, mask in groups.items():
        gained, lost = int((test.gain[mask] > SAME).sum()), int((test.gain[mask] < -SAME).sum())
        counts[name] = gained, int(mask.sum()) - gained - lost, lost
        numbers = [f"{count:,}" for count in (mask.sum(), *counts[name])]
        numbers += [f"{each[mask].mean():.3f}" for each in test.scores.values()]
        rows.append([name, *numbers, change(test.gain[mask].mean(), bootstrap_interval(test.gain[mask]))])
    gained, stayed, lost = counts["all"]
    explained = " Seen: a document that answers the query answers a training query, too." * ("seen documents" in counts)
    columns = ["Queries", "Number", "Gain", "Stay", "Lose", "Frozen", "Trained", "Change"]
    return [
        Paragraph(
            f"Of {test.drawn} {gained:,} score higher in nDCG@10 with the head than with the frozen features, {lost:,} "
            f"lower, and {stayed:,} the same.{explained}"
        ),
        Panels(
            [
                PageTable(columns, rows, "The last three columns: mean nDCG@10, and the 95 % interval of the change."),
                pair_charts.shares(counts),
            ]
        ),
    ]


def _groups(test: TestQueries) -> dict[str, np.ndarray]:
    """Masks [Q] by name; a division into one part alone says nothing, and is left out."""
    counts = (test.relevant >= 0).sum(axis=1)
    groups = {"all": np.ones(len(counts), bool)}
    by_training = {"unseen documents": test.is_unseen, "seen documents": ~test.is_unseen}
    by_count = {name: (counts >= low) & (counts <= high) for name, (low, high) in GROUPS.items()}
    for division in (by_training, by_count):
        found = {name: mask for name, mask in division.items() if mask.any()}
        groups |= found if len(found) > 1 else {}
    return groups
