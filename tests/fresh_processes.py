"""New Python processes that need not import TensorFlow: forks of one that has, and holds nothing of the package.

Each worker of pytest-xdist forks that one off before it imports anything else. Without xdist, or where nothing can
fork, a process starts as usual.
"""

import atexit
import dataclasses
import gc
import importlib
import multiprocessing
import os
import pathlib
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings

ROOT = pathlib.Path(__file__).parents[1]
_source = None  # the pipe to the process that forks


def run_fresh(code: str, *arguments, timeout: float = 300) -> str:
    """Standard output of Python code in a new process, which finds this checkout whether it is installed or not."""
    done = run_python(["-c", code, *arguments], timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def run_without_keras(code: str, *arguments, timeout: float = 300) -> str:
    """The same in a process that Python starts, where nothing can import Keras: a fork has it already.

    TensorFlow itself imports Keras where there is one, and does without where there is none.
    """
    arguments = [sys.executable, "-c", f"import sys\nsys.modules['keras'] = None\n{code}", *map(str, arguments)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def run_python(arguments, environment=None, cwd=None, timeout: float = 300) -> subprocess.CompletedProcess:
    """What `python ARGUMENTS` gives: exit status and the text of both streams."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [pathlib.Path(folder, name) for name in ("out", "err")]
        process = start_python(arguments, *streams, environment, cwd)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, *(path.read_text() for path in streams))


def start_python(arguments, out, err, environment=None, cwd=None):
    """`python ARGUMENTS`, begun: `-c CODE`, `-m MODULE` or a file, and what follows; both streams go to files."""
    arguments = [str(each) for each in arguments]
    environment = dict(os.environ if environment is None else environment)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    order = _Order(arguments, environment, str(cwd or os.getcwd()), str(out), str(err))
    if _source is not None:
        return _Started(order)
    with open(out, "ab") as first, open(err, "ab") as second:
        streams = {"stdin": subprocess.DEVNULL, "stdout": first, "stderr": second}
        return subprocess.Popen([sys.executable, *arguments], env=environment, cwd=cwd, **streams)


@dataclasses.dataclass
class _Order:
    arguments: list[str]
    environment: dict[str, str]
    cwd: str
    out: str
    err: str


class _Started:
    """A fork that was ordered, with what the tests use of `subprocess.Popen`."""

    def __init__(self, order: _Order):
        self.args, self.returncode = order.arguments, None
        _source.send(order)
        self.pid = _source.recv()
        self.end = os.pidfd_open(self.pid)

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self.end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            _source.send(self.pid)
            self.returncode = _source.recv()
            os.close(self.end)
        return self.returncode

    def poll(self):
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number):
        if self.poll() is None:
            signal.pidfd_send_signal(self.end, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def fork_now() -> None:
    """Leave a fork of this process behind, to fork from; it ends with this one."""
    global _source
    if not hasattr(os, "pidfd_open"):  # no Linux
        return
    gc.disable()
    import keras  # noqa: F401  and so TensorFlow

    trace_faster()
    _source, other = multiprocessing.Pipe()
    gc.collect()
    gc.freeze()  # else each collection would write to, and so copy, the pages that all forks share
    if fork() == 0:
        _source.close()
        try:
            _serve(other)
        finally:
            os._exit(0)
    other.close()


def trace_faster() -> None:
    """Make graphs in five sixths of the time, of which nothing shows but where an operation that fails was made.

    TensorFlow walks up Python's stack, deep under pytest, for each operation. And of the many objects of a trace most
    stay: Python does not look through them.
    """
    from tensorflow.python.util import tf_stack

    here = tf_stack.extract_stack()
    tf_stack.extract_stack = lambda stacklevel=1: here
    gc.disable()


def fork() -> int:
    """`os.fork`, also where Python 3.12 sees threads: those of execnet, which wait."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _serve(pipe) -> None:
    """Until the other end is closed: an order gives the number of its process, a number the exit status."""
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        if isinstance(asked, _Order):
            pid = fork()
            if pid == 0:
                pipe.close()
                _run(asked)
            pipe.send(pid)
        else:
            pipe.send(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]))


def _run(order: _Order) -> None:
    """Be the process that was ordered, from its first line to its exit status."""
    status = 1
    try:
        gc.set_threshold(50_000, 20, 50)
        gc.enable()
        _become(order)
        what, *arguments = order.arguments
        if what == "-c":
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            sys.argv = ["-c", *arguments[1:]]
            exec(compile(arguments[0], "<string>", "exec"), vars(main))
        elif what == "-m":
            sys.argv = arguments
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = order.arguments
            runpy.run_path(what, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # as Python ends: first the threads, then what asked to be told
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(status)


def _become(order: _Order) -> None:
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.cwd)
    for number, path in ((0, os.devnull), (1, order.out), (2, order.err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644), number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    importlib.reload(warnings)  # what pytest makes of them are errors
    atexit._clear()
    sys.path[:0] = [order.cwd, *order.environment["PYTHONPATH"].split(os.pathsep)]
