"""`xbm-keras COMMAND`: which commands there are."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from xbm_keras.cli.__main__ import COMMANDS, main


@pytest.mark.parametrize(("given", "meant"), [("trian", "train"), ("evalute", "evaluate"), ("serv", "serve")])
def test_a_command_that_is_none_is_told_with_the_nearest(capsys, given, meant):
    assert main([given]) == 2
    told = capsys.readouterr()
    assert f"Received '{given}'; expected one of these commands. Did you mean {meant}?" in told.err
    assert all(f"  {command} " in told.err for command in COMMANDS)
    assert not told.out


def test_a_command_unlike_any_gets_the_list_alone(capsys):
    assert main(["xyzzy"]) == 2
    assert "expected one of these commands.\n" in capsys.readouterr().err


def test_the_program_starts_in_silence(tmp_path):
    """As pip writes it: TensorFlow's start is not the user's."""
    program = tmp_path / "xbm-keras"
    program.write_text("import sys\nfrom xbm_keras.cli.__main__ import main\nsys.exit(main())\n")
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(program), "index", "search", "--model", "nowhere", "--index", "nothing", "x.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Received --model 'nowhere'")
