"""`xbm-keras export`: export a finished run again, in another form."""

import pathlib

from xbm_keras.cli import parsers, terminal
from xbm_keras.config.yaml_files import ConfigError, load_config
from xbm_keras.experiment import run_folder, saved_run
from xbm_keras.export.other_runtimes import export_to
from xbm_keras.export.sentence_transformers import export_modules


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 where it cannot be done."""
    options = parsers.export().parse_args(arguments)
    terminal.set_up()
    with terminal.readable_errors():
        run = saved_run.run_of(options.model)
        model = saved_run.load_model(options.model)
        config = load_config(str(run / "config.yaml"), options.set, is_finished=True)
        if options.modules:
            print(export_modules(model.head, pathlib.Path(options.modules)))
            return 0
        if options.output:
            if config.export.average:
                raise ConfigError(
                    f"Received --output {options.output} with export.average {config.export.average}; expected none. "
                    "Such a file takes pictures at the network's size, whose crops hold less than those of the picture "
                    "itself. Say --set export.average=[], give it each view, and take the mean."
                )
            print(export_to(model, pathlib.Path(options.output)))
            return 0
        if not (run / "metrics.json").is_file():
            raise ConfigError(f"Received --model {run}, which holds no metrics.json; expected a finished run.")
        print(run_folder.export_model(run, model, config, run_folder.read_record(run / "metrics.json")))
    return 0
