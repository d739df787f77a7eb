"""`report.html` of a run: whether the head helps, where it does not, and how the run went."""

import collections
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from xbm_keras import results
from xbm_keras.costs import Cost
from xbm_keras.loading import Dataset
from xbm_keras.report import charts, retrieval
from xbm_keras.report.page import (
    Block,
    Cell,
    Code,
    Details,
    Facts,
    Page,
    Panels,
    Section,
    Table,
    Text,
    Tone,
    Verdict,
    write_page,
)
from xbm_keras.stages.head import Head

NUM_SKIPPED_LISTED = 50
TONES: Mapping[str, Tone] = {"better": "good", "mixed": "plain", "worse": "bad"}


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
    test = retrieval.compare(dataset, head)
    sections = [
        Section("Results", _results(metrics, dataset)),
        Section("What it finds", retrieval.searches(test)),
        Section("Classes", retrieval.classes(test)),
        Section("Embedding space", retrieval.embedding_space(test)),
        Section("Training", _training(pd.read_csv(history) if history.exists() else None, metrics["validation"])),
        Section("The run", _the_run(command, about, config, dataset, costs)),
    ]
    verdict = results.verdict(metrics)
    tone = TONES[results.outcome(metrics)]
    write_page(path, Page(title, Verdict(verdict, tone), sections, " · ".join([about["Data"], about["Network"]])))


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
