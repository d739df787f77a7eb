"""Closed forms that the FC layer may start from, where queries and the documents that answer them are known.

Letters: Q queries, N documents, J pairs, D feature width, E embedding width.
"""

from typing import Any

import numpy as np
import scipy.linalg

from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.geometry import unit_rows
from xbm_keras.stages.head.starts import LinearForms, Start, inverse_root, leading_eigenvectors

BLOCK_ROWS = 8192
SCORED_QUERIES = 64  # at a time, against all documents
NEIGHBORS = 8  # hardest irrelevant documents of each query
MAX_QUERIES, MAX_DOCUMENTS = 2048, 1 << 16  # among which they are sought
SHRINKAGES = (0.98, 0.95, 0.9, 0.8, 0.5)  # that are tried
PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
OFFSETS = (1.0, 0.0)


class PairForms(LinearForms):
    """Means and covariances of queries and documents, and the linear maps that follow from them.

    For one layer that both sides pass: `identity`, `centred`, `pca`, `whiten`, `nda`; their bias is one for both, and
    takes off the mean of the mean query and the mean document. For one that the queries alone pass, while documents
    stay as they are: `identity`, `ridge`, `procrustes`. Features are read in blocks and summed in float64.

    Args:
        queries: [Q, D], unit vectors; anything that is indexed like an array will do. Those of no pair play no part.
        documents: [N, D], the corpus.
        query: [J] positions of queries, of the pairs that are relevant and train.
        document: [J] positions of the documents that answer them.

    Raises:
        ValueError: for widths that differ, no pair, or positions that are not one for each.

    Example:
        >>> documents = np.eye(3)
        >>> queries = documents[:, [1, 2, 0]]  # turned
        >>> start = PairForms(queries, documents, np.arange(3), np.arange(3)).procrustes(3)
        >>> np.allclose(queries @ start.kernel + start.bias, documents, atol=1e-6)
        True
    """

    def __init__(self, queries: FeatureRows, documents: FeatureRows, query: np.ndarray, document: np.ndarray):
        query, document = np.asarray(query), np.asarray(document)
        if queries.shape[1] != documents.shape[1] or query.shape != document.shape or query.ndim != 1 or not len(query):
            raise ValueError(
                f"Received queries {queries.shape}, documents {documents.shape} and pairs of {query.shape} and "
                f"{document.shape} positions; expected features of one width, and at least one pair. Give the pairs "
                "that are relevant, and both sides from one network."
            )
        self.queries, self.documents, self.query, self.document = queries, documents, query, document
        self.width = self.rank = queries.shape[1]
        self._root: dict[float, np.ndarray] = {}
        self._local: dict[float, np.ndarray] = {}
        d = self.width
        self.query_mean = _mean_of(queries, np.unique(query))
        """[D] of the queries of some pair."""
        self.document_mean = _mean_of(documents, np.arange(len(documents)))
        """[D] of the corpus."""
        self.mean = (self.query_mean + self.document_mean) / 2
        self.total = np.zeros((d, d))
        """[D, D] covariance of the corpus."""
        for rows in _blocks(len(documents)):
            block = np.asarray(documents[rows], np.float64) - self.document_mean
            self.total += block.T @ block / len(documents)
        self.pair_means = _mean_of(queries, query), _mean_of(documents, document)
        """Each [D]: of the queries and of the documents that answer them, over pairs."""
        self.difference = np.zeros((d, d))
        """[D, D] mean of `(q - r)(q - r)'` over pairs of a query and a document that answers it."""
        self.inside, self.across = np.zeros((2, d, d))
        """Each [D, D], over pairs: covariance of the queries, and of queries with the documents that answer them."""
        for rows in _blocks(len(query)):
            q = np.asarray(queries[query[rows]], np.float64)
            r = np.asarray(documents[document[rows]], np.float64)
            self.difference += (q - r).T @ (q - r) / len(query)
            q, r = q - self.pair_means[0], r - self.pair_means[1]
            self.inside += q.T @ q / len(query)
            self.across += q.T @ r / len(query)

    def pca(self, embedding_dim: int) -> Start:
        """The E directions in which documents vary most. The pairs play no part, but for the mean."""
        self._require(embedding_dim)
        return self._centred(leading_eigenvectors(self.total, embedding_dim)[1])

    def whiten(self, embedding_dim: int, shrinkage: float = 0.9) -> Start:
        """Whitening of what a query differs in from its documents, then the directions in which documents vary most.

        With `S` the mean of `(q - r)(q - r)'` over the pairs, shrunk to `(1 - a) S + a tr(S) / D I`, and its inverse
        square root `P`, the kernel is `P U`, where `U` are the first E eigenvectors of the covariance of the corpus
        under `P`. The offset of queries from documents is a part of `S`, so that it is scaled down as well.

        Args:
            embedding_dim: E, at most D.
            shrinkage: a, in 0..1; 1 gives the directions of PCA.

        Raises:
            ValueError: if E > D, if the shrinkage is outside 0..1, or if all queries equal their documents.

        Reference:
            As `ClosedForms.whiten`, for pairs in place of classes: relevant component analysis, Shental et al., ECCV
            2002.
        """
        root = self._whitening(embedding_dim, shrinkage)
        return self._centred(root @ leading_eigenvectors(root.T @ self.total @ root, embedding_dim)[1])

    def nda(self, embedding_dim: int, shrinkage: float = 0.9) -> Start:
        """The same whitening, then the directions that tell queries from their hardest irrelevant documents.

        They are the first E eigenvectors of the mean of `d d'` over the differences `d` of each query from the eight
        documents that are nearest and do not answer it, all of them whitened and of unit length. Sought for 2,048
        queries at most, among 65,536 documents at most, drawn at random. For E = D it turns what `whiten` gives, so
        that narrower widths nested in it are better. Arguments and errors as for `whiten`, and if every document
        answers every query.

        Reference:
            As `ClosedForms.nda`: Fukunaga and Mantock, "Nonparametric Discriminant Analysis", PAMI 1983.
        """
        root = self._whitening(embedding_dim, shrinkage)
        if shrinkage not in self._local:
            self._local[shrinkage] = self._scatter_to_hardest(root)
        return self._centred(root @ leading_eigenvectors(self._local[shrinkage], embedding_dim)[1])

    def ridge(self, embedding_dim: int, penalty: float = 3.0, offset: float = 1.0) -> Start:
        """Linear regression of documents on the queries that they answer, held near the identity; [D, D].

        The kernel `W` is the least of `mean |(q - mq) W - (r - mr)|^2 + p v |W - I|^2`, where `mq` and `mr` are the
        means over pairs, and `v` the mean variance of a feature of queries. The bias is `s mr - mq W`.

        Args:
            embedding_dim: E, which is D.
            penalty: p, above 0; the larger, the nearer to the identity.
            offset: s, in 0..1, of the mean document: with 0 the direction that all documents share plays no part.

        Raises:
            ValueError: if E is not D, or for either of the others outside of its range.

        Reference:
            Hoerl and Kennard, "Ridge Regression", Technometrics 1970, shrunk to the identity in place of 0.
        """
        self._require_full(embedding_dim, offset)
        if not 0 < penalty < np.inf:
            raise ValueError(f"Received penalty={penalty}; expected a number above 0.")
        weight = penalty * max(np.trace(self.inside) / self.width, 1e-12) * np.eye(self.width)
        return self._queries_alone(np.linalg.solve(self.inside + weight, self.across + weight), offset)

    def procrustes(self, embedding_dim: int, offset: float = 1.0) -> Start:
        """The rotation that brings centred queries nearest to the documents that answer them, [D, D].

        The bias, arguments and errors as for `ridge`.

        Reference:
            Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 1966.
        """
        self._require_full(embedding_dim, offset)
        left, _, right = scipy.linalg.svd(self.across)
        return self._queries_alone(left @ right, offset)

    def _queries_alone(self, kernel: np.ndarray, offset: float) -> Start:
        query_mean, document_mean = self.pair_means
        return Start(kernel.astype(np.float32), (offset * document_mean - query_mean @ kernel).astype(np.float32))

    def _whitening(self, embedding_dim: int, shrinkage: float) -> np.ndarray:
        """Inverse square root [D, D] of the shrunk covariance of differences, up to a rotation."""
        self._require(embedding_dim, shrinkage)
        scale = np.trace(self.difference) / self.width
        if scale < 1e-12:
            raise ValueError(
                f"Received {len(self.query)} pairs, all of a query and a document that equal each other; expected some "
                "that differ. Use start: pca or identity, or other pairs."
            )
        if shrinkage not in self._root:
            variances, directions = scipy.linalg.eigh(self.difference)
            self._root[shrinkage] = inverse_root(variances, directions, scale, shrinkage)
        return self._root[shrinkage]

    def _scatter_to_hardest(self, root: np.ndarray) -> np.ndarray:
        """Mean [D, D] of `d d'` over queries and their nearest irrelevant documents, whitened and of unit length."""
        random = np.random.default_rng(0)
        asked = np.sort(random.permutation(np.unique(self.query))[:MAX_QUERIES])
        chosen = np.sort(random.permutation(len(self.documents))[:MAX_DOCUMENTS])
        documents = np.concatenate(
            [self._whitened(self.documents, chosen[rows], root) for rows in _blocks(len(chosen))]
        )
        column_of = np.full(len(self.documents), -1)
        column_of[chosen] = np.arange(len(chosen))
        columns, row_of = column_of[self.document], np.full(len(self.queries), -1)
        row_of[asked] = np.arange(len(asked))
        rows_of_pairs, scatter, count = row_of[self.query], np.zeros_like(root), 0
        for start in range(0, len(asked), SCORED_QUERIES):
            z = self._whitened(self.queries, asked[start : start + SCORED_QUERIES], root)
            distances = z @ -documents.T  # but for a constant
            is_here = (rows_of_pairs >= start) & (rows_of_pairs < start + len(z)) & (columns >= 0)
            distances[rows_of_pairs[is_here] - start, columns[is_here]] = np.inf
            hardest = np.argpartition(distances, min(NEIGHBORS, len(chosen)) - 1, axis=1)[:, :NEIGHBORS]
            is_irrelevant = np.take_along_axis(distances, hardest, axis=1) < np.inf
            differences = (z[:, None] - documents[hardest])[is_irrelevant].astype(np.float64)
            scatter, count = scatter + differences.T @ differences, count + len(differences)
        if not count:
            raise ValueError(
                f"Received {len(self.documents)} documents, each of which answers every query; expected others, too. "
                "Use start: whiten."
            )
        return scatter / count

    def _whitened(self, features: FeatureRows, positions: np.ndarray, root: np.ndarray) -> np.ndarray:
        rows = np.asarray(features[positions], np.float64)
        return unit_rows(((rows - self.mean) @ root).astype(np.float32))

    def _require_full(self, embedding_dim: int, offset: float) -> None:
        if not 0 <= offset <= 1:
            raise ValueError(f"Received offset={offset}; expected a number in 0..1.")
        if embedding_dim != self.width:
            raise ValueError(
                f"Received embedding_dim={embedding_dim} for documents of width {self.width}, which stay as they are; "
                "expected the same. Set head.embedding_dim, or use sides: both."
            )


def candidates(sides: str, embedding_dim: int, width: int) -> list[tuple[str, dict[str, Any]]]:
    """Names of the forms to try, and their parameters beside the width; of equal ones the first is the simplest.

    Args:
        sides: "both" pass a layer, or the "query" alone.
        embedding_dim: E.
        width: D.
    """
    plain: list[tuple[str, dict[str, Any]]] = [("identity", {})]
    if sides == "query":
        ridges = [("ridge", {"penalty": p, "offset": s}) for s in OFFSETS for p in PENALTIES]
        return plain + ridges + [("procrustes", {"offset": s}) for s in OFFSETS]
    plain += [("centred", {})] * (embedding_dim == width) + [("pca", {})]
    return plain + [(name, {"shrinkage": a}) for name in ("whiten", "nda") for a in SHRINKAGES]


def _mean_of(features: FeatureRows, positions: np.ndarray) -> np.ndarray:
    """[D] of the rows at these positions."""
    sums = [np.asarray(features[positions[rows]], np.float64).sum(axis=0) for rows in _blocks(len(positions))]
    return np.sum(sums, axis=0) / len(positions)


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + BLOCK_ROWS) for start in range(0, count, BLOCK_ROWS)]
