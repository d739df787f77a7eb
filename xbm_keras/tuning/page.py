"""search.html: which memory size and k to use, how the search went, and what mattered."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from xbm_keras.evaluation.wording import SCORES
from xbm_keras.report.figures import GOOD, INK, MUTED, SERIES, drawing
from xbm_keras.report.page import (
    Cell,
    Code,
    Details,
    Facts,
    Figure,
    Page,
    PageSection,
    PageTable,
    Panels,
    Paragraph,
    Verdict,
)

MEMORY = "memory.memory_size"
MIN_TRIALS_FOR_IMPORTANCE = 10
COUNTS = {
    "top_k.num_negatives": "negatives per anchor",
    "top_k.num_positives": "positives per anchor",
    "top_k.num_neighbors": "neighbours per anchor",
    "top_k.num_random": "random rows",
}
NAMES = {MEMORY: "memory size", **COUNTS}


@dataclasses.dataclass(frozen=True)
class Axis:
    """How the values of a key are laid out."""

    values: Sequence | None
    """Those of a list, in order; None for a range."""
    is_log: bool = False


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the page shows."""

    trials: pd.DataFrame
    """One row per trial: `trial`, `status`, its score, `reason`, and the keys of the space."""
    axes: Mapping[str, Axis]
    """By key, in the order of the space."""
    default: Mapping[str, Any]
    """Its value of each key, and its score."""
    test: Mapping[str, Mapping[str, float]]
    """Metrics of the test items by name, of "default" and "best"; empty before they are trained."""
    command: str
    """How to train the best."""
    about: Mapping[str, str]
    """The rest, such as the tuner."""
    score: str = "val_map_at_r"
    """Column of the trials, and key of the default, by which they are compared."""
    interval: tuple[float, float] | None = None
    """Of 95 %, of what the best is above the default; None where it is not known."""

    @property
    def title(self) -> str:
        """Of the score."""
        return SCORES[self.score][0]

    @property
    def finished(self) -> pd.DataFrame:
        """Those with a score, best first."""
        found = self.trials[self.trials.status == "completed"]
        return found.sort_values(self.score, ascending=False) if len(found) else found


def search_page(findings: Findings, title: str) -> Page:
    """The page of a search."""
    finished, sections = findings.finished, []
    if len(finished):
        sections = [_best(findings), _memory_and_k(findings), _importance(findings), _keys(findings)]
        sections.append(PageSection("How the search went", [_history(findings)]))
    sections.append(_all_trials(findings))
    num_failed = int((findings.trials.status == "failed").sum())
    score = " on ".join(SCORES[findings.score])
    subtitle = f"{len(finished)} trials finished, {num_failed} failed. Scores are {score}."
    return Page(title, verdict(findings), [s for s in sections if s.blocks], subtitle)


def verdict(findings: Findings) -> Verdict:
    """Whether to use the best trial: not where the interval of what it is above the default includes zero."""
    if not len(findings.finished):
        return Verdict("No trial has finished.", "bad")
    default = findings.default[findings.score]
    best = findings.finished.iloc[0]
    if not best[findings.score] > default:
        return Verdict(f"Keep the config as it is: no trial is better than its {default:.4f}.")
    scores = f"validation {findings.title} {best[findings.score]:.4f} instead of {default:.4f}"
    if findings.interval is not None:
        over = SCORES[findings.score][1].split()[-1]  # classes, items or queries
        scores += ", 95 % interval of the difference over {} {:+.4f} to {:+.4f}".format(over, *findings.interval)
    is_start = best.get("epoch") == 0
    note = " Its best epoch is 0, the closed form itself: any memory size and k will do." if is_start else ""
    if findings.interval is not None and findings.interval[0] <= 0:
        return Verdict(f"Trial {best.trial} is not surely better than the config as it is: {scores}.{note}")
    if is_start:
        return Verdict(f"Use trial {best.trial}: {scores}.{note}", "good")
    chosen = [f"{NAMES[key]} {_text(best[key])}" for key in NAMES if _is_set(best, key)]
    use = f"Use {', '.join(chosen)}" if chosen else f"Use trial {best.trial}"
    return Verdict(f"{use}: {scores} (trial {best.trial}).", "good")


def _best(findings: Findings) -> PageSection:
    best, default = findings.finished.iloc[0], findings.default
    rows: list[Any] = ["Score"]
    validation = {"default": default[findings.score], "best": best[findings.score]}
    is_worth = validation["best"] > validation["default"]
    tests = {f"test {name}": scores for name, scores in findings.test.items()}
    for name, scores in {f"validation {findings.title}": validation, **tests}.items():
        is_known = is_worth or scores is validation  # else what was tested twice is the default
        best_score = Cell(f"{scores['best']:.4f}", is_best=scores["best"] > scores["default"]) if is_known else ""
        rows.append([name, f"{scores['default']:.4f}", best_score])
    rows.append("Values")
    for key in findings.axes:
        now, then = _text(best.get(key)), _text(default.get(key))
        if now or then:
            rows.append([key, then, Cell(now, is_best=now != then)])
    note = (
        f"The best of many trials looks a little better on {SCORES[findings.score][1]} than it is; what tests was "
        "looked at after the search, for these two configs only."
        if is_worth
        else "No trial is better than the default, so best.yaml is the default, and no trial was tested."
    )
    table = PageTable(["", "default", f"best, trial {best.trial}"], rows)
    return PageSection("Default and best", [table, Paragraph(note, is_note=True), Code(findings.command)])


