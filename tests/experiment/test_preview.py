"""What closed forms would give, told before a run."""

import numpy as np
import pytest
import yaml

from tests import reference_starts
from xbm_keras.cli import preview as cli
from xbm_keras.config.yaml_files import check_config
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.splits import Splits
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.evaluation.retrieval import score_queries
from xbm_keras.experiment.preview import Row, _advice, preview

C, K, D = 24, 5, 12
DATA = {"data": {"source": "features", "path": "x.npz"}, "backbone": {"kind": "none"}}
CONFIG = check_config({**DATA, "head": {"embedding_dim": 6, "shrinkage": 0.4}}, "x")


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(C, D)), K, axis=0) + rng.normal(size=(C * K, D)) * np.linspace(0.2, 3, D)
    ids = np.arange(C * K)
    folds = tuple(np.array_split(ids[: 16 * K], 4))
    splits = Splits(ids[4 * K : 16 * K], ids[: 4 * K], ids[16 * K :], folds=folds)
    labels = np.repeat(np.arange(C), K)
    given = (ids, ids.astype(str), splits, {}, 0, None, ids)
    return Dataset((2 + features).astype(np.float32), labels, [*range(C)], *given)


def by_hand(dataset, form):
    """MAP@R of both held-out halves under what `form` makes of rows, fitted to (rows, labels) of the other half."""
    unit = dataset.features / np.linalg.norm(dataset.features, axis=1, keepdims=True)
    halves = np.arange(8 * K), np.arange(8 * K, 16 * K)
    found = []
    for held, rest in (halves, halves[::-1]):
        labels = dataset.labels[held]
        found.append(score_queries(form(unit[held], unit[rest], dataset.labels[rest]), labels)[1]["map_at_r"])
    return np.concatenate(found)


def lda(rows, others, labels):
    kernel, bias = reference_starts.lda(others, labels, 6, 0.4, 0.3)
    return rows @ kernel + bias


def test_rows_are_of_held_out_halves(dataset):
    found = preview(CONFIG, dataset)
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["frozen", "centred", "pca", "whiten", "lda"]
    frozen = by_hand(dataset, lambda rows, *_: rows)
    assert rows["frozen"].score == pytest.approx(frozen.mean(), abs=1e-6)
    assert rows["frozen"].above_frozen is None
    centred = by_hand(dataset, lambda rows, others, _: rows - others.mean(axis=0))
    classes = dataset.labels[: 16 * K]
    assert rows["centred"].score == pytest.approx(centred.mean(), abs=1e-6)
    assert rows["centred"].interval == pytest.approx(bootstrap_interval(centred, classes), abs=1e-6)
    assert rows["centred"].above_frozen == pytest.approx(bootstrap_interval(centred - frozen, classes), abs=1e-6)
    assert rows["lda"].score >= by_hand(dataset, lda).mean() - 1e-6  # the best of several, of which this is one
    assert found.curve.units == "classes"
    assert list(found.curve.scores)[-1] == 12


@pytest.mark.parametrize(
    ("form", "above", "num_classes", "said"),
    [
        ("lda", (-0.01, 0.02), 500, "lda is not surely better than the frozen features: -0.010 to +0.020"),
        ("lda", (0.01, 0.02), 64, "Solve it: lda is +0.010 to +0.020 MAP@R above"),
        ("lda", (0.01, 0.02), 64, "little: training.epochs=0 is the closed form itself."),
        (
            "centred",
            (0.01, 0.02),
            64,
            "with head.start=centred and head.embedding_dim=20 is this one, in all dimensions",
        ),
        ("lda", (0.01, 0.02), 65, "65 classes are many more than the 32 of a batch, so"),
    ],
)
def test_the_advice(form, above, num_classes, said):
    assert said in _advice(Row(form, 0.5, (0.4, 0.6), above), num_classes, 32, 20)


def test_the_command_says_the_table_the_curve_and_the_advice(dataset, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", features=dataset.features, label=dataset.labels)
    config = {**DATA, "data": {"source": "features", "path": f"{tmp_path}/x.npz", "split": {"test": 0.3}}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["--config", f"{tmp_path}/x.yaml", "--set", "head.embedding_dim=6"]) == 0
    said = capsys.readouterr().out
    for each in ("centred", "above frozen, 95 %", "training classes gives", " it: "):
        assert each in said
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--config", f"{tmp_path}/x.yaml", "--set", "loss.name=similarity_alignment"])
    assert "expected items with classes" in capsys.readouterr().err
