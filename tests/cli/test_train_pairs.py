"""train.py on queries and documents: a BEIR folder of vectors, from qrels to a served model."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml

from tests.cli.runs import fails, run
from tests.fresh_processes import run_fresh
from xbm_keras.cli import compress, evaluate, index
from xbm_keras.data.pairs import read_pairs
from xbm_keras.evaluation.pairs import evaluate_pairs
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.experiment import saved_run
from xbm_keras.index import galleries
from xbm_keras.index.coded_search import CodedSearch, read_search_form
from xbm_keras.stages.backbone.frozen import load_keras_file
from xbm_keras.training.callbacks import HistoryCsv

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


def vectors_of(folder):
    """All arrays of the features, and the file closed."""
    with np.load(folder / "features.npz") as arrays:
        return dict(arrays)


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
    page = (finished / "report.html").read_text("utf-8")
    assert f"nDCG@10 {metrics['pairs_unseen_documents']['trained']['ndcg_at_10']:.3f} against" in page
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


def test_evaluate_says_the_same_and_writes_vectors(finished, folder, tmp_path, capsys):
    output, vectors = tmp_path / "scores.json", tmp_path / "vectors.npy"
    assert evaluate.main(["--model", str(finished), "--output", str(output), "--embed", str(vectors)]) == 0
    scores, metrics = json.loads(output.read_text()), json.loads((finished / "metrics.json").read_text())
    for protocol in ("pairs", "pairs_unseen_documents"):
        for name in ("frozen", "trained", "trained@6"):
            assert list(scores[protocol][name]) == list(metrics[protocol][name])
            for metric, value in metrics[protocol][name].items():
                assert scores[protocol][name][metric] == pytest.approx(value)
    pairs = read_pairs(str(folder))
    test = np.unique(pairs.query[pairs.split == "test"])
    queries, documents = (np.load(tmp_path / f"vectors.{name}.npy") for name in ("queries", "documents"))
    found = evaluate_pairs(queries, documents, *pairs.relevant(test))
    assert found["map"].mean() == pytest.approx(metrics["pairs"]["trained"]["map"], abs=1e-6)
    assert pd.read_csv(tmp_path / "vectors.documents.csv").id.tolist() == pairs.documents.ids.tolist()
    assert evaluate.main(["--model", str(finished), "--items", "all", "--output", str(output)]) == 0
    assert list(json.loads(output.read_text())) == ["pairs"]
    assert "110 of these 160 queries trained or chose the head" in capsys.readouterr().out


def test_an_index_of_documents_is_searched_by_queries(finished, folder, tmp_path, capsys):
    index.main(["build", "--index", str(tmp_path / "index"), "--model", str(finished)])
    arrays = vectors_of(folder)
    np.save(tmp_path / "queries.npy", arrays["queries"][110:150])
    search = ["search", "--index", str(tmp_path / "index"), "--model", str(finished), "--k", "10"]
    capsys.readouterr()
    index.main([*search, "--features", str(tmp_path / "queries.npy")])
    answers = capsys.readouterr().out.split("row ")[1:]
    assert len(answers) == 40
    num_found = sum(f"  d{110 + i}\n" in each for i, each in enumerate(answers))
    assert num_found > 25
    for arguments, expected in (
        ([], "Received nothing to search for; expected pictures, --text or --features"),
        (["--features", str(tmp_path / "no.npy")], "which is no file"),
        (["x.jpg"], "which takes no pictures"),
    ):
        with pytest.raises(SystemExit):
            index.main([*search, *arguments])
        assert expected in capsys.readouterr().err
    np.save(tmp_path / "narrow.npy", np.ones((2, 3)))
    with pytest.raises(SystemExit):
        index.main([*search, "--features", str(tmp_path / "narrow.npy")])
    assert "shape (2, 3); expected finite numbers [n, 16]" in capsys.readouterr().err


def test_a_finished_run_is_compressed_to_a_promise(finished, folder, tmp_path, capsys):
    run_folder = tmp_path / "copy"
    shutil.copytree(finished, run_folder)
    command = ["--model", str(run_folder), "--bytes", "all", "--target"]
    assert compress.main([*command, "ndcg@10 >= 0.75 and recall@5 > 0.5"]) == 0
    told = capsys.readouterr().out
    assert "The fewest bytes that surely keep ndcg@10 >= 0.75 and recall@5 > 0.5" in told
    assert "of the trained embedding" in told
    version = run_folder / "export/2"
    form = read_search_form(version)
    assert form.bytes_in_memory + form.bytes_on_disk < 24  # 64 of the frozen features
    arrays, signatures = vectors_of(folder), tf.saved_model.load(str(version)).signatures
    queries, documents = (
        signatures[f"serve_{name}"](features=tf.constant(arrays[rows]))
        for name, rows in (("query", "queries"), ("document", "documents"))
    )
    names = [name for name in (form.search, form.rank) if name]
    search = CodedSearch(form, *(documents[f"embeddings_{name}"].numpy() for name in names))
    pairs, unseen = read_pairs(str(folder)), np.arange(120, Q)  # ten others are answered by documents that trained
    found, _ = search.find(queries["embeddings"].numpy()[unseen], 10)
    relevant, _ = pairs.relevant(unseen)
    gains = [
        1 / np.log2(2 + row.tolist().index(own[0])) if own[0] in row else 0
        for row, own in zip(found, relevant, strict=True)
    ]
    said = re.search(r"On 40 test queries, whose documents never trained, it came to ndcg@10 ([0-9.]+)", told)
    assert float(said[1]) == pytest.approx(np.mean(gains), abs=0.002)
    assert "Held-out queries, whose documents answer no query" in (run_folder / "compress.html").read_text("utf-8")
    assert compress.main([*command, "ndcg@10 > 0.999"]) == 1
    with pytest.raises(SystemExit) as exit:
        compress.main([*command, "map_at_r >= 0.5"])
    assert exit.value.code == 2
    assert "for a run on queries and documents; expected ndcg@K, mrr@K" in capsys.readouterr().err


class _Killed(RuntimeError):
    """In place of a signal."""


def test_a_run_killed_in_two_phases_goes_on_to_the_same_numbers(finished, config, tmp_path, monkeypatch):
    """After three epochs of each; a checkpoint each epoch."""
    write, killed = HistoryCsv.on_epoch_end, []

    def dying(self, epoch, logs=None):
        if self.phase in ("select_2", "refit") and epoch == 3 and self.phase not in killed:
            killed.append(self.phase)
            raise _Killed
        write(self, epoch, logs)

    monkeypatch.setattr(HistoryCsv, "on_epoch_end", dying)
    often = "training.checkpoint_every_seconds=0"
    for _ in range(2):
        with pytest.raises(_Killed):
            run(config, tmp_path / "run", often)
    assert run(config, tmp_path / "run", often) == json.loads((finished / "metrics.json").read_text())
    assert killed == ["select_2", "refit"]


def test_the_saved_model_holds_the_documents_that_answer_and_the_head(finished, folder):
    model = load_keras_file(finished / "model.keras")
    assert model.memory.memory_size == 110
    documents = vectors_of(folder)["documents"][:110]
    held = model.memory.features.numpy()[np.argsort(model.memory.sample_ids.numpy())]
    np.testing.assert_allclose(held, documents / np.linalg.norm(documents, axis=1, keepdims=True), atol=1e-6)
    page = (finished / "report.html").read_text("utf-8")
    assert "rows of the memory are documents that answer training queries" in page
    head = saved_run.load_head(str(finished))
    np.testing.assert_array_equal(head.kernel, model.head.kernel)


@pytest.mark.parametrize(
    ("overrides", "held"),
    [
        (["head.sides=query", "head.embedding_dim=16"], ["94 documents that answer training queries"]),
        (["head.sides=two", "head.embedding_dim=8", "training.negatives=corpus"], ["240 documents"]),
        (["training.negatives=queries", "head.embedding_dim=8"], ["94 training queries"]),
        (["memory.memory_size=64", "head.embedding_dim=8"], []),
        (["memory.memory_size=0", "head.embedding_dim=8", "head.start=random"], []),
    ],
)
def test_other_ways_to_train_are_better_than_frozen_features(config, folder, tmp_path, capsys, overrides, held):
    """And their index holds documents as the exported model embeds these, or as they are."""
    plain = ["training.folds=1", "head.widths=null", *overrides]
    run(config, tmp_path / "run", *plain)
    told = capsys.readouterr().out
    assert re.findall(r"(\d) of 6: ", told) == [*"123456"]
    assert re.findall(r"The memory holds all (.*?) \(", told) == held
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    scores = metrics["pairs_unseen_documents"]
    assert scores["trained"]["ndcg_at_10"] > scores["frozen"]["ndcg_at_10"] + 0.1
    model = tf.saved_model.load(str(tmp_path / "run/export/1"))
    assert ("serve_document" in model.signatures) == ("head.sides=query" not in overrides)
    index.main(["build", "--index", str(tmp_path / "index"), "--model", str(tmp_path / "run")])
    found = vectors_of(folder)["documents"]
    if "serve_document" in model.signatures:
        found = model.signatures["serve_document"](features=tf.constant(found))["embeddings"].numpy()
    expected = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(galleries.read_index(tmp_path / "index")[0].vectors, expected, atol=1e-5)
    if "head.sides=query" in overrides:  # documents stay as they are, but for what compresses them
        assert compress.main(["--model", str(tmp_path / "run"), "--target", "recall@10 >= 0.3"]) == 0
        version = tmp_path / "run/export/2"
        form, signatures = read_search_form(version), tf.saved_model.load(str(version)).signatures
        served = signatures["serve_document"](features=tf.constant(expected))
        assert served["embeddings"].shape == (N, form.width)
        np.testing.assert_array_equal(
            served[f"embeddings_{form.search}"], CODES[form.search].of(served["embeddings"].numpy())
        )
        index.main(["build", "--index", str(tmp_path / "coded"), "--model", str(tmp_path / "run")])
        held = form.decode(form.encode(served["embeddings"].numpy())[form.finest])
        np.testing.assert_allclose(galleries.read_index(tmp_path / "coded")[0].vectors, held, atol=1e-5)


def test_vectors_in_npy_are_enough(folder, config, tmp_path, capsys):
    """What the page says: a folder of two arrays and index pairs, ids are row numbers."""
    arrays, mine = vectors_of(folder), tmp_path / "mine"
    mine.mkdir()
    np.save(mine / "queries.npy", arrays["queries"])
    np.save(mine / "documents.npy", arrays["documents"])
    np.save(mine / "pairs.npy", np.stack([np.arange(Q), np.arange(Q)], axis=1))
    metrics = run(config, tmp_path / "run", f"data.path={mine}", "training.folds=1", "head.widths=null",
                  "head.embedding_dim=12")  # fmt: skip
    assert metrics["pairs"]["trained"]["ndcg_at_10"] > metrics["pairs"]["frozen"]["ndcg_at_10"] + 0.1
    assert "\nTest queries" in capsys.readouterr().out
    about = json.loads((tmp_path / "run/data.json").read_text())
    assert about["test_queries_with_documents_of_training"] == 0
    assert sum(about["queries"].values()) == Q


def test_forms_that_pairs_do_not_have_are_no_candidates(config, tmp_path):
    """Documents that equal their queries: nothing to whiten, and nothing to mend."""
    mine = tmp_path / "mine"
    mine.mkdir()
    vectors = np.random.default_rng(0).normal(size=(80, D)).astype("float32")
    for name in ("queries", "documents"):
        np.save(mine / f"{name}.npy", vectors)
    np.save(mine / "pairs.npy", np.stack([np.arange(80), np.arange(80)], axis=1))
    options = [f"data.path={mine}", "training.epochs=0", "head.widths=null", "head.embedding_dim=16"]
    metrics = run(config, tmp_path / "run", *options)
    assert metrics["validation"]["start"] == "identity"
    assert metrics["pairs"]["trained"]["ndcg_at_10"] == 1


def test_nothing_is_exported_that_is_no_better(config, tmp_path, capsys):
    run(config, tmp_path / "run", "training.epochs=0", "head.widths=null", "head.start=identity",
        "head.embedding_dim=16")  # fmt: skip
    assert not (tmp_path / "run/export").exists()
    assert "Nothing is exported" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        index.main(["build", "--index", str(tmp_path / "index"), "--model", str(tmp_path / "run")])
    assert "a run that exported nothing" in capsys.readouterr().err
    run(config, tmp_path / "again", "training.epochs=0", "head.widths=null", "head.start=identity",
        "head.embedding_dim=16", "export.only_if_better=false")  # fmt: skip
    assert (tmp_path / "again/export/1").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["head.sides=query", "head.widths=null", "head.embedding_dim=8"], "embedding_dim=8 for features of width 16"),
        (["head.start=lda"], "head.start 'lda' does not go with head.sides 'both' of pairs"),
        (["loss.name=similarity_alignment"], "which tell what answers what"),
        (["training.negatives=queries", "head.sides=two"], "use sides: both"),
    ],
)
def test_what_does_not_go_together_is_told(config, tmp_path, capsys, overrides, expected):
    assert expected in fails(config, tmp_path / "run", *overrides, capsys=capsys)
