"""`report.html` of a run: whether the head helps, where it does not, and how the run went."""

import collections
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from xbm_keras.data.dataset import Dataset
from xbm_keras.data.labels import counted
from xbm_keras.evaluation import wording
from xbm_keras.evaluation.thresholds import read_thresholds
from xbm_keras.report import charts, learning_curve, matches, neighbors, retrieval
from xbm_keras.report.page import (
    Block,
    Cell,
    Code,
    Details,
    Facts,
    Page,
    PageSection,
    PageTable,
    Panels,
    Paragraph,
    Verdict,
    write_page,
)
from xbm_keras.report.stage_costs import Cost
from xbm_keras.stages.head.fc_layer import Head

NUM_SKIPPED_LISTED = 50
BARS = ("map_at_r", "neighbor_overlap_at_10")


class AboutRun(NamedTuple):
    """What the report of any run tells."""

    about: Mapping[str, str]
    """What was run, names and values."""
    config: str
    """As YAML; of it what may be shown."""
    metrics: dict
    """The contents of `metrics.json`."""
    learning: Callable[[], learning_curve.LearningCurve | None]
    """Gives None where there is no closed form by labels, or too little to learn from. It is asked last, so that the
    curve may be made meanwhile."""
    costs: Sequence[Cost]
    """Of the stages."""


def write_run_report(path: pathlib.Path, run: AboutRun, dataset: Dataset, head: Head) -> None:
    """Write the report of a finished run, and what `thresholds.json` beside it tells.

    Raises:
        DataError: for an item that was readable when its features were computed, and now is not.
        OSError: where the file cannot be written.
    """
    metrics, validation = run.metrics, run.metrics["validation"]
    sections = [PageSection("Results", _results(metrics, dataset, head.embedding_dim))]
    thresholds, test = read_thresholds(path.parent), None
    if "leave_one_out" in metrics:
        test = retrieval.rank_test_items(dataset, head, by_roles="query_gallery" in metrics)
        sections += [
            PageSection("What it finds", retrieval.searches(test)),
            PageSection("Classes", retrieval.classes(test)),
            PageSection("Embedding space", retrieval.embedding_space(test)),
        ]
    else:
        sections.append(PageSection("What it keeps", neighbors.searches(dataset, head)))
    if thresholds is not None:
        sections.append(matches.section(thresholds, test))
    if validation.get("tried_parts"):
        sections.append(PageSection("Parts of the network", parts_of_network(validation)))
    if validation.get("tried"):
        sections.append(PageSection("Start", starts(validation)))
    write_sections(path, run, sections, validation.get("leave_one_out", {}), dataset.skipped)


def write_sections(
    path: pathlib.Path,
    run: AboutRun,
    sections: Sequence[PageSection],
    validation: Mapping[str, Mapping[str, float]],
    skipped: Mapping[str, str],
    left_out: Mapping[str, int] | None = None,
) -> None:
    """Write these sections, and those that each run has.

    Args:
        path: of the file. `history.csv` is read from beside it, and the folder is its title.
        run: the run.
        sections: that stand first.
        validation: `{embedding: {metric: value}}` of what chose the epoch.
        skipped: items, and why.
        left_out: of the data: what, and how often.
    """
    chosen = run.metrics["validation"]
    curve = run.learning()
    learning = [] if curve is None else [learning_curve.section(curve, chosen["start"])]
    how = training(path.with_name("history.csv"), validation, chosen["epoch"])
    tone, verdict = wording.verdict(run.metrics)
    subtitle = " · ".join([run.about["Data"], run.about["Network"]])
    last = [PageSection("Training", how), PageSection("The run", the_run(run, skipped, left_out))]
    write_page(path, Page(path.parent.name, Verdict(verdict, tone), [*sections, *learning, *last], subtitle))


def _results(metrics: Mapping, dataset: Dataset, embedding_dim: int) -> list[Block]:
    test, validation = dataset.splits.test, metrics["validation"]
    caption = f"{len(test):,} test items"
    if "leave_one_out" in metrics:
        caption += f" of {len(np.unique(dataset.labels[dataset.labelled(test)])):,} classes"
    tables = _scores_tables(metrics, f"{caption}. Higher is better, 1 is perfect.")
    is_nested = any("@" in name for scores in metrics.values() if isinstance(scores, dict) for name in scores)
    by_classes = {name: told for name, told in wording.PROTOCOLS.items() if name != "neighbors" and name in metrics}
    if is_nested:
        figures = charts.widths(metrics, embedding_dim)
    else:
        figures = [charts.scores(metrics, by_classes)] if by_classes else []
    notes = [
        "Frozen: the features as the network gives them. Closed form: the head before its first step, computed from "
        "the training items. Trained: the same head after training with the cross-batch memory."
    ]
    if is_nested:
        notes.append("With a number: the first so many dimensions alone.")
    if by_classes:
        notes.append(
            "R@K: one of the K nearest items is of the query's class. MAP@R and R-Prec look at as many items as the "
            "class has."
        )
    if "neighbors" in metrics:
        notes.append(
            "Overlap@K: share of the K nearest items by the frozen features that are among the K nearest by the "
            "embedding. Rank corr.: Spearman's correlation of the similarities of random pairs, before and after."
        )
    chose = f"the number of epochs, {validation['epoch'] or 'none'}"
    return [
        Panels([*figures, *tables] if is_nested else [*tables, *figures]),
        Paragraph(" ".join(notes), is_note=True),
        Details(f"The same for the held-out training items that chose {chose}", _scores_tables(validation, "")),
    ]


