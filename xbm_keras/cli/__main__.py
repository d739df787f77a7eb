"""`xbm-keras COMMAND ...`, also `python -m xbm_keras.cli COMMAND ...`."""

import contextlib
import difflib
import gc
import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Sequence

from absl import app, flags

from xbm_keras.cli import parsers
from xbm_keras.cli.arguments import parse_flags

COMMANDS = {
    "train": "train the head of a frozen network, evaluate and export it (as train.py does)",
    "tune": "search for the best memory size, k, loss and head (as tune.py does)",
    "preview": "what closed forms would give, without training: leave it, solve it, or train it",
    "evaluate": "scores and vectors of a finished run on any data",
    "export": "export a finished run again, in another form",
    "embed": "vectors of pictures, texts or features by an exported model",
    "compress": "the fewest bytes that keep a promise, such as overlap@10 >= 0.95",
    "duplicates": "items that are nearly the same, and labels that may be wrong",
    "index": "build a gallery, add and remove items, and search it",
    "serve": "embeddings and nearest items over HTTP; needs the extra [serve]",
    "cache": "list, check and delete feature caches",
}
OF_FLAGS = ("train", "tune")  # the others read their arguments by argparse, see `parsers`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument, by default of the program, names; the exit code."""
    try:
        code = _run(*((sys.argv[1:] if arguments is None else arguments) or ["--help"]))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    return code


def _run(command: str, *rest: str) -> int:
    if command not in COMMANDS:
        width = max(map(len, COMMANDS))
        usage = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
        is_asked = command in ("--help", "-h", "help")
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        received = "" if is_asked else f"Received {command!r}; expected one of these commands.{hint}\n\n"
        usage = f"usage: xbm-keras COMMAND ...; xbm-keras COMMAND --help lists its flags\n\n{usage}"
        print(f"{received}{usage}", file=sys.stdout if is_asked else sys.stderr)
        return 0 if is_asked else 2
    if command not in OF_FLAGS:
        parsers.OF_COMMAND[command]().parse_args(rest)  # help and mistakes end here, before the seconds of the imports
    try:
        with contextlib.nullcontext() if "--verbose" in rest else silence(), importing():
            module = importlib.import_module(f"xbm_keras.cli.{command}")
    except ModuleNotFoundError as error:
        if command != "serve":
            raise
        told = f"Received serve, and {error.name} cannot be imported; expected the extra [serve]."
        print(f'Error: {told} Install it with: pip install ".[serve]"', file=sys.stderr)
        return 2
    if command not in OF_FLAGS:
        return module.main(list(rest))
    if {"--help", "-h", "-help"} & set(rest):
        print_help(module)
        return 0
    app.run(module.main, argv=[f"xbm-keras {command}", *rest], flags_parser=parse_flags)
    return 0


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import TensorFlow, and in the block what needs it, in two thirds of the time, as train.py does.

    What is imported stays: there is nothing to collect, now or later. Keras would import scikit-learn, if it is there,
    for classes that no command uses.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    gc.disable()
    try:
        sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
        try:
            importlib.import_module("tensorflow")
        finally:
            if sys.modules["sklearn"] is None:
                del sys.modules["sklearn"]
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """While TensorFlow is imported, as train.py does: its libraries complain before they read any setting."""
    if "tensorflow" in sys.modules:
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr, silent = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)


def print_help(module) -> None:
    """What a command of flags does, its flags, and all keys of a config."""
    from xbm_keras.config import reference

    own = [name for name in ("xbm_keras.cli.train", module.__name__) if name in sys.modules]
    print(inspect.getdoc(module), *(flags.FLAGS.module_help(name) for name in dict.fromkeys(own)), sep="\n")
    print(f"Keys of a config, as --set section.key=value:\n{reference.summary()}")


if __name__ == "__main__":
    sys.exit(main())
