"""Approximate search by each library: most of what exact search finds, items that come and go, and conditions."""

import datetime
import sys

import numpy as np
import pyarrow
import pytest

from tests.index.test_where import CONDITIONS, ITEMS
from xbm_keras.index.approximate import ENGINES, ApproximateSearch, keys_of
from xbm_keras.index.galleries import add_items, remove_items, write_index
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.opened_index import OpenedIndex
from xbm_keras.index.saved_search import ExactSearch
from xbm_keras.index.where import ConditionError

MODULES = {"usearch": "usearch.index", "faiss": "faiss", "lancedb": "lancedb"}


@pytest.fixture(params=sorted(ENGINES))
def engine(request):
    pytest.importorskip(MODULES[request.param], reason="needs the extra [ann], or [stores]")
    return request.param


def gallery(num_items, width=16, prefix="item ", seed=0):
    rows = np.random.default_rng(seed).normal(size=(num_items, width)).astype(np.float32)
    vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    ids = [f"{prefix}{i}" for i in range(num_items)]
    return Gallery.of(vectors, ids, year=[i % 10 for i in range(num_items)])


def ids_of(hits):
    return [[hit["id"] for hit in each] for each in hits]


def test_it_finds_nearly_all_also_after_items_came_and_went(tmp_path, engine):
    items = gallery(1500)
    assert write_index(tmp_path, items, "model", engine=engine)["recall_at_10"] > 0.95
    more = gallery(500, prefix="more ", seed=3)
    changed = Gallery.of(more.vectors[:1], ["item 700"], year=[77])
    add_items(tmp_path, more.take(np.arange(500) > 0), "model")
    add_items(tmp_path, changed, "model")
    assert remove_items(tmp_path, items.ids[:300])["recall_at_10"] > 0.95
    opened = OpenedIndex.newest(tmp_path)
    assert len(opened.approximate) == len(opened) == 1699
    found, exact = (opened.find(3 * more.vectors, 10, approximate=each) for each in (True, False))
    assert "gallery" not in vars(opened)  # the library alone holds the vectors
    asked = ["item 700", *more.ids[1:]]
    is_itself = np.array([hits[0]["id"] == own for hits, own in zip(found, asked, strict=True)])
    assert is_itself.mean() > 0.97  # threads build the graph, each time another one
    assert {hit["metadata"]["year"] for hits in found for hit in hits if hit["id"] == "item 700"} <= {77}
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids_of(found), ids_of(exact), strict=True)])
    assert recall > 0.95
    best = np.array([hits[0]["similarity"] for hits in found])[is_itself]
    np.testing.assert_allclose(
        best, [hits[0]["similarity"] for hits, it in zip(exact, is_itself, strict=True) if it], atol=1e-5
    )
    assert not {f"item {i}" for i in range(300)} & {each for hits in ids_of(found) for each in hits}


def test_conditions_hold(tmp_path, engine):
    items = gallery(3000)
    write_index(tmp_path, items, "model", engine=engine)
    opened, queries = OpenedIndex.newest(tmp_path), gallery(20, seed=1).vectors
    ask = lambda k, where: opened.find(queries, k, approximate=True, where=where)  # noqa: E731
    if engine == "usearch":
        with pytest.raises(ValueError, match="USearch, which has no filter"):
            ask(5, "year = 3")
        return
    exact = ids_of(opened.find(queries, 5, where="year = 3"))
    found = ask(5, "year = 3")
    assert {hit["metadata"]["year"] for hits in found for hit in hits} == {3}
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(ids_of(found), exact, strict=True)]) > 0.95
    few = ask(10, "id in ('item 5', 'item 6')")
    assert all(sorted(each) == ["item 5", "item 6"] for each in ids_of(few))
    assert ids_of(ask(10, "year = 99")) == [[]] * 20


