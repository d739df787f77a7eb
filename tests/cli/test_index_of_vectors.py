"""`xbm-keras index` on a run of vectors: from any file, under ids that are known, and with LanceDB."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.cli.runs import run
from tests.cli.test_index import opened, refused, said
from xbm_keras.cli import index


@pytest.fixture(scope="module")
def of_vectors(vectors, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "vectors"
    run(vectors, workdir, "export.only_if_better=false")
    return workdir


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet"])
def test_vectors_in_any_file_are_built_synced_and_found(of_vectors, vectors, tmp_path, capsys, kind):
    with np.load(vectors.with_name("vectors.npz")) as data:
        rows = data["features"][:40]
    file = tmp_path / f"rows.{kind}"

    def write(rows, ids):
        if kind == "npy":
            np.save(file, rows)
        elif kind == "npz":
            np.savez(file, features=rows, id=ids, label=[f"of {each}" for each in ids])
        else:
            pd.DataFrame({"id": ids, "label": [f"of {each}" for each in ids], "features": list(rows)}).to_parquet(file)

    ids = [str(i) for i in range(len(rows))]
    write(rows, ids)
    command = lambda name, *words: index.main([name, f"--model={of_vectors}", f"--index={tmp_path}/index", *words])  # noqa: E731
    assert command("build", f"--vectors={file}") == 0
    np.save(tmp_path / "queries.npy", rows[[3]])
    capsys.readouterr()
    assert command("search", "--k=1", "--json", f"--features={tmp_path}/queries.npy") == 0
    (hit,) = json.loads(capsys.readouterr().out)["hits"]
    assert (hit["id"], hit["label"]) == ("3", "" if kind == "npy" else "of 3")
    write(np.concatenate([rows[:30], rows[38:]]), [*ids[:30], *ids[38:]])
    assert command("sync", str(file)) == 0
    told = "0 added, 2 changed, 8 gone" if kind == "npy" else "0 added, 0 changed, 8 gone"
    assert told in said(capsys)
    assert sorted(opened(tmp_path).gallery.labels) == sorted(
        [""] * 32 if kind == "npy" else [f"of {each}" for each in [*ids[:30], *ids[38:]]]
    )


def test_lancedb_answers_with_a_condition_as_items_come_and_go(of_vectors, vectors, tmp_path, capsys):
    pytest.importorskip("lancedb", reason="needs the extra [stores]")
    with np.load(vectors.with_name("vectors.npz")) as data:
        rows = data["features"][:40]
    file, queries = tmp_path / "rows.parquet", tmp_path / "queries.npy"
    table = pd.DataFrame({"id": [f"r{i}" for i in range(40)], "part": np.arange(40) % 4, "features": list(rows)})
    command = lambda name, *words: index.main([name, f"--model={of_vectors}", f"--index={tmp_path}/index", *words])  # noqa: E731
    table[:30].to_parquet(file)
    assert command("build", f"--vectors={file}", "--approximate=lancedb") == 0
    table[5:].to_parquet(file)
    assert command("sync", str(file)) == 0
    np.save(queries, rows[[3, 37]])
    answers = []
    for how in (["--approximate"], []):
        capsys.readouterr()
        assert command("search", "--k=3", "--json", f"--features={queries}", "--where=part = 1", *how) == 0
        hits = [json.loads(line)["hits"] for line in capsys.readouterr().out.splitlines()]
        answers.append([[(hit["id"], hit["metadata"]["part"]) for hit in each] for each in hits])
    assert answers[0] == answers[1]
    assert answers[0][1][0] == ("r37", 1)
    assert {part for each in answers[0] for _, part in each} == {1}
    assert opened(tmp_path).about["recall_at_10"] == 1


def test_ids_of_another_file_are_not_taken_over(of_vectors, vectors, tmp_path, capsys):
    with np.load(vectors.with_name("vectors.npz")) as data:
        rows = data["features"][:4]
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", features=rows, id=["1", "2", "3", "4"])
    command = lambda name, *words: index.main([name, f"--model={of_vectors}", f"--index={tmp_path}/index", *words])  # noqa: E731
    assert command("build", f"--vectors={tmp_path}/a.npz") == 0
    message = refused(capsys, command, "sync", f"{tmp_path}/b.npz")
    assert "4 items whose ids are of another root in the index, such as '1' of ''" in message
