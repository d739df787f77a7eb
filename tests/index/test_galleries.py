"""Galleries: exact search against NumPy, items that come and go, and the command line on real runs and pictures."""

import functools
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from tests.export.test_saved_model import encoded, image_model
from xbm_keras.atomic_files import latest_version, new_version
from xbm_keras.cli import index
from xbm_keras.export.saved_model import export_encoder
from xbm_keras.index import galleries, saved_search
from xbm_keras.index.galleries import add_items, read_index, remove_items, write_index
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.opened_index import OpenedIndex
from xbm_keras.index.roots import named_folder
from xbm_keras.index.saved_search import ExactSearch


def unit(*shape, seed=0):
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def gallery(num_items=50, width=8, prefix="item ä", seed=0):
    ids = [f"{prefix}{i}" for i in range(num_items)]
    return Gallery.of(unit(num_items, width, seed=seed), ids, [f"class {i % 7}" for i in range(num_items)])


def nearest_by_hand(vectors, query, k):
    """Positions of the k best, one query at a time; equal scores by position."""
    scores = [float(np.dot(query / np.linalg.norm(query), v)) for v in vectors]
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def served(folder):
    return tf.saved_model.load(str(latest_version(folder))).signatures["search"]


@pytest.mark.parametrize("scores_at_a_time", [1 << 24, 120])
def test_search_is_exact(monkeypatch, tmp_path, scores_at_a_time):
    monkeypatch.setattr(saved_search, "SCORES", scores_at_a_time)
    items, queries = gallery(), 3 * unit(9, 8, seed=1)
    write_index(tmp_path, items, "model")
    search = served(tmp_path)
    for k in (1, 6, 50, 1000):
        found = search(embeddings=tf.constant(queries), k=tf.constant(k))
        expected = [nearest_by_hand(items.vectors, query, k) for query in queries]
        assert [[name.decode() for name in row] for row in found["ids"].numpy()] == items.ids[expected].tolist()
        assert [[name.decode() for name in row] for row in found["labels"].numpy()] == items.labels[expected].tolist()
        scores = np.einsum("qe,qke->qk", queries / np.linalg.norm(queries, axis=1)[:, None], items.vectors[expected])
        np.testing.assert_allclose(found["similarities"], scores, atol=1e-6)
    none = search(embeddings=tf.constant(queries[:0]), k=tf.constant(3))
    assert none["ids"].shape == none["similarities"].shape == (0, 3)


def mixed_by_hand(queries, vectors, count):
    """Each query, of unit length, with its nearest vectors, weighted by cubed similarity."""
    rows = []
    for query in queries / np.linalg.norm(queries, axis=1)[:, None]:
        nearest = nearest_by_hand(vectors, query, count)
        mixed = query + sum(max(0.0, float(query @ vectors[i])) ** 3 * vectors[i] for i in nearest)
        rows.append(mixed / np.linalg.norm(mixed))
    return np.array(rows)


def augmented_by_hand(vectors, count):
    others = [np.delete(vectors, i, axis=0) for i in range(len(vectors))]
    return np.concatenate([mixed_by_hand(vectors[[i]], others[i], count) for i in range(len(vectors))])


@pytest.mark.parametrize("scores_at_a_time", [1 << 24, 120])
def test_neighbours_are_mixed_into_items_and_queries_also_after_items_came_and_went(
    monkeypatch, tmp_path, scores_at_a_time
):
    monkeypatch.setattr(saved_search, "SCORES", scores_at_a_time)
    queries, items = 3 * unit(9, 8, seed=1), gallery()
    assert write_index(tmp_path, items, "model", num_mixed=3)["mixed"] == 3
    add_items(tmp_path, gallery(5, prefix="more", seed=2), "model")
    remove_items(tmp_path, items.ids[:7])
    kept, about, _ = read_index(tmp_path)
    np.testing.assert_array_equal(kept.vectors, np.concatenate([items.vectors[7:], unit(5, 8, seed=2)]))  # plain
    mixed = augmented_by_hand(kept.vectors, about["mixed"])
    asked = mixed_by_hand(queries, mixed, 3)
    expected = [nearest_by_hand(mixed, query, 6) for query in asked]
    found = served(tmp_path)(embeddings=tf.constant(queries), k=tf.constant(6))
    assert [[name.decode() for name in row] for row in found["ids"].numpy()] == kept.ids[expected].tolist()
    np.testing.assert_allclose(found["similarities"], np.einsum("qe,qke->qk", asked, mixed[expected]), atol=1e-5)
    with pytest.raises(ValueError, match="num_mixed=3 with approximate search"):
        write_index(tmp_path, items, "model", num_mixed=3, engine="usearch")


