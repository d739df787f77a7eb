"""Configs of small data, and a run that is finished."""

import keras
import numpy as np
import pytest
import yaml

from tests.cli.runs import run


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A config of vectors in which a few directions tell classes apart, and louder ones do not."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    labels = np.repeat([f"klasse {i:02d} ä" for i in range(24)], 12)
    centers = np.repeat(rng.normal(size=(24, 6)) * 1.5, 12, axis=0)
    features = np.concatenate([centers + rng.normal(size=(288, 6)) * 0.6, rng.normal(size=(288, 18)) * 1.5], axis=1)
    roles = np.array(["train", "test"] * 144)
    np.savez(folder / "vectors.npz", features=features.astype(np.float32), label=labels, role=roles)
    config = {
        "data": {"source": "features", "path": str(folder / "vectors.npz"), "split": {"query_column": "role"}},
        "backbone": {"kind": "none"},
        "head": {"embedding_dim": 8, "start": "lda", "shrinkage": 0.4},  # to try all takes a third of a run
        "training": {"epochs": 3, "folds": 1, "batch_size": 16},
    }
    (folder / "vectors.yaml").write_text(yaml.safe_dump(config))
    return folder / "vectors.yaml"


@pytest.fixture(scope="module")
def finished(vectors, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "first"
    run(vectors, workdir, "training.folds=2", "head.start=auto", "head.shrinkage=auto", report=True)
    return workdir


@pytest.fixture
def photos(tmp_path):
    """A config of a folder with eight classes of pictures in a colour of their own, and what goes wrong in practice."""
    rng = np.random.default_rng(0)
    for label in range(8):
        color = rng.uniform(0, 255, 3)
        for i in range(6):
            path = tmp_path / f"my photos/klasse {label}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(color + rng.normal(size=(12, 10 + i, 3)) * 25, 0, 255)
            keras.utils.save_img(path, pixels, scale=False)
    (tmp_path / "my photos/alone").mkdir()
    (tmp_path / "my photos/klasse 0/0.png").rename(tmp_path / "my photos/alone/only.png")
    (tmp_path / "my photos/klasse 1/2.png").write_bytes(b"")
    network = keras.Sequential(
        [keras.Input((12, 12, 3)), keras.layers.Conv2D(6, 3, activation="relu"), keras.layers.BatchNormalization()]
    )
    network.save(tmp_path / "net.keras")
    config = {
        "data": {"source": "image_folder", "root": str(tmp_path / "my photos"), "split": {"test": 0.4}},
        "backbone": {"kind": "file", "path": str(tmp_path / "net.keras"), "image_size": [12, 12]},
        "cache": {"dir": str(tmp_path / "cache")},
        "views": {"number": 1, "turned_classes": False},
        "head": {"embedding_dim": 4},
        "training": {"epochs": 1, "folds": 1, "batch_size": 9, "samples_per_class": 3},
    }
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "photos.yaml"
