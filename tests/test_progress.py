"""Progress: nothing for what is quick, a bar on a terminal, one line elsewhere."""

import io
import logging
import sys

import numpy as np
import pytest

from xbm_keras import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def lines(monkeypatch):
    """Log lines, with progress shown and a clock that goes one second per look."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(progress, "_is_shown", True)
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    monkeypatch.setattr(progress.log, "handlers", [handler])
    monkeypatch.setattr(progress.log, "level", logging.INFO)
    return found


def work(steps):
    with progress.bar("reading", 10 * steps) as bar:
        for _ in range(steps):
            bar.advance(10, "note")


def test_one_line_where_there_is_no_terminal(lines, capsys):
    work(5)
    (line,) = lines
    assert line.startswith("reading: 50 items in ")
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(lines, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    work(5)
    assert "reading" in screen.getvalue()
    assert "50/50" in screen.getvalue()
    assert "items/s" in screen.getvalue()
    assert "note" in screen.getvalue()
    assert not lines


def last_frame(screen):
    """What was drawn since the cursor was last moved to the beginning."""
    return screen.getvalue().rpartition("\r")[2]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_bars_of_two_threads_stand_below_each_other(lines, monkeypatch, order):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    bars = [progress.Bar(title, 10, "items") for title in ("fold one", "fold two")]
    for bar in bars:
        for _ in range(4):
            bar.advance()
    bars[0].progress.refresh()
    assert all(bar.title in last_frame(screen) for bar in bars)
    one, other = (bars[i] for i in order)
    one.advance(6)
    one.close()
    other.advance(2)
    other.progress.refresh()
    assert "6/10" in last_frame(screen)  # it is drawn still
    other.advance(4)
    other.close()
    assert screen.getvalue().count("10/10") >= 2
    assert progress._opened == []


def test_nothing_for_what_is_quick_or_was_not_asked_for(lines, monkeypatch):
    monkeypatch.setattr(progress, "_is_shown", False)
    work(5)
    monkeypatch.setattr(progress, "_is_shown", True)
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    work(5)
    assert not lines


def test_blocks_and_rows_are_counted(lines):
    assert list(progress.track(range(0, 25, 10), "blocks", 25)) == [0, 10, 20]
    rows = np.arange(60).reshape(30, 2)
    with progress.watch(rows, "rows") as watched:
        assert (len(watched), watched.shape) == (30, (30, 2))
        for _ in range(2):  # two passes
            for start in range(0, 30, 20):
                np.testing.assert_array_equal(watched[start : start + 20], rows[start : start + 20])
    assert [line.split(" in ")[0] for line in lines] == ["blocks: 25 items", "rows: 30 items"]
