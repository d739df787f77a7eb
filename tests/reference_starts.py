"""Slow, obvious oracles for the closed-form starts. They import nothing of ours.

Each gives kernel and bias; the columns of the kernel are known up to their sign.
"""

import numpy as np
import scipy.linalg


def pca(features, embedding_dim) -> tuple[np.ndarray, np.ndarray]:
    features = np.asarray(features, np.float64)
    _, _, directions = np.linalg.svd(features - features.mean(axis=0))
    return _centred(features, directions[:embedding_dim].T)


def whiten(features, labels, embedding_dim, shrinkage) -> tuple[np.ndarray, np.ndarray]:
    features = np.asarray(features, np.float64)
    values, vectors = np.linalg.eigh(shrunk_within(features, labels, shrinkage))
    inverse_root = vectors @ np.diag(values**-0.5) @ vectors.T
    centred = (features - features.mean(axis=0)) @ inverse_root
    total = sum(np.outer(row, row) for row in centred) / len(features)
    values, vectors = np.linalg.eigh(total)
    largest_first = np.argsort(values)[::-1][:embedding_dim]
    return _centred(features, inverse_root @ vectors[:, largest_first])


def local(features, embedding_dim, shrinkage, neighbors=16) -> tuple[np.ndarray, np.ndarray]:
    """Pair by pair."""
    features = np.asarray(features, np.float64)
    n, d = features.shape
    scatter, count = np.zeros((d, d)), 0
    for i in range(n):
        for j in sorted(set(range(n)) - {i}, key=lambda j: -features[i] @ features[j])[:neighbors]:
            scatter += np.outer(features[i] - features[j], features[i] - features[j]) / 2
            count += 1
    near = scatter / count
    values, vectors = np.linalg.eigh((1 - shrinkage) * near + shrinkage * np.trace(near) / d * np.eye(d))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    values, vectors = np.linalg.eigh(root @ np.cov(features.T, bias=True) @ root)
    kernel, bias = _centred(features, root @ vectors[:, np.argsort(values)[::-1][:embedding_dim]])
    return kernel, bias / 2


def lda(features, labels, embedding_dim, shrinkage, weighting=0.5, total_share=0.0) -> tuple[np.ndarray, np.ndarray]:
    """By the generalised eigenproblem."""
    features = np.asarray(features, np.float64)
    total = np.cov(features.T, bias=True)
    between = total - within_covariance(features, labels)
    whitened = shrunk_within(features, labels, shrinkage, total_share)
    values, vectors = scipy.linalg.eigh(0.98 * between + 0.02 * total, whitened)
    largest_first = np.argsort(values)[::-1][:embedding_dim]
    return _centred(features, vectors[:, largest_first] * weights_of(values[largest_first], weighting))


def nda(
    features, labels, embedding_dim, shrinkage, weighting=0.5, total_share=0.0, neighbors=4
) -> tuple[np.ndarray, np.ndarray]:
    """Pair by pair, in the coordinates of `whiten` without its rotation."""
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    total = np.cov(features.T, bias=True)
    values, vectors = np.linalg.eigh(shrunk_within(features, labels, shrinkage, total_share))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    between = root @ (0.98 * (total - within_covariance(features, labels)) + 0.02 * total) @ root
    z = (features - features.mean(axis=0)) @ root
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    local = np.zeros_like(between)
    for i in range(len(z)):
        others = [j for j in range(len(z)) if labels[j] != labels[i]]
        for j in sorted(others, key=lambda j: -z[i] @ z[j])[:neighbors]:
            local += np.outer(z[i] - z[j], z[i] - z[j])
    local *= np.trace(between) / np.trace(local)
    values, vectors = np.linalg.eigh(between / 2 + local / 2)
    largest_first = np.argsort(values)[::-1][:embedding_dim]
    return _centred(features, root @ vectors[:, largest_first] * weights_of(values[largest_first], weighting))


def weights_of(values, weighting) -> np.ndarray:
    """Of directions with these variances between classes."""
    return np.array([np.sqrt(value / (value + weighting)) for value in values])


def shrunk_within(features, labels, shrinkage, total_share=0.0) -> np.ndarray:
    within, total = within_covariance(features, labels), np.cov(features.T, bias=True)
    d, scale = len(within), np.trace(within)
    mixed = (1 - total_share) * within + total_share * scale / np.trace(total) * total
    return (1 - shrinkage) * mixed + shrinkage * scale / d * np.eye(d)


def within_covariance(features, labels) -> np.ndarray:
    n, d = features.shape
    covariance = np.zeros((d, d))
    for label in set(np.asarray(labels).tolist()):
        of_class = features[np.asarray(labels) == label]
        for row in of_class - of_class.mean(axis=0):
            covariance += np.outer(row, row) / n
    return covariance


def _centred(features, kernel) -> tuple[np.ndarray, np.ndarray]:
    return kernel, -features.mean(axis=0) @ kernel
