"""Latency of the server at several numbers of clients, and what a reload and a kill lose: nothing.

python -m benchmarks.serve --model runs/grocery/export --index runs/grocery/index --pictures my_photos
"""

import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from benchmarks import common
from xbm_keras.atomic_files import latest_version

BOUNDARY = "--------picture"


def main() -> int:
    """Start the server, ask it, and print a row per number of clients, and one of each disturbance."""
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, required=True, help="the folder of the exported versions")
    parser.add_argument("--index", type=pathlib.Path, required=True, help="the folder of the index's versions")
    parser.add_argument("--pictures", type=pathlib.Path, required=True, help="a folder of JPEGs to ask with")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of clients")
    options = parser.parse_args()
    paths = sorted(options.pictures.rglob("*.jpg"))
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, 64, dtype=int)]
    bodies = [_form(path.read_bytes()) for path in chosen]
    with tempfile.TemporaryDirectory() as folder:  # of copies, which get versions more
        model, index = (
            pathlib.Path(shutil.copytree(each, f"{folder}/{each.name}")) for each in (options.model, options.index)
        )
        with _Server(model, index) as server:
            alone = [_results(_ask(server.port, body)) for body in bodies]
            results = [_load(server.port, bodies, alone, clients, options.seconds) for clients in options.clients]
            disturbances = {"reload": lambda: _add_versions(server, model, index), "kill -9": server.restart}
            lost = [_disturb(server.port, bodies, alone, name, act) for name, act in disturbances.items()]
    common.report(results + lost, options)
    return 0 if all(result["changed"] == result.get("lost", 0) == 0 for result in results + lost) else 1


def _disturb(port: int, bodies: list[bytes], alone: list, name: str, act) -> dict:
    """8 clients that ask once more where the connection broke, until something was done to the server."""
    end, counts = threading.Event(), {"requests": 0, "asked twice": 0, "lost": 0, "changed": 0}

    def client(number: int) -> None:
        turn = number
        while not end.is_set():
            counts["requests"] += 1
            for is_second in (False, True):
                try:
                    answer = _ask(port, bodies[turn % len(bodies)])
                    counts["changed"] += _results(answer) != alone[turn % len(bodies)]
                    break
                except (OSError, http.client.HTTPException, RuntimeError):
                    counts["lost" if is_second else "asked twice"] += 1
                    _wait_until_ready(port)
            turn += 8

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, number) for number in range(8)]
        time.sleep(2)
        act()
        time.sleep(2)
        end.set()
    for each in clients:
        each.result()
    return {"clients": f"8, {name}", **counts}


def _add_versions(server, model: pathlib.Path, index: pathlib.Path) -> None:
    """A copy of the model and of its index as their next versions, and wait until both are served."""
    for folder in (model, index):
        newest = latest_version(folder)
        side = folder / f"{int(newest.name) + 1}.tmp"
        shutil.copytree(newest, side)
        side.rename(side.with_suffix(""))
    names = [latest_version(folder).name for folder in (model, index)]
    while [json.loads(_request(server.port, "GET", "/health")[1])[key] for key in ("model", "index")] != names:
        time.sleep(0.1)


def _results(answer: bytes) -> list:
    """What was found, whatever version it is said to be of."""
    return json.loads(answer)["results"]


def _load(port: int, bodies: list[bytes], alone: list, clients: int, seconds: float) -> dict:
    """Clients that each ask for the 10 nearest items of one picture after another."""
    end = time.perf_counter() + seconds

    def client(number: int) -> tuple[list[float], int]:
        times, changed, turn = [], 0, number
        while time.perf_counter() < end:
            start = time.perf_counter()
            answer = _ask(port, bodies[turn % len(bodies)])
            times.append(1e3 * (time.perf_counter() - start))
            changed += _results(answer) != alone[turn % len(bodies)]
            turn += clients
        return times, changed

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        outcomes = list(pool.map(client, range(clients)))
        wall = time.perf_counter() - start
    times = np.concatenate([times for times, _ in outcomes])
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    return {
        "clients": clients, "requests": len(times), "per second": len(times) / wall, "p50 ms": p50, "p95 ms": p95,
        "p99 ms": p99, "changed": sum(changed for _, changed in outcomes),
    }  # fmt: skip


class _Server:
    """The server in a process of its own."""

    def __init__(self, model: pathlib.Path, index: pathlib.Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [
            sys.executable, "-m", "xbm_keras.cli", "serve", f"--model={model}", f"--index={index}",
            f"--port={self.port}",
        ]  # fmt: skip

    def __enter__(self):
        self.process = subprocess.Popen(self.command)
        _wait_until_ready(self.port)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def restart(self) -> None:
        """Kill it as the kernel does, and start it again."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.__enter__()


def _wait_until_ready(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _request(port, "GET", "/ready")[0] == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("The server is not ready.")


def _ask(port: int, body: bytes) -> bytes:
    form = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    status, answer = _request(port, "POST", "/search?k=10", body, form)
    if status != 200:
        raise RuntimeError(f"The server answered {status}: {answer[:200]!r}")
    return answer


def _request(port: int, *arguments) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        connection.request(*arguments)
        answer = connection.getresponse()
        return answer.status, answer.read()


def _form(picture: bytes) -> bytes:
    name = 'Content-Disposition: form-data; name="pictures"; filename="x"'
    return f"--{BOUNDARY}\r\n{name}\r\n\r\n".encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()


if __name__ == "__main__":
    sys.exit(main())