def test_of_few_items_it_finds_each(engine, tmp_path):
    items = gallery(3)
    built = ENGINES[engine].build(items, keys_of(items.ids))
    built.save(tmp_path / built.file)
    search = ApproximateSearch(items.items, built)
    rows, similarities = search.find(items.vectors, 10)
    exact_rows, exact = ExactSearch.of(items).find(items.vectors, 10)
    assert rows.tolist() == exact_rows.tolist()
    np.testing.assert_allclose(similarities, exact, atol=1e-5)


def test_of_no_items_and_for_no_queries_it_finds_nothing(tmp_path, engine):
    items = gallery(3)
    write_index(tmp_path, items, "model", engine=engine)
    for approximate in (False, True):
        opened = OpenedIndex.newest(tmp_path)
        assert opened.find(items.vectors[:0], 5, approximate=approximate) == []
        assert [len(hits) for hits in opened.find(items.vectors, 1 << 40, approximate=approximate)] == [3, 3, 3]
    remove_items(tmp_path, items.ids)
    assert OpenedIndex.newest(tmp_path).find(items.vectors, 5, approximate=True) == [[], [], []]


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch, engine):
    monkeypatch.setitem(sys.modules, MODULES[engine], None)
    with pytest.raises(ValueError, match=r"expected the extra \[(ann|stores)\]"):
        write_index(tmp_path, gallery(5), "model", engine=engine)
    assert not list(tmp_path.glob("[0-9]*"))


def test_an_index_without_one_says_so(tmp_path):
    write_index(tmp_path, gallery(5), "model")
    with pytest.raises(ValueError, match="build it with --approximate"):
        OpenedIndex.newest(tmp_path).find(gallery(1).vectors, 1, approximate=True)


@pytest.fixture
def database():
    return pytest.importorskip("lancedb", reason="needs the extra [stores]")


def test_lancedb_takes_each_condition_itself(tmp_path, database, monkeypatch):
    vectors = gallery(len(ITEMS)).vectors
    items = ITEMS.append_column("label", pyarrow.array([""] * len(ITEMS)))
    write_index(tmp_path, Gallery(vectors, items), "model", engine="lancedb")
    opened = OpenedIndex.newest(tmp_path)
    assert opened.find(vectors[:1], 5, approximate=True, where="year = 1") == [[]]
    monkeypatch.setattr("xbm_keras.index.where.Condition.keys", None)  # which is for others
    for condition, expected in {**CONDITIONS, "year = '2020'": "be", "made = '2020-03-01T00:00'": "c"}.items():
        if expected is not None:
            (hits,) = opened.find(vectors[:1], 5, approximate=True, where=condition)
            assert "".join(sorted(hit["id"] for hit in hits)) == expected, condition
    with pytest.raises(ValueError, match="Received a condition on 'STYLE_'"):
        opened.find(vectors[:1], 5, approximate=True, where="STYLE_ = 1")


def test_what_lancedb_refuses_is_told_of_the_condition_or_of_its_files(tmp_path, database):
    items = gallery(20)
    write_index(tmp_path, items, "model", engine="lancedb")
    opened = OpenedIndex.newest(tmp_path)
    with pytest.raises(ConditionError, match="condition that LanceDB refuses: Invalid input") as raised:
        opened.find(items.vectors[:1], 3, approximate=True, where="year > 1e400")
    assert ".rs:" not in str(raised.value)
    for path in (tmp_path / "1/approximate.lancedb").rglob("*.lance"):
        if path.is_file():
            path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"table of LanceDB that cannot be searched: .* Build the index") as raised:
        OpenedIndex.newest(tmp_path).find(items.vectors[:1], 3, approximate=True, where="year = 1")
    assert not isinstance(raised.value, ConditionError)