def _scores_tables(metrics: Mapping, caption: str) -> list[PageTable]:
    """A table for protocols of the same metrics."""
    tables = []
    for columns, protocols in wording.tables(metrics):
        rows: list = []
        for protocol in protocols:
            scores = metrics[protocol]
            rows.append(wording.PROTOCOLS[protocol])
            for name, values in scores.items():
                cells: list = [wording.title(name)]
                for metric in columns:
                    best = max(other[metric] for other in scores.values())
                    bar = values[metric] if metric in BARS else None
                    cells.append(Cell(f"{values[metric]:.3f}", bar, is_best=f"{values[metric]:.3f}" == f"{best:.3f}"))
                rows.append(cells)
        tables.append(PageTable(["", *columns.values()], rows, caption))
    return tables


def starts(validation: Mapping) -> list[Block]:
    """MAP@R of held-out classes under each start that was tried, by shrinkage, and which one was chosen."""
    tried = validation["tried"]
    shrinkages = sorted({shrinkage for scores in tried.values() for shrinkage in scores}, key=float)
    best = f"{max(max(scores.values()) for scores in tried.values()):.3f}"
    rows: list = []
    for start, scores in tried.items():
        told = {shrinkage: f"{score:.3f}" for shrinkage, score in scores.items()}
        rows.append([start, *(Cell(told.get(each, ""), is_best=told.get(each) == best) for each in shrinkages)])
    at = f", shrinkage {validation['shrinkage']:g}" if "shrinkage" in validation else ""
    note = (
        f"Chosen: {validation['start']}{at}. Of the starts that are within one standard error of the best, over the "
        "held-out classes, it takes most from the training classes: they are half as many here as in the run. What "
        "else is tried is at its best; in the last column are the starts that have no shrinkage."
    )
    table = PageTable(["Start", *shrinkages], rows, "MAP@R of held-out training classes by start and shrinkage.")
    return [table, Paragraph(note, is_note=True)]


def parts_of_network(validation: Mapping) -> list[Block]:
    """MAP@R of held-out classes by the parts of the network that were tried, and which were taken."""
    tried = validation["tried_parts"]
    best = max(tried.values())
    rows: list = [[parts, Cell(f"{score:.3f}", is_best=score == best)] for parts, score in tried.items()]
    note = (
        f"Taken: {' + '.join(validation['parts'])}, the narrowest of those that are within one standard error of the "
        "best, over the held-out classes. Each is at its best by a few closed forms."
    )
    table = PageTable(["Parts", "MAP@R"], rows, "MAP@R of held-out training classes by parts of the network.")
    return [table, Paragraph(note, is_note=True)]


def training(history: pathlib.Path, validation: Mapping, best_epoch: int) -> list[Block]:
    """Curves of a `history.csv`, which a run without epochs lacks; for the rest see `charts.curves`."""
    if not history.exists():
        return [Paragraph("No epoch was trained: the head is its start.")]
    return [Panels(charts.curves(pd.read_csv(history), validation, best_epoch))]


def the_run(run: AboutRun, skipped: Mapping[str, str], left_out: Mapping[str, int] | None = None) -> list[Block]:
    """What makes the run again, what it was, what it cost, and what was skipped and why."""
    columns = ["Stage", "Time", "Peak memory"]
    has_gpu = any(cost.gpu_peak_mb is not None for cost in run.costs)
    rows = []
    for cost in run.costs:
        row = [cost.stage, _time(cost.seconds), "" if cost.peak_mb is None else f"{cost.peak_mb:,.0f} MB"]
        rows.append([*row, f"{cost.gpu_peak_mb:,.0f} MB"] if has_gpu else row)
    blocks: list[Block] = [
        Code("python train.py --config config.yaml"),  # not as given, which holds paths and what a shell put in
        Facts(run.about),
        PageTable([*columns, *["GPU memory"] * has_gpu], rows, "Peak memory is the process's so far."),
    ]
    if left_out:
        rows = [[what, f"{count:,}"] for what, count in left_out.items()]
        blocks.insert(2, PageTable(["Left out of the data", "Number"], rows))
    if skipped:
        listed = list(skipped.items())[:NUM_SKIPPED_LISTED]
        reasons = collections.Counter(skipped.values()).most_common(3)
        said = ", ".join(f"{reason} ({count:,})" for reason, count in reasons)
        table = PageTable(["Item", "Why"], [[key, reason] for key, reason in listed], text_columns=["Why"])
        more = f" The first {len(listed)}:" if len(listed) < len(skipped) else ""
        blocks.append(Details(f"{counted(len(skipped), 'item')} skipped: {said}.{more}", [table]))
    else:
        blocks.append(Paragraph("No item was skipped."))
    return [*blocks, Details("The config, without paths", [Code(run.config)])]


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"
