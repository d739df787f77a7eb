"""An index that holds codes: it answers as a search of all codes, takes their bytes, and TensorFlow alone reads it."""

import json
import shutil

import numpy as np
import pyarrow
import pytest
import tensorflow as tf

from tests.index.test_galleries import augmented_by_hand, gallery, mixed_by_hand, nearest_by_hand, unit
from tests.index.test_segments import answers_of_tensorflow_alone
from xbm_keras.evaluation.thresholds import MatchThresholds
from xbm_keras.geometry import unit_rows
from xbm_keras.index import coded_search, saved_search, segments
from xbm_keras.index.coded_search import CodedSearch, SearchForm, read_search_form
from xbm_keras.index.galleries import add_items, change_items, read_index, write_index
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.opened_index import OpenedIndex

WIDTH = 24
FORMS = [
    SearchForm(WIDTH, "float32"),
    SearchForm(20, "int8"),
    SearchForm(21, "int4", "float16", 2),  # an odd width, and less than that of the vectors
    SearchForm(WIDTH, "binary", "int8", 4),
    SearchForm(20, "trellis"),
    SearchForm(23, "layers"),  # which nothing makes any more by itself
]


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    """Of some rows and queries, so that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coded_search, "DECODED", 30 * WIDTH)
        for module in (coded_search, saved_search):
            patch.setattr(module, "SCORES", 2000)
        yield


def changed(folder, form):
    """An index of three segments, from which items went; and its vectors and ids as they should be."""
    first, second, third = gallery(70, WIDTH), gallery(40, WIDTH, "new", 1), gallery(3, WIDTH, "last", 2)
    write_index(folder, first, "m", form=form)
    add_items(folder, second, "m")
    change_items(folder, third, [*first.ids[5:9], *second.ids[:2]], "m")
    vectors, ids = (np.concatenate([getattr(x, what) for x in (first, second, third)]) for what in ("vectors", "ids"))
    kept = ~np.isin(ids, [*first.ids[5:9], *second.ids[:2]])
    return vectors[kept], ids[kept]


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Of each form the folder, vectors and ids of an index."""
    top = tmp_path_factory.mktemp("indexes")
    return {form: (top / str(i), *changed(top / str(i), form)) for i, form in enumerate(FORMS)}


def test_it_answers_as_a_search_of_all_codes_with_tensorflow_alone_too(indexes, tmp_path):
    queries, expected = 3 * unit(9, WIDTH, seed=7), []
    for form, (folder, vectors, ids) in indexes.items():
        positions, similarities = CodedSearch.of(vectors, form).find(queries, 7)
        expected.append((ids[positions].tolist(), similarities))
        opened = OpenedIndex.newest(folder)
        assert len(opened.segments) == 3
        found = opened.find(queries, 7)
        assert [[hit["id"] for hit in hits] for hits in found] == expected[-1][0], form
        np.testing.assert_allclose([[hit["similarity"] for hit in hits] for hits in found], similarities, atol=1e-6)
        assert opened.form == form == read_search_form(folder / "3")
        some, _ = CodedSearch.of(vectors[::2], form).find(queries, 60)  # of 54, more than there are
        opened.items = opened.items.append_column("even", pyarrow.array(np.isin(opened.items["id"], ids[::2])))
        found = opened.find(queries, 60, where="even = true")
        assert [[hit["id"] for hit in hits] for hits in found] == ids[::2][some].tolist()
    alone = answers_of_tensorflow_alone([folder / "3" for folder, _, _ in indexes.values()], queries, tmp_path)
    for form, answers, (ids, similarities) in zip(FORMS, alone, expected, strict=True):
        assert answers["ids"] == ids, form
        np.testing.assert_allclose(answers["similarities"], similarities, atol=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_bytes_on_disk_and_in_memory_are_those_of_the_form(indexes, form):
    version = indexes[form][0] / "3"
    opened, sizes = OpenedIndex(version), [form.bytes_in_memory, form.bytes_on_disk][: len(form.codes)]
    for segment in opened.segments:
        for what, size in zip(form.codes, sizes, strict=True):
            assert segment.shards[what].stat().st_size == size * len(segment.items)
    names = [name.split("/") for name, _ in tf.train.list_variables(str(version / "variables/variables"))]
    assert sorted(what for _, what, *_ in filter(lambda name: len(name) > 1, names)) == sorted(
        3 * [*form.codes, "ids", "labels", "kept"]
    )
    graph, of_one_segment = (version / "saved_model.pb", indexes[form][0] / "1/saved_model.pb")
    assert graph.stat().st_size < 4 * of_one_segment.stat().st_size  # which hold no items
    in_memory = sum(variable.numpy().nbytes for variable in opened._exact.variables)
    assert in_memory == 113 * (form.bytes_in_memory + 1)  # and whether an item is gone


def test_what_ranks_again_is_mapped_into_memory(indexes, tmp_path):
    form = SearchForm(WIDTH, "binary", "int8", 4)
    version = shutil.copytree(indexes[form][0] / "3", tmp_path / "3")
    opened = OpenedIndex(version)
    mapped = opened.segments[0].mapped("rank")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, opened.segments[0].read("rank"))
    before = opened.find(unit(1, WIDTH), 3)
    for segment in opened.segments:  # the same file, so what a search reads of it is what lies there
        with segment.shards["rank"].open("r+b") as file:
            file.write(bytes(len(segment.items) * WIDTH))
    assert before[0][0]["similarity"] != 0
    assert [hit["similarity"] for hit in opened.find(unit(1, WIDTH), 3)[0]] == [0, 0, 0]


