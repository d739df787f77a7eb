"""Closed forms that the FC layer may start from, all of them from one pass over the training features."""

import functools
from typing import NamedTuple

import numpy as np
import scipy.linalg

from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.geometry import unit_rows
from xbm_keras.stages.head.neighbor_scatter import scatter_to_nearest

BLOCK_ROWS = 8192  # of the pass over the training features
NEIGHBORS = 4  # of other classes, of each item
NEIGHBORHOOD = 16  # nearest items, whatever their classes, within which `local` whitens
MAX_LOCAL_ITEMS = 8192  # among which neighbours are sought
MAX_KEPT = 8  # decompositions, local covariances and discriminants
TOTAL_IN_BETWEEN = 0.02  # share of the total covariance that orders the directions beyond the discriminants


class Start(NamedTuple):
    """A linear map to start from: `z = f @ kernel + bias`. See `ClosedForms` for an example."""

    kernel: np.ndarray
    """[D, E] float32."""
    bias: np.ndarray
    """[E] float32."""

    def scaled(self) -> "Start":
        """The same embeddings, from weights as large as random ones (rms 1 / sqrt(D)): one learning rate suits all."""
        scale = 1 / max(np.sqrt(np.mean(self.kernel**2) * len(self.kernel)), 1e-12)
        return Start(self.kernel * np.float32(scale), self.bias * np.float32(scale))


class LinearForms:
    """The maps that need no more than a mean, and what all linear maps of features have in common."""

    width: int
    """D."""
    rank: int
    """The most dimensions of a map."""
    mean: np.ndarray
    """[D] that the bias of each map but `identity` takes off."""

    def identity(self, embedding_dim: int) -> Start:
        """The first E features as they are: for E = D, and for networks that were trained to be cut (Matryoshka)."""
        self._require(embedding_dim)
        kernel = np.eye(self.width, embedding_dim, dtype=np.float32)
        return Start(kernel, np.zeros(embedding_dim, np.float32))

    def centred(self, embedding_dim: int) -> Start:
        """The same, with what the mean of all is taken off."""
        return self._centred(self.identity(embedding_dim).kernel)

    def _centred(self, kernel: np.ndarray) -> Start:
        return Start(kernel.astype(np.float32), (-self.mean @ kernel).astype(np.float32))

    def _require(self, embedding_dim: int, shrinkage: float = 0.0) -> None:
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"Received shrinkage={shrinkage}; expected a number in 0..1.")
        if embedding_dim > self.rank:
            raise ValueError(
                f"Received embedding_dim={embedding_dim} for features of width {self.width}; expected at most "
                f"{self.rank}. Lower head.embedding_dim, or use start: random."
            )


