"""Progress of whatever takes longer than two seconds: a bar on a terminal, elsewhere one line when it is done.

Entry points ask for it with `show`; a script that uses the library as such has its output for itself.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import rich.console
import rich.progress
import rich.table

log = logging.getLogger("xbm_keras")
DELAY = 2.0  # seconds
_is_shown = False
_opened: list[tuple["Bar", rich.progress.Progress]] = []  # on the terminal, one below the other
_opening = threading.RLock()  # some are of threads at once


def show() -> None:
    """Show progress from now on."""
    global _is_shown
    _is_shown = True


class Bar:
    """One task and its bar, which appears once it has taken more than `DELAY` seconds and goes on. Bars may be nested.

    Args:
        title: what is done.
        total: steps.
        unit: of a step, in the plural.
    """

    def __init__(self, title: str, total: int, unit: str):
        self.title, self.total, self.unit = title, total, unit
        self.completed = self.num_advances = 0
        self.note = ""
        self.start = time.monotonic()
        self.progress: rich.progress.Progress | None = None
        self.is_closed = False

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """So many steps are done; the note stands at the end of the bar."""
        self.completed += count
        self.num_advances += 1
        self.note = self.note if note is None else note
        is_due = self.seconds > DELAY and self.completed < self.total
        if self.progress is None and is_due and _is_shown and sys.stderr.isatty():
            self._open()
        if self.progress is not None:
            task = self.progress.task_ids[0]
            self.progress.update(task, completed=self.completed, rate=self.rate, note=self.note)

    def restart(self) -> None:
        """Back to zero, for another pass."""
        self.completed = 0

    def close(self) -> None:
        """Leave the bar as it is; where there is no terminal, say what was done."""
        self.is_closed = True
        if self.progress is not None:
            with _opening:
                while _opened and _opened[-1][0].is_closed:  # the first one draws the others, and so ends last
                    _opened.pop()[1].stop()
        elif _is_shown and self.seconds > DELAY and self.num_advances > 1 and not sys.stderr.isatty():
            done = f"{self.completed:,} {self.unit}"
            log.info("%s: %s in %.0f s (%s)", self.title, done, self.seconds, self.rate)

    @property
    def seconds(self) -> float:
        """Since the task began."""
        return time.monotonic() - self.start

    @property
    def rate(self) -> str:
        """Steps per second."""
        return f"{self.completed / self.seconds:,.3g} {self.unit}/s"

    def _open(self) -> None:
        with _opening:
            self.progress = self._on(_opened[0][1].console if _opened else rich.console.Console(stderr=True))
            self.progress.start()
            _opened.append((self, self.progress))

    def _on(self, console: rich.console.Console) -> rich.progress.Progress:
        """A bar on a console: rich draws those of one console together."""
        progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(16),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
            # The note gets what is left of the line.
            rich.progress.TextColumn(
                "[dim]{task.fields[note]}", table_column=rich.table.Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            expand=True,
            console=console,
        )
        progress.add_task(self.title, total=self.total, rate="", note="")
        return progress


@contextlib.contextmanager
def bar(title: str, total: int, unit: str = "items") -> Iterator[Bar]:
    """A `Bar`, closed at the end.

    Example:
        >>> with bar("reading", total=3) as reading:
        ...     for _ in range(3):
        ...         reading.advance()
    """
    one = Bar(title, total, unit)
    try:
        yield one
    finally:
        one.close()


def track(starts: range, title: str, total: int, unit: str = "items") -> Iterable[int]:
    """The starts of the blocks of `total` items, with a bar."""
    with bar(title, total, unit) as blocks:
        for start in starts:
            yield start
            blocks.advance(min(starts.step, total - start))


class WatchedRows:
    """Rows [n, D] that are read in slices, with a bar; each further pass over them begins it anew."""

    def __init__(self, rows, advance: Callable[[int], None], restart: Callable[[], None]):
        self.rows = rows
        self.shape = rows.shape
        self._advance, self._restart = advance, restart

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        block = self.rows[index]
        if isinstance(index, slice):
            if not index.start:
                self._restart()
            self._advance(len(block))
        return block


@contextlib.contextmanager
def watch(rows, title: str) -> Iterator[WatchedRows]:
    """These rows, with a bar for those who read them in slices."""
    with bar(title, len(rows)) as reading:
        yield WatchedRows(rows, reading.advance, reading.restart)
