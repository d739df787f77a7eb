"""Segments: what is added does not write again what is there, and the SavedModel answers as one that was built anew."""

import json
import shutil

import numpy as np
import pytest
from tensorflow.core.protobuf import saved_model_pb2

from tests.fresh_processes import run_without_keras
from tests.index.test_galleries import gallery, nearest_by_hand, unit
from xbm_keras.atomic_files import latest_version
from xbm_keras.index import segments
from xbm_keras.index.coded_search import SearchForm
from xbm_keras.index.galleries import add_items, change_items, read_index, remove_items, write_index
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.opened_index import OpenedIndex

ALONE = """
import json, sys
import numpy as np
import tensorflow as tf
queries = tf.constant(np.load(sys.argv[1]))
answers = []
for folder in sys.argv[2:]:
    found = tf.saved_model.load(folder).signatures["search"](embeddings=queries, k=tf.constant(7))
    texts = {name: [[each.decode() for each in row] for row in found[name].numpy()] for name in ("ids", "labels")}
    answers.append({**texts, "similarities": found["similarities"].numpy().tolist()})
assert not [name for name in sys.modules if name.startswith("xbm_keras")]
print(json.dumps(answers))
"""


def answers_of_tensorflow_alone(versions, queries, tmp_path):
    np.save(tmp_path / "queries.npy", queries)
    return json.loads(run_without_keras(ALONE, tmp_path / "queries.npy", *versions).splitlines()[-1])


def files_of(version):
    return [path for path in version.rglob("*") if path.is_file()]


def test_every_version_answers_as_one_that_was_built_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "MAX_SEGMENTS", 3)
    index, items, queries = tmp_path / "index", gallery(60), 3 * unit(5, 8, seed=7)
    galleries = [items]
    write_index(index, items, "m")
    steps = [
        (gallery(3, prefix="new", seed=1), []),
        (Gallery.of(unit(2, 8, seed=2), [items.ids[4], "new0"], ["moved", ""]), [items.ids[9]]),  # replaced, and gone
        (None, items.ids[10:15]),
        (gallery(2, prefix="more", seed=3), []),  # the fourth segment: the last ones become one
        (None, items.ids[20:45]),  # more than a quarter is gone: all become one
    ]
    counts = []
    for more, gone in steps:
        change_items(index, more, gone, "m" if more else "")
        old = galleries[-1].items.to_pylist()
        leaving = {*gone, *(more.ids if more else [])}
        stays = np.array([item["id"] not in leaving for item in old])
        new = galleries[-1].take(stays)
        expected = new.items.to_pylist() + (more.items.to_pylist() if more else [])
        vectors = np.concatenate([new.vectors, more.vectors]) if more else new.vectors
        galleries.append(Gallery.of(vectors, [x["id"] for x in expected], [x["label"] for x in expected]))
        opened = OpenedIndex.newest(index)
        counts.append(len(opened.segments))
        np.testing.assert_array_equal(opened.gallery.vectors, vectors)
        assert opened.gallery.items.equals(galleries[-1].items)
        assert [hit["id"] for hit in opened.find(queries[:1], 7)[0]] == [
            galleries[-1].ids[i] for i in nearest_by_hand(vectors, queries[0], 7)
        ]
    assert counts == [2, 3, 3, 2, 1]
    found = answers_of_tensorflow_alone([index / str(1 + i) for i in range(6)], queries, tmp_path)
    for answers, items in zip(found, galleries, strict=True):
        nearest = [nearest_by_hand(items.vectors, query, 7) for query in queries]
        assert answers["ids"] == [[items.ids[i] for i in row] for row in nearest]
        assert answers["labels"] == [[items.labels[i] for i in row] for row in nearest]
        unit_queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        expected = np.einsum("qe,qke->qk", unit_queries, items.vectors[np.array(nearest)])
        np.testing.assert_allclose(answers["similarities"], expected, atol=1e-6)


def test_an_added_item_writes_next_to_nothing_again(tmp_path):
    write_index(tmp_path, gallery(20_000, 64), "m")
    shards = {path.stat().st_ino for path in files_of(tmp_path / "1")}
    add_items(tmp_path, gallery(1, 64, prefix="new"), "m")
    remove_items(tmp_path, ["item ä7"])
    for version, name in ((tmp_path / "2", "added"), (tmp_path / "3", "removed")):
        files = files_of(version)
        fresh = sum(path.stat().st_size for path in files if path.stat().st_ino not in shards)
        assert fresh < 0.03 * sum(path.stat().st_size for path in files), name
    assert len(OpenedIndex.newest(tmp_path)) == 20_000


def test_where_a_disk_knows_no_links_files_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    write_index(tmp_path, gallery(), "m")
    add_items(tmp_path, gallery(2, prefix="new", seed=1), "m")
    assert {path.stat().st_nlink for path in files_of(tmp_path / "2")} == {1}
    shutil.rmtree(tmp_path / "1")
    np.testing.assert_array_equal(read_index(tmp_path)[0].vectors[:50], gallery().vectors)


def test_a_version_outlives_those_that_it_was_made_of(tmp_path):
    write_index(tmp_path, gallery(), "m")
    add_items(tmp_path, gallery(2, prefix="new", seed=1), "m")
    shutil.rmtree(tmp_path / "1")
    add_items(tmp_path, gallery(2, prefix="more", seed=2), "m")
    shutil.rmtree(tmp_path / "2")
    assert len(read_index(tmp_path)[0].ids) == 54


def test_what_is_killed_in_the_middle_leaves_the_old_version_whole(tmp_path, monkeypatch):
    write_index(tmp_path, gallery(), "m")
    before = {path: path.read_bytes() for path in files_of(tmp_path / "1")}

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tensorflow.raw_ops.MergeV2Checkpoints", stop)
        with pytest.raises(KeyboardInterrupt):
            add_items(tmp_path, gallery(2, prefix="new", seed=1), "m")
    assert latest_version(tmp_path).name == "1"
    assert {path: path.read_bytes() for path in files_of(tmp_path / "1")} == before
    assert add_items(tmp_path, gallery(2, prefix="new", seed=1), "m")["items"] == 52


def test_few_that_are_added_often_are_seldom_written_again(tmp_path):
    form = SearchForm(8, "float32")
    parts = [segments.Segment.of(gallery(1000), form)]
    written = 0
    for i in range(200):
        before = {part.name for part in parts}
        parts = segments.compacted([*parts, segments.Segment.of(gallery(1, prefix=f"{i} ", seed=i), form)])
        written += sum(len(part.items) for part in parts if part.name not in before)
        assert len(parts) <= segments.MAX_SEGMENTS
    assert sum(len(part.items) for part in parts) == 1200
    assert written < 200 * 30  # not 200 * 1000


def test_a_version_holds_the_graph_of_its_signature_and_no_other(tmp_path):
    write_index(tmp_path, gallery(), "m")
    add_items(tmp_path, gallery(2, prefix="new", seed=1), "m")
    for version in (tmp_path / "1", tmp_path / "2"):
        saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
        nodes = saved.meta_graphs[0].object_graph_def.nodes
        children = [child for node in nodes for child in node.children]
        found = {child.local_name for child in children if nodes[child.node_id].HasField("function")}
        assert found == {"search"}
