"""The peer's side of `benchmarks.step`, `.gpu` and `.evaluate`, run by a Python that has pytorch-metric-learning.

It has requirements of its own: `pip install torch==2.13.0 pytorch-metric-learning==2.9.0` in another environment, whose
Python `--peer` names. For each line on standard input it does one round and prints its milliseconds, by the clock and
of all cores together, and the most megabytes of a GPU so far, 0 without one. Steps run on the GPU where there is one.
"""

import argparse
import sys
import time

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["step", "evaluate"])
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=1, help="in a round")
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--width", type=int, default=128)
    options = parser.parse_args()
    torch.manual_seed(0)
    once = {"step": make_step, "evaluate": make_evaluation}[options.what](options)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter(), time.process_time()
        for _ in range(options.steps):
            once()
        milliseconds = (time.perf_counter() - start[0]) * 1e3, (time.process_time() - start[1]) * 1e3
        print(*milliseconds, torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0, flush=True)


def make_step(options):
    """CrossBatchMemory with ContrastiveLoss on a linear layer: a full step, its memory filled before."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head = torch.nn.Linear(options.features, options.width, device=device)
    loss = losses.CrossBatchMemory(losses.ContrastiveLoss(), options.width, memory_size=options.rows)
    loss.embedding_memory = torch.nn.functional.normalize(torch.randn(options.rows, options.width, device=device))
    loss.label_memory = torch.randint(0, options.classes, (options.rows,), device=device)
    loss.has_been_filled = True
    optimizer = torch.optim.Adam(head.parameters(), 1e-3, fused=True)
    features = torch.nn.functional.normalize(torch.randn(options.batch, options.features, device=device))
    labels = torch.randint(0, options.classes, (options.batch // 4,), device=device).repeat_interleave(4)

    def step():
        optimizer.zero_grad()
        loss(torch.nn.functional.normalize(head(features)), labels).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def make_evaluation(options):
    """Recall@1 and MAP@R, leave-one-out."""
    vectors = torch.nn.functional.normalize(torch.randn(options.rows, options.width))
    labels = torch.arange(options.rows) % options.classes
    calculator = AccuracyCalculator(include=("precision_at_1", "mean_average_precision_at_r"), k="max_bin_count")
    return lambda: calculator.get_accuracy(vectors, labels)


if __name__ == "__main__":
    main()
