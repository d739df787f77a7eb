"""tune.py on queries and documents: memory size and k by nDCG@10 of held-out queries."""

import json

import pytest
import yaml

from tests.cli.test_train_pairs import write_folder
from tests.tuning.conftest import mean_of_queries
from tests.tuning.test_search import run, search
from xbm_keras.cli import tune
from xbm_keras.config.yaml_files import load_config
from xbm_keras.tuning import PairHyperModel, load_pair_data


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("beir"))
    values = {
        "data": {"source": "pairs", "path": str(folder)},
        "backbone": {"kind": "none"},
        "head": {"embedding_dim": 12},
        "training": {"epochs": 8, "batch_size": 16, "learning_rate": 0.03, "folds": 1},
        "search": {"space": {"memory.memory_size": [0, 256], "top_k.num_negatives": [2, 32]}},
    }
    (folder / "pairs.yaml").write_text(yaml.safe_dump(values))
    return folder / "pairs.yaml"


def test_a_search_and_its_trials(config, tmp_path, monkeypatch):
    table = search(config, tmp_path / "search", 2, tuner="grid")
    assert (table.status == "completed").all()
    assert table.val_ndcg_at_10.between(0.05, 1).all()
    assert set(table["memory.memory_size"]) <= {0, 256}
    for row in table.itertuples():
        assert mean_of_queries(tmp_path / "search", row.trial) == pytest.approx(row.val_ndcg_at_10, abs=1e-6)
    best = table.sort_values("val_ndcg_at_10").iloc[-1]
    page = (tmp_path / "search/search.html").read_text("utf-8")
    assert "nDCG@10" in page
    again = run(tmp_path / f"search/trials/{best.trial}.yaml", tmp_path / "again", "training.refit=false")
    assert again["validation"]["pairs"]["trained"]["ndcg_at_10"] == pytest.approx(best.val_ndcg_at_10, abs=1e-6)
    assert json.loads((tmp_path / "search/best/metrics.json").read_text())["pairs_unseen_documents"]
    (tmp_path / "search/trials/default.json").write_text('{"val_ndcg_at_10": 0.01}')  # as if some trial were better
    monkeypatch.setattr(tune, "train_once", lambda *args, **like: None)
    search(config, tmp_path / "search", 2, tuner="grid")
    page = (tmp_path / "search/search.html").read_text("utf-8")
    assert "instead of 0.0100, 95 % interval of the difference over queries" in page


def test_the_default_space_searches_memory_and_k(config):
    values = load_config(str(config), ["search.space=null"])
    hypermodel = PairHyperModel(*load_pair_data(values))
    sizes = hypermodel.space["memory.memory_size"][0].values
    assert sizes == [0, 16, 32, 64, 128]  # of about 90 documents that answer training queries, in batches of 16
    whole = load_config(str(config), ["search.space=null", "training.negatives=corpus"])
    assert PairHyperModel(*load_pair_data(whole)).space["memory.memory_size"][0].values[-1] == 256  # of all 240
    assert "top_k.num_negatives" in hypermodel.space


def test_each_head_has_a_closed_form_of_its_own(config):
    """Whatever heads were tried before."""

    def score(hypermodel, width):
        values = load_config(str(config), [f"head.embedding_dim={width}", "training.epochs=1"])
        return hypermodel.evaluate(values)[hypermodel.score]

    used, new = (PairHyperModel(*load_pair_data(load_config(str(config)))) for _ in range(2))
    wide, narrow = score(used, 12), score(used, 4)
    assert narrow > wide + 0.05  # half of the features are noise
    assert narrow == score(new, 4)


def test_a_trial_without_epochs_has_the_score_of_its_start(config):
    values = load_config(str(config), ["training.epochs=0", "search.space=null"])
    hypermodel = PairHyperModel(*load_pair_data(values))
    scores = hypermodel.evaluate(values)
    assert 0.05 < scores["val_ndcg_at_10"] < 1
    assert scores["epoch"] == 0
    assert hypermodel.query_scores.values.mean() == pytest.approx(scores["val_ndcg_at_10"], abs=1e-6)
