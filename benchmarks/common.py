"""What the benchmarks share: the machine's description, the table, the JSON file."""

import argparse
import json
import os
import pathlib
import platform

import rich.box
import rich.console
import rich.table


def parser(about: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    result = argparse.ArgumentParser(description=about)
    result.add_argument("--json", help="also write the results to this file")
    return result


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
    rich.console.Console().print(table)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"machine": machine(), "results": results}, indent=1))


def _text(value) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
