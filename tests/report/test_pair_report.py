"""The report of a run on queries and documents: its numbers are those of the metrics, and its texts are only texts."""

import re

import numpy as np
import pandas as pd
import pytest

from tests.report.test_page import Reader
from xbm_keras import Head, Start
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.pairs import Pairs, Side
from xbm_keras.data.splits import Splits
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.pair_scores import compare_pairs
from xbm_keras.evaluation.pairs import evaluate_pairs
from xbm_keras.report import charts, pair_searches
from xbm_keras.report.learning_curve import LearningCurve
from xbm_keras.report.page import Heading, QueryResults
from xbm_keras.report.pair_report import write_pair_report
from xbm_keras.report.run_report import AboutRun
from xbm_keras.report.stage_costs import Cost

NUM_QUERIES, NUM_DOCUMENTS, WIDTH = 24, 30, 6
EVIL = '</q><script>alert("x")</script> & more'
MARKS = {"right": "✓", "wrong": "✗", "unknown": "·"}
LONG = "It is a long text. " * 30


def make_dataset(has_texts=True):
    """Queries 0 to 11 train. Of the others 12 to 17 are answered by documents of these, 18 to 23 by their own."""
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(NUM_DOCUMENTS, WIDTH)).astype(np.float32)
    documents[27] = documents[19] + 0.01  # judged, and no answer, but as near
    answers = np.concatenate([np.arange(12), np.arange(6), np.arange(18, 24)])
    queries = documents[answers] + 0.9 * rng.normal(size=(NUM_QUERIES, WIDTH)).astype(np.float32)
    everyone = np.arange(NUM_QUERIES)
    query = np.concatenate([everyone, [18, 18, 19]])
    document = np.concatenate([answers, [25, 26, 27]])
    grade = np.concatenate([np.ones(NUM_QUERIES), [2.0, 1.0, 0.0]])  # two more answers, one that was judged and is none
    texts = [f"question {i} {EVIL}" for i in everyone], [f"answer {i} {EVIL} {LONG}" for i in range(NUM_DOCUMENTS)]
    sides = [
        Side(np.array([f"{name}{i}" for i in range(number)]), each if has_texts else None)
        for name, number, each in (("q", NUM_QUERIES, texts[0]), ("d", NUM_DOCUMENTS, texts[1]))
    ]
    pairs = Pairs(*sides, query, document, grade, np.full(len(query), ""), {"queries that nothing answers": 7})
    return PairDataset(pairs, queries, documents, Splits(everyone[:9], everyone[9:12], everyone[12:]))


def make_head():
    head = Head(4, widths=[2, 4])
    head.build((None, WIDTH))
    kernel = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0][:, :4]
    head.set_start(Start(kernel.astype(np.float32), np.zeros(4, np.float32)))
    return head


def metrics_of(dataset, head):
    def compare(queries, is_unseen=None):
        rows = UnitRows(dataset.queries, queries), UnitRows(dataset.documents, np.arange(NUM_DOCUMENTS))
        heads = {"frozen": None, "closed_form": head, "trained": head}
        return compare_pairs(*rows, *dataset.pairs.relevant(queries), heads, is_unseen)

    splits = dataset.splits
    chosen = {"epoch": 2, "start": "whiten", "shrinkage": 0.9, "parameters": {"shrinkage": 0.9}}
    unseen = dataset.is_unseen(splits.test, np.arange(12))
    return {
        **compare(splits.test, unseen),
        "validation": {**compare(splits.validation), **chosen},
        "phase": "refit",
    }


