"""Closed forms for a head of queries and documents, from features of both and the pairs that belong together."""

import numpy as np
import scipy.linalg

from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.stages.head.starts import Start

SHRINKAGES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1)  # of the ridge, tried


class PairForms:
    """Linear maps that follow from the moments of queries, documents and their differences.

    Args:
        queries: [Q, D], unit vectors.
        documents: [N, D], unit vectors.
        query: [J] positions of queries.
        document: [J] positions of the documents that answer them.
    """

    def __init__(self, queries: FeatureRows, documents: FeatureRows, query: np.ndarray, document: np.ndarray):
        self.queries, self.documents = (np.asarray(rows[:], np.float64) for rows in (queries, documents))
        self.query, self.document = query, document
        self.mean = (self.queries.mean(axis=0) + self.documents.mean(axis=0)) / 2

    def identity(self, embedding_dim: int) -> Start:
        """The features themselves."""
        return Start(np.eye(embedding_dim, dtype=np.float32), np.zeros(embedding_dim, np.float32))

    def centred(self, embedding_dim: int) -> Start:
        """The features less their mean."""
        return self._centred(np.eye(embedding_dim))

    def pca(self, embedding_dim: int) -> Start:
        """Directions of largest variance of the documents."""
        return self._centred(_leading(np.cov(self.documents.T), embedding_dim))

    def whiten(self, embedding_dim: int, shrinkage: float) -> Start:
        """Differences of queries and the documents that answer them are made white, then as `pca`."""
        differences = self.queries[self.query] - self.documents[self.document]
        within = differences.T @ differences / len(differences)
        width = len(within)
        within = (1 - shrinkage) * within + shrinkage * np.trace(within) / width * np.eye(width)
        variances, directions = scipy.linalg.eigh(within)
        whitening = directions / np.sqrt(variances)
        return self._centred(whitening @ _leading(np.cov((self.documents @ whitening).T), embedding_dim))

    def ridge(self, embedding_dim: int, strength: float) -> Start:
        """Of queries alone: the map that takes them to their documents, with a pull toward the identity."""
        x, y = self.queries[self.query], self.documents[self.document]
        pull = strength * len(x) * np.eye(embedding_dim)
        kernel = scipy.linalg.solve(x.T @ x + pull, x.T @ y + pull, assume_a="pos")
        return Start(kernel.astype(np.float32), np.zeros(embedding_dim, np.float32))

    def procrustes(self, embedding_dim: int) -> Start:
        """Of queries alone: the rotation that takes them nearest to their documents."""
        left, _, right = scipy.linalg.svd(self.queries[self.query].T @ self.documents[self.document])
        return Start((left @ right).astype(np.float32), np.zeros(embedding_dim, np.float32))

    def _centred(self, kernel: np.ndarray) -> Start:
        return Start(kernel.astype(np.float32), (-self.mean @ kernel).astype(np.float32))


def candidates(sides: str, embedding_dim: int, width: int) -> list[tuple[str, dict]]:
    """Names and parameters of closed forms to try for these sides, the simplest first."""
    if sides == "query":
        return [("identity", {}), ("procrustes", {}), *(("ridge", {"strength": each}) for each in STRENGTHS)]
    full: list[tuple[str, dict]] = [("identity", {}), ("centred", {})] if embedding_dim == width else []
    return [*full, ("pca", {}), *(("whiten", {"shrinkage": each}) for each in SHRINKAGES)]


def _leading(covariance: np.ndarray, count: int) -> np.ndarray:
    """The eigenvectors [D, count] of largest eigenvalue."""
    width = len(covariance)
    return scipy.linalg.eigh(covariance, subset_by_index=[width - count, width - 1])[1][:, ::-1]
