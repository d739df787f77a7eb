"""The closed-form starts against numpy."""

import concurrent.futures
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
import threadpoolctl

from tests import reference_starts
from tests.reference_pairs import cosine
from tests.reference_starts import within_covariance
from xbm_keras import ClosedForms, Head
from xbm_keras.stages.head import neighbor_scatter, starts

D = 5


def make_classes(num_items=60, seed=0):
    """Classes of unequal size, one of a single item; directions of unlike variance, far from the origin."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([[99], random.choice([0, 0, 0, 7, 7, -3, 2**40], num_items - 1)])
    means = {label: random.normal(size=D) for label in set(labels.tolist())}
    mix = random.normal(size=(D, D)) * [0.2, 0.5, 1.0, 0.1, 0.7]
    features = np.stack([means[label] for label in labels.tolist()]) + random.normal(size=(num_items, D)) @ mix + 2.0
    return features.astype("float32"), labels


def two_classes():
    """The same items in two classes: one discriminant, the rest of an LDA is completed."""
    features, labels = make_classes()
    return features, (labels == 0).astype(int)


def assert_same_map(start, expected):
    """Up to the sign of each direction."""
    assert start.kernel.dtype == start.bias.dtype == np.float32
    kernel, bias = expected
    sign = np.sign(np.sum(kernel * start.kernel, axis=0))
    np.testing.assert_allclose(start.kernel * sign, kernel, rtol=1e-4, atol=1e-4 * np.abs(kernel).max())
    np.testing.assert_allclose(start.bias * sign, bias, rtol=1e-4, atol=1e-4 * np.abs(bias).max())


@pytest.mark.parametrize("embedding_dim", [1, 3, D])
def test_pca_equals_the_oracle(embedding_dim):
    features, labels = make_classes()
    assert_same_map(ClosedForms(features, labels).pca(embedding_dim), reference_starts.pca(features, embedding_dim))


@pytest.mark.parametrize(
    ("make_data", "shrinkage"),  # of two classes: without shrinkage all directions but one would be equally good
    [(make_classes, 0.0), (make_classes, 0.3), (make_classes, 1.0), (two_classes, 0.3), (two_classes, 1.0)],
)
@pytest.mark.parametrize("embedding_dim", [1, 3, D])
@pytest.mark.parametrize("kind", ["whiten", "lda", "nda"])
def test_whitening_and_discriminants_equal_the_oracle(kind, make_data, embedding_dim, shrinkage):
    features, labels = make_data()
    start = getattr(ClosedForms(features, labels), kind)(embedding_dim, shrinkage)
    assert_same_map(start, getattr(reference_starts, kind)(features, labels, embedding_dim, shrinkage))


@pytest.mark.parametrize(
    ("num_items", "shrinkage"),  # of nine items all others are near: without shrinkage all directions are equally good
    [(60, 0.0), (60, 0.8), (60, 1.0), (9, 0.8), (9, 1.0)],
)
def test_local_whitening_equals_the_oracle(num_items, shrinkage, monkeypatch):
    monkeypatch.setattr(neighbor_scatter, "TILE", 7)
    features, labels = make_classes(num_items)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    start = ClosedForms(features, labels).local(3, shrinkage)
    assert_same_map(start, reference_starts.local(features, 3, shrinkage))
    others = ClosedForms(features, np.zeros(num_items)).local(3, shrinkage)
    np.testing.assert_array_equal(others.kernel, start.kernel)  # labels play no part
    if shrinkage == 1:
        pca = ClosedForms(features, labels).pca(3).kernel
        np.testing.assert_allclose(
            np.abs(np.sum(pca * start.kernel, axis=0)), np.linalg.norm(start.kernel, axis=0), 1e-4
        )


def test_centred_takes_off_the_mean():
    features, labels = make_classes()
    kernel, bias = ClosedForms(features, labels).centred(3)
    np.testing.assert_allclose(features @ kernel + bias, (features - features.mean(axis=0))[:, :3], atol=1e-6)


@pytest.mark.parametrize("kind", ["whiten", "lda", "nda"])
def test_a_rank_keeps_to_the_directions_of_largest_variance(kind):
    features, labels = make_classes()
    basis = np.linalg.eigh(np.cov(features.T))[1][:, 2:]
    kernel, bias = getattr(reference_starts, kind)(features @ basis, labels, 2, 0.0)
    assert_same_map(getattr(ClosedForms(features, labels, rank=3), kind)(2, 0.0), (basis @ kernel, bias))
    shrunk = getattr(ClosedForms(features, labels, rank=3), kind)(2, 0.4)
    np.testing.assert_allclose(basis @ (basis.T @ shrunk.kernel), shrunk.kernel, atol=1e-4)


@pytest.mark.parametrize("kind", ["whiten", "lda", "nda"])
def test_a_draft_is_the_same_map(kind):
    features, labels = make_classes()
    exact, draft = (getattr(ClosedForms(features, labels, is_draft=is_draft), kind)(3) for is_draft in (False, True))
    assert_same_map(draft, exact)


def wide_items():
    """Fewer items than dimensions."""
    random = np.random.default_rng(0)
    return (random.normal(size=(12, 30)) * np.linspace(0.3, 1, 30) + 1).astype("float32"), np.arange(12) % 4


@pytest.mark.parametrize("kind", ["whiten", "lda"])
def test_a_rank_keeps_to_these_directions_of_fewer_items_than_dimensions_too(kind):
    features, labels = wide_items()
    basis = np.linalg.eigh(np.cov(features.T))[1][:, -5:]
    kernel, bias = getattr(reference_starts, kind)(features @ basis, labels, 2, 0.0)
    assert_same_map(getattr(ClosedForms(features, labels, rank=5), kind)(2, 0.0), (basis @ kernel, bias))


def test_beyond_the_directions_of_few_items_there_are_others():
    features, labels = wide_items()
    basis = ClosedForms(features, labels, rank=20).basis
    np.testing.assert_allclose(basis.T @ basis, np.eye(20), atol=1e-9)
    centred = features - features.mean(axis=0)
    np.testing.assert_allclose(centred @ basis @ basis.T, centred, atol=1e-5)


@pytest.mark.parametrize("weighting", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["lda", "nda"])
def test_the_weighting_makes_directions_count_less_that_tell_less(kind, weighting):
    features, labels = make_classes()
    expected = getattr(reference_starts, kind)(features, labels, 4, 0.2, weighting)
    assert_same_map(getattr(ClosedForms(features, labels), kind)(4, 0.2, weighting), expected)


@pytest.mark.parametrize("total_share", [0.3, 1.0])
@pytest.mark.parametrize("kind", ["lda", "nda"])
def test_the_total_covariance_takes_part_in_whitening(kind, total_share):
    features, labels = make_classes()
    expected = getattr(reference_starts, kind)(features, labels, 4, 0.2, 0.5, total_share)
    forms = ClosedForms(features, labels)
    plain = getattr(forms, kind)(4, 0.2)
    assert_same_map(getattr(forms, kind)(4, 0.2, total_share=total_share), expected)
    assert_same_map(getattr(forms, kind)(4, 0.2), plain)  # what is kept of one share is not used for another
    with pytest.raises(AssertionError):
        assert_same_map(plain, expected)


@pytest.mark.parametrize("total_share", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(total_share):
    with pytest.raises(ValueError, match=rf"total_share={total_share}; expected a number in 0..1"):
        ClosedForms(*make_classes()).lda(2, total_share=total_share)


def test_a_weighting_of_one_half_is_that_of_the_likelihood_ratio():
    """Of pairs (x, y) with covariance [[W + B, B], [B, W + B]] in one class, [[W + B, 0], [0, W + B]] in two."""
    features, labels = make_classes()
    kernel, _ = ClosedForms(features, labels).lda(D, 0.0, weighting=0.5)
    within, total = within_covariance(features, labels), np.cov(features.T, bias=True)
    between = 0.98 * (total - within) + 0.02 * total
    one_class = np.block([[within + between, between], [between, within + between]])
    of_both = -np.linalg.inv(one_class)[:D, D:]  # the log-likelihood ratio has x' of_both y; two classes have none
    np.testing.assert_allclose(kernel @ kernel.T, 2 * of_both, rtol=1e-3, atol=1e-3 * np.abs(of_both).max())


@pytest.mark.parametrize(("tile", "first"), [(1, 20), (7, 4), (59, 60), (512, 30)])
def test_tiles_do_not_change_the_neighbours(tile, first, monkeypatch):
    features, labels = make_classes()
    monkeypatch.setattr(neighbor_scatter, "TILE", tile)
    monkeypatch.setattr(neighbor_scatter, "FIRST_ROWS", first)
    assert_same_map(ClosedForms(features, labels).nda(3, 0.3), reference_starts.nda(features, labels, 3, 0.3))


def test_one_thread_leaves_the_number_of_threads_as_it_was():
    @neighbor_scatter.one_thread()
    def inside(_=None):
        return num_threads()

    @neighbor_scatter.one_thread()
    def outside():
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return [*pool.map(inside, range(2)), inside()]

    def num_threads():
        return {each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"}

    with threadpoolctl.threadpool_limits(2, "blas"):
        assert outside() == [{1}, {1}, {1}]
        assert num_threads() == {2}


def test_where_all_are_as_near_few_are_kept():
    rows = np.eye(64, dtype="float32").repeat(32, axis=0)
    rows[-5:, 0] = rows[-5:, 63]  # of both
    rows[-5:] /= np.sqrt(2)
    tracemalloc.start()
    nearest = neighbor_scatter.nearest_of_others(rows, np.arange(len(rows)), 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    similarities = rows @ rows.T
    np.fill_diagonal(similarities, -1)
    expected = np.sort(similarities, axis=1)[:, :-17:-1]
    np.testing.assert_array_equal(np.take_along_axis(similarities, nearest, axis=1), expected)
    assert all(len(set(each)) == 16 for each in nearest.tolist())
    assert peak < len(rows) ** 2 * 10  # bytes: all pairs and their similarities are twice as much


def test_neighbours_are_sought_among_some_of_many_items(monkeypatch):
    features, labels = make_classes(400)
    whole = ClosedForms(features, labels).nda(3)
    monkeypatch.setattr(starts, "MAX_LOCAL_ITEMS", 300)
    some = ClosedForms(features, labels).nda(3)
    assert 1e-6 < np.abs(np.abs(some.kernel) - np.abs(whole.kernel)).max() < 0.2 * np.abs(whole.kernel).max()


def test_scaled_weights_give_the_same_embeddings():
    start = ClosedForms(*make_classes()).lda(3)
    scaled = start.scaled()
    np.testing.assert_allclose(scaled.kernel / start.kernel, scaled.kernel[0, 0] / start.kernel[0, 0], rtol=1e-5)
    np.testing.assert_allclose(scaled.bias / start.bias, scaled.kernel[0, 0] / start.kernel[0, 0], rtol=1e-5)
    assert np.mean(scaled.kernel**2) == pytest.approx(1 / D)


def test_identity_keeps_the_first_features():
    features, labels = make_classes()
    for embedding_dim in (2, D):
        kernel, bias = ClosedForms(features, labels).identity(embedding_dim)
        np.testing.assert_array_equal(features @ kernel + bias, features[:, :embedding_dim])


def test_neighbours_are_sought_once_for_all_widths_and_weightings(monkeypatch):
    features, labels = make_classes()
    searches, search = [], ClosedForms._local_between
    monkeypatch.setattr(ClosedForms, "_local_between", lambda self, *key: searches.append(1) or search(self, *key))
    forms = ClosedForms(features, labels)
    for embedding_dim, weighting in ((2, 0.1), (3, 0.1), (3, 0.2)):
        expected = reference_starts.nda(features, labels, embedding_dim, 0.3, weighting)
        assert_same_map(forms.nda(embedding_dim, 0.3, weighting), expected)
    assert len(searches) == 1


def test_one_object_gives_what_each_start_gives_alone():
    """The shared eigenvectors belong to no shrinkage."""
    features, labels = make_classes()
    shared = ClosedForms(features, labels)
    for shrinkage in (0.0, 0.9, 0.3):
        for kind in ("whiten", "lda", "nda"):
            alone = getattr(ClosedForms(features, labels), kind)(3, shrinkage)
            np.testing.assert_array_equal(getattr(shared, kind)(3, shrinkage).kernel, alone.kernel)


def test_whitened_classes_have_the_identity_as_covariance_and_the_mean_is_zero():
    features, labels = make_classes()
    kernel, bias = ClosedForms(features, labels).whiten(D, shrinkage=0.0)
    whitened = features.astype("float64") @ kernel + bias
    np.testing.assert_allclose(within_covariance(whitened, labels), np.eye(D), atol=1e-4)
    np.testing.assert_allclose(whitened.mean(axis=0), 0.0, atol=1e-4)
    variances = whitened.var(axis=0)
    assert (np.diff(variances) < 0).all()  # the directions of largest total variance come first
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.diag(variances), atol=1e-3 * variances[0])


@pytest.mark.parametrize("kind", ["pca", "whiten", "lda", "nda"])
def test_a_narrower_start_is_a_prefix_of_a_wider_one(kind):
    closed_forms = ClosedForms(*two_classes())
    narrow, wide = getattr(closed_forms, kind)(2), getattr(closed_forms, kind)(4)
    np.testing.assert_allclose(np.abs(wide.kernel[:, :2]), np.abs(narrow.kernel), rtol=1e-5)


@pytest.mark.parametrize("block_rows", [1, 7, 59, 60])
def test_blocks_do_not_change_the_sums(block_rows, monkeypatch):
    features, labels = make_classes()
    whole = ClosedForms(features, labels)
    monkeypatch.setattr(starts, "BLOCK_ROWS", block_rows)
    in_blocks = ClosedForms(features, labels)
    for name in ("mean", "total", "within"):
        np.testing.assert_allclose(getattr(in_blocks, name), getattr(whole, name), rtol=1e-10, atol=1e-12)


def test_a_mapped_file_is_read_in_blocks(tmp_path, monkeypatch):
    features, labels = make_classes()
    np.save(tmp_path / "features.npy", features.astype("float16"))
    monkeypatch.setattr(starts, "BLOCK_ROWS", 16)
    mapped = ClosedForms(np.load(tmp_path / "features.npy", mmap_mode="r"), labels)
    plain = ClosedForms(features.astype("float16"), labels)
    np.testing.assert_array_equal(mapped.within, plain.within)


def test_whitening_leaves_out_directions_that_no_item_uses():
    """Without shrinkage the covariance of such features has no inverse."""
    features, labels = make_classes()
    basis = np.linalg.qr(np.random.default_rng(4).normal(size=(D + 2, D)))[0]
    kernel, bias = ClosedForms(features.astype("float64") @ basis.T, labels).whiten(D, shrinkage=0.0)
    plain, _ = ClosedForms(features, labels).whiten(D, shrinkage=0.0)
    np.testing.assert_allclose(np.abs(basis.T @ kernel), np.abs(plain), rtol=1e-3, atol=1e-3)
    unused = np.eye(D + 2) - basis @ basis.T
    np.testing.assert_allclose(unused @ kernel, 0.0, atol=1e-4)
    assert np.isfinite(bias).all()


def test_a_single_class_has_no_discriminant():
    features, _ = make_classes()
    labels = np.zeros(len(features))
    assert_same_map(ClosedForms(features, labels).lda(2, 0.3), reference_starts.lda(features, labels, 2, 0.3))
    with pytest.raises(ValueError, match="single class; expected at least two"):
        ClosedForms(features, labels).nda(2)


def test_fewer_items_of_other_classes_than_neighbours():
    features, _ = make_classes(8)
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    expected = reference_starts.nda(features, labels, 2, 0.3, neighbors=2)
    assert_same_map(ClosedForms(features, labels).nda(2, 0.3), expected)


def test_as_the_start_of_a_head():
    features, labels = make_classes()
    head = Head(3)
    head.build((None, D))
    head.set_start(ClosedForms(features, labels).whiten(3))
    kernel, bias = reference_starts.whiten(features, labels, 3, 0.3)
    by_hand = features @ kernel + bias
    expected = [[cosine(a, b) for b in by_hand[:9]] for a in by_hand[:9]]
    embeddings = head(features[:9])
    np.testing.assert_allclose(embeddings @ tf.transpose(embeddings), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["identity", "pca", "whiten", "lda", "nda"])
def test_more_dimensions_than_features_are_refused(kind):
    with pytest.raises(ValueError, match=r"embedding_dim=6 for features of width 5; expected at most 5.*head"):
        getattr(ClosedForms(*make_classes()), kind)(6)


@pytest.mark.parametrize("kind", ["whiten", "lda", "nda"])
def test_what_has_no_inverse_is_refused(kind):
    features, labels = make_classes()
    for shrinkage in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"shrinkage=.*expected a number in 0\.\.1"):
            getattr(ClosedForms(features, labels), kind)(3, shrinkage)
    with pytest.raises(ValueError, match=r"60 items in 60 classes with no variation inside any class"):
        getattr(ClosedForms(features, np.arange(60)), kind)(3)
    same = ClosedForms(np.repeat(features[:4], 3, axis=0), np.repeat(np.arange(4), 3))
    with pytest.raises(ValueError, match="no variation inside any class; expected classes with at least two different"):
        getattr(same, kind)(3)
