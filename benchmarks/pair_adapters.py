"""Published adapters of queries and documents, each from the formulas of its text: see benchmarks/pair_peers.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from xbm_keras.stages.head.starts import leading_eigenvectors

if TYPE_CHECKING:
    from benchmarks.pair_peers import Data

BATCH = 64  # queries
SCALE, NEIGHBORS, MEMORY, WIDTH = 20.0, 10, 5000, 128
MARGIN, NUM_HEADS = 0.2, 4


class Peer:
    """A method: its layer, what it makes of queries and documents, and its `loss`, a part of which has a weight."""

    weights: tuple[float, ...] = (0.0,)
    """Of which the validation queries choose."""

    def __init__(self, data: Data, weight: float, seed: int):
        self.data, self.weight, self.rng = data, weight, np.random.default_rng(seed)
        self.kernel = tf.Variable(tf.zeros([data.width, data.width]))
        self.variables, self.width = [self.kernel], data.width

    def embed_queries(self, queries):
        """[n, D] to [n, E]."""
        return queries + queries @ self.kernel

    def embed_documents(self, documents):
        """[n, D] to [n, E]."""
        return self.embed_queries(documents)

    def gather(self, places, documents):
        """Features [B, D] of queries by place among those that train, and of documents by position."""
        queries = tf.gather(self.data.queries, tf.gather(self.data.trained, places))
        return queries, tf.gather(self.data.documents, documents)


class _Adapter(Peer):
    def embed_documents(self, documents):
        return documents

    def loss(self, places, documents):
        queries, documents = self.gather(places, documents)
        return cross_entropy(cosines(self.embed_queries(queries), documents), tf.range(BATCH))


class _RandomAdapter(_Adapter):
    def loss(self, places, documents):
        others = tf.random.uniform([BATCH], maxval=len(self.data.documents), dtype=tf.int64)
        queries, documents = self.gather(places, documents)
        queries = self.embed_queries(queries)
        negatives = cosines(queries, tf.gather(self.data.documents, others))
        negatives = tf.where(self.data.relevance(places, others) > 0, -1e3, negatives)
        positives = tf.linalg.diag_part(cosines(queries, documents))
        return cross_entropy(tf.concat([positives[:, None], negatives], axis=1), tf.zeros(BATCH, tf.int32))


class _SearchAdaptor(Peer):
    weights = (0.0, 1.0, 10.0)

    def __init__(self, data: Data, weight: float, seed: int):
        super().__init__(data, weight, seed)
        self.predictor = tf.Variable(tf.eye(data.width))
        self.variables.append(self.predictor)

    def loss(self, places, documents):
        frozen_q, frozen_d = self.gather(places, documents)
        q, d = self.embed_queries(frozen_q), self.embed_queries(frozen_d)
        recovery, prediction = distance(q, frozen_q) + distance(d, frozen_d), distance(q, d @ self.predictor)
        ranked = ranking(cosines(q, d), self.data.relevance(places, documents))
        return ranked + self.weight * (recovery + prediction)


class _MatryoshkaAdaptor(Peer):
    weights = (1.0, 10.0)

    def __init__(self, data: Data, weight: float, seed: int):
        super().__init__(data, weight, seed)
        self.width, self.widths = WIDTH, (64, 128, 256, data.width)
        self.neighbors = nearest(data.documents)

    def embed_queries(self, queries):
        return super().embed_queries(queries)[:, : self.width]

    def loss(self, places, documents):
        frozen_q, frozen_d = self.gather(places, documents)
        frozen_n = tf.gather(self.data.documents, tf.gather(self.neighbors, documents))  # [B, k, D]
        q, d, n = (each + each @ self.kernel for each in (frozen_q, frozen_d, frozen_n))
        relevance, total = self.data.relevance(places, documents), 0.0
        for w in self.widths:
            total += distance(cosines(d[:, :w], d[:, :w]), cosines(frozen_d, frozen_d))
            total += distance(cosines(d[:, None, :w], n[..., :w]), cosines(frozen_d[:, None], frozen_n))
            total += self.weight * ranking(cosines(q[:, :w], d[:, :w]), relevance)
        return total / len(self.widths) + distance(d, frozen_d)


class _Smec(Peer):
    weights = (0.1, 1.0)

    def __init__(self, data: Data, weight: float, seed: int):
        super().__init__(data, weight, seed)
        self.kernel, self.width = tf.Variable(principal_directions(data.documents)), WIDTH
        self.variables = [self.kernel]
        filled = self.rng.integers(len(data.documents), size=MEMORY)
        self.memory = tf.Variable(tf.gather(data.documents, filled), trainable=False)

    def embed_queries(self, queries):
        return queries @ self.kernel

    def loss(self, places, documents):
        batch = tf.concat(self.gather(places, documents), axis=0)  # [2 B, D]
        scores = batch @ tf.transpose(self.memory)
        picked = tf.math.top_k(tf.where(scores > 1 - 1e-5, -1.0, scores), NEIGHBORS).indices  # without itself
        picked = tf.gather(self.memory, picked)  # [2 B, k, D]
        self.memory.assign(tf.concat([self.memory[len(batch) :], batch], axis=0))
        reduced = batch @ self.kernel
        aligned = distance(cosines(reduced[:, None], picked @ self.kernel), cosines(batch[:, None], picked))
        ranked = ranking(cosines(*tf.split(reduced, 2)), self.data.relevance(places, documents))
        return ranked + self.weight * aligned


class _Dive(Peer):
    weights = (0.0, 0.01, 0.1)

    def __init__(self, data: Data, weight: float, seed: int):
        super().__init__(data, weight, seed)
        directions = principal_directions(data.documents)  # [D, E]
        noise = self.rng.standard_normal((NUM_HEADS, *directions.shape)) * 0.1 / np.sqrt(len(directions))
        self.kernel, self.width = tf.Variable(directions + tf.constant(noise, tf.float32)), WIDTH  # [heads, D, E]
        self.variables = [self.kernel]

    def embed_queries(self, queries):
        return queries @ tf.reduce_mean(self.kernel, axis=0)

    def loss(self, places, documents):
        queries, answers = self.gather(places, documents)
        scores = cosines(self.embed_queries(queries), self.embed_queries(answers))  # [B, B]
        triplets = tf.nn.relu(MARGIN + scores - tf.linalg.diag_part(scores)[:, None])
        is_negative = tf.cast(self.data.relevance(places, documents) == 0, tf.float32)
        hinge = tf.reduce_sum(triplets * is_negative) / tf.maximum(tf.reduce_sum(is_negative), 1.0)
        views = tf.unstack(tf.concat([queries, answers], axis=0) @ self.kernel)  # for each head [2 B, E]
        pairs = zip(views, [*views[1:], views[0]], strict=True)
        contrasts = [cross_entropy(cosines(*each), tf.range(2 * BATCH)) for each in pairs]
        return hinge + self.weight * tf.reduce_mean(contrasts)


PEERS = {
    "adapter": _Adapter,
    "adapter, random": _RandomAdapter,
    "search-adaptor": _SearchAdaptor,
    "matryoshka-adaptor": _MatryoshkaAdaptor,
    "smec": _Smec,
    "dive": _Dive,
}


def cosines(a, b):
    """[..., n, E] and [..., m, E] to [..., n, m]."""
    return tf.matmul(tf.math.l2_normalize(a, -1), tf.math.l2_normalize(b, -1), transpose_b=True)


def distance(a, b):
    """Mean absolute difference."""
    return tf.reduce_mean(tf.abs(a - b))


def cross_entropy(scores, labels):
    """Of which document answers, [B], among those that cosines [B, K] are of."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, SCALE * scores))


def ranking(scores, relevance):
    """Weighted mean of `log(1 + exp(s_ik - s_ij))` over y_ij > y_ik, by `y_ij - y_ik`; of [B, C] both."""
    weights = tf.nn.relu(relevance[:, :, None] - relevance[:, None, :])  # [B, j, k]
    losses = tf.nn.softplus(scores[:, None, :] - scores[:, :, None])
    return tf.reduce_sum(weights * losses) / tf.maximum(tf.reduce_sum(weights), 1.0)


def principal_directions(documents) -> tf.Tensor:
    """[D, E] of the corpus."""
    return tf.constant(leading_eigenvectors(np.cov(documents, rowvar=False), WIDTH)[1], tf.float32)


def nearest(documents) -> tf.Tensor:
    """[N, k] positions of the nearest other documents."""
    found = []
    for own in tf.split(tf.range(len(documents)), [*[1024] * (len(documents) // 1024), len(documents) % 1024]):
        scores = tf.gather(documents, own) @ tf.transpose(documents) - 3.0 * tf.one_hot(own, len(documents))
        found.append(tf.math.top_k(scores, NEIGHBORS).indices)
    return tf.concat(found, axis=0)