def test_copies_rank_by_position():
    vectors = np.repeat(unit(3, 8), 5, axis=0)
    rows, _ = ExactSearch.of(Gallery.of(vectors, np.arange(15).astype(str))).find(vectors[7:8], 5)
    assert rows[0].tolist() == [5, 6, 7, 8, 9]


def test_items_come_and_go(tmp_path):
    items = gallery()
    write_index(tmp_path, items, "model")
    moved = Gallery.of(unit(2, 8, seed=5), [items.ids[3], "new"], ["", "fresh"])
    assert add_items(tmp_path, moved, "model")["items"] == 51
    assert remove_items(tmp_path, items.ids[[0, 1]])["items"] == 49
    assert latest_version(tmp_path).name == "3"
    found = served(tmp_path)(embeddings=tf.constant(moved.vectors), k=tf.constant(1))
    assert found["ids"].numpy().ravel().tolist() == [items.ids[3].encode(), b"new"]
    np.testing.assert_allclose(found["similarities"], 1.0, atol=1e-6)
    everything = served(tmp_path)(embeddings=tf.constant(moved.vectors), k=tf.constant(100))["ids"].numpy()
    assert items.ids[0].encode() not in everything
    remove_items(tmp_path, read_index(tmp_path)[0].ids)
    assert served(tmp_path)(embeddings=tf.constant(moved.vectors), k=tf.constant(5))["ids"].shape == (2, 0)


def test_what_does_not_fit_is_refused(tmp_path):
    items = gallery()
    write_index(tmp_path, items, "model")
    for message, change in {
        "embedded by the model other": lambda: add_items(tmp_path, gallery(2), "other"),
        "width 3 for a gallery of width 8": lambda: add_items(tmp_path, gallery(2, width=3), "model"),
        "which the gallery does not hold": lambda: remove_items(tmp_path, ["nobody"]),
        "expected it once": lambda: Gallery.of(unit(2, 8), ["a", "a"]),
        "with N rows": lambda: Gallery.of(unit(2, 8), ["a"]),
        "holds no version": lambda: read_index(tmp_path / "empty"),
    }.items():
        with pytest.raises(ValueError, match=message):
            change()
    assert latest_version(tmp_path).name == "1"


def test_a_version_that_was_not_finished_is_none(tmp_path):
    write_index(tmp_path, gallery(), "model")
    with pytest.raises(FileNotFoundError), new_version(tmp_path) as folder:
        (folder / "nowhere/half").write_text("")
    (tmp_path / "2.tmp").mkdir()  # of a process that was killed
    assert latest_version(tmp_path).name == "1"
    assert add_items(tmp_path, gallery(1, prefix="more"), "model")["items"] == 51
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "1", "2"}


