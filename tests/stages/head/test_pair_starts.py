"""The closed forms of queries and documents against numpy."""

import numpy as np
import pytest

from xbm_keras.stages.head import pair_starts
from xbm_keras.stages.head.pair_starts import PairForms, candidates

D = 5


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def make_pairs(num_queries=40, num_documents=60, seed=0):
    """Queries off their documents by noise of unlike variance and an offset; each answered by one to three."""
    random = np.random.default_rng(seed)
    documents = unit(random.normal(size=(num_documents, D)) * [1.0, 0.8, 0.6, 0.4, 0.9] + [0.5, 0, 0, 0.2, 0])
    pairs = np.unique(random.integers(0, [num_queries - 3, num_documents], (2 * num_queries, 2)), axis=0)
    queries = unit(random.normal(size=(num_queries, D)))
    for q, r in pairs:
        queries[q] = documents[r] + random.normal(size=D) * [0.1, 0.5, 0.1, 0.3, 0.2] + [0, 0, 0.3, 0, 0]
    return unit(queries), documents, pairs[:, 0], pairs[:, 1]


def mean_of_both(queries, documents, query, document):
    return (queries[sorted(set(query.tolist()))].mean(axis=0) + documents.mean(axis=0)) / 2


def shrunk_differences(queries, documents, query, document, shrinkage):
    covariance = np.zeros((D, D))
    for q, r in zip(query, document, strict=True):
        covariance += np.outer(queries[q] - documents[r], queries[q] - documents[r]) / len(query)
    return (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / D * np.eye(D)


def largest(matrix, count):
    return np.linalg.eigh(matrix)[1][:, ::-1][:, :count]


def reference(name, pairs, embedding_dim, shrinkage, neighbors=8):
    """Kernel and bias, pair by pair; columns are known up to their sign."""
    queries, documents, query, document = pairs
    mean = mean_of_both(*pairs)
    values, vectors = np.linalg.eigh(shrunk_differences(*pairs, shrinkage))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    if name == "whiten":
        spread = np.cov((documents @ root).T, bias=True)
    else:
        spread, count = np.zeros((D, D)), 0
        z, whitened = unit((queries - mean) @ root), unit((documents - mean) @ root)
        for q in sorted(set(query.tolist())):
            others = sorted(set(range(len(documents))) - set(document[query == q].tolist()))
            for r in sorted(others, key=lambda r, q=q: -z[q] @ whitened[r])[:neighbors]:
                spread += np.outer(z[q] - whitened[r], z[q] - whitened[r])
                count += 1
        spread /= count
    kernel = root @ largest(spread, embedding_dim)
    return kernel, -mean @ kernel


def assert_same_map(start, expected):
    assert start.kernel.dtype == start.bias.dtype == np.float32
    kernel, bias = expected
    sign = np.sign(np.sum(kernel * start.kernel, axis=0))
    np.testing.assert_allclose(start.kernel * sign, kernel, rtol=1e-4, atol=1e-4 * np.abs(kernel).max())
    np.testing.assert_allclose(start.bias * sign, bias, rtol=1e-4, atol=1e-4 * np.abs(bias).max())


@pytest.mark.parametrize("shrinkage", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("embedding_dim", [2, D])
@pytest.mark.parametrize("name", ["whiten", "nda"])
def test_whitening_equals_the_oracle(name, embedding_dim, shrinkage, monkeypatch):
    monkeypatch.setattr(pair_starts, "BLOCK_ROWS", 7)
    monkeypatch.setattr(pair_starts, "SCORED_QUERIES", 3)
    pairs = make_pairs()
    start = getattr(PairForms(*pairs), name)(embedding_dim, shrinkage)
    assert_same_map(start, reference(name, pairs, embedding_dim, shrinkage))


def test_whitened_differences_have_the_identity_as_covariance():
    queries, documents, query, document = pairs = make_pairs()
    for name in ("whiten", "nda"):
        kernel, _ = getattr(PairForms(*pairs), name)(D, shrinkage=0.0)
        differences = (queries[query] - documents[document]) @ kernel
        np.testing.assert_allclose(differences.T @ differences / len(query), np.eye(D), atol=1e-4)


def test_pca_is_of_the_documents_and_the_bias_takes_off_the_mean_of_both_sides():
    queries, documents, *_ = pairs = make_pairs()
    kernel = largest(np.cov(documents.T), 3)
    assert_same_map(PairForms(*pairs).pca(3), (kernel, -mean_of_both(*pairs) @ kernel))
    start = PairForms(*pairs).centred(D)
    np.testing.assert_allclose(queries @ start.kernel + start.bias, queries - mean_of_both(*pairs), atol=1e-6)
    start = PairForms(*pairs).identity(3)
    np.testing.assert_allclose(queries @ start.kernel + start.bias, queries[:, :3], atol=1e-6)


def test_queries_without_a_pair_play_no_part():
    queries, documents, query, document = make_pairs()
    other = queries.copy()
    unasked = np.setdiff1d(np.arange(len(queries)), query)
    other[unasked] = 7.0
    assert len(unasked)
    tried = candidates("both", D, D) + candidates("query", D, D)
    for name, parameters in tried:
        given = getattr(PairForms(queries, documents, query, document), name)(D, **parameters)
        np.testing.assert_array_equal(
            given.kernel, getattr(PairForms(other, documents, query, document), name)(D, **parameters)[0]
        )


def test_the_hardest_are_sought_among_some_of_many(monkeypatch):
    queries, documents, query, document = make_pairs(400, 600)
    seen, plain = [], pair_starts.unit_rows
    monkeypatch.setattr(pair_starts, "unit_rows", lambda rows: seen.append(len(rows)) or plain(rows))
    monkeypatch.setattr(pair_starts, "MAX_QUERIES", 300)
    monkeypatch.setattr(pair_starts, "MAX_DOCUMENTS", 500)
    start = PairForms(queries, documents, query, document).nda(D)
    assert seen == [500, *[64] * 4, 300 - 4 * 64]  # documents, then queries
    differences = (queries[query] - documents[document]) @ start.kernel
    whole = PairForms(queries, documents, query, document).whiten(D).kernel
    expected = (queries[query] - documents[document]) @ whole
    np.testing.assert_allclose(np.linalg.norm(differences, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-4)


def test_fewer_irrelevant_documents_than_neighbours():
    queries, documents, *_ = make_pairs(6, 9)
    query, document = np.nonzero(np.random.default_rng(0).random((6, 9)) < 0.5)
    pairs = queries, documents, query, document
    assert_same_map(PairForms(*pairs).nda(2), reference("nda", pairs, 2, 0.9))
    every = np.indices((6, 9)).reshape(2, -1)
    with pytest.raises(ValueError, match="9 documents, each of which answers every query"):
        PairForms(queries, documents, *every).nda(2)


def test_a_ridge_is_least_squares_or_the_identity():
    queries, documents, query, document = pairs = make_pairs()
    forms = PairForms(*pairs)
    with_one = np.column_stack([queries[query], np.ones(len(query))])
    solution = np.linalg.lstsq(with_one, documents[document], rcond=None)[0]
    start = forms.ridge(D, penalty=1e-9)
    np.testing.assert_allclose(start.kernel, solution[:D], atol=1e-5)
    np.testing.assert_allclose(start.bias, solution[D], atol=1e-5)
    start = forms.ridge(D, penalty=1e9)
    np.testing.assert_allclose(start.kernel, np.eye(D), atol=1e-6)
    offset = documents[document].mean(axis=0) - queries[query].mean(axis=0)
    np.testing.assert_allclose(start.bias, offset, atol=1e-6)


def test_a_ridge_is_least_by_its_penalty():
    queries, documents, query, document = pairs = make_pairs()
    q = queries[query] - queries[query].mean(axis=0)
    r = documents[document] - documents[document].mean(axis=0)
    variance = q.var(axis=0).mean()

    def loss(kernel):
        return np.mean(np.sum((q @ kernel - r) ** 2, axis=1)) + 2.0 * variance * np.sum((kernel - np.eye(D)) ** 2)

    kernel = PairForms(*pairs).ridge(D, penalty=2.0).kernel.astype(np.float64)
    for i, j in np.ndindex(D, D):
        step = np.zeros((D, D))
        step[i, j] = 1e-3
        assert loss(kernel) < min(loss(kernel + step), loss(kernel - step))


def test_procrustes_recovers_a_rotation():
    random = np.random.default_rng(0)
    documents = unit(random.normal(size=(60, D)))
    rotation = np.linalg.qr(random.normal(size=(D, D)))[0]
    queries = documents @ rotation.T + [0.1, 0, -0.2, 0, 0.3]
    start = PairForms(queries, documents, np.arange(60), np.arange(60)).procrustes(D)
    np.testing.assert_allclose(start.kernel, rotation, atol=1e-5)
    np.testing.assert_allclose(queries @ start.kernel + start.bias, documents, atol=1e-5)


@pytest.mark.parametrize("name", ["ridge", "procrustes"])
def test_without_offset_mapped_queries_have_no_mean(name):
    queries, documents, query, document = pairs = make_pairs()
    for offset in (0.0, 0.5, 1.0):
        start = getattr(PairForms(*pairs), name)(D, offset=offset)
        mapped = queries[query] @ start.kernel + start.bias
        np.testing.assert_allclose(mapped.mean(axis=0), offset * documents[document].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("sides", ["both", "query"])
def test_candidates_can_be_made_and_the_simplest_comes_first(sides):
    pairs = make_pairs()
    forms, names = PairForms(*pairs), []
    for embedding_dim in (3, D):
        tried = candidates(sides, embedding_dim, D)
        assert tried[0][0] == "identity"
        names += [name for name, _ in tried]
        wide = D if sides == "query" else embedding_dim
        assert all(getattr(forms, name)(wide, **parameters).kernel.shape == (D, wide) for name, parameters in tried)
    expected = ["ridge", "procrustes"] if sides == "query" else ["centred", "pca", "whiten", "nda"]
    assert set(names) == {"identity", *expected}


def test_neighbours_are_sought_once_for_all_widths(monkeypatch):
    forms, searches, search = PairForms(*make_pairs()), [], PairForms._scatter_to_hardest
    monkeypatch.setattr(PairForms, "_scatter_to_hardest", lambda self, root: searches.append(1) or search(self, root))
    for embedding_dim, shrinkage in ((2, 0.9), (3, 0.9), (3, 0.5)):
        assert_same_map(forms.nda(embedding_dim, shrinkage), reference("nda", make_pairs(), embedding_dim, shrinkage))
    assert len(searches) == 2


@pytest.mark.parametrize("name", ["identity", "centred", "pca", "whiten", "nda"])
def test_more_dimensions_than_features_are_refused(name):
    with pytest.raises(ValueError, match=r"embedding_dim=6 for features of width 5; expected at most 5.*head"):
        getattr(PairForms(*make_pairs()), name)(6)


@pytest.mark.parametrize("name", ["ridge", "procrustes"])
def test_documents_that_stay_as_they_are_have_the_width_of_queries(name):
    with pytest.raises(ValueError, match=r"embedding_dim=3 for documents of width 5, which stay as they are"):
        getattr(PairForms(*make_pairs()), name)(3)


def test_what_cannot_be_is_refused():
    queries, documents, query, document = pairs = make_pairs()
    forms = PairForms(*pairs)
    for value in (-0.1, 1.1, float("nan")):
        for name in ("whiten", "nda"):
            with pytest.raises(ValueError, match=r"shrinkage=.*expected a number in 0\.\.1"):
                getattr(forms, name)(3, value)
        for name in ("ridge", "procrustes"):
            with pytest.raises(ValueError, match=r"offset=.*expected a number in 0\.\.1"):
                getattr(forms, name)(D, offset=value)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"penalty=.*expected a number above 0"):
            forms.ridge(D, value)
    with pytest.raises(ValueError, match="9 pairs, all of a query and a document that equal each other"):
        PairForms(documents, documents, np.arange(9), np.arange(9)).whiten(3)
    for q, r in (([], []), ([0, 1], [0])):
        with pytest.raises(ValueError, match="expected features of one width, and at least one pair"):
            PairForms(queries, documents, np.array(q, int), np.array(r, int))
    with pytest.raises(ValueError, match=r"queries \(40, 4\), documents \(60, 5\)"):
        PairForms(queries[:, :4], documents, query, document)
