"""The skeleton of our pages: a title, a verdict and sections of blocks become one HTML file that needs no network.

Every text is escaped, so class names and texts of items may hold anything. Light or dark is the reader's choice.

    page = Page("Tuning", Verdict("Trial 17 is best.", "good"), [PageSection("Trials", [PageTable(...), figure])])
    write_page("report.html", page)
"""

import base64
import dataclasses
import functools
import html
import io
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
import PIL.Image

from xbm_keras.atomic_files import write_whole
from xbm_keras.evaluation.wording import Tone


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The page in one sentence."""

    text: str
    tone: Tone = "plain"


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A paragraph; `is_note` sets it small and muted."""

    text: str
    is_note: bool = False


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and values, side by side."""

    pairs: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Code:
    """Text as it is, such as a command or a config."""

    text: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value of a table."""

    text: str
    bar: float | None = None
    """Length of a bar beneath the text, 0 to 1."""
    tone: Tone = "plain"
    is_best: bool = False
    """Set in bold."""
    note: str = ""
    """Small beneath the text, such as an interval."""


@dataclasses.dataclass(frozen=True)
class PageTable:
    """A table; wider than the page, it scrolls by itself.

    A row is a list of cells, the first of which heads the row, or one string, which heads the rows that follow. A cell
    is a `Cell` or a text. Columns named in `text_columns` are set left, the others right, as numbers are.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence["Cell | str"] | str]
    caption: str = ""
    text_columns: Sequence[str] = ()

    def cells(self, row: Sequence["Cell | str"]) -> list[Cell]:
        """The row's values as cells."""
        return [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing. `svg` is that of a `figures.drawing`; `alt` says in words what is to be seen."""

    svg: str
    alt: str
    title: str = ""
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Panels:
    """Figures and tables side by side, as many as the width allows."""

    blocks: Sequence["Block"]


@dataclasses.dataclass(frozen=True)
class Details:
    """Blocks behind a line that opens them."""

    summary: str
    blocks: Sequence["Block"]


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of the data: a picture, a text, or its id alone."""

    label: str
    name: str
    """Its key, such as a path."""
    picture: str | None = None
    """A data URI, from `picture_uri`."""
    text: str | None = None
    """Of a long one two lines are shown, and all of it on a click."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """A neighbour of a query."""

    item: Item
    is_right: bool | None
    """None where nobody knows."""
    similarity: float


@dataclasses.dataclass(frozen=True)
class QueryResult:
    """A query and what each of several rankings finds for it, nearest first."""

    query: Item
    note: str
    found: Mapping[str, Sequence[Hit]]
    """By the name of the ranking."""


@dataclasses.dataclass(frozen=True)
class QueryResults:
    """Queries, one below the other, rankings side by side."""

    searches: Sequence[QueryResult]


Block = Paragraph | Heading | Facts | Code | PageTable | Figure | Panels | Details | QueryResults


@dataclasses.dataclass(frozen=True)
class PageSection:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The heading as the id of the section."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


@dataclasses.dataclass(frozen=True)
class Page:
    """All that a page says."""

    title: str
    verdict: Verdict
    sections: Sequence[PageSection]
    subtitle: str = ""


def picture_uri(pixels: np.ndarray, size: int = 96) -> str:
    """A picture, uint8 [H, W, 3], as a data URI of at most `size` x `size` pixels, a few kilobytes of WebP."""
    picture = PIL.Image.fromarray(pixels)
    picture.thumbnail((size, size), PIL.Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def render(page: Page) -> str:
    """The page as HTML."""
    return _template().render(page=page).lstrip()


def write_page(path: str | os.PathLike, page: Page) -> None:
    """Write the page, whole or not at all. Raises OSError."""
    write_whole(pathlib.Path(path), render(page))


def retitle(path: pathlib.Path, title: str) -> None:
    """Give a page that was written another title, in the two places that the template has for it."""
    text = path.read_text("utf-8")
    write_whole(path, re.sub("(<title>|<h1>).*?(?=</)", lambda found: found[1] + html.escape(title), text, count=2))


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")