def _memory_and_k(findings: Findings) -> PageSection:
    axes = findings.axes
    blocks: list[Any] = []
    maps = [
        _heat_map(findings, MEMORY, k)
        for k in COUNTS
        if MEMORY in axes and k in axes and axes[MEMORY].values and axes[k].values
    ]
    if maps:
        blocks.append(Panels(maps))
    for key in NAMES:
        if key in axes and axes[key].values:
            blocks.append(_by_value(findings, key))
    return PageSection("Memory size and k", blocks)


def _heat_map(findings: Findings, x: str, y: str) -> Figure:
    finished = findings.finished
    scores = finished[findings.score].groupby([finished[x].map(_text), finished[y].map(_text)]).max()
    columns, rows = ([_text(value) for value in findings.axes[key].values or []] for key in (x, y))
    low, high = finished[findings.score].quantile(0.1), finished[findings.score].max()
    best = _text(finished.iloc[0][x]), _text(finished.iloc[0][y])
    with drawing(380, 300) as (figure, axes):
        axes.grid(False)
        for column, row, score in scores.reset_index().itertuples(index=False):
            i, j, is_best = columns.index(column), rows.index(row), (column, row) == best
            strength = float(np.clip((score - low) / max(high - low, 1e-9), 0, 1))
            place = (i - 0.5, j - 0.5), 1, 1
            axes.add_patch(Rectangle(*place, facecolor=SERIES[0], alpha=0.08 + 0.5 * strength, lw=0))
            weight = "bold" if is_best else "normal"
            label = f"{score:.3f}".removeprefix("0")
            axes.text(i, j, label, ha="center", va="center", fontsize=9, color=INK, fontweight=weight)
            if is_best:
                axes.add_patch(Rectangle(*place, fill=False, edgecolor=GOOD, lw=2))
        _categories(axes.xaxis, columns)
        _categories(axes.yaxis, rows)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5), xlabel=NAMES[x], ylabel=NAMES[y])
    alt = f"Best score for each pair of {NAMES[x]} and {NAMES[y]}; the best of all at {', '.join(best)}."
    caption = "The best trial in each cell, whatever its other values; empty where none was. Framed: the best of all."
    return Figure(figure.svg, alt, f"{NAMES[x].capitalize()} and {NAMES[y]}", caption)


def _by_value(findings: Findings, key: str) -> PageTable:
    finished, scores = findings.finished, findings.finished[findings.score]
    found = scores.groupby(finished[key].map(_text)).agg(["size", "max", "median"])
    rows: list[Any] = []
    for value in map(_text, findings.axes[key].values or []):
        if value not in found.index:
            rows.append([value, "0", "", ""])
            continue
        count, best, median = found.loc[value]
        bar = (best - scores.min()) / max(scores.max() - scores.min(), 1e-9)
        cell = Cell(f"{best:.4f}", bar=float(bar), is_best=bool(best == scores.max()))
        rows.append([value, f"{count:.0f}", cell, f"{median:.4f}"])
    return PageTable([NAMES[key], "trials", "best", "median"], rows)


def _importance(findings: Findings) -> PageSection:
    finished = findings.finished
    columns = {key: _places(finished[key], axis) for key, axis in findings.axes.items() if key in finished}
    columns = {key: np.nan_to_num(values, nan=-100.0) for key, values in columns.items()}
    columns = {key: values for key, values in columns.items() if len(np.unique(values)) > 1}
    if len(finished) < MIN_TRIALS_FOR_IMPORTANCE or not columns:
        return PageSection("What mattered", [])
    x, y = np.stack(list(columns.values()), axis=1), finished[findings.score].to_numpy()
    forest = RandomForestRegressor(100, min_samples_leaf=2, oob_score=True, random_state=0).fit(x, y)
    drops = permutation_importance(forest, x, y, n_repeats=10, random_state=0).importances_mean
    shares = np.maximum(drops, 0) / max(np.maximum(drops, 0).sum(), 1e-12)
    order = np.argsort(shares)
    names = np.array(list(columns))[order]
    with drawing(560, 26 * len(order) + 50) as (figure, axes):
        axes.barh(np.arange(len(order)), shares[order], color=SERIES[0], height=0.6)
        axes.set_yticks(np.arange(len(order)), names)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ranking = ", ".join(f"{name} {share:.0%}" for name, share in zip(names[::-1], shares[order][::-1], strict=True))
    explained = max(0.0, forest.oob_score_)
    caption = (
        "Share of each key in how much worse a random forest predicts the scores when the values of that key are "
        f"shuffled. The forest explains {explained:.0%} of the differences between trials that it was not fitted to; "
        "the lower that is, the less the shares say."
    )
    return PageSection("What mattered", [Figure(figure.svg, f"Importance: {ranking}.", caption=caption)])


