"""Data that a head can learn from."""

import json
import pathlib

import numpy as np


def save_vectors(file: pathlib.Path) -> None:
    """288 vectors of 24 classes: a few directions tell classes apart, and louder ones do not."""
    rng = np.random.default_rng(0)
    centers = np.repeat(rng.normal(size=(24, 6)) * 1.5, 12, axis=0)
    features = np.concatenate([centers + rng.normal(size=(288, 6)) * 0.6, rng.normal(size=(288, 18)) * 1.5], axis=1)
    np.savez(file, features=features.astype(np.float32), label=np.repeat(np.arange(24), 12))


def mean_of_queries(workdir: pathlib.Path, trial: str) -> float:
    """Of what a search kept of a trial: its score."""
    return float(np.mean(json.loads((workdir / f"trials/{trial}_queries.json").read_text())["values"]))
