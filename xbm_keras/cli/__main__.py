"""`xbm-keras COMMAND ...`, also `python -m xbm_keras.cli COMMAND ...`."""

import importlib
import sys

from absl import app

COMMANDS = {
    "train": "train the head of a frozen network, evaluate and export it (as train.py does)",
    "tune": "search for the best memory size, k, loss and head (as tune.py does)",
    "evaluate": "scores and vectors of a finished run on any data",
    "export": "export a finished run again, in another form",
    "index": "build a gallery, add and remove items, and search it",
    "serve": "embeddings and nearest items over HTTP; needs the extra [serve]",
    "cache": "list, check and delete feature caches",
}
OF_FLAGS = ("train", "tune")  # the others read their arguments by argparse


def main() -> int:
    """Run the command that the first argument names; the exit code."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command not in COMMANDS:
        width = max(map(len, COMMANDS))
        usage = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
        is_asked = command in ("--help", "-h", "help")
        received = "" if is_asked else f"Received {command!r}; expected one of these commands.\n\n"
        print(f"{received}usage: xbm-keras COMMAND ...\n\n{usage}", file=sys.stdout if is_asked else sys.stderr)
        return 0 if is_asked else 2
    module = importlib.import_module(f"xbm_keras.cli.{command}")
    if command in OF_FLAGS:
        app.run(module.main, argv=[f"xbm-keras {command}", *arguments])
    return module.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
