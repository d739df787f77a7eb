"""What the entry points say."""

import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator

import absl.logging
import rich.console
import rich.logging
import rich.table

from xbm_keras.config import ConfigError
from xbm_keras.data.sources import DataError
from xbm_keras.model import NonFiniteFeatures

SHOWN = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "map_at_r": "MAP@R",
    "r_precision": "R-Prec",
}
PROTOCOLS = {"leave_one_out": "leave-one-out", "query_gallery": "query/gallery"}


def set_up(verbose: bool = False) -> None:
    """Our own messages plain, those of the libraries below only from warnings up, unless `verbose`."""
    absl.logging.set_verbosity(absl.logging.INFO if verbose else absl.logging.WARNING)
    handler = rich.logging.RichHandler(show_time=False, show_level=False, show_path=False, highlighter=None)
    ours = logging.getLogger("xbm_keras")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel("INFO")


@contextlib.contextmanager
def readable_errors(*more: type[Exception]) -> Iterator[None]:
    """What a user can mend, these errors included, ends as one message and exit code 2, not as a traceback."""
    try:
        yield
    except (ConfigError, DataError, NonFiniteFeatures, *more) as error:
        rich.console.Console(stderr=True, highlight=False, soft_wrap=True).print("[bold red]Error:[/]", end=" ")
        print(error, file=sys.stderr)
        sys.exit(2)


def verdict(metrics: dict) -> str:
    """One sentence: is the trained head worth having."""
    scores = {name: values["map_at_r"] for name, values in metrics["leave_one_out"].items()}
    others = {name: value for name, value in scores.items() if name != "trained"}
    best = max(others, key=others.__getitem__)
    gain = scores["trained"] - others[best]
    name = best.replace("_", " ")
    if scores["trained"] < scores["frozen"]:
        return (
            f"The head is WORSE than the frozen features: MAP@R {scores['trained']:.3f} against {scores['frozen']:.3f}."
        )
    if gain < 0:
        return f"Training made the head worse than its {name} start, by {-gain:.3f} MAP@R: use training.epochs=0."
    if gain < 0.001:
        return f"Training changed next to nothing: MAP@R {scores['trained']:.3f}, {name} {others[best]:.3f}."
    return f"The trained head is {gain:.3f} MAP@R above the best of the others ({name})."


def print_scores(metrics: dict) -> None:
    """The table of `{protocol: {embedding: {metric: value}}}`."""
    table = rich.table.Table(box=rich.box.SIMPLE, title="Test items", title_justify="left")
    table.add_column("")
    for title in SHOWN.values():
        table.add_column(title, justify="right", no_wrap=True)
    for protocol, embeddings in metrics.items():
        if protocol in PROTOCOLS:
            table.add_row(f"[bold]{PROTOCOLS[protocol]}[/bold]")
            for name, values in embeddings.items():
                table.add_row(f"  {name.replace('_', ' ')}", *(f"{values[metric]:.3f}" for metric in SHOWN))
    rich.console.Console(highlight=False).print(table)


def print_results(workdir: pathlib.Path, metrics: dict) -> None:
    """The table of `metrics.json`, the verdict and the paths."""
    console = rich.console.Console(highlight=False)
    print_scores(metrics)
    console.print(verdict(metrics))
    console.print(f"[bold]Model[/bold]    {workdir}/export/1 (SavedModel), {workdir}/model.keras", soft_wrap=True)
    console.print(f"[bold]Numbers[/bold]  {workdir}/metrics.json, {workdir}/history.csv", soft_wrap=True)
    console.print(f"[bold]Curves[/bold]   tensorboard --logdir {workdir}/tensorboard", soft_wrap=True)
