"""`xbm-keras COMMAND`: which commands there are."""

import os
import re
import socket
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from tests.conftest import ROOT
from xbm_keras.cli import train  # noqa: F401  its flags
from xbm_keras.cli.__main__ import COMMANDS, main
from xbm_keras.cli.arguments import parse_flags


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
    assert done.stderr.startswith("Error: Received --index nothing, which holds no version of an index")
    assert done.stderr.endswith("xbm-keras index build --model RUN --index nothing\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data.root=my_photos"], "Received --data.root, .* --set data.root=VALUE."),
        (["--wrkdir=runs/x"], "Received --wrkdir, .* Did you mean --workdir?"),
        (["--unlike_any"], "Received --unlike_any, .* xbm-keras train --help lists all flags and settings."),
        (["--resume=perhaps"], "Received a flag that cannot be used: .*--resume=perhaps.*<auto|must|never>"),
        (["my_photos"], "Received 'my_photos'; expected flags alone. .* --config image_folder --set data.root="),
        (
            ["--set", "head.embedding_dim=8", "training.epochs=1"],
            "Received 'training.epochs=1'; .* --set training.epochs=1:",
        ),
        (
            ["--set", "data.root", "my_photos"],
            "Received 'my_photos'; .* Say --set data.root=my_photos, without",
        ),
        (["--set", "data.root", "=", "photos"], "Received '='; .* Say --set data.root=photos, without blanks."),
    ],
)
def test_a_mistaken_flag_is_told_in_one_line(capsys, arguments, told):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        parse_flags(["xbm-keras train", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match("Error: " + ".*".join(map(re.escape, told.split(".*"))), line)


def test_what_reads_the_help_may_stop_reading():
    command = [sys.executable, "-m", "xbm_keras.cli", "train", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as program:
        program.stdout.close()
        assert b"BrokenPipe" not in program.stderr.read()
    assert program.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["index", "search", "--images", "x.jpg"],
            "xbm-keras index search: error: the following arguments are required",
        ),
        (["evaluate", "--modle", "runs/x"], "; did you mean --model? xbm-keras evaluate --help lists what there is"),
        (
            ["index", "remove", "--index", "x", "y", "--k=3"],
            "index remove: error: unrecognized arguments: --k=3; xbm-keras",
        ),
        (["serve", "--model=x", "--port=80000"], "argument --port: received '80000'; expected one of 0 to 65535"),
        (["serve", "--model=x", "--port=http"], "argument --port: received 'http'; expected one of 0 to 65535"),
    ],
)
def test_a_mistaken_argument_is_told_by_the_command_that_it_is_of(capsys, arguments, told):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert told in line
    assert len(line) < 300


@pytest.mark.parametrize(
    ("host", "families", "listens_by"),
    [
        ("", [], socket.AF_INET),
        ("ip6-localhost", [socket.AF_INET6], socket.AF_INET6),
        ("localhost", [socket.AF_INET6, socket.AF_INET], socket.AF_INET),
    ],
)
def test_a_host_by_name_is_tried_by_the_addresses_that_it_has(monkeypatch, host, families, listens_by):
    tried = []

    def create_server(address, family):
        tried.append((address, family))
        return socket.socket()

    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [(family, None, None, "", ()) for family in families])
    monkeypatch.setattr(socket, "create_server", create_server)
    with pytest.raises(SystemExit):  # there is no such model
        main(["serve", "--model=nowhere", f"--host={host}", "--port=0"])
    assert tried == [((host, 0), listens_by)]


def test_a_port_that_another_program_has_is_told_before_a_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SystemExit) as ended:
        main(["serve", "--model=x", f"--port={other.getsockname()[1]}"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "at which this program cannot listen: " in told
    assert "Give another one, such as --port" in told


def test_a_command_whose_extra_is_not_there_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "xbm_keras.cli.serve", raising=False)
    assert main(["serve"]) == 2
    assert capsys.readouterr().err.endswith('expected the extra [serve]. Install it with: pip install ".[serve]"\n')
