"""What a run chooses by itself."""

import numpy as np
import pytest

from tests import reference_starts
from xbm_keras import experiment
from xbm_keras.data.splits import Splits
from xbm_keras.evaluation import evaluate_retrieval
from xbm_keras.loading import Dataset
from xbm_keras.schema import Config


@pytest.fixture
def dataset():
    """Few items in many noisy directions, so that the shrinkage matters."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 6)
    centers = np.repeat(rng.normal(size=(12, 20)), 6, axis=0)
    features = centers + rng.normal(size=(72, 20)) * np.linspace(0.2, 3, 20)
    ids = np.arange(72)
    splits = Splits(ids[:36], ids[36:54], ids[54:])
    features = features.astype("float32")
    return Dataset(features, labels, [*range(12)], ids, ids.astype(str), splits, {}, 0, None, ids)


def config_of(**head):
    data = {"source": "features", "path": "x.npz"}
    return Config.model_validate({"data": data, "backbone": {"kind": "none"}, "head": {"embedding_dim": 6, **head}})


@pytest.mark.parametrize("start", ["whiten", "lda", "nda", "auto"])
def test_start_and_shrinkage_are_the_best_on_validation_classes(dataset, start):
    unit = dataset.features / np.linalg.norm(dataset.features, axis=1, keepdims=True)
    train, validation = dataset.splits.train, dataset.splits.validation
    scores = {}
    for name in ("lda", "nda") if start == "auto" else (start,):
        for shrinkage in (0.1, 0.3, 0.5, 0.7):
            kernel, bias = getattr(reference_starts, name)(unit[train], dataset.labels[train], 6, shrinkage)
            z = unit[validation] @ kernel + bias
            scores[name, shrinkage] = evaluate_retrieval(z, dataset.labels[validation])["map_at_r"]
    assert len(set(scores.values())) > 1
    chosen = experiment.choose_start(config_of(start=start).head, experiment.closed_forms_of(dataset, train), dataset)
    assert scores[chosen.start, chosen.shrinkage] == max(scores.values())


def test_what_the_config_gives_stays(dataset):
    closed_forms = experiment.closed_forms_of(dataset, dataset.splits.train)
    chosen = experiment.choose_start(config_of(start="lda", shrinkage=0.45).head, closed_forms, dataset)
    assert (chosen.start, chosen.shrinkage) == ("lda", 0.45)
    assert experiment.choose_start(config_of(start="pca").head, closed_forms, dataset).start == "pca"


@pytest.mark.parametrize("start", ["identity", "pca", "whiten", "lda", "nda"])
def test_a_model_starts_at_its_closed_form(dataset, start):
    train = dataset.splits.train
    model = experiment.start_model(config_of(start=start, shrinkage=0.4), dataset, None, train)
    unit = (dataset.features / np.linalg.norm(dataset.features, axis=1, keepdims=True))[train]
    labels = dataset.labels[train]
    if start == "identity":
        z = unit[:, :6]
    elif start == "pca":
        kernel, bias = reference_starts.pca(unit, 6)
        z = unit @ kernel + bias
    else:
        kernel, bias = getattr(reference_starts, start)(unit, labels, 6, 0.4)
        z = unit @ kernel + bias
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    embeddings = model.head(unit).numpy()
    np.testing.assert_allclose(embeddings @ embeddings.T, z @ z.T, atol=1e-3)


def test_the_rate_grows_by_a_constant_factor(dataset):
    config = config_of()
    model = experiment.start_model(config, dataset, None, dataset.splits.train)
    steps = config.training.epochs * 2  # 36 items of 6 classes: two batches of 6 x 4
    rates = np.array([float(model.optimizer._learning_rate(step)) for step in range(steps + 1)])
    assert rates[0] == pytest.approx(config.training.learning_rate / 30, rel=1e-4)
    assert rates[-1] == pytest.approx(config.training.learning_rate, rel=1e-4)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 30 ** (1 / steps), rtol=1e-4)
