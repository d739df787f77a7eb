"""The pages: self-contained, escaped, whole, and readable in light and dark."""

import html.parser
import re

import numpy as np
import pytest

from xbm_keras.report import figures, page


class Reader(html.parser.HTMLParser):
    """Tags, attributes and text of a page; checks that each tag is closed by its own."""

    VOID = ("meta", "img", "wbr")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def drawn(values=(1, 3, 2)):
    with figures.drawing() as (figure, axes):
        axes.plot(values, color=figures.SERIES[0])
        axes.plot(values[::-1], color=figures.GOOD)
        axes.set_title("a <b> & c", color=figures.INK)
    return figure.svg


@pytest.fixture
def everything():
    """A page with each kind of block, and texts that are dangerous where they are not escaped."""
    evil = '<script>alert("x")</script> & ä \'"'
    picture = page.Item(evil, evil, picture=page.picture_uri(np.full((200, 100, 3), 7, np.uint8)))
    text, bare = page.Item("b", "7", text=evil), page.Item("c", "row " + evil)
    hits = [page.Hit(picture, True, 0.5), page.Hit(picture, False, 0.4)]
    blocks = [
        page.Paragraph(evil),
        page.Facts({evil: evil}),
        page.Code(evil),
        page.Heading(evil),
        page.PageTable(["", evil], [evil, [evil, page.Cell(evil, bar=0.25, tone="bad", is_best=True)]], evil),
        page.Panels([page.Figure(drawn(), evil, evil, evil), page.Figure(drawn((5, 1)), "alt")]),
        page.Details(evil, [page.Paragraph("inside")]),
        page.QueryResults([page.QueryResult(picture, evil, {"frozen": hits, evil: hits[::-1]})]),
        page.QueryResults([page.QueryResult(text, "", {"frozen": [page.Hit(bare, True, 0.123)]})]),
    ]
    return page.Page(evil, page.Verdict(evil, "good"), [page.PageSection(evil, blocks)], evil)


def test_texts_are_escaped_and_tags_match(everything):
    reader = Reader(page.render(everything))
    assert "script" not in reader.tags
    assert reader.texts.count('<script>alert("x")</script> & ä \'"') >= 12
    assert "0.12" in reader.texts


def test_nothing_is_fetched(everything):
    text = page.render(everything)
    for tag, name, value in Reader(text).attributes:
        if name in ("src", "href", "xlink:href", "data", "action"):
            assert value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text  # and a browser would refuse


def test_every_picture_says_what_it_shows(everything):
    reader = Reader(page.render(everything))
    assert sum(name == "alt" for _, name, _ in reader.attributes) == reader.tags.count("img") == 5
    assert sum(name == "role" and value == "img" for _, name, value in reader.attributes) == 2 + 4 + 1
    assert reader.texts.count("✓") == 3
    assert reader.texts.count("✗") == 2


def test_ids_are_unique_and_all_that_is_referred_to_exists(everything):
    text = page.render(everything)
    ids = [value for _, name, value in Reader(text).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', text)) <= set(ids)


def test_colours_are_those_of_the_page_in_light_and_dark(everything):
    text = page.render(everything)
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    names = [set(re.findall(r"(--[\w-]+):", block)) for block in (light, dark)]
    assert names[0] == names[1] >= set(re.findall(r"var\((--[\w-]+)\)", text))
    assert not re.search(r"#0[12]0[123]", drawn())
    assert "var(--series-1)" in drawn()
    assert "var(--good)" in drawn()


def test_numbers_in_figures_keep_their_digits():
    with figures.drawing() as (figure, axes):
        axes.text(0.123456, 0.5, "0.12345")
    svg = figure.svg
    assert ">0.12345<" in svg
    assert not re.search(r'\bd="[^"]*\.\d{3}', svg)


def test_the_same_figure_gives_the_same_bytes():
    assert drawn() == drawn() != drawn((4, 4))
    assert 'width="350" height="220"' in drawn()


def test_thumbnails_are_small():
    noise = np.random.default_rng(0).integers(0, 256, (600, 300, 3), np.uint8)
    assert len(page.picture_uri(noise, size=96)) < 8000
    assert page.picture_uri(noise).startswith("data:image/webp;base64,")


def test_a_page_is_written_whole_or_not_at_all(everything, tmp_path):
    page.write_page(tmp_path / "x.html", everything)
    assert (tmp_path / "x.html").read_text("utf-8") == page.render(everything)
    assert [p.name for p in tmp_path.iterdir()] == ["x.html"]
    with pytest.raises(OSError, match="nowhere"):
        page.write_page(tmp_path / "nowhere/x.html", everything)
