"""Latency of the server on this machine, at several numbers of clients, and whether its answers stay the same.

python -m benchmarks.serve --model runs/grocery/export --index runs/grocery/index --pictures my_photos
"""

import concurrent.futures
import contextlib
import http.client
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

from benchmarks import common

BOUNDARY = "--------picture"


def main() -> int:
    """Start the server, ask it, and print a row per number of clients."""
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
    with _server(options.model, options.index) as port:
        alone = [_ask(port, body) for body in bodies]
        results = [_load(port, bodies, alone, clients, options.seconds) for clients in options.clients]
    common.report(results, options)
    return 0 if all(result["changed"] == 0 for result in results) else 1


def _load(port: int, bodies: list[bytes], alone: list[bytes], clients: int, seconds: float) -> dict:
    """Clients that each ask for the 10 nearest items of one picture after another."""
    end = time.perf_counter() + seconds

    def client(number: int) -> tuple[list[float], int]:
        times, changed, turn = [], 0, number
        while time.perf_counter() < end:
            start = time.perf_counter()
            answer = _ask(port, bodies[turn % len(bodies)])
            times.append(1e3 * (time.perf_counter() - start))
            changed += answer != alone[turn % len(bodies)]
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


@contextlib.contextmanager
def _server(model: pathlib.Path, index: pathlib.Path):
    """The server in a process of its own; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xbm_keras.cli", "serve", f"--model={model}", f"--index={index}", f"--port={port}"]
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                _request(port, "GET", "/health")
                break
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


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
