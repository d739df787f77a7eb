"""Tests of a worker of pytest-xdist run in a fork of it."""

import multiprocessing
import os
import pathlib
from types import SimpleNamespace

import pytest
import tensorflow as tf

from tests.forked_workers import Fork


def test_a_test_runs_in_a_fork_of_its_worker_and_xla_compiles_there():
    if "PYTEST_XDIST_WORKER" not in os.environ or not pathlib.Path("/proc/self").exists():
        pytest.skip("needs workers that fork: Linux, and pytest -n 2")
    worker, fork = (pathlib.Path(f"/proc/{which}/cmdline").read_bytes() for which in (os.getppid(), "self"))
    assert worker == fork
    assert float(tf.function(lambda: tf.reduce_sum(tf.ones([2, 3])), jit_compile=True)()) == 6


@pytest.mark.parametrize("is_running", [False, True])
def test_a_fork_that_dies_takes_its_worker_along_which_xdist_reports_as_a_failure(monkeypatch, is_running):
    fork, ended = Fork.__new__(Fork), []
    fork.pipe, other = multiprocessing.Pipe()
    send = fork.pipe.send
    monkeypatch.setattr(os, "_exit", ended.append)
    if is_running:  # it dies once it has been told of the test
        fork.pipe = SimpleNamespace(send=lambda told: (send(told), other.recv(), other.close()), recv=fork.pipe.recv)
    else:
        other.close()
    assert fork.run(SimpleNamespace(nodeid="test"), None) is None
    assert ended == [1]
