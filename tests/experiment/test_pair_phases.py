"""Training on queries with documents that were searched before the first step."""

import numpy as np
import pytest
import yaml

from tests.cli.test_train_pairs import write_folder
from tests.small_models import assert_same_training
from xbm_keras.config.yaml_files import load_config
from xbm_keras.experiment import pair_phases
from xbm_keras.experiment.pair_loading import load_pairs


@pytest.mark.parametrize("anchors", ["queries", "documents"])
def test_documents_that_are_searched_once_train_as_those_that_each_step_searches(anchors, tmp_path, monkeypatch):
    values = {
        "data": {"source": "pairs", "path": str(write_folder(tmp_path))},
        "backbone": {"kind": "none"},
        "head": {"embedding_dim": 12, "start": "pca"},
        "top_k": {"mine_in": "features", "num_negatives": 6, "num_positives": 2},
        "training": {"batch_size": 16, "learning_rate": 0.03, "folds": 1, "anchors": anchors},
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
