"""`xbm-keras COMMAND`: which commands there are."""

import os
import re
import socket
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from tests.conftest import ROOT
from tests.fresh_processes import run_fresh
from xbm_keras.cli import index, parsers  # the flags of train, too
from xbm_keras.cli.__main__ import COMMANDS, OF_FLAGS, main
from xbm_keras.cli.arguments import parse_flags
from xbm_keras.data.views import CHANGES
from xbm_keras.index.approximate import ENGINES
from xbm_keras.index.stores import STORES


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


def test_help_and_mistakes_need_no_tensorflow():
    """Nor anything else that takes long: they are told at once."""
    given = [["--help"], ["trian"], ["cache", "lst"], *([each, "--help"] for each in parsers.OF_COMMAND)]
    code = f"""
import contextlib, io, sys
sys.argv = ["xbm-keras"]
from xbm_keras.cli.__main__ import main
for given in {given}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        with contextlib.suppress(SystemExit):
            main(given)
    assert "usage: xbm-keras" in out.getvalue() + err.getvalue(), given
print(sorted({{"keras", "numpy", "pandas", "scipy", "tensorflow"}} & sys.modules.keys()))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]  # which no fork is of a process that has imported them
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


SEARCH = "from xbm_keras.cli.__main__ import main; main('index search --model a --index b x.jpg'.split())"


@pytest.mark.parametrize("program", ["import train", SEARCH])
def test_what_is_imported_is_not_collected_and_scikit_learn_not_imported(program):
    code = f"""
import contextlib, gc, sys
sys.argv = ["xbm-keras"]
with contextlib.suppress(SystemExit):
    {program}
assert "keras" in sys.modules and "sklearn" not in sys.modules
assert gc.isenabled() and gc.get_freeze_count() > 100_000
import sklearn
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_parsers_say_is_what_there_is():
    assert [*parsers.OF_COMMAND] == [each for each in COMMANDS if each not in OF_FLAGS]
    assert set(parsers.ENGINES) == ENGINES.keys()
    assert set(parsers.STORES) == STORES.keys()
    assert set(parsers.AVERAGES) == CHANGES.keys()
    told = parsers.index().format_help()
    assert re.search(r"\{([\w,]+)\}", told)[1].split(",") == [*index.COMMANDS]


@pytest.mark.parametrize("imported", ["", *(f".cli.{each}" for each in COMMANDS if each != "cache")])
def test_every_class_that_a_saved_model_may_hold_is_registered(imported):
    """By the package alone, and by the commands of the program, which imports no more than they need."""
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "xbm_keras").rglob("*.py"))
    marked = re.findall(r'@keras\.saving\.register_keras_serializable\("xbm_keras"\)\nclass (\w+)', code)
    assert len(marked) > 20
    asked = "sys.argv[0] = 'xbm-keras'; " if imported else ""
    told = run_fresh(
        f"import sys; {asked}import xbm_keras{imported}\nimport keras\nprint(*keras.saving.get_custom_objects())"
    )
    assert {f"xbm_keras>{name}" for name in marked} <= set(told.split())


def test_the_program_has_the_names_of_the_package_where_they_are_asked_for():
    told = run_fresh("""
import sys
sys.argv[0] = "xbm-keras"
import xbm_keras
print(hasattr(xbm_keras, "Haed"), "xbm_keras.model" in sys.modules)
from xbm_keras import Head
from xbm_keras import *
print(Head.__module__, *sorted({*xbm_keras.__all__} - globals().keys()))
""")
    assert told == "False False\nxbm_keras.stages.head.fc_layer\n"


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
    assert main(["serve", "--model", "runs/x"]) == 2
    assert capsys.readouterr().err.endswith('expected the extra [serve]. Install it with: pip install ".[serve]"\n')
