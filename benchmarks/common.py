"""What the benchmarks share: the machine's description, the table, the JSON file."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table

FILE_WIDTH = 240  # of a table that is not printed to a terminal


def parser(about: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    result = argparse.ArgumentParser(description=about)
    result.add_argument("--json", help="also write the results to this file")
    return result


def unit_vectors(num_rows: int, width: int, seed: int) -> np.ndarray:
    """Random directions, float32 [num_rows, width]."""
    vectors = np.random.default_rng(seed).standard_normal((num_rows, width), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def interleaved(variants: dict[Any, Callable], repeats: int) -> dict[Any, dict[str, float]]:
    """Median milliseconds of each variant after a warm-up, taken in turns, so that a noisy machine hits all of them.

    `least` and `most` are the shortest and the longest of the milliseconds; `cpu ms` is the time that all cores
    together spent on it, which other work on the machine disturbs less.
    """
    clocks = time.perf_counter, time.process_time
    times: dict[Any, list[list[float]]] = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, variant in variants.items():
            start = [clock() for clock in clocks]
            took = variant()
            times[name].append([(clock() - s) * 1e3 for clock, s in zip(clocks, start, strict=True)])
            if isinstance(variant, Peer):
                times[name][-1] = took
    return {name: _summary(*zip(*each[1:], strict=True)) for name, each in times.items()}


def _summary(by_clock, of_cores) -> dict[str, float]:
    median = statistics.median(by_clock)
    return {"ms": median, "least": min(by_clock), "most": max(by_clock), "cpu ms": statistics.median(of_cores)}


def peak_mb(process: int | str = "self", kind: str = "VmHWM") -> float:
    """Peak memory of a process in MB; not by getrusage, whose maximum begins with that of the parent process.

    Of another kind, `VmRSS`, what it holds now.
    """
    status = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(kind)).split()[1]) / 1e3


class Peer:
    """benchmarks/peer.py in the Python of its own environment; each call is one round. False without a Python."""

    def __init__(self, python: str | None, what: str, num_rows: int, steps: int = 1):
        self.process = None
        if python:
            script = pathlib.Path(__file__).with_name("peer.py")
            command = [python, str(script), what, "--rows", str(num_rows), "--steps", str(steps)]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process:
            self.process.communicate()

    def __bool__(self):
        return self.process is not None

    def __call__(self) -> list[float]:
        """One round: its milliseconds, and those of all cores together."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        *milliseconds, self.gpu_mb = (float(each) for each in self.process.stdout.readline().split())
        return milliseconds

    def peak_mb(self, kind: str = "VmHWM") -> float:
        """Its peak memory in MB, or what it holds now."""
        return peak_mb(self.process.pid, kind)

    def device_peak_mb(self) -> float:
        """The same of the GPU, after a round on one; else that of the process."""
        return self.gpu_mb or self.peak_mb()


def machine() -> str:
    """Processor, cores and TensorFlow, in a line."""
    import tensorflow as tf

    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    gpus = [
        tf.config.experimental.get_device_details(gpu)["device_name"] for gpu in tf.config.list_physical_devices("GPU")
    ]
    device = ", ".join(gpus) or (names[0] if names else platform.machine())
    return f"{device}, {os.cpu_count()} cores, TensorFlow {tf.__version__}"


def _cpuinfo() -> list[str]:
    path = pathlib.Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def report(results: list[dict], options: argparse.Namespace) -> None:
    """Print the results as a table, and write them where the options say."""
    table = rich.table.Table(box=rich.box.SIMPLE, caption=machine())
    columns = list(dict.fromkeys(key for result in results for key in result))
    for column in columns:
        table.add_column(column, justify="left" if column == "name" else "right")
    for result in results:
        table.add_row(*(_text(result.get(column)) for column in columns))
    is_seen = sys.stdout.isatty()  # else no window says how wide a table may be
    rich.console.Console(width=None if is_seen else FILE_WIDTH).print(table)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"machine": machine(), "results": results}, indent=1))


def _text(value) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
