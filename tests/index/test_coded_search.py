"""Search in codes, held against all similarities of what the codes stand for."""

import numpy as np
import pytest

from xbm_keras.evaluation.quantization import CODES
from xbm_keras.geometry import unit_rows
from xbm_keras.index import coded_search
from xbm_keras.index.coded_search import CodedSearch, SearchForm, read_search_form

WIDTH = 24


@pytest.fixture(scope="module")
def vectors():
    """More items than three blocks of 40 hold, and more dimensions than are searched."""
    return np.random.default_rng(0).normal(size=(150, 32)).astype("float32")


@pytest.fixture(scope="module")
def queries():
    return np.random.default_rng(1).normal(size=(9, 32)).astype("float32")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(coded_search, "DECODED", 40 * WIDTH)
    monkeypatch.setattr(coded_search, "SCORES", 400)


def cosines(queries, stored):
    """Of a float query and what an item's code stands for, float64."""
    q, v = queries[:, :WIDTH].astype(float), stored.astype(float)
    return q @ v.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(v, axis=1)


def best(scores, k):
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("k", [1, 10, 60])
def test_it_finds_what_all_similarities_say(vectors, queries, name, k):
    form = SearchForm(WIDTH, name)
    scores = cosines(queries, CODES[name].rounded(unit_rows(vectors[:, :WIDTH])))
    positions, similarities = CodedSearch.of(vectors, form).find(queries, k)
    np.testing.assert_array_equal(positions, best(scores, k))
    np.testing.assert_allclose(similarities, np.take_along_axis(scores, positions, 1), atol=1e-6)


@pytest.mark.parametrize(("search", "rank"), [("binary", "int8"), ("int4", "float32"), ("binary", "int4")])
def test_candidates_are_ranked_again_by_the_finer_code(vectors, queries, search, rank):
    form = SearchForm(WIDTH, search, rank, rescore=3)
    coarse = cosines(queries, CODES[search].rounded(vectors[:, :WIDTH]))
    fine = cosines(queries, CODES[rank].rounded(vectors[:, :WIDTH]))
    for_each = []
    for i, candidates in enumerate(best(coarse, 3 * 7)):
        for_each.append(sorted(candidates, key=lambda item: -fine[i, item])[:7])
    positions, similarities = CodedSearch.of(vectors, form).find(queries, 7)
    np.testing.assert_array_equal(positions, for_each)
    np.testing.assert_allclose(similarities, np.take_along_axis(fine, positions, 1), atol=1e-6)


def test_equal_items_rank_by_position_and_all_may_be_asked_for(vectors, queries):
    copies = np.tile(vectors[:50], (3, 1))
    for form in (SearchForm(WIDTH, "int8"), SearchForm(WIDTH, "binary", "int8", rescore=2)):
        positions, _ = CodedSearch.of(copies, form).find(queries, 1000)
        assert positions.shape == (9, 150)
        assert (np.sort(positions, axis=1) == np.arange(150)).all()
        groups = positions.reshape(9, 50, 3)
        np.testing.assert_array_equal(groups, groups[:, :, :1] + [0, 50, 100])


def test_what_the_finer_code_holds_equal_ranks_by_position():
    nearly = np.array([[3, 4, -0.001], [4, 3, 0.001]], np.float32)  # of other signs; int8 drops the last component
    query = np.array([[1, 1, 0.1]], np.float32)
    assert CodedSearch.of(nearly, SearchForm(3, "binary")).find(query, 2)[0].tolist() == [[1, 0]]
    assert CodedSearch.of(nearly, SearchForm(3, "binary", "int8", 2)).find(query, 2)[0].tolist() == [[0, 1]]


def test_codes_may_lie_on_the_disk(vectors, queries, tmp_path):
    form = SearchForm(WIDTH, "binary", "int8", rescore=4)
    whole = CodedSearch.of(vectors, form)
    np.save(tmp_path / "finer.npy", whole.finer)
    mapped = CodedSearch(form, whole.codes, np.load(tmp_path / "finer.npy", mmap_mode="r"))
    for one, other in zip(whole.find(queries, 5), mapped.find(queries, 5), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="bytes an item"):
        CodedSearch(form, whole.finer, whole.finer)
    with pytest.raises(ValueError, match="bytes an item"):
        CodedSearch(form, whole.codes)


def test_a_form_says_its_bytes_and_is_stored_beside_a_model(tmp_path):
    form = SearchForm(384, "binary", "int8", rescore=4)
    assert (form.bytes_in_memory, form.bytes_on_disk) == (48, 384)
    assert str(form) == "384 dimensions, binary, best 4 k ranked by int8"
    assert read_search_form(tmp_path) is None
    form.write(tmp_path)
    assert read_search_form(tmp_path) == form
    for content in (
        b'{"width": 4, "search": "bits"}',
        b"",
        b"null",
        b"[8]",
        b"{}",
        b"\xff",
        b'{"width": "a", "search": 1}',
    ):
        (tmp_path / "search.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"search\.json, which is damaged"):
            read_search_form(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        (4, "bits"),
        (0, "int8"),
        (4, "int8", "int8", 4),
        (4, "int8", "binary", 4),
        (4, "binary", "int8"),
        (4, "int8", None, 4),
    ],
)
def test_a_form_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="expected a width of at least 1"):
        SearchForm(*wrong)
