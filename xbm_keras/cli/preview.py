"""`xbm-keras preview`: what closed forms would give, in seconds once the features are there, and what to do."""

import rich.box
import rich.console
import rich.table

from xbm_keras.cli import parsers, terminal
from xbm_keras.config.yaml_files import ConfigError, load_config
from xbm_keras.experiment import build, loading
from xbm_keras.experiment.chosen_parts import choose_parts
from xbm_keras.experiment.preview import Preview, preview


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 where it cannot be done."""
    options = parsers.preview().parse_args(arguments)
    terminal.set_up()
    with terminal.readable_errors():
        config = load_config(options.config, options.set)
        if config.is_of_pairs or config.is_without_labels:
            raise ConfigError(
                f"Received data.source {config.data.source!r} with loss.name {config.loss.name!r}; expected items with "
                "classes and a loss that uses them. Run train.py with training.epochs=0, which needs no more time."
            )
        source = build.make_source(config)
        backbone = build.make_whole_backbone(config)
        config = build.sized_for(config, source, backbone)
        config, dataset, _ = choose_parts(config, loading.dataset_of(source, config, backbone), backbone)
        show(preview(config, dataset))
    return 0


def show(found: Preview) -> None:
    """The table, what the learning curve says, and the advice."""
    console = rich.console.Console(highlight=False)
    table = rich.table.Table("", box=rich.box.SIMPLE, title="Held-out training classes", title_justify="left")
    for column in ("MAP@R", "95 %", "above frozen, 95 %"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.rows:
        above = "" if row.above_frozen is None else "{:+.3f} to {:+.3f}".format(*row.above_frozen)
        table.add_row(row.name, f"{row.score:.3f}", "{:.3f} to {:.3f}".format(*row.interval), above)
    console.print(table)
    if found.curve is not None:
        console.print(str(found.curve), soft_wrap=True)
    console.print(found.advice, soft_wrap=True)