def test_a_file_of_another_size_is_damaged(indexes, tmp_path):
    version = shutil.copytree(indexes[SearchForm(WIDTH, "binary", "int8", 4)][0] / "3", tmp_path / "3")
    path = OpenedIndex(version).segments[1].shards["rank"]
    content = path.read_bytes()
    for wrong in (content[:-1], content + b"\0"):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"{len(wrong)} bytes of"):
            OpenedIndex(version)
    path.write_bytes(content)
    search = OpenedIndex(version).segments[1].shards["search"]
    search.write_bytes(bytes(len(search.read_bytes())))  # of the same size, but other content
    with pytest.raises(ValueError, match="whose files are damaged"):
        OpenedIndex(version).find(unit(1, WIDTH), 1)


def test_what_the_finer_code_holds_equal_ranks_by_position(tmp_path):
    nearly = np.array([[3, 4, -0.001], [4, 3, 0.001]], np.float32)  # of other signs; int8 drops the last component
    items = Gallery.of(unit_rows(nearly), ["first", "second"])
    for form, best in ((SearchForm(3, "binary"), "second"), (SearchForm(3, "binary", "int8", 2), "first")):
        write_index(tmp_path, items, "m", form=form)
        (hits,) = OpenedIndex.newest(tmp_path).find(np.array([[1, 1, 0.1]], np.float32), 2)
        assert hits[0]["id"] == best


@pytest.mark.parametrize("form", [SearchForm(21, "int4"), SearchForm(WIDTH, "int4", "float16", 2)], ids=str)
def test_segments_that_become_one_keep_every_bit(tmp_path, monkeypatch, form):
    monkeypatch.setattr(segments, "MAX_SEGMENTS", 1)
    vectors, _ = changed(tmp_path, form)
    (segment,) = OpenedIndex.newest(tmp_path).segments
    for what, codes in form.encode(vectors).items():
        np.testing.assert_array_equal(segment.read(what), codes)
    np.testing.assert_array_equal(read_index(tmp_path)[0].vectors, form.decode(form.encode(vectors)[form.finest]))


@pytest.mark.parametrize("form", [SearchForm(8, "int4"), SearchForm(8, "int8", "float16", 50)], ids=str)
def test_neighbours_are_mixed_among_what_the_codes_stand_for(tmp_path, form):
    items, queries = gallery(), 3 * unit(9, 8, seed=1)
    write_index(tmp_path, items, "m", form=form, num_mixed=3)
    add_items(tmp_path, gallery(5, prefix="more", seed=2), "m")
    opened = OpenedIndex.newest(tmp_path)
    plain = form.decode(form.encode(np.concatenate([items.vectors, unit(5, 8, seed=2)]))[form.finest])
    np.testing.assert_array_equal(opened.gallery.vectors, plain)  # no bit was lost by coming and going
    stored = form.decode(form.encode(augmented_by_hand(plain, 3).astype("float32"))[form.finest])
    asked = mixed_by_hand(queries, stored, 3)
    expected = [nearest_by_hand(stored, query, 6) for query in asked]
    found = opened.find(queries, 6)
    assert [[hit["id"] for hit in hits] for hits in found] == opened.gallery.ids[np.array(expected)].tolist()
    alone = tf.saved_model.load(str(tmp_path / "2")).signatures["search"](
        embeddings=tf.constant(queries), k=tf.constant(6)
    )
    np.testing.assert_allclose(
        alone["similarities"], [[hit["similarity"] for hit in hits] for hits in found], atol=1e-6
    )


@pytest.mark.parametrize("is_of_segments", [True, False])
def test_an_index_of_before_loads_and_is_written_anew(tmp_path, is_of_segments):
    items, version = gallery(), tmp_path / "1"
    write_index(tmp_path, items, "m")
    about = json.loads((version / "index.json").read_text())
    (version / "search.json").unlink()
    for path in (version / "variables").iterdir():
        path.unlink()
    kept = np.arange(50) != 3
    if is_of_segments:
        key = segments.key_of
        (name,) = about["segments"]
        segments._save(
            str(version / "variables/variables"), {key(name, "vectors"): items.vectors, key(name, "kept"): kept}
        )
    else:
        del about["segments"]
        kept[:] = True
        np.save(version / "vectors.npy", items.vectors)
        (version / "items.json").write_text(json.dumps({"ids": items.ids.tolist(), "labels": items.labels.tolist()}))
    (version / "index.json").write_text(json.dumps(about))
    opened = OpenedIndex.newest(tmp_path)
    assert opened.form == SearchForm(8, "float32")
    np.testing.assert_array_equal(opened.gallery.vectors, items.vectors[kept])
    expected = items.ids[kept][nearest_by_hand(items.vectors[kept], items.vectors[3], 5)].tolist()
    assert [hit["id"] for hit in opened.find(items.vectors[3:4], 5)[0]] == expected
    add_items(tmp_path, gallery(2, prefix="new", seed=1), "m")
    now = OpenedIndex.newest(tmp_path)
    assert now.gallery.ids.tolist() == [*items.ids[kept], "new0", "new1"]
    np.testing.assert_array_equal(now.gallery.vectors, np.concatenate([items.vectors[kept], unit(2, 8, seed=1)]))


def test_thresholds_go_with_the_index_and_hold_for_its_form_alone(tmp_path):
    bands = np.array([[0.5, 0.4, 0.6], [1.0, 0.99, 1.0]])
    thresholds = MatchThresholds(np.array([0.0, 0.9]), bands, bands, bands, 10, 5)
    write_index(tmp_path / "index", gallery(), "m", thresholds=thresholds)
    add_items(tmp_path / "index", gallery(2, prefix="new", seed=1), "m")
    nowhere = tmp_path / "a model that is not here"
    assert OpenedIndex.newest(tmp_path / "index").require_thresholds(nowhere).threshold_for(0.9) == 0.9
    model, form = tmp_path / "model", SearchForm(8, "int8")
    model.mkdir()
    thresholds.write(model)
    write_index(tmp_path / "coded", gallery(), "m", form=form)
    write_index(tmp_path / "mixed", gallery(), "m", num_mixed=2)
    write_index(tmp_path / "plain", gallery(), "m")
    with pytest.raises(
        ValueError, match=r"held as 8 dimensions, int8, while the thresholds of .* 8 dimensions, float32"
    ):
        OpenedIndex.newest(tmp_path / "coded").require_thresholds(model)
    with pytest.raises(ValueError, match="2 neighbours mixed in"):
        OpenedIndex.newest(tmp_path / "mixed").require_thresholds(model)
    assert OpenedIndex.newest(tmp_path / "plain").require_thresholds(model).threshold_for(0.9) == 0.9
    form.write(model)  # measured in codes, as `compress` does
    assert OpenedIndex.newest(tmp_path / "coded").require_thresholds(model).threshold_for(0.9) == 0.9
    with pytest.raises(ValueError, match="expected the same"):
        OpenedIndex.newest(tmp_path / "plain").require_thresholds(model)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("int8", SearchForm(64, "int8")),
        (" 32 int4 ", SearchForm(32, "int4")),
        ("binary+int8", SearchForm(64, "binary", "int8", 4)),
        ("48 binary+int4x8", SearchForm(48, "binary", "int4", 8)),
    ],
)
def test_a_form_is_written_by_its_codes(text, form):
    assert SearchForm.parse(text, 64) == form


@pytest.mark.parametrize("text", ["bits", "int8+binary", "65 int8", "int8x4", "binary+", "binary+int8x1", "", "0 int8"])
def test_a_form_that_cannot_be_is_refused(text):
    with pytest.raises(ValueError, match=r"^Received .*; expected .*codes"):
        SearchForm.parse(text, 64)
