"""Roles of a run on queries and documents, and documents that are searched before its first step."""

import numpy as np
import pytest
import yaml

from tests.cli.test_train_pairs import write_folder
from tests.data.test_pair_dataset import make_pairs
from tests.small_models import assert_same_training
from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import load_config
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.splits import Splits
from xbm_keras.experiment import pair_phases
from xbm_keras.experiment.build import rate_of_steps
from xbm_keras.experiment.pair_loading import load_pairs
from xbm_keras.experiment.pair_phases import Roles, start_model

QUERIES, DOCUMENTS = np.eye(4, 8, dtype=np.float32), np.eye(8, dtype=np.float32)[::-1][:6]
ANSWERS = {0: {4}, 1: {1, 4}, 2: {0}}  # query 3 tests; 3 and 5 answer nothing, and are judged irrelevant


@pytest.mark.parametrize("negatives", ["answers", "queries"])
def test_documents_that_are_searched_once_train_as_those_that_each_step_searches(negatives, tmp_path, monkeypatch):
    values = {
        "data": {"source": "pairs", "path": str(write_folder(tmp_path))},
        "backbone": {"kind": "none"},
        "head": {"embedding_dim": 12, "start": "pca"},
        "top_k": {"mine_in": "features", "num_negatives": 6, "num_positives": 2},
        "training": {"batch_size": 16, "learning_rate": 0.03, "folds": 1, "negatives": negatives},
    }
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(values))
    config = load_config(str(tmp_path / "pairs.yaml"))
    dataset = load_pairs(config, None)[0]
    head = pair_phases.choose_pair_start(config.head, [dataset])
    config = config.model_copy(update={"head": head})
    models = []
    for is_known in (True, False):
        if not is_known:
            monkeypatch.setattr(pair_phases, "know_neighbors", lambda *arguments: None)
        model = pair_phases.start_model(config, dataset, None, dataset.splits.train)
        pair_phases.fit(config, dataset, model, dataset.splits.train, 2, show_progress=False)
        models.append(model)
    assert_same_training(*models)
    found = models[0].top_k.table.indices.numpy()
    assert models[1].top_k.table is None
    roles = pair_phases.Roles(config, dataset, dataset.splits.train)
    ids = models[0].memory.sample_ids.numpy()
    scores = roles.anchors[:] @ models[0].memory.features.numpy().T
    for number, relevant in enumerate(roles.relevant):
        order = np.argsort(-scores[number])
        assert found[number].tolist() == order[~np.isin(ids[order], relevant)][:6].tolist()


@pytest.fixture
def dataset():
    pairs = make_pairs([1, 0, 2, 1, 3, 0, 0], [4, 4, 0, 1, 2, 3, 5], grade=[1, 1, 1, 1, 1, 0, 0])
    everyone = np.arange(4)
    return PairDataset(pairs, QUERIES, DOCUMENTS, Splits(everyone[:3], everyone[:0], everyone[3:]))


def config(**training):
    sections = {"backbone": {"kind": "none"}, "head": {"embedding_dim": 4, "start": "random"}}
    return Config.model_validate({"data": {"source": "pairs", "path": "x"}, **sections, "training": training})


@pytest.mark.parametrize(("negatives", "held"), [("answers", [0, 1, 4]), ("corpus", [0, 1, 2, 3, 4, 5])])
def test_the_memory_holds_what_answers_or_all(dataset, negatives, held):
    trained = dataset.splits.train
    roles = Roles(config(negatives=negatives), dataset, trained)
    np.testing.assert_array_equal(roles.rows[:], DOCUMENTS[held])
    np.testing.assert_array_equal(roles.anchors[:], QUERIES[:3])
    assert {i: {held[place] for place in row if place >= 0} for i, row in enumerate(roles.relevant)} == ANSWERS
    memory = start_model(config(negatives=negatives, batch_size=2), dataset, None, trained).memory
    order = np.argsort(memory.sample_ids.numpy())
    np.testing.assert_array_equal(memory.features.numpy()[order], DOCUMENTS[held])
    np.testing.assert_array_equal(memory.sample_ids.numpy()[order], roles.row_ids)


def test_documents_as_anchors_find_the_queries_that_they_answer(dataset):
    roles = Roles(config(negatives="queries"), dataset, dataset.splits.train)
    np.testing.assert_array_equal(roles.anchors[:], DOCUMENTS[[0, 1, 4]])
    np.testing.assert_array_equal(roles.rows[:], QUERIES[:3])
    assert [{place for place in row if place >= 0} for row in roles.relevant.tolist()] == [{2}, {1}, {0, 1}]


@pytest.mark.parametrize(
    ("source", "epochs", "rates"),
    [
        ("pairs", 10, {0: 0.3, 35: 0.3 / 30**0.5, 70: 0.01}),
        ("pairs", 40, {0: 0.3, 280: 0.01}),
        ("features", 10, {0: 0.01, 35: 0.3 / 30**0.5, 70: 0.3}),
        ("features", 40, {70: 0.3}),
        ("features", 4, {28: 0.3}),
    ],
)
def test_the_rate_of_classes_grows_thirtyfold_in_ten_epochs_and_that_of_pairs_falls_over_all(source, epochs, rates):
    values = {"data": {"source": source, "path": "x"}, "backbone": {"kind": "none"}}
    rate = rate_of_steps(Config.model_validate({**values, "training": {"learning_rate": 0.3, "epochs": epochs}}), 7)
    assert [float(rate(step)) for step in rates] == pytest.approx(list(rates.values()))


def test_a_model_of_pairs_is_compiled_with_the_rate_that_falls(dataset):
    model = start_model(config(learning_rate=0.3, batch_size=2, epochs=10), dataset, None, dataset.splits.train)
    steps = 2  # of 3 queries in batches of 2
    assert float(model.optimizer.learning_rate) == pytest.approx(0.3)
    model.optimizer.iterations.assign(10 * steps)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
