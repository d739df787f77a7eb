"""What the entry points say."""

import contextlib
import errno
import io
import logging
import os
import pathlib
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator

import absl.logging
import rich
import rich.console
import rich.table
import tensorflow as tf

from xbm_keras import progress
from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.data.sources import DataError
from xbm_keras.evaluation import wording
from xbm_keras.experiment import devices
from xbm_keras.model.non_finite import NonFiniteFeatures, NonFiniteLoss
from xbm_keras.training.checkpoints import CheckpointError


def set_up(verbose: bool = False) -> None:
    """Our own messages plain, with progress; those of the libraries below only from warnings up, unless `verbose`.

    The memory of GPUs is to grow, from here on. Where standard output is not UTF-8, what it has no character for is
    written as its number.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    devices.let_memory_grow()
    absl.logging.set_verbosity(absl.logging.INFO if verbose else absl.logging.WARNING)
    ours = logging.getLogger("xbm_keras")
    ours.handlers, ours.propagate = [Messages()], False
    ours.setLevel("DEBUG" if verbose else "INFO")
    progress.show()


class Messages(logging.Handler):
    """Messages on standard output. A terminal gets them broken between words alone, so that a path can be copied from
    it; a file or a pipe gets a line for each.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one. Where it cannot be written, such as to a full disk, `logging` says so and the training goes on."""
        console, message = rich.get_console(), self.format(record)
        if console.is_terminal:
            wrap = textwrap.TextWrapper(console.width, break_long_words=False, break_on_hyphens=False)
            message = "\n".join(wrap.fill(line) for line in message.splitlines())
        try:
            console.print(message, soft_wrap=True, markup=False, highlight=False, emoji=False)
        except BrokenPipeError:  # whoever reads has enough
            raise
        except OSError:
            self.handleError(record)


GOES_ON = "Once that is mended the same command goes on from what is kept."
TOLD = (ConfigError, DataError, NonFiniteFeatures, NonFiniteLoss, CheckpointError)
# All errors of ours begin so; Keras wraps those that a layer raises when it is called.
OURS = re.compile(r"(?:Exception encountered when calling .*?\n\n\x1b\[1m)?(Received .*?)(?:\x1b\[0m.*)?$", re.DOTALL)


@contextlib.contextmanager
def readable_errors(*more: type[Exception]) -> Iterator[None]:
    """What a user can mend, and these, ends as one message and exit code 2; Ctrl-C with 130, SIGTERM with 143. None as
    a traceback.

    Whatever the package refuses is what a user gave: a ValueError of ours, which says what was received, too.
    """
    told: tuple[type[Exception], ...] = (*TOLD, *more)
    is_main = threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGTERM, _terminate) if is_main else None
    try:
        yield
    except KeyboardInterrupt as interrupt:
        is_signal = any(isinstance(each, Terminated) for each in _causes(interrupt))
        print(
            f"{'Terminated' if is_signal else 'Interrupted'}. The same command goes on from what is kept: features "
            "computed, epochs saved, trials done.",
            file=sys.stderr,
        )
        sys.exit(128 + (signal.SIGTERM if is_signal else signal.SIGINT))
    except BrokenPipeError:  # of the program's own output; `main` knows
        raise
    except OSError as error:
        _print_error(f"{error}. {GOES_ON}")
        sys.exit(2)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        if os.strerror(errno.ENOSPC) in str(error):  # which TensorFlow calls an exhausted resource, too
            _print_error(f"{str(error).splitlines()[0]}. {GOES_ON}")
            sys.exit(2)
        _print_error(
            f"Received a config that needs more memory than there is: {str(error).splitlines()[0]}; expected a smaller "
            "training.batch_size, memory.memory_size, top_k or head. Lower what is large."
        )
        sys.exit(2)
    except told as error:
        _print_error(error)
        sys.exit(2)
    except ValueError as error:
        ours = OURS.match(str(error))
        if ours is None:  # a fault of the program
            raise
        _print_error(ours[1])
        sys.exit(2)
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, former)


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which a machine asks a process to end: handled as Ctrl-C."""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _terminate(number, frame):
    raise Terminated


def _print_error(error: object) -> None:
    rich.console.Console(stderr=True, highlight=False, soft_wrap=True).print("[bold red]Error:[/]", end=" ")
    print(error, file=sys.stderr)


def print_kept(workdir: pathlib.Path, epoch: int) -> None:
    """What an interrupted run leaves."""
    which = f"of epoch {epoch}" if epoch else "the untrained start"
    kept = f"The best head so far, {which}, is in {workdir}/model.keras; it was not tested."
    print(f"{kept} For a run that ends there: --set training.epochs={epoch} and another --workdir", file=sys.stderr)


def print_scores(metrics: dict, which: str) -> None:
    """The tables of `{protocol: {embedding: {metric: value}}}` of these items."""
    console = rich.console.Console(highlight=False)
    for number, (columns, protocols) in enumerate(wording.tables(metrics)):
        title = None if number else which
        table = rich.table.Table("", box=rich.box.SIMPLE, title=title, title_justify="left")
        for column in columns.values():
            table.add_column(column, justify="right", no_wrap=True)
        for protocol in protocols:
            table.add_row(f"[bold]{wording.PROTOCOLS[protocol]}[/bold]")
            for name, values in metrics[protocol].items():
                table.add_row(f"  {wording.title(name)}", *(f"{values[metric]:.3f}" for metric in columns))
        console.print(table)


def print_results(workdir: pathlib.Path, metrics: dict, which: str) -> None:
    """The table of `metrics.json`, under whose it is, the verdict and the paths."""
    console = rich.console.Console(highlight=False)
    print_scores(metrics, which)
    console.print(wording.verdict(metrics)[1], soft_wrap=True)
    if (workdir / "report.html").exists():
        console.print(f"[bold]Report[/bold]   {workdir}/report.html", soft_wrap=True)
    exported = f"{workdir}/export/1 (SavedModel), " if (workdir / "export").exists() else ""
    console.print(f"[bold]Model[/bold]    {exported}{workdir}/model.keras", soft_wrap=True)
    console.print(f"[bold]Numbers[/bold]  {workdir}/metrics.json, {workdir}/history.csv", soft_wrap=True)
    console.print(f"[bold]Curves[/bold]   tensorboard --logdir {workdir}/tensorboard", soft_wrap=True)
