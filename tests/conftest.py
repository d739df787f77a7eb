"""What the tests share: the three ways to run a step, the real data, a fresh process."""

import contextlib
import ctypes
import gc
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # before TensorFlow is imported
# Before NumPy is: threads of OpenBLAS spin while they wait, four times the work where two workers share two cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# What XLA compiles runs for some steps: a third less time for the same graph where LLVM does not optimize its loops.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1")

import pathlib
import subprocess
import sys
from collections.abc import Callable

import hypothesis
import keras
import pytest
import tensorflow as tf

from tests.forked_workers import ForkedTests, resident

ROOT = pathlib.Path(__file__).parents[1]
# The same examples in each run, so that a red run stays red; `--hypothesis-profile=explore` looks for new ones.
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=5_000)
hypothesis.settings.load_profile("repeat")


def pytest_configure(config):
    if hasattr(config, "workerinput") and sys.platform == "linux":  # a worker of pytest-xdist
        config.pluginmanager.register(ForkedTests())


MODES = ["eager", "graph", "xla"]


def in_mode(function: Callable, mode: str) -> Callable:
    """The function as it is, as a graph, or compiled by XLA.

    Said explicitly: Keras turns XLA off on machines without a GPU under `jit_compile="auto"`, and what a GPU would run
    should be what was tested.
    """
    return function if mode == "eager" else tf.function(function, jit_compile=mode == "xla")


def compile_arguments(mode: str) -> dict:
    """The same choice for `keras.Model.compile`."""
    return {"run_eagerly": mode == "eager", "jit_compile": mode == "xla"}


def run_fresh(code: str, *arguments, timeout: float = 300) -> str:
    """Standard output of Python code in a new process, which finds this checkout whether it is installed or not."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(params=MODES)
def mode(request) -> str:
    """Each of the three modes."""
    return request.param


@pytest.fixture(autouse=True)
def _same_start_for_every_test():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


kept = 0  # bytes, after the last time that memory went back


@pytest.fixture(autouse=True)
def _freed_memory_goes_back_to_the_system():
    """After each test that took much: what XLA and graphs no longer use, glibc would keep for later."""
    yield
    global kept
    with contextlib.suppress(OSError, AttributeError):  # no Linux, no glibc here
        if resident() > kept + (64 << 20):
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            kept = resident()


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The real data and weights; see `shared/data/README.md`."""
    path = pathlib.Path(os.environ.get("XBM_KERAS_DATA", ROOT / "../shared/data")).resolve()
    if not (path / "grocery").is_dir():
        pytest.skip(f"needs the real data, and {path} does not hold it: set XBM_KERAS_DATA")
    return path