def report_of(dataset, path, **changes):
    head = make_head()
    metrics = metrics_of(dataset, head)
    arguments = {
        "about": {"Data": "pairs", "Network": "MiniLM"},
        "config": "head: {embedding_dim: 4}\n",
        "metrics": metrics,
        "learning": lambda: LearningCurve({50: 0.5, 100: 0.625}, 0.25, (0.1, 0.15), "nDCG@10", "queries"),
        "costs": [Cost("features", 0.5, None, None)],
        **changes,
    }
    write_pair_report(path / "report.html", AboutRun(**arguments), dataset, head, np.arange(12))
    text = (path / "report.html").read_text("utf-8")
    Reader(text)
    return text, metrics


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of texts, with a history of two folds."""
    folder = tmp_path_factory.mktemp("pairs")
    history = {"phase": ["select"] * 2 + ["select_2"] * 2 + ["refit"], "epoch": [1, 2, 1, 2, 1], "loss": 1.0}
    pd.DataFrame({**history, "val_ndcg_at_10": [0.5, 0.6, 0.4, 0.5, None]}).to_csv(folder / "history.csv", index=False)
    return report_of(make_dataset(), folder)


def table_of(text, heading):
    """Cells of the rows below a heading, by what heads each row."""
    rows = text.split(f'scope="rowgroup">{heading}<')[1].split('class="group"')[0].split("</tbody>")[0]
    strip = [re.sub(r"<[^>]*>", "", cell).split() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", rows)]
    named = [re.sub(r"<[^>]*>", "", row) for row in re.findall(r'scope="row"[^>]*>(.*?)</th>', rows)]
    return {name: [" ".join(cell) for cell in strip[7 * i + 1 : 7 * i + 7]] for i, name in enumerate(named)}


def test_both_protocols_are_those_of_the_metrics(report):
    text, metrics = report
    assert metrics["pairs"] != metrics["pairs_unseen_documents"]
    for protocol, heading in (
        ("pairs", "all test queries"), ("pairs_unseen_documents", "queries whose documents never trained"),
    ):  # fmt: skip
        rows = table_of(text, heading)
        assert list(rows) == ["frozen", "closed form, 2", "closed form", "trained, 2", "trained"]
        for name, key in (("frozen", "frozen"), ("closed form, 2", "closed_form@2"), ("trained", "trained")):
            scores = metrics[protocol][key]
            for column, metric in ((0, "ndcg_at_10"), (2, "mrr_at_10"), (3, "recall_at_10"), (5, "map")):
                low, high = scores[f"{metric}_interval"]
                assert rows[name][column] == f"{scores[metric]:.3f} [{low:.3f}, {high:.3f}]"
        above, (low, high) = (scores[f"ndcg_at_10_above_frozen{each}"] for each in ("", "_interval"))
        assert rows["trained"][1] == f"{above:+.3f} [{low:+.3f}, {high:+.3f}]"
        assert rows["frozen"][1] == ""
    assert f"trained, all test queries: {metrics['pairs']['trained']['ndcg_at_10']:.3f}," in text  # of the chart


def test_texts_are_texts_and_long_ones_open_on_a_click(report):
    reader = Reader(report[0])
    assert "script" not in reader.tags
    assert sum(text.startswith("question") and text.endswith(EVIL) for text in reader.texts) >= 7
    assert sum(EVIL in text and LONG.strip() in text for text in reader.texts) > 20  # whole
    assert len(re.findall(r'<details class="long"><summary><q>answer \d+ &lt;/q&gt;&lt;script&gt;', report[0])) > 20
    assert not re.search(r'<details class="long"><summary><q>question', report[0])  # is short


def test_what_nobody_judged_is_marked_neither_right_nor_wrong(report):
    marks = {name: len(re.findall(rf'aria-label="{name}">{sign}<', report[0])) for name, sign in MARKS.items()}
    counted = {name: report[0].count(f'<li class="{name}">') for name in MARKS}
    assert marks == counted
    assert all(marks.values())


def test_what_it_finds_is_what_ranks_first_and_is_judged(report):
    dataset = make_dataset()
    test = pair_searches.rank_test_queries(dataset, make_head(), np.arange(12))
    blocks = pair_searches.searches(test)
    shown = [result for block in blocks if isinstance(block, QueryResults) for result in block.searches]
    assert len(shown) >= 7
    for result in shown:
        query = int(result.query.label.removeprefix("query q"))
        scores = dataset.documents @ dataset.queries[query] / np.linalg.norm(dataset.documents, axis=1)
        frozen = next(hits for name, hits in result.found.items() if name.startswith("Frozen"))
        documents = [int(re.match(r"document d(\d+)", hit.item.name)[1]) for hit in frozen]
        assert documents == np.argsort(-scores)[:5].tolist()
        is_its = dataset.pairs.query == query
        judged = dict(zip(dataset.pairs.document[is_its].tolist(), dataset.pairs.grade[is_its].tolist(), strict=True))
        assert [hit.is_right for hit in frozen] == [judged[d] > 0 if d in judged else None for d in documents]
        first = 1 + min(np.argsort(-scores).tolist().index(d) for d, grade in judged.items() if grade > 0)
        assert f"first answer at rank {first} →" in result.note
        assert ("seen in training" in result.note) == (query < 18)
    gains = [block.text for block in blocks if isinstance(block, Heading)]
    assert gains == ["Where the head gains most", "Where it loses most", "Drawn at random"]


def test_gains_and_losses_are_counted_by_group():
    dataset, head = make_dataset(), make_head()
    queries = dataset.splits.test
    relevant, grades = dataset.pairs.relevant(queries)
    before = evaluate_pairs(dataset.queries[queries], dataset.documents, relevant, grades)["ndcg_at_10"]
    embedded = (np.asarray(head(each)) for each in (dataset.queries[queries], dataset.documents))
    change = evaluate_pairs(*embedded, relevant, grades)["ndcg_at_10"] - before
    (_, panels) = pair_searches.gains(pair_searches.rank_test_queries(dataset, head, np.arange(12)))
    rows = {row[0]: row[1:] for row in panels.blocks[0].rows}
    assert list(rows) == ["all", "unseen documents", "seen documents", "1 answer", "3 to 5 answers"]
    masks = {"all": slice(None), "unseen documents": queries >= 18, "seen documents": queries < 18}
    masks |= {"1 answer": queries != 18, "3 to 5 answers": queries == 18}
    for name, mask in masks.items():
        part = change[mask]
        counts = [len(part), (part > 1e-6).sum(), (abs(part) <= 1e-6).sum(), (part < -1e-6).sum()]
        assert rows[name][:4] == [str(count) for count in counts]
        assert rows[name][4] == f"{before[mask].mean():.3f}"
        assert rows[name][6].text == f"{part.mean():+.3f}"


def test_it_says_what_learns_what_was_chosen_and_what_was_left_out(report):
    said = Reader(report[0]).texts
    assert (
        "The closed form of 50 training queries gives 0.500, that of all 100 0.625: +0.125 (95 % interval "
        "+0.100 to +0.150). It still rises: more queries would likely help."
    ) in said
    assert "nDCG@10 on validation queries" in said
    assert any(text.startswith("Epoch 2 was chosen. Test queries take no part in this. Thin:") for text in said)
    assert said[said.index("queries that nothing answers") + 1 :][:2].count("7") == 1
    assert "python train.py --config config.yaml" in said


def test_the_curve_of_validation_has_the_other_folds_beside_it():
    rows = {"phase": ["select"] * 2 + ["select_2"] * 2 + ["refit"] * 2, "epoch": [1, 2] * 3, "loss": 1.0}

    def curve(*values):
        figures = charts.curves(pd.DataFrame({**rows, "val_ndcg_at_10": values}), {}, 2)
        return next(figure.svg for figure in figures if figure.title == "nDCG@10 on validation queries")

    first = curve(0.5, 0.6, 0.52, 0.56, 0.4, 0.4)
    assert curve(0.5, 0.6, 0.52, 0.58, 0.4, 0.4) != first
    assert curve(0.5, 0.6, 0.52, 0.56, 0.4, 0.8) == first


def test_without_texts_there_are_ids_and_without_curve_or_epochs_no_sections(tmp_path):
    text, _ = report_of(make_dataset(has_texts=False), tmp_path, learning=lambda: None)
    said = Reader(text).texts
    assert "query q12" in said or "query q18" in said
    assert sum(bool(re.fullmatch(r"document d\d+", text)) for text in said) > 20
    assert "Would more queries help" not in said
    assert "No epoch was trained: the head is its start." in said


def test_where_no_document_trained_one_table_says_all(tmp_path):
    dataset = make_dataset()
    metrics = metrics_of(dataset, make_head())
    metrics["pairs_unseen_documents"] = metrics["pairs"]
    text, _ = report_of(dataset, tmp_path, metrics=metrics)
    assert 'scope="rowgroup">all test queries<' in text
    assert 'scope="rowgroup">queries whose documents never trained<' not in text
    assert "No document that answers a test query trained." in text
