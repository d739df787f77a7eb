"""Arguments of the commands: what is wrong with them ends in one line, which says how to mend it, and exit code 2."""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence

from absl import flags


class Parser(argparse.ArgumentParser):
    """Of the commands without flags of absl."""

    given: Sequence[str] = ()

    def parse_known_args(self, args=None, namespace=None):
        """Nothing is left over: a command below another tells by itself what it does not know."""
        self.given = sys.argv[1:] if args is None else args
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left

    def error(self, message: str):
        """The usage, and one line."""
        known = re.findall(r"--\w+", self.format_help())
        unknown = set(re.findall(r"--\w+", " ".join(self.given))) - set(known)
        near = [each for name in sorted(unknown) for each in difflib.get_close_matches(name, known, n=1)]
        mend = f"did you mean {near[0]}? " if near else ""
        super().error(f"{message}; {mend}{self.prog} --help lists what there is")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Reads the flags behind the program's name, which is what is left. Anything else is told, with exit code 2."""
    mend = f"{argv[0]} --help lists all flags and settings."
    try:
        left = flags.FLAGS(argv)
        told = f"Received {left[1]!r}; expected flags alone." if left[1:] else ""
        bare = [each for each in flags.FLAGS["set"].value or [] if "=" not in each]
        if told and bare:
            mend = f"Say --set {bare[-1]}={''.join(left[1:]).removeprefix('=')}, without blanks."
        elif "=" in told:
            mend = f"Say --set {left[1]}: each setting has a --set of its own."
        elif told:
            mend = "Your data is named by settings, such as --config image_folder --set data.root=my_photos."
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        told = f"Received --{name}, which is no flag of {argv[0]}."
        if "." in name:
            mend = f"A setting is given as --set {name}=VALUE."
        elif near := difflib.get_close_matches(name, flags.FLAGS, n=1):
            mend = f"Did you mean --{near[0]}?"
    except flags.Error as error:
        told = f"Received a flag that cannot be used: {error}."
    if told:
        print(f"Error: {told} {mend}", file=sys.stderr)
        sys.exit(2)
    return left