@pytest.mark.parametrize("name", ["segments/*.arrow", "index.json", "variables/variables.*", "variables/*-of-00003"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null", b"[]", b"{}", b"PK\3\4", None])
def test_a_damaged_version_is_named(tmp_path, name, content):
    galleries.write_index(tmp_path, gallery(5), "model")
    for file in (tmp_path / "1").glob(name):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^Received \S+/1, a version of an index whose files are damaged"):
        galleries.read_index(tmp_path)


@pytest.mark.parametrize("k", ["0", "-1", "x"])
def test_a_search_for_fewer_than_one_item_is_refused(tmp_path, capsys, k):
    with pytest.raises(SystemExit) as raised:
        index.main(["search", f"--model={tmp_path}", f"--index={tmp_path}", f"--k={k}", "x.png"])
    assert raised.value.code == 2
    assert "argument --k" in capsys.readouterr().err


def test_a_folder_of_pictures_from_the_command_line(tmp_path, exported, load_once, monkeypatch, capsys):
    monkeypatch.setattr(tf.saved_model, "load", load_once)
    model = exported
    for i in range(4):
        path = tmp_path / f"photos/class {i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(20 + i, 30, seed=i))
    (tmp_path / "photos/class 0/bad.jpg").write_bytes(b"no picture")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/late.png").write_bytes(encoded(40, 12, seed=9))
    no_utf8 = os.fsencode(tmp_path / "more") + b"/caf\xe9"
    os.mkdir(no_utf8)
    with open(no_utf8 + b"/\xff.png", "wb") as file:
        file.write(encoded(30, 12, seed=10))
    command = lambda *words: index.main([*map(str, words), f"--index={tmp_path}/index"])  # noqa: E731
    assert command("build", f"--model={model}", f"--pictures={tmp_path}/photos") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Left out class 0/bad.jpg" in said
    assert "4 items of width 4" in said
    assert command("add", f"--model={model}", f"--pictures={tmp_path}/more") == 0
    assert command("remove", "class 1/3.png") == 0
    items = read_index(tmp_path / "index")[0].items
    assert items["id"].to_pylist() == [
        "class 0/0.png",
        "class 0/2.png",
        "class 1/1.png",
        "more/caf\\udce9/\\udcff.png",
        "more/late.png",
    ]
    assert items["label"].to_pylist() == ["class 0", "class 0", "class 1", "caf\\udce9", ""]
    capsys.readouterr()
    assert (
        command("search", f"--model={model}", "--k=2", tmp_path / "more/late.png", tmp_path / "photos/class 0/bad.jpg")
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["1.0000", "more/late.png"]
    assert lines[3].endswith("bad.jpg: no picture that can be read: no picture of a known format")
    assert command("search", f"--model={model}", "--where=label = 'class 0'", tmp_path / "more/late.png") == 0
    found = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert sorted(found) == ["class 0/0.png", "class 0/2.png"]

    other = export_encoder(image_model(weights_seed=1), tmp_path / "other")
    with pytest.raises(SystemExit):
        command("add", f"--model={other}", f"--pictures={tmp_path}/more")
    assert "expected one model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("search", f"--model={model}", tmp_path / "nope.png")
    assert "nope.png', which is no file; expected a picture" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"Say --index {tmp_path}/index, which does"):
        OpenedIndex.newest(tmp_path)
    with pytest.raises(ValueError, match="Received --pictures more=nowhere, which is no folder"):
        named_folder("more=nowhere")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_encoder(image_model(), tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def load_once():
    """A model read from its folder, which takes most of a command's time."""
    return functools.cache(tf.saved_model.load)


@pytest.fixture
def shop(tmp_path, exported, load_once, monkeypatch):
    """Two folders with pictures at the same relative paths, another of the same name, and an index of the first."""
    monkeypatch.setattr(tf.saved_model, "load", load_once)
    model = exported
    for number, folder in enumerate(("one/photos", "two/new", "three/photos", "four/new")):
        for i in range(3):
            path = tmp_path / folder / f"apples/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(20 + i, 30, seed=10 * number + i))

    def command(name, *words):
        with_model = [] if name == "remove" else [f"--model={model}"]
        return index.main([name, f"--index={tmp_path}/index", *with_model, *map(str, words)])

    assert command("build", f"--pictures={tmp_path}/one/photos") == 0
    return command


def ids_in(tmp_path):
    return read_index(tmp_path / "index")[0].ids.tolist()


APPLES = [f"apples/{i}.png" for i in range(3)]


def test_items_of_two_folders_with_the_same_paths_are_kept_apart(shop, tmp_path, capsys):
    capsys.readouterr()
    assert shop("add", f"--pictures={tmp_path}/two/new/") == 0
    assert "6 items of width 4; 3 added and 0 replaced under the root 'new', 0 left out" in said(capsys)
    assert ids_in(tmp_path) == APPLES + [f"new/{path}" for path in APPLES]
    labels = read_index(tmp_path / "index")[0].labels
    assert set(labels) == {"apples"}
    (tmp_path / "two/new/apples/3.png").write_bytes(encoded(9, 9, seed=99))
    assert shop("add", f"--pictures={tmp_path}/two/new", "--replace") == 0
    assert "7 items of width 4; 1 added and 3 replaced under the root 'new'" in said(capsys)
    assert shop("remove", "new/apples/3.png", APPLES[0]) == 0
    assert "5 items of width 4; 2 removed" in said(capsys)


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def refused(capsys, shop, *words):
    with pytest.raises(SystemExit) as exit:
        shop(*words)
    assert exit.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_nothing_is_replaced_unasked(shop, tmp_path, capsys, monkeypatch):
    before = read_index(tmp_path / "index")[0].vectors
    (tmp_path / "link").symlink_to(tmp_path / "one/photos")
    monkeypatch.chdir(tmp_path / "one")
    same = "photos", "photos/", "../one/photos", tmp_path / "one/photos", tmp_path / "link"
    monkeypatch.setattr(index, "embedded", None)  # it is refused before anything is embedded
    for folder in same:
        assert "3 of 3 items whose ids the index holds already" in refused(capsys, shop, "add", f"--pictures={folder}")
    assert "3 of 3 items" in refused(capsys, shop, "add", f"--pictures={tmp_path}/two/new", "--root=")
    for name in ("..", "a/b", "a\\b"):
        assert "expected a name without slashes" in refused(
            capsys, shop, "add", f"--pictures={tmp_path}/two/new", f"--root={name}"
        )
    np.testing.assert_array_equal(read_index(tmp_path / "index")[0].vectors, before)
    assert latest_version(tmp_path / "index").name == "1"


def test_two_folders_of_one_name_need_two(shop, tmp_path, capsys):
    assert shop("add", f"--pictures={tmp_path}/two/new") == 0
    message = refused(capsys, shop, "add", f"--pictures={tmp_path}/four/new")
    assert "knows another folder by the name 'new'" in message
    assert shop("add", f"--pictures={tmp_path}/four/new", "--root=newest") == 0
    assert shop("add", f"--pictures={tmp_path}/three/photos") == 0  # the first of this name has none in the index
    assert len(set(ids_in(tmp_path))) == 12
    (tmp_path / "two/new").rename(tmp_path / "moved")
    assert shop("add", f"--pictures={tmp_path}/moved", "--root=new", "--replace") == 0
    out = said(capsys)
    assert "The root 'new' was another folder up to now" in out
    assert "12 items of width 4; 0 added and 3 replaced" in out


def test_an_index_of_an_older_version_asks_which_folder_it_is(shop, tmp_path, capsys):
    file = latest_version(tmp_path / "index") / "index.json"
    about = json.loads(file.read_text())
    assert str(tmp_path) not in file.read_text()
    del about["roots"]
    file.write_text(json.dumps(about))
    assert "say --root='' --replace, else --root=photos" in refused(
        capsys, shop, "add", f"--pictures={tmp_path}/one/photos"
    )
    assert shop("add", f"--pictures={tmp_path}/one/photos", "--root=", "--replace") == 0
    assert "3 items of width 4; 0 added and 3 replaced under the root ''" in said(capsys)
    assert shop("add", f"--pictures={tmp_path}/two/new") == 0
    assert len(ids_in(tmp_path)) == 6


def test_ids_that_are_not_there_are_counted(shop, tmp_path, capsys):
    message = refused(capsys, shop, "remove", "apples/0.png", "pears/1.png", "pears/2.png")
    assert "2 ids, such as 'pears/1.png'" in message
    assert ids_in(tmp_path) == APPLES


def test_an_index_built_again_says_what_it_takes_the_place_of(shop, tmp_path, capsys):
    assert shop("build", f"--pictures={tmp_path}/two/new", "--root=new") == 0
    assert "it takes the place of version 1, which stays there" in said(capsys)
    assert ids_in(tmp_path) == [f"new/{path}" for path in APPLES]
