"""Queries and documents: every layout that is read, and what is said of what people get wrong."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from xbm_keras.data.errors import DataError
from xbm_keras.data.pairs import read_pairs

CORPUS = {"d1": ("On tea", "It is brewed."), "d2": ("", "Coffee is roasted."), "d3": ("Milk", "")}
QUERIES = {"q1": "how is tea made?", "q2": "what is roasted?", "q3": "never answered"}
QRELS = {"train": ["q1\td1\t2", "q1\td2\t0"], "test": ["q2\td2\t1"]}


def write(
    folder, corpus=CORPUS, queries=QUERIES, qrels=QRELS, newline="\n", bom="", header="query-id\tcorpus-id\tscore"
):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"_id": i, "title": title, "text": text}) for i, (title, text) in corpus.items()]
    (folder / "corpus.jsonl").write_text(bom + "\n".join(lines), newline=newline)
    lines = [json.dumps({"_id": i, "text": text, "metadata": {}}) for i, text in queries.items()]
    (folder / "queries.jsonl").write_text(bom + "\n".join(lines), newline=newline)
    for split, judged in qrels.items():
        text = bom + "\n".join([*([header] if header else []), *judged]) + "\n"
        (folder / f"qrels/{split}.tsv").write_text(text, newline=newline)
    return folder


def judged(pairs):
    """(query, document, grade, split), by id."""
    ids = pairs.queries.ids[pairs.query], pairs.documents.ids[pairs.document]
    return sorted(zip(*(each.tolist() for each in (*ids, pairs.grade, pairs.split)), strict=True))


EXPECTED = [("q1", "d1", 2.0, "train"), ("q1", "d2", 0.0, "train"), ("q2", "d2", 1.0, "test")]


@pytest.mark.parametrize(
    "how", [{}, {"newline": "\r\n", "bom": "\ufeff"}, {"header": ""}], ids=["BEIR", "Windows", "bare"]
)
def test_a_beir_folder(tmp_path, how):
    pairs = read_pairs(str(write(tmp_path, **how)))
    assert judged(pairs) == EXPECTED
    assert pairs.documents.texts == ["On tea It is brewed.", "Coffee is roasted.", "Milk"]
    assert pairs.queries.texts == list(QUERIES.values())
    assert pairs.queries.features is pairs.documents.features is None
    assert pairs.ignored == {"queries that nothing answers": 1}
    relevant, grades = pairs.relevant(np.array([1, 0]))
    assert relevant.tolist() == [[1], [0]]
    assert grades.tolist() == [[1], [2]]


def test_trec_columns_packed_tables_and_parquet(tmp_path):
    write(tmp_path, qrels={"dev": ["q1 0 d1 2", "q1 0 d2 0"]}, header="")
    judgements = pd.DataFrame({"query-id": ["q2"], "corpus-id": ["d2"], "score": [1]})
    judgements.to_parquet(tmp_path / "qrels/test.parquet")
    packed = gzip.compress((tmp_path / "corpus.jsonl").read_bytes())
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "corpus.jsonl.gz").write_bytes(packed)
    pd.read_json(tmp_path / "queries.jsonl", lines=True)[["_id", "text"]].to_parquet(tmp_path / "queries.parquet")
    (tmp_path / "queries.jsonl").unlink()
    pairs = read_pairs(str(tmp_path))
    assert judged(pairs) == [(q, d, g, {"train": "validation"}.get(split, split)) for q, d, g, split in EXPECTED]
    assert pairs.documents.texts[0] == "On tea It is brewed."


def test_features_beside_texts_and_in_their_place(tmp_path):
    documents, queries = np.eye(3, 4, dtype=np.float16), np.eye(3, 4, 1)
    ids = {"document_id": np.array(["d3", "d1", "d2"]), "query_id": np.array(list(QUERIES))}
    np.savez(write(tmp_path) / "features.npz", documents=documents, queries=queries, **ids)
    pairs = read_pairs(str(tmp_path))
    assert judged(pairs) == EXPECTED
    assert pairs.documents.ids.tolist() == ["d3", "d1", "d2"]
    assert pairs.documents.texts == ["Milk", "On tea It is brewed.", "Coffee is roasted."]
    np.testing.assert_array_equal(pairs.documents.features, documents)
    for name in ("corpus", "queries"):
        (tmp_path / f"{name}.jsonl").unlink()
    pairs = read_pairs(str(tmp_path))
    assert judged(pairs) == EXPECTED
    assert pairs.documents.texts is None


def test_vectors_with_index_pairs(tmp_path):
    np.save(tmp_path / "queries.npy", np.ones((3, 2), np.float32))
    np.save(tmp_path / "documents.npy", np.ones((5, 2), np.float32))
    np.save(tmp_path / "pairs.npy", np.array([[0, 4], [2, 1], [2, 3]]))
    pairs = read_pairs(str(tmp_path))
    assert judged(pairs) == [("0", "4", 1.0, ""), ("2", "1", 1.0, ""), ("2", "3", 1.0, "")]
    relevant, grades = pairs.relevant(np.array([0, 2]))
    assert relevant.tolist() == [[4, -1], [1, 3]]
    assert grades.tolist() == [[1, 0], [1, 1]]


def test_a_table(tmp_path):
    table = pd.DataFrame(
        {
            "question": ["a?", "b?", "a?", "c?", "", "d?"],
            "answer": ["A", "B", "AA", "A", "E", "F"],
            "score": ["1", "1", "0.5", "1", "1", "0"],
            "split": ["train", "val", "train", "test", "train", "test"],
        }
    )
    table.to_csv(tmp_path / "pairs.csv", index=False)
    pairs = read_pairs(str(tmp_path / "pairs.csv"), "question", "answer")
    said = [(pairs.queries.texts[int(q)], pairs.documents.texts[int(d)], *rest) for q, d, *rest in judged(pairs)]
    assert said == [
        ("a?", "A", 1.0, "train"), ("a?", "AA", 0.5, "train"), ("b?", "B", 1.0, "validation"), ("c?", "A", 1.0, "test"),
    ]  # fmt: skip
    assert pairs.ignored == {
        "judgements of a query that there is not, or is empty": 1,
        "queries that nothing answers": 2,
    }


UNKNOWN = "judgements of a {} that there is not, or is empty"


@pytest.mark.parametrize(
    ("corpus", "judgement", "ignored"),
    [
        (CORPUS, "q2\td9\t1", UNKNOWN.format("document")),
        (CORPUS, "q9\td2\t1", UNKNOWN.format("query")),
        (CORPUS, "q2\td2\t1", "judgements that are there twice"),
        ({**CORPUS, "d4": ("", " ")}, "q2\td4\t1", UNKNOWN.format("document")),
    ],
)
def test_what_is_left_out_is_counted(tmp_path, corpus, judgement, ignored):
    pairs = read_pairs(str(write(tmp_path, corpus, qrels={**QRELS, "test": [*QRELS["test"], judgement]})))
    assert judged(pairs) == EXPECTED
    assert pairs.ignored == {ignored: 1, "queries that nothing answers": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qrels": {"train": ["q1\td1\trelevant"]}}, r"train.tsv, whose judgement 1 has the grade 'relevant'"),
        ({"qrels": {"train": ["q1\td1\t"]}}, r"train.tsv, whose judgement 1 has the grade ''"),
        ({"qrels": {"train": ["q1\td1\tnan"]}}, r"whose judgement 1 has the grade 'nan'"),
        ({"qrels": {"train": ["q1\td1\t1"], "test": ["q1\td1\t2"]}}, "two judgements of query 'q1' and document 'd1'"),
        ({"qrels": {"train": ["q1\tX1\t1", "q1\tX2\t1"]}}, "Received 2 judgements .* such as 'q1' with 'X1', none of"),
        ({"qrels": {"train": ["q1\td1\t0"]}}, "none of which says"),
        ({"qrels": {}}, r"neither qrels/\*.tsv nor pairs.npy"),
        ({"qrels": {"train": ["q1\td1\t1\t2\t5"]}}, "line 2 has 5 cells"),
    ],
)
def test_judgements_that_cannot_be_used(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read_pairs(str(write(tmp_path, **change)))


def test_ids_that_are_there_twice_and_what_is_missing(tmp_path):
    write(tmp_path)
    lines = (tmp_path / "corpus.jsonl").read_text()
    (tmp_path / "corpus.jsonl").write_text(lines + "\n" + lines.splitlines()[0])
    with pytest.raises(DataError, match=r"1 ids that are there more than once in .*corpus.jsonl, such as 'd1'"):
        read_pairs(str(tmp_path))
    with pytest.raises(DataError, match=f"Say --set data.path={tmp_path}"):
        read_pairs(str(tmp_path / "corpus.jsonl"))
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"holds neither corpus.jsonl nor documents in features.npz"):
        read_pairs(str(tmp_path))
    np.savez(tmp_path / "features.npz", documents=np.ones((2, 4)), document_id=np.array(["d1", "d2"]))
    assert len(read_pairs(str(tmp_path)).documents.ids) == 2
    np.savez(tmp_path / "features.npz", documents=np.ones((2, 4)), document_id=np.array(["d1"]))
    with pytest.raises(DataError, match=r"documents of shape \(2, 4\) and dtype float64 with 1 ids"):
        read_pairs(str(tmp_path))
    (tmp_path / "features.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(str(tmp_path))
    with pytest.raises(DataError, match="neither folder nor file"):
        read_pairs(str(tmp_path / "elsewhere"))


def test_a_table_beside_a_beir_folder_is_a_table(tmp_path):
    write(tmp_path)
    (tmp_path / "questions.csv").write_text("query,document\nwhat is mint?,a herb\n")
    assert read_pairs(str(tmp_path / "questions.csv")).queries.texts == ["what is mint?"]


def test_the_sets_at_hand(data_dir):
    pairs = read_pairs(str(data_dir / "scifact"))
    assert len(pairs.documents.ids) == len(pairs.documents.texts) == len(pairs.documents.features) == 5183
    assert {name: int((pairs.split == name).sum()) for name in ("train", "test")} == {"train": 919, "test": 339}
    assert pairs.ignored == {}
    one = pairs.documents.ids.tolist().index("4983")
    assert pairs.documents.texts[one].startswith("Microstructural development of human newborn cerebral white matter")
