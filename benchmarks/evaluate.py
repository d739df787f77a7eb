"""Recall@K and MAP@R of a whole set: ours beside FAISS' search alone and pytorch-metric-learning's evaluation.

    python -m benchmarks.evaluate [--peer /path/to/its/python] [--json FILE]

60,000 vectors of width 128 in 10,000 classes, leave-one-out. Each in a process of its own, for its peak memory: `peak
MB` is of the process, its libraries included, of which TensorFlow alone is some 700 MB; `work MB` is what the
evaluation adds to libraries and vectors, an index of them included.

- `ours`: `evaluate_retrieval`.
- `faiss`: `IndexFlatIP`, the search of as many neighbours as `ours` needs, without any metric.
- `peer`: `AccuracyCalculator`; see benchmarks/peer.py.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import subprocess
import sys
import time

import numpy as np

from benchmarks import common

CLASSES = 10_000
COLUMNS = "ms", "cpu ms", "peak MB", "work MB"


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[60_000])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--names", nargs="+", default=["ours", "faiss", "peer"])
    parser.add_argument("--peer", default=os.environ.get("XBM_KERAS_PEER"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help="measure this one in this process, print milliseconds and peak memory, and end")
    options = parser.parse_args()
    if options.one:
        print(*one(options.one, options.rows[0], options))
        return
    results = []
    for num_rows in options.rows:
        measured: dict[str, list] = {}
        for _ in range(options.repeats):
            for name in options.names:
                if name != "peer":
                    command = [sys.executable, "-m", "benchmarks.evaluate", "--one", name, "--rows", str(num_rows)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    measured.setdefault(name, []).append([float(x) for x in done.stdout.split()[-4:]])
                elif options.peer:
                    with common.Peer(options.peer, "evaluate", num_rows) as peer:
                        before = peer.peak_mb("VmRSS")
                        times = peer()
                        measured.setdefault(name, []).append([*times, peer.peak_mb(), peer.peak_mb() - before])
        results += [
            {"name": name, "rows": num_rows, **dict(zip(COLUMNS, np.median(each, axis=0).tolist(), strict=True))}
            for name, each in measured.items()
        ]
    common.report(results, options)


def one(name, num_rows, options) -> tuple[float, float, float, float]:
    vectors, labels = common.unit_vectors(num_rows, options.width, seed=0), np.arange(num_rows) % CLASSES
    if name == "faiss":
        import faiss

        before, start, cpu = common.peak_mb(kind="VmRSS"), time.perf_counter(), time.process_time()
        index = faiss.IndexFlatIP(options.width)
        index.add(vectors)
        index.search(vectors, max(num_rows // CLASSES, 10) + 1)
    else:
        from xbm_keras.evaluation.retrieval import evaluate_retrieval

        evaluate_retrieval(vectors[:1000], labels[:1000] % 100)  # traced
        before, start, cpu = common.peak_mb(kind="VmRSS"), time.perf_counter(), time.process_time()
        evaluate_retrieval(vectors, labels)
    times = (time.perf_counter() - start) * 1e3, (time.process_time() - cpu) * 1e3
    return *times, common.peak_mb(), common.peak_mb() - before


if __name__ == "__main__":
    main()
