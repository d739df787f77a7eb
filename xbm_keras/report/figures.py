"""Drawings whose colours the page decides: matplotlib's SVG, with variables of `page.css` in place of colours.

A figure is drawn at the size at which it is read: one unit is one CSS pixel, and nothing is wider than a phone.
"""

import contextlib
import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

import cycler
import matplotlib
import matplotlib.axes
import matplotlib.figure

INK, MUTED, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = [f"#0102{i:02x}" for i in range(1, 11)]
"""Ten colours that can be told apart, for figures with a legend; a reader who cannot tell them has the marks."""
GOOD, BAD = "#010301", "#010302"

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--paper",
    GOOD: "--good",
    BAD: "--bad",
    **{color: f"--series-{i}" for i, color in enumerate(SERIES, 1)},
}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, and in the font of the page
    "svg.hashsalt": "xbm_keras",  # the same figure gives the same bytes
    "font.size": 12,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$1"
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.prop_cycle": cycler.cycler(color=SERIES),
    "figure.constrained_layout.w_pad": 0.11,  # inches: the font of the page may be wider than the one that is measured
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 1.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
}


class Drawing(matplotlib.figure.Figure):
    """A figure of a page."""

    svg = ""
    """Inline, once the block of `drawing` has ended."""


@contextlib.contextmanager
def drawing(width: int = 350, height: int = 220) -> Iterator[tuple[Drawing, matplotlib.axes.Axes]]:
    """A figure of this size in CSS pixels, and its axes, in the style of the page.

    Example:
        >>> with drawing() as (figure, axes):
        ...     line = axes.plot([1, 2, 3], color=SERIES[2])
        >>> figure.svg[:4]
        '<svg'
    """
    with matplotlib.rc_context(_STYLE):
        figure = Drawing((width / 72, height / 72), layout="constrained", dpi=72)
        yield figure, figure.subplots()
        figure.svg = _to_svg(figure)


def _to_svg(figure: Drawing) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    svg = re.sub(r'="([\d.]+)pt"', r'="\1"', svg, count=2)  # width and height: 1 pt is 1 CSS pixel here
    # Hundredths of a pixel are enough; what stands between the tags is text.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = svg.replace("<svg", '<svg aria-hidden="true"', 1)  # the page says what is to be seen
    return _with_ids_of_its_own(svg)


def _with_ids_of_its_own(svg: str) -> str:
    """Ids that no other figure of the page has; those that nothing refers to are left out."""
    prefix = f"f{zlib.crc32(svg.encode()):08x}-"
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)
