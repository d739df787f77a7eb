"""`report.html` of a run on queries and documents: whether the head helps, on what, and how the run went."""

import pathlib
from collections.abc import Mapping

import numpy as np

from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.evaluation import wording
from xbm_keras.report import charts, pair_charts, pair_searches
from xbm_keras.report.page import Block, Cell, Details, PageSection, PageTable, Panels, Paragraph
from xbm_keras.report.run_report import AboutRun, write_sections
from xbm_keras.stages.head.fc_layer import Head

PROTOCOLS = ("pairs", "pairs_unseen_documents")
ABOVE = "ndcg_at_10_above_frozen"


def write_pair_report(
    path: pathlib.Path, run: AboutRun, dataset: PairDataset, head: Head, trained_on: np.ndarray
) -> None:
    """Write the report of a finished run.

    Args:
        path: of the file.
        run: the run.
        dataset: the data.
        head: the trained head.
        trained_on: positions of the queries that it trained on.

    Raises:
        OSError: where the file cannot be written.
    """
    test = pair_searches.rank_test_queries(dataset, head, trained_on)
    sections = [
        PageSection("Results", _results(run.metrics, test, head.embedding_dim)),
        PageSection("What it finds", pair_searches.searches(test)),
        PageSection("Where it gains and loses", pair_searches.gains(test)),
    ]
    validation = run.metrics["validation"]["pairs"]
    write_sections(path, run, sections, validation, dataset.skipped, dataset.pairs.ignored)


def _results(metrics: Mapping, test: pair_searches.TestQueries, embedding_dim: int) -> list[Block]:
    protocols = [protocol for protocol in PROTOCOLS if protocol in metrics]
    if len(protocols) > 1 and metrics["pairs"] == metrics["pairs_unseen_documents"]:
        protocols = ["pairs"]
    notes = [
        "Frozen: the features as they are given. Closed form: the head before its first step, computed from the "
        "training pairs. Trained: the same head after training with the cross-batch memory.",
        "nDCG@10 weighs each relevant document among the first ten by its grade and its rank, 1 is the best order "
        "there is. MRR@10 is 1 over the rank of the first relevant one, 0 behind the tenth. R@k: share of the relevant "
        "documents that are among the first k. MAP: mean over them of the precision at their rank.",
        "In brackets: the interval of 95 %, by bootstrap over the queries; against frozen it is of the differences, "
        "query by query, and coloured where it excludes 0.",
    ]
    whose = f"{test.num_all:,} test queries, {len(test.dataset.documents):,} documents. Higher is better, 1 is perfect."
    if len(protocols) == 1 and "pairs_unseen_documents" in metrics:
        whose = f"No document that answers a test query trained. {whose}"
    shown = {protocol: metrics[protocol] for protocol in protocols}
    figures = [pair_charts.intervals(shown, protocols)]
    if any("@" in name for name in metrics["pairs"]):
        notes[0] += " With a number: the first so many dimensions alone."
        figures += charts.widths(shown, embedding_dim)
    chose = f"the number of epochs, {metrics['validation']['epoch'] or 'none'}"
    return [
        Panels([_table(shown, whose), *figures]),
        *(Paragraph(note, is_note=True) for note in notes),
        Details(
            f"The same for the held-out training queries that chose {chose}",
            [_table({"pairs": metrics["validation"]["pairs"]}, "", "held-out training queries")],
        ),
    ]


def _table(scores: Mapping[str, Mapping], caption: str, heading: str | None = None) -> PageTable:
    """Each embedding by each protocol."""
    columns = wording.shown("pairs")
    rows: list = []
    for protocol, by_name in scores.items():
        rows.append(heading or wording.PROTOCOLS[protocol])
        for name, values in by_name.items():
            cells: list = [wording.title(name)]
            for metric in columns:
                text = f"{values[metric]:.3f}"
                best = max(other[metric] for other in by_name.values())
                note = "[{:.3f}, {:.3f}]".format(*values[f"{metric}_interval"])
                cells.append(Cell(text, is_best=text == f"{best:.3f}", note=note))
            above = pair_searches.change(values[ABOVE], values[f"{ABOVE}_interval"]) if ABOVE in values else ""
            rows.append([*cells[:2], above, *cells[2:]])
    names = list(columns.values())
    return PageTable(["", names[0], "against frozen", *names[1:]], rows, caption)
