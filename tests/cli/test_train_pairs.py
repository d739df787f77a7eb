"""train.py on queries and documents: a BEIR folder of vectors, from qrels to a served model."""

import json

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml

from tests.cli.test_train import fails, run
from tests.conftest import run_fresh
from xbm_keras.data.pairs import read_pairs
from xbm_keras.evaluation.pairs import evaluate_pairs
from xbm_keras.experiment import saved_run
from xbm_keras.stages.backbone.frozen import load_keras_file

D, N, Q = 16, 240, 160


def write_folder(folder, num_leaking=10):
    """Queries that are documents seen through some noise directions, which a head can learn to leave out."""
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(N, D)).astype("float32")
    documents[:, D // 2 :] *= 1.5
    queries = documents[:Q] + 0.2 * rng.normal(size=(Q, D)).astype("float32")
    queries[:, D // 2 :] = rng.normal(size=(Q, D // 2)) * 1.5
    names = {"documents": [f"d{i}" for i in range(N)], "queries": [f"q{i}" for i in range(Q)]}
    np.savez(
        folder / "features.npz",
        documents=documents,
        document_id=names["documents"],
        queries=queries,
        query_id=names["queries"],
    )
    (folder / "qrels").mkdir()
    for split, rows in (("train", range(110)), ("test", range(110, Q))):
        lines = [f"q{i}\td{i}\t1" for i in rows]
        lines += [f"q{i}\td{i - 110}\t2" for i in rows if i < 110 + num_leaking and split == "test"]
        text = "query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n"
        (folder / "qrels" / f"{split}.tsv").write_text(text, "utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("beir"))


@pytest.fixture(scope="module")
def config(folder):
    values = {
        "data": {"source": "pairs", "path": str(folder)},
        "backbone": {"kind": "none"},
        "head": {"widths": [6, 12]},
        "training": {"epochs": 8, "batch_size": 16, "learning_rate": 0.03, "folds": 2},
    }
    (folder / "pairs.yaml").write_text(yaml.safe_dump(values))
    return folder / "pairs.yaml"


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "first"
    run(config, workdir, report=True)
    return workdir


def test_a_run_tells_what_is_learnt_from_what_is_learnt_by_heart(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) == {"pairs", "pairs_unseen_documents", "validation", "phase"}
    for protocol in ("pairs", "pairs_unseen_documents"):
        scores = metrics[protocol]
        assert list(scores) == ["frozen", "closed_form@6", "closed_form", "trained@6", "trained"]
        assert scores["trained"]["ndcg_at_10"] > scores["frozen"]["ndcg_at_10"] + 0.2
        low, high = scores["trained"]["ndcg_at_10_interval"]
        assert low < scores["trained"]["ndcg_at_10"] < high
        assert scores["trained"]["ndcg_at_10_above_frozen_interval"][0] > 0
    assert {"epoch", "start", "pairs"} <= set(metrics["validation"])
    about = json.loads((finished / "data.json").read_text())
    assert about["queries"]["train"] + about["queries"]["validation"] == 110
    assert about["queries"]["test"] == 50
    assert about["documents"] == N
    assert about["test_queries_with_documents_of_training"] == 10
    history = pd.read_csv(finished / "history.csv")
    assert history.val_ndcg_at_10[history.phase == "select"].notna().all()
    assert set(history.phase) >= {"select", "select_2"}


def test_the_exported_model_gives_the_scores_of_the_run(finished, folder):
    """In a process that knows TensorFlow alone; both signatures, and a narrower one."""
    served = run_fresh(
        """
        import sys
        import numpy as np, tensorflow as tf
        model = tf.saved_model.load(sys.argv[1])
        arrays = np.load(sys.argv[2])
        for name, rows in (("serve_query", "queries"), ("serve_document", "documents"), ("serve_query_6", "queries")):
            vectors = model.signatures[name](features=tf.constant(arrays[rows]))["embeddings"].numpy()
            np.save(f"{sys.argv[3]}/{name}.npy", vectors)
        assert "xbm_keras" not in sys.modules
        """.replace("\n        ", "\n"),
        finished / "export/1",
        folder / "features.npz",
        finished,
    )
    assert served == ""
    queries, documents, narrow = (
        np.load(finished / f"{name}.npy") for name in ("serve_query", "serve_document", "serve_query_6")
    )
    assert narrow.shape == (Q, 6)
    pairs = read_pairs(str(folder))
    test = np.unique(pairs.query[pairs.split == "test"])
    found = evaluate_pairs(queries[test], documents, *pairs.relevant(test))
    metrics = json.loads((finished / "metrics.json").read_text())
    assert found["ndcg_at_10"].mean() == pytest.approx(metrics["pairs"]["trained"]["ndcg_at_10"], abs=1e-5)
    card = (finished / "export/1/model_card.md").read_text("utf-8")
    assert "10 are answered by documents that answer training queries" in card
    assert "| nDCG@10 | MRR@10 |" in card


def test_the_saved_model_holds_the_corpus_and_the_head(finished):
    model = load_keras_file(finished / "model.keras")
    assert model.memory.memory_size == N
    assert set(model.memory.sample_ids.numpy()) == set(range(N))
    head = saved_run.load_head(str(finished))
    np.testing.assert_array_equal(head.kernel, model.head.kernel)


@pytest.mark.parametrize(
    "overrides",
    [
        ["head.sides=query", "head.embedding_dim=16"],
        ["head.sides=two", "head.embedding_dim=8"],
        ["training.anchors=documents", "head.embedding_dim=8"],
        ["memory.memory_size=64", "head.embedding_dim=8"],
        ["memory.memory_size=0", "head.embedding_dim=8", "head.start=random"],
    ],
)
def test_other_ways_to_train_are_better_than_frozen_features(config, tmp_path, overrides):
    plain = ["training.folds=1", "head.widths=null", *overrides]
    run(config, tmp_path / "run", *plain)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    scores = metrics["pairs_unseen_documents"]
    assert scores["trained"]["ndcg_at_10"] > scores["frozen"]["ndcg_at_10"] + 0.1
    model = tf.saved_model.load(str(tmp_path / "run/export/1"))
    assert ("serve_document" in model.signatures) == ("head.sides=query" not in overrides)


def test_nothing_is_exported_that_is_no_better(config, tmp_path, capsys):
    run(config, tmp_path / "run", "training.epochs=0", "head.widths=null", "head.start=identity",
        "head.embedding_dim=16")  # fmt: skip
    assert not (tmp_path / "run/export").exists()
    assert "Nothing is exported" in capsys.readouterr().out
    run(config, tmp_path / "again", "training.epochs=0", "head.widths=null", "head.start=identity",
        "head.embedding_dim=16", "export.only_if_better=false")  # fmt: skip
    assert (tmp_path / "again/export/1").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["head.sides=query", "head.widths=null", "head.embedding_dim=8"], "8 dimensions for features of width 16"),
        (["head.start=lda"], "head.start 'lda' does not go with head.sides 'both' of pairs"),
        (["loss.name=similarity_alignment"], "which tell what answers what"),
        (["training.anchors=documents", "head.sides=two"], "use sides: both"),
    ],
)
def test_what_does_not_go_together_is_told(config, tmp_path, capsys, overrides, expected):
    assert expected in fails(config, tmp_path / "run", *overrides, capsys=capsys)