def test_a_version_of_lancedb_links_what_stays_and_leaves_the_one_before_as_it_was(tmp_path, database):
    write_index(tmp_path, gallery(1200, width=64), "model", engine="lancedb")
    files = {path: path.read_bytes() for path in (tmp_path / "1").rglob("*") if path.is_file()}
    more = gallery(20, width=64, prefix="more ", seed=2)
    further = more.items.append_column("made", pyarrow.array([datetime.date(2020, 1, 1 + i) for i in range(20)]))
    add_items(tmp_path, Gallery(more.vectors, further), "model")
    remove_items(tmp_path, ["item 3"])
    opened = OpenedIndex.newest(tmp_path)
    assert [hits[0]["id"] for hits in opened.find(more.vectors, 1, approximate=True, where="made < '2020-01-03'")] == [
        "more 0", "more 1", *[hits[0]["id"] for hits in opened.find(more.vectors[2:], 1, where="made < '2020-01-03'")]
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in files} == files
    new = {path.stat().st_ino: path.stat().st_size for path in (tmp_path / "2/approximate.lancedb").rglob("*.*")}
    old = {path.stat().st_ino for path in files}
    assert sum(size for inode, size in new.items() if inode not in old) < 0.2 * sum(new.values())
    real = more.take(np.arange(20) > 18).items.set_column(2, "year", pyarrow.array([0.5]))  # were whole numbers
    add_items(tmp_path, Gallery(gallery(1, width=64, seed=9).vectors, real), "model")
    (hits,) = OpenedIndex.newest(tmp_path).find(more.vectors[:1], 5, approximate=True, where="year = 0.5")
    assert [hit["id"] for hit in hits] == ["more 19"]
    assert len(OpenedIndex.newest(tmp_path).approximate) == 1219


def test_columns_of_a_lancedb_that_are_filled_later_wider_or_of_another_zone(tmp_path, database):
    berlin = pyarrow.timestamp("s", "Europe/Berlin")
    columns = [  # of three items each: at first nothing, then numbers, then nothing again
        {"rank": pyarrow.nulls(3), "price": pyarrow.array([0.5, 1.5, 2.5]), "at": pyarrow.array([0, 3, 9], berlin)},
        {"rank": pyarrow.array([1, 2, 3]), "price": pyarrow.array([1, 2, 3]), "at": pyarrow.nulls(3)},
        {"rank": pyarrow.nulls(3), "price": pyarrow.nulls(3), "at": pyarrow.array([1, 4, 8], berlin)},
    ]
    many, ids = gallery(9).vectors, np.array([f"{i}" for i in range(9)])
    for i, more in enumerate(columns):
        some = slice(3 * i, 3 * i + 3)
        items = Gallery.of(many[some], ids[some], **more)
        if i:
            add_items(tmp_path, items, "model")
        else:
            write_index(tmp_path, items, "model", engine="lancedb")
        opened = OpenedIndex.newest(tmp_path)
        for condition in (
            "rank is null",
            "rank > 1",
            "not rank > 1",
            "price >= 1.5",
            "at > '1970-01-01T01:00:03+01:00'",
        ):
            found, exact = (
                ids_of(opened.find(many[:1], 9, approximate=each, where=condition)) for each in (True, False)
            )
            assert found == exact, (i, condition)
    assert sorted(found[0]) == ["2", "7", "8"]  # of the condition on times


@pytest.mark.parametrize("name", ["faiss", "usearch"])
def test_a_file_of_an_engine_that_is_damaged_is_told_of(tmp_path, name):
    pytest.importorskip(MODULES[name], reason="needs the extra [ann]")
    write_index(tmp_path, gallery(50), "model", engine=name)
    path = tmp_path / "1" / ENGINES[name].file
    path.write_bytes(b"none of it" * 100)
    with pytest.raises(ValueError, match=r"/1, a version of an index whose files are damaged"):
        OpenedIndex.newest(tmp_path).find(gallery(1).vectors, 3, approximate=True)


def test_a_column_that_no_lancedb_takes_is_named_before_anything_is_written(tmp_path, database):
    items = gallery(3).items.append_column("exif.date", pyarrow.array([1, 2, 3]))
    with pytest.raises(ValueError, match=r"column 'exif\.date' for a table of LanceDB; expected a name without a dot"):
        write_index(tmp_path, Gallery(gallery(3).vectors, items), "model", engine="lancedb")
    assert not list(tmp_path.glob("[0-9]*"))