def _keys(findings: Findings) -> PageSection:
    shown = [_key_figure(findings, key) for key in findings.axes if key in findings.finished]
    caption = (
        "Each point is a trial; the star is the best, the dashed line the default's score. Scores far below the others "
        "are at the lower edge."
    )
    return PageSection("Each key", [Paragraph(caption, is_note=True), Panels(shown)])


def _key_figure(findings: Findings, key: str) -> Figure:
    axis, best = findings.axes[key], findings.finished.iloc[0]
    finished = findings.finished[findings.finished[key].map(_text) != ""]
    with drawing(300, 200) as (figure, axes):
        low = _frame(axes, findings)
        places, jitter = _places(finished[key], axis), np.zeros(len(finished))
        if axis.values is None:
            if axis.is_log:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(numticks=5))
                axes.xaxis.set_major_formatter(lambda value, _: _text(value))  # the stock one writes TeX
                axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            jitter = np.random.default_rng(0).uniform(-0.18, 0.18, len(places))
            _categories(axes.xaxis, axis.values)
            axes.set_xlim(-0.5, len(axis.values) - 0.5)
        scores = np.maximum(finished[findings.score].to_numpy(float), low)
        axes.scatter(places + jitter, scores, s=16, color=SERIES[0], alpha=0.6, linewidths=0)
        if _is_set(best, key):
            axes.scatter((places + jitter)[:1], scores[:1], s=90, marker="*", color=GOOD, zorder=3, linewidths=0)
    return Figure(figure.svg, f"Scores by {key}; the best trial has {_text(best.get(key)) or 'none'}.", key)


def _history(findings: Findings) -> Figure:
    trials = findings.trials[findings.trials.status == "completed"]
    numbers, scores = trials.trial.astype(int).to_numpy(), trials[findings.score].to_numpy(float)
    with drawing(620, 240) as (figure, axes):
        low = _frame(axes, findings)
        axes.scatter(numbers, np.maximum(scores, low), s=16, color=SERIES[0], alpha=0.6, linewidths=0, label="trial")
        axes.step(numbers, np.maximum.accumulate(scores), where="post", color=GOOD, label="best so far")
        axes.set(xlabel="trial", ylabel=f"validation {findings.title}")
        axes.legend(loc="lower right")
    first = numbers[int(np.argmax(scores))]
    return Figure(figure.svg, f"Score of each trial in order; the best came at trial {first:04d} of {len(trials)}.")


def _all_trials(findings: Findings) -> PageSection:
    keys = [key for key in findings.axes if key in findings.trials]
    rows = [
        [row.trial, Cell(f"{row[findings.score]:.4f}", is_best=i == 0), *(_text(row[key]) for key in keys)]
        for i, (_, row) in enumerate(findings.finished.iterrows())
    ]
    blocks: list[Any] = [Facts(findings.about)]
    if rows:
        blocks.append(Details(f"All {len(rows)} finished trials", [PageTable(["trial", "score", *keys], rows)]))
    failed = findings.trials[findings.trials.status == "failed"]
    if len(failed):
        reasons = [[row.trial, row.reason] for _, row in failed.iterrows()]
        blocks.append(
            Details(f"{len(failed)} failed trials", [PageTable(["trial", "reason"], reasons, text_columns=["reason"])])
        )
    return PageSection("Trials", blocks)


def _frame(axes, findings: Findings) -> float:
    """Show the default's score, and where the scores of interest lie: the worst quarter may be far away; the lowest."""
    scores, default = findings.finished[findings.score], findings.default[findings.score]
    high, low = max(scores.max(), default), min(scores.quantile(0.25), default)
    low, high = low - 0.25 * (high - low) - 1e-4, high + 1e-4
    axes.axhline(default, color=MUTED, linestyle="--", linewidth=1, label="default")
    axes.set_ylim(low - 0.03 * (high - low), high + 0.05 * (high - low))
    return low


def _categories(axis, values: Sequence) -> None:
    axis.set_ticks(range(len(values)), [_text(value) for value in values])
    if sum(len(_text(value)) for value in values) > 28 and axis.axis_name == "x":
        axis.set_tick_params(rotation=35)


def _places(column: pd.Series, axis: Axis) -> np.ndarray:
    """Numbers as they are, others by their place in the list, -1 where there is none."""
    if axis.values is None:
        return column.to_numpy(float)
    index = {_text(value): i for i, value in enumerate(axis.values)}
    return column.map(lambda value: index.get(_text(value), -1)).to_numpy(float)


def _is_set(row: pd.Series, key: str) -> bool:
    return key in row and _text(row[key]) != ""


def _text(value: Any) -> str:
    """A value as a reader writes it; of one that is not there nothing."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float | np.floating):  # pandas makes numbers with gaps floats
        number = float(value)
        return f"{number:.0f}" if number.is_integer() and abs(number) < 1e9 else f"{number:.4g}"
    return f"{value:d}" if isinstance(value, int | np.integer) else str(value)
