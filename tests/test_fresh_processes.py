"""Processes that are forked do as those that Python starts."""

import signal
import subprocess

import pytest

from tests import fresh_processes
from tests.fresh_processes import run_fresh, run_python, start_python

SAY = """
import sys, os, atexit, threading
atexit.register(print, "last")
threading.Thread(target=print, args=["a thread"]).start()
print(sys.argv, __name__, os.environ["TOLD"], os.getcwd(), [n for n in sys.modules if n.startswith("xbm_keras")])
print("wrong", file=sys.stderr)
sys.exit({status})
"""


@pytest.fixture(params=["forked", "started"], autouse=True)
def _kind(request, monkeypatch):
    if request.param == "started":
        monkeypatch.setattr(fresh_processes, "_source", None)
    elif fresh_processes._source is None:
        pytest.skip("pytest runs without xdist: no process waits to be forked")


@pytest.mark.parametrize(
    ("status", "expected", "told"), [("0", 0, ""), ("3", 3, ""), ("None", 0, ""), ("'no'", 1, "no\n")]
)
def test_arguments_environment_streams_and_status(tmp_path, status, expected, told):
    done = run_python(["-c", SAY.format(status=status), "a", 1], {"TOLD": "this"}, tmp_path)
    assert (done.returncode, done.stderr) == (expected, f"wrong\n{told}")
    first, *others = sorted(done.stdout.splitlines())
    assert first == f"['-c', 'a', '1'] __main__ this {tmp_path} []"
    assert others == ["a thread", "last"]


def test_modules_and_files_run(tmp_path):
    assert "usage" in run_python(["-m", "json.tool", "--help"]).stdout
    (tmp_path / "x.py").write_text("import sys; print(sys.argv, __name__)")
    assert run_python([tmp_path / "x.py", "a"]).stdout == f"['{tmp_path}/x.py', 'a'] __main__\n"


def test_a_warning_is_printed_and_no_error():
    done = run_python(["-c", "import warnings; warnings.warn('look')"])
    assert done.returncode == 0
    assert "UserWarning: look" in done.stderr


def test_what_goes_wrong_is_told():
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_fresh("1 / 0")
    with pytest.raises(subprocess.TimeoutExpired):
        run_python(["-c", "import time; time.sleep(60)"], timeout=0.1)


def test_a_process_can_be_killed(tmp_path):
    code = "import pathlib, signal, sys; pathlib.Path(sys.argv[1]).touch(); signal.pause()"
    process = start_python(["-c", code, tmp_path / "begun"], tmp_path / "out", tmp_path / "err")
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, (tmp_path / "err").read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM
