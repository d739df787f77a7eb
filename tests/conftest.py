"""What the tests share: the three ways to run a step, the real data, processes that fork.

TensorFlow is not imported here, since the process of pytest-xdist that hands out the tests needs none.
"""

import logging
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # before TensorFlow is imported
# Before NumPy is: threads of OpenBLAS spin while they wait, four times the work where workers share two cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# What XLA compiles runs for some steps: half of the time for the same graph where LLVM does not optimize its loops
# and MLIR does not write them.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false",
)

import pathlib
import random
import sys
from collections.abc import Callable

import hypothesis
import pytest

from tests import fresh_processes
from tests.forked_workers import ForkedTests

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = ("cli", "examples", "experiment", "export", "index", "report", "serve", "tuning")
"""Folders of tests that run commands, or as much as these do."""
# The same examples in each run, so that a red run stays red; `--hypothesis-profile=explore` looks for new ones.
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=5_000)
hypothesis.settings.load_profile("repeat")


def pytest_collection_modifyitems(items):
    """Files that may take a minute come first, so that no worker of pytest-xdist ends with one while others wait."""
    items.sort(key=lambda item: item.path.parent.name not in ("model", *COMMANDS))


def pytest_configure(config):
    if hasattr(config, "workerinput") and sys.platform == "linux":  # a worker of pytest-xdist
        config.pluginmanager.register(ForkedTests())


MODES = ["eager", "graph", "xla"]


def in_mode(function: Callable, mode: str) -> Callable:
    """The function as it is, as a graph, or compiled by XLA.

    Said explicitly: Keras turns XLA off on machines without a GPU under `jit_compile="auto"`, and what a GPU would run
    should be what was tested.
    """
    import tensorflow as tf

    return function if mode == "eager" else tf.function(function, jit_compile=mode == "xla")


def compile_arguments(mode: str) -> dict:
    """The same choice for `keras.Model.compile`."""
    return {"run_eagerly": mode == "eager", "jit_compile": mode == "xla"}


@pytest.fixture(params=["eager", "xla"])
def mode(request) -> str:
    """Operations one by one, and traced and compiled; test_contract.py holds graphs of losses and picks to both."""
    return request.param


@pytest.fixture(scope="session", autouse=True)
def _traces_take_less_time():
    fresh_processes.trace_faster()


@pytest.fixture(scope="module", autouse=True)
def _graphs_of_commands_run_as_traced(request):
    """Commands trace many graphs for a handful of runs each, which it takes a sixth of their time to optimize.

    Graphs of the stages and of the model are optimized, as users' are, and so are those of new processes, to whose
    numbers a module may hold its own: `same_as_new_processes`.
    """
    import tensorflow as tf

    is_of_commands = request.path.relative_to(ROOT / "tests").parts[0] in COMMANDS
    is_of_commands &= not hasattr(request.module, "same_as_new_processes")
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": is_of_commands})


@pytest.fixture(scope="session", autouse=True)
def _exported_models_are_read_once():
    """A SavedModel that commands open one after the other takes half a second each time, as long as its files stay."""
    from tensorflow.python.saved_model import load as module  # where what is public looks it up

    load, kept = module.load_partial, {}

    def load_once(path, *arguments):
        files = sorted(each for each in pathlib.Path(path).rglob("*") if each.is_file())
        key = str(path), str(arguments), *((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
        kept[key] = kept.pop(key, None) or load(path, *arguments)
        if len(kept) > 4:  # each takes some MB
            del kept[next(iter(kept))]
        return kept[key]

    module.load_partial = load_once
    yield
    module.load_partial = load


@pytest.fixture(autouse=True)
def _same_start_for_every_test(monkeypatch):
    """As `keras.utils.set_random_seed`, which would also throw away each function that TensorFlow has made ready.

    Those of the decoder of pictures take half a second to be made again. TensorFlow does so for operations that keep a
    state of their random numbers, of which there are none here.
    """
    import keras
    import tensorflow as tf
    from tensorflow.python.eager import context

    def set_seed(seed):
        context.context()._seed, context.context()._rng = seed, random.Random(seed)

    monkeypatch.setattr(tf.random, "set_seed", set_seed)
    keras.utils.set_random_seed(0)
    ours = logging.getLogger("xbm_keras")  # whose messages a command of another test may have taken for its own
    ours.handlers, ours.propagate = [], True
    ours.setLevel(logging.NOTSET)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The real data and weights; see `shared/data/README.md`."""
    path = pathlib.Path(os.environ.get("XBM_KERAS_DATA", ROOT / "../shared/data")).resolve()
    if not (path / "grocery").is_dir():
        pytest.skip(f"needs the real data, and {path} does not hold it: set XBM_KERAS_DATA")
    return path


if "PYTEST_XDIST_WORKER" in os.environ:  # now, since the next conftest.py may import the package
    fresh_processes.fork_now()
