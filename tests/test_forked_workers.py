"""Tests of a worker of pytest-xdist run in a fork of it."""

import os
import pathlib

import pytest
import tensorflow as tf


def test_a_test_runs_in_a_fork_of_its_worker_and_xla_compiles_there():
    if "PYTEST_XDIST_WORKER" not in os.environ or not pathlib.Path("/proc/self").exists():
        pytest.skip("needs workers that fork: Linux, and pytest -n 2")
    worker, fork = (pathlib.Path(f"/proc/{which}/cmdline").read_bytes() for which in (os.getppid(), "self"))
    assert worker == fork
    assert float(tf.function(lambda: tf.reduce_sum(tf.ones([2, 3])), jit_compile=True)()) == 6
