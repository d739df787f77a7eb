"""`compress.html`: bytes against quality of all that was tried, what was chosen, and what it came to."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.ticker

from xbm_keras.report.figures import GOOD, INK, MUTED, SERIES, drawing
from xbm_keras.report.page import (
    Block,
    Cell,
    Figure,
    Page,
    PageSection,
    PageTable,
    Paragraph,
    Verdict,
    write_page,
)

COLOR_OF = {"float32": SERIES[0], "float16": SERIES[1], "int8": SERIES[2], "int4": SERIES[3], "binary": SERIES[4]} | {
    "trellis": SERIES[5]
}


class Tried(NamedTuple):
    """One of the ways that were tried."""

    source: str
    width: int
    search: str
    """The code that is searched."""
    ranked: str
    """How candidates are ranked again, such as "4 k by int8", or nothing."""
    size: int
    """Bytes of an item that are to be few."""
    on_disk: int
    """Bytes of an item, of what ranks again."""
    quality: float
    surely: float
    is_kept: bool


def front(tried: Sequence[Tried]) -> list[Tried]:
    """Those than which nothing smaller is as good, ascending: the Pareto front."""
    best: list[Tried] = []
    for each in sorted(tried, key=lambda each: (each.size, -each.quality, each.on_disk)):
        if not best or each.quality > best[-1].quality:
            best.append(each)
    return best


def figure(
    tried: Sequence[Tried],
    metric: str,
    least: float,
    frozen: tuple[int, float],
    chosen: Tried | None,
    counted: str,
) -> Figure:
    """Bytes that are searched against quality, the front, the promise and the frozen features.

    Args:
        tried: all of it.
        metric: its name.
        least: what is promised.
        frozen: bytes and quality of the frozen features in float32.
        chosen: what is exported.
        counted: which bytes are to be few.
    """
    with drawing(640, 330) as (drawn, axes):
        for code, color in COLOR_OF.items():
            for is_ranked, marker, label in ((False, "o", code), (True, "^", f"{code}, ranked again")):
                points = [each for each in tried if each.search == code and bool(each.ranked) == is_ranked]
                if points:
                    x, y = [each.size for each in points], [each.quality for each in points]
                    axes.scatter(x, y, s=26, marker=marker, color=color, alpha=0.75, linewidths=0, label=label)
        best = front(tried)
        x, y = [each.size for each in best], [each.quality for each in best]
        axes.plot(x, y, color=INK, lw=1, alpha=0.6, drawstyle="steps-post", zorder=1, label="best for its bytes")
        axes.axhline(least, color=GOOD, ls="--", label=f"promised {least:g}")
        axes.scatter(*frozen, s=60, marker="D", color=MUTED, label="frozen, float32")
        if chosen:
            axes.scatter(
                chosen.size,
                chosen.quality,
                s=150,
                marker="o",
                facecolors="none",
                edgecolors=GOOD,
                lw=2,
                label="exported",
            )
        sizes = [each.size for each in tried] + [frozen[0]]
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(sizes) / 1.3, max(sizes) * 1.3)
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(base=2, numticks=14))
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.minorticks_off()
        lowest = min(each.quality for each in tried)
        axes.set_ylim(max(lowest, least - 0.45) - 0.01, max(1.0, frozen[1]) * 1.015)
        axes.set_xlabel(counted)
        axes.set_ylabel(metric)
        drawn.legend(loc="outside lower center", ncols=3, markerscale=1.2)
    said = ", ".join(f"{each.quality:.3f} at {each.size:,} bytes" for each in best)
    alt = f"{metric} over {counted}; the best for their bytes: {said}; promised {least:g}."
    return Figure(drawn.svg, alt, f"{metric} of held-out items by bytes")


def table(tried: Sequence[Tried], metric: str, chosen: Tried | None) -> PageTable:
    """The front, and what was chosen."""
    shown = front(tried)
    if chosen is not None and chosen not in shown:
        shown = sorted([*shown, chosen], key=lambda each: each.size)
    rows: list[list[Cell | str]] = [
        [
            f"{each.size:,}",
            f"{each.on_disk:,}" if each.on_disk else "",
            each.source,
            f"{each.width:,}",
            each.search,
            each.ranked,
            Cell(f"{each.quality:.3f}", tone="good" if each.is_kept else "plain", is_best=each == chosen),
        ]
        for each in shown
    ]
    columns = [
        "Bytes",
        "Of the finer code",
        "Embedding",
        "Dimensions",
        "Searched",
        "Ranked again",
        metric,
    ]
    return PageTable(columns, rows, "The best for their bytes; the exported one in bold.", columns[2:6])


def write_compression_page(
    path: str | os.PathLike,
    title: str,
    verdict: Verdict,
    tried: Sequence[Tried],
    metric: str,
    least: float,
    frozen: tuple[int, float],
    chosen: Tried | None,
    counted: str,
    how: str,
) -> None:
    """Write the page.

    For the arguments see `figure`; the verdict says what was promised and what it came to, `how` who searched what.
    """
    note = (
        "Each point is a width, a code and perhaps a second ranking, of the trained embedding or of the frozen "
        f"features themselves. {how} A promise counts as kept where the lower bound of the mean, of 95 % confidence, "
        "keeps it."
    )
    blocks: list[Block] = [figure(tried, metric, least, frozen, chosen, counted), Paragraph(note, is_note=True)]
    sections = [PageSection("Bytes and quality", [*blocks, table(tried, metric, chosen)])]
    write_page(path, Page(title, verdict, sections, f"{len(tried):,} ways to keep its embeddings in few bytes"))