class ClosedForms(LinearForms):
    """Mean and covariances of labelled features, and the linear maps that follow from them.

    The features are read once, in blocks, and summed in float64; `nda` reads some of them once more. All maps share the
    sums, and all shrinkages share an eigendecomposition, so that trying several costs little. The bias of each map but
    `identity` centres the features.

    Args:
        features: [N, D], unit vectors; anything that is sliced like an array will do.
        labels: [N].
        rank: all maps but `identity` keep to so many directions of largest total variance, which is quicker and takes
            less memory; by default to all.
        is_draft: whether the last digits do not matter, as where maps are only compared: they come twice as fast.

    Example:
        >>> features = np.array([[1.0, 0.1, 0.5], [1.0, -0.1, 0.5], [-1.0, 0.1, 0.5], [-1.0, -0.1, 0.5]])
        >>> start = ClosedForms(features, labels=np.array([0, 0, 1, 1])).lda(1)
        >>> np.sign(features @ start.kernel + start.bias)[:, 0] @ [1, 1, -1, -1] in (4, -4)
        True
    """

    def __init__(self, features: FeatureRows, labels: np.ndarray, rank: int | None = None, is_draft: bool = False):
        self.is_draft = is_draft
        self.features, self.labels = features, np.asarray(labels)
        self.num_items, self.width = features.shape
        self.rank = min(rank or self.width, self.width)
        _, classes = np.unique(labels, return_inverse=True)
        counts = np.bincount(classes)
        self.num_classes = len(counts)
        self._decomposed = functools.lru_cache(MAX_KEPT)(self._decompose)
        self._local = functools.lru_cache(MAX_KEPT)(self._local_between)  # by far the dearest part
        self._discriminants = functools.lru_cache(MAX_KEPT)(self._leading)  # for all weightings
        sums, moment = np.zeros((len(counts), self.width)), np.zeros((self.width, self.width))
        for start in range(0, self.num_items, BLOCK_ROWS):
            block = np.asarray(features[start : start + BLOCK_ROWS], np.float64)
            np.add.at(sums, classes[start : start + BLOCK_ROWS], block)
            moment += block.T @ block
        self.mean = sums.sum(axis=0) / self.num_items
        self.total = moment / self.num_items - np.outer(self.mean, self.mean)
        """[rank, rank] covariance of all items, in the basis."""
        self.within = (moment - (sums / counts[:, None]).T @ sums) / self.num_items
        """[rank, rank] covariance of the items around the means of their classes, in the basis."""
        self.within_variance = np.trace(self.within) / self.width
        """Of a feature, the mean over all D."""
        self.basis = np.eye(self.width)
        """[D, rank]"""
        if self.rank < self.width:
            self.basis = self._directions()
            self.total, self.within = (self.basis.T @ each @ self.basis for each in (self.total, self.within))

    def _directions(self) -> np.ndarray:
        """[D, rank] of largest total variance.

        Of fewer items than dimensions by the products of items, which is far quicker, and completed at random beyond.
        """
        if self.num_items >= self.width:
            return leading_eigenvectors(self.total, self.rank)[1]
        rows = np.asarray(self.features[:], np.float64) - self.mean
        count = min(self.rank, self.num_items)
        beyond = np.random.default_rng(0).normal(size=(self.width, self.rank - count))
        leading = rows.T @ leading_eigenvectors(rows @ rows.T, count)[1]
        return np.linalg.qr(np.hstack([leading, beyond]))[0]

    def pca(self, embedding_dim: int) -> Start:
        """The E directions of largest variance. Labels play no part."""
        self._require(embedding_dim)
        return self._centred(self.basis @ leading_eigenvectors(self.total, embedding_dim)[1])

    def whiten(self, embedding_dim: int, shrinkage: float = 0.3) -> Start:
        """Within-class whitening, then the directions of largest total variance.

        With within-class covariance `S`, shrunk to `(1 - a) S + a tr(S) / D I`, and its inverse square root `P`, the
        kernel is `P U`, where `U` are the first E eigenvectors of the total covariance of `f P`. Directions in which
        items of one class differ are scaled down; what remains tells classes apart, also unseen ones.

        Args:
            embedding_dim: E, at most D.
            shrinkage: a, in 0..1.

        Raises:
            ValueError: if E > D, if the shrinkage is outside 0..1, or if no class has two different items.

        Reference:
            Within-class covariance normalisation, Hatch et al., Interspeech 2006; shrinkage as in Friedman,
            "Regularized Discriminant Analysis", 1989.
        """
        self._require(embedding_dim, shrinkage)
        return self._principal(self._whitening(shrinkage), embedding_dim)

    def local(self, embedding_dim: int, shrinkage: float = 0.9, centring: float = 0.5) -> Start:
        """Whitening within neighbourhoods, then the directions of largest total variance. Labels play no part.

        As `whiten`, with half the mean of `d d'` over the differences `d` of items from their 16 nearest in place of
        the within-class covariance: whatever the classes are, items that are this near are mostly of one. Neighbours
        are sought among 8,192 items at most, drawn at random.

        Args:
            embedding_dim: E, at most D.
            shrinkage: a, in 0..1; 1 gives the directions of PCA.
            centring: share of the mean that the bias takes off, in 0..1; half of it keeps more of the neighbours.

        Raises:
            ValueError: if E > D, if the shrinkage is outside 0..1, or if no item differs from its nearest ones.

        Reference:
            The scatter of neighbours against the total one: He and Niyogi, "Locality Preserving Projections", 2003.
        """
        self._require(embedding_dim, shrinkage)
        covariance, variance = self._near
        if variance < 1e-12:
            raise ValueError(
                f"Received {self.num_items} items with no differences between nearest ones; expected items that "
                "differ. Use start: pca or random."
            )
        variances, directions = scipy.linalg.eigh(covariance)
        start = self._principal(inverse_root(variances, directions, variance, shrinkage), embedding_dim)
        return start._replace(bias=np.float32(centring) * start.bias)

    def lda(
        self, embedding_dim: int, shrinkage: float = 0.3, weighting: float = 0.5, total_share: float = 0.0
    ) -> Start:
        """Linear discriminant analysis: within-class whitening, then the directions of largest between-class variance.

        The kernel is `P U diag(v / (v + w))^(1/2)`, with `P` as for `whiten`, and eigenvectors `U` and eigenvalues `v`
        of the between-class covariance of `f P`: what a direction tells of the known classes, in units of the variance
        inside them. That covariance has rank C - 1 for C classes; a little of the total one (2 %) is mixed in, so that
        the directions beyond are those of largest total variance. The weighting makes directions count less that tell
        less, and hardly changes those that tell much.

        Args:
            embedding_dim: E, at most D.
            shrinkage: a, in 0..1.
            weighting: w, 0 or more; 0 is the plain discriminant analysis. 1/2 is that of the log-likelihood ratio of
                "one class" against "two classes" for a pair, where classes, and items inside them, are distributed
                normally: its part that depends on both items is their inner product, up to a factor.
            total_share: b, in 0..1: of the total covariance `T` in the one that is whitened, before it is shrunk, which
                then is `(1 - b) S + b tr(S) / tr(T) T`. It makes directions count less in which the known classes
                differ by far the most, so that classes that differ in others are told apart, too.

        Raises:
            ValueError: as `whiten`, and if the share is outside 0..1.

        Reference:
            Fisher, 1936; Rao, 1948. The likelihood ratio: Ioffe, "Probabilistic Linear Discriminant Analysis", ECCV
            2006; in the whitened coordinates its cross term is `x1' diag(v / (1 + 2 v)) x2`.
        """
        return self._weighted("lda", embedding_dim, shrinkage, weighting, total_share)

    def nda(
        self, embedding_dim: int, shrinkage: float = 0.3, weighting: float = 0.5, total_share: float = 0.0
    ) -> Start:
        """Nonparametric discriminant analysis: as `lda`, where half of the between-class covariance is local.

        That half is the mean of `d d'` over the differences `d` of each whitened item, of unit length, from its four
        nearest items of other classes. It has full rank, and weighs most what tells neighbouring classes apart. It is
        scaled to the trace of the other half. Neighbours are sought among 8,192 items at most, drawn at random.
        Arguments and errors as for `lda`.

        Reference:
            Fukunaga and Mantock, "Nonparametric Discriminant Analysis", PAMI 1983.
        """
        return self._weighted("nda", embedding_dim, shrinkage, weighting, total_share)

    def _principal(self, projection: np.ndarray, embedding_dim: int) -> Start:
        """The directions of largest total variance of the projected features."""
        _, axes = leading_eigenvectors(projection.T @ self.total @ projection, embedding_dim, self.is_draft)
        return self._centred(self.basis @ (projection @ axes))

    def _whitening(self, shrinkage: float, total_share: float = 0.0) -> np.ndarray:
        """Inverse square root [rank, rank] of the shrunk within-class covariance, up to a rotation."""
        if self.within_variance < 1e-12:
            raise ValueError(
                f"Received {self.num_items} items in {self.num_classes} classes with no variation inside any class; "
                "expected classes with at least two different items. Use start: pca or random, or give labels that "
                "group items."
            )
        return inverse_root(*self._decomposed(total_share), self.within_variance, shrinkage)

    def _decompose(self, total_share: float) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues [rank] and vectors [rank, rank] of the within-class covariance, with a share of the total one."""
        total = np.trace(self.within) / np.trace(self.total) * self.total
        return scipy.linalg.eigh((1 - total_share) * self.within + total_share * total)

    def _local_between(self, shrinkage: float, total_share: float) -> np.ndarray:
        """Sum [rank, rank] of `d d'` over items and their nearest of other classes, whitened and of unit length."""
        chosen = np.random.default_rng(0).permutation(self.num_items)[:MAX_LOCAL_ITEMS]
        labels = self.labels[chosen]
        num_neighbors = min(NEIGHBORS, len(labels) - np.unique(labels, return_counts=True)[1].max())
        if not num_neighbors:
            raise ValueError("Received items of a single class; expected at least two. Use start: whiten.")
        projection = self.basis @ self._whitening(shrinkage, total_share)
        z = ((np.asarray(self.features[chosen], np.float64) - self.mean) @ projection).astype(np.float32)
        return scatter_to_nearest(unit_rows(z), labels, num_neighbors)

    def _weighted(self, kind: str, embedding_dim: int, shrinkage: float, weighting: float, total_share: float) -> Start:
        """The leading directions of a between-class covariance, scaled by what they tell."""
        self._require(embedding_dim, shrinkage)
        if not 0 <= total_share <= 1:
            raise ValueError(f"Received total_share={total_share}; expected a number in 0..1.")
        directions, variances = self._discriminants(kind, embedding_dim, shrinkage, total_share)
        return self._centred(directions * np.sqrt(variances / np.maximum(variances + weighting, 1e-300)))

    def _leading(
        self, kind: str, embedding_dim: int, shrinkage: float, total_share: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Directions [D, E] of a between-class covariance, and its variances there [E]."""
        projection = self._whitening(shrinkage, total_share)
        between = (1 - TOTAL_IN_BETWEEN) * (self.total - self.within) + TOTAL_IN_BETWEEN * self.total
        between = projection.T @ between @ projection
        if kind == "nda":
            local = self._local(shrinkage, total_share)
            between = (between + np.trace(between) / np.trace(local) * local) / 2
        variances, axes = leading_eigenvectors(between, embedding_dim, self.is_draft)
        return self.basis @ (projection @ axes), np.maximum(variances, 0.0)

    @functools.cached_property
    def _near(self) -> tuple[np.ndarray, float]:
        """Covariance [rank, rank] within the neighbourhoods, in the basis, and the variance of a feature there."""
        chosen = np.random.default_rng(0).permutation(self.num_items)[:MAX_LOCAL_ITEMS]
        rows = np.asarray(self.features[chosen], np.float32)
        num_neighbors = min(NEIGHBORHOOD, len(rows) - 1)
        scatter = scatter_to_nearest(rows, np.arange(len(rows)), num_neighbors).astype(np.float64)
        covariance = scatter / (2 * len(rows) * max(1, num_neighbors))
        return self.basis.T @ covariance @ self.basis, np.trace(covariance) / self.width


def inverse_root(variances: np.ndarray, directions: np.ndarray, scale: float, shrinkage: float) -> np.ndarray:
    """Of a covariance with these eigenvectors [rank, rank] that is shrunk toward `scale I`, up to a rotation."""
    variances = (1 - shrinkage) * variances + shrinkage * scale
    # Rank-deficient without shrinkage: directions that no item uses are left out rather than blown up.
    is_used = variances > 1e-9 * variances[-1]
    return np.where(is_used, directions / np.sqrt(np.maximum(variances, 1e-300)), 0.0)


def leading_eigenvectors(matrix: np.ndarray, count: int, is_draft: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues [count] of a symmetric matrix [D, D] and their vectors [D, count], the largest first.

    A draft has other last digits, and takes less than half the time: LAPACK finds all vectors sooner than a third. By
    NumPy, which unlike SciPy lets other threads run meanwhile.
    """
    if is_draft:
        values, vectors = np.linalg.eigh(matrix)
    else:
        width = len(matrix)
        values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[width - count, width - 1])
    return values[: -count - 1 : -1], vectors[:, : -count - 1 : -1]
