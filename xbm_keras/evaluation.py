"""Exact retrieval evaluation over a whole set, in chunks, and the callback that puts it into the logs of `fit`."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from xbm_keras.metrics import map_at_r, r_precision, recall_at_k
from xbm_keras.stages.cosine_scores import cosine_scores, l2_normalize
from xbm_keras.stages.head import Head

CHUNK_SCORES = 1 << 22  # scores held at once: 16 MB
GROUP = 64  # gallery items per group of the prefilter


def evaluate_retrieval(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Exact retrieval metrics under cosine similarity.

    Without a gallery it is leave-one-out: each item queries all the others. A query none of whose items has its label
    is left out of the means, though its item stays in the gallery of the others. Equal scores rank by position in the
    gallery, the first one first.

    Args:
        queries: [Q, E] float, of any length but zero.
        query_labels: [Q] integers or strings.
        gallery: [N, E].
        gallery_labels: [N].
        ks: of Recall@K. Where the gallery holds fewer than K items, all of them count.

    Returns:
        `recall_at_<k>`, `map_at_r`, `r_precision`: means over the queries, in 0..1.

    Raises:
        ValueError: for shapes that do not fit, vectors that are not finite, or no query with a match.
    """
    is_leave_one_out = gallery is None
    if gallery is None:
        gallery, gallery_labels = queries, query_labels
    _check(queries, query_labels, "queries")
    _check(gallery, gallery_labels, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"Received queries of width {queries.shape[1]} and a gallery of width {gallery.shape[1]}; expected one "
            "width. Embed both with the same model."
        )
    _, codes = np.unique(np.concatenate([query_labels, gallery_labels]), return_inverse=True)
    query_codes, gallery_codes = codes[: len(queries)], codes[len(queries) :]
    num_relevant = np.bincount(gallery_codes, minlength=codes.max() + 1)[query_codes] - is_leave_one_out
    # By R, so that the long lists of large classes are made for their own queries only.
    order = np.argsort(num_relevant, kind="stable")[(num_relevant == 0).sum() :]
    if len(order) == 0:
        raise ValueError(
            f"Received {len(queries)} queries none of which has a match; expected labels that at least two items share."
        )
    rows = l2_normalize(gallery)
    chunk = int(np.clip(CHUNK_SCORES // len(gallery), 16, 1024))
    values = []
    for start in range(0, len(order), chunk):
        picked = order[start : start + chunk]
        k = min(max(*ks, num_relevant[picked].max()), len(gallery) - is_leave_one_out)
        search = _search_groups if 2 * k * GROUP < len(gallery) else _search_all
        own = picked if is_leave_one_out else np.full(len(picked), -1)
        nearest = search(l2_normalize(queries[picked]), rows, tf.constant(own, tf.int32), tf.constant(k, tf.int32))
        hits = gallery_codes[nearest.numpy()] == query_codes[picked, None]
        relevant = num_relevant[picked]
        recalls = [recall_at_k(hits, each) for each in ks]
        values.append(np.stack([*recalls, map_at_r(hits, relevant), r_precision(hits, relevant)]))
    names = [*(f"recall_at_{k}" for k in ks), "map_at_r", "r_precision"]
    return dict(zip(names, np.concatenate(values, axis=1).mean(axis=1).tolist(), strict=True))


def _check(vectors: np.ndarray, labels: np.ndarray, name: str) -> None:
    if vectors.ndim != 2 or len(vectors) == 0 or len(vectors) != len(labels):
        raise ValueError(
            f"Received {name} of shape {vectors.shape} with {len(labels)} labels; expected [N, E] with one label each."
        )
    is_bad = ~np.isfinite(vectors).all(axis=1)
    if is_bad.any():
        raise ValueError(
            f"Received {name} with NaN or infinite values in {is_bad.sum()} rows, the first of them "
            f"{np.flatnonzero(is_bad)[0]}; expected finite vectors."
        )


_SIGNATURE = [
    tf.TensorSpec([None, None], tf.float32),
    tf.TensorSpec([None, None], tf.float32),
    tf.TensorSpec([None], tf.int32),
    tf.TensorSpec([], tf.int32),
]


def _scores(queries, rows, own):
    """Score matrix [Q, N], with -inf for the query's own position, where it has one."""
    scores = cosine_scores(queries, rows)
    has_own = tf.where(own >= 0)[:, 0]
    places = tf.stack([tf.cast(has_own, tf.int32), tf.gather(own, has_own)], axis=1)
    return tf.tensor_scatter_nd_update(scores, places, tf.fill([tf.size(has_own)], -float("inf")))


@tf.function(input_signature=_SIGNATURE)
def _search_all(queries, rows, own, k):
    """Positions [Q, k] of the nearest rows."""
    return tf.math.top_k(_scores(queries, rows, own), k).indices


@tf.function(input_signature=_SIGNATURE)
def _search_groups(queries, rows, own, k):
    """The same, faster where k is small: the k best lie in the k groups with the best maxima, also among ties."""
    scores = _scores(queries, rows, own)
    scores = tf.pad(scores, [[0, 0], [0, -tf.shape(rows)[0] % GROUP]], constant_values=-float("inf"))
    groups = tf.reshape(scores, [tf.shape(scores)[0], -1, GROUP])  # [Q, G, 64]
    # In the order of positions, so that top_k breaks ties by position.
    best_groups = tf.sort(tf.math.top_k(tf.reduce_max(groups, axis=2), k, sorted=False).indices, axis=1)
    candidates = tf.reshape(tf.gather(groups, best_groups, batch_dims=1), [tf.shape(scores)[0], -1])
    place = tf.math.top_k(candidates, k).indices
    return tf.gather(best_groups, place // GROUP, batch_dims=1) * GROUP + place % GROUP


def embed(head: Head, features: np.ndarray, block: int = 4096) -> np.ndarray:
    """Embeddings [N, E] float32 of features [N, D], which are read in blocks."""
    blocks = [features[start : start + block] for start in range(0, len(features), block)]
    return np.concatenate([head(l2_normalize(rows)).numpy() for rows in blocks])


class RetrievalEvaluation(keras.callbacks.Callback):
    """Writes `val_recall_at_1`, `val_map_at_r` and so on into the logs after each epoch; leave-one-out.

    Callbacks behind this one in the list, such as `ModelCheckpoint` and `EarlyStopping`, read them; say `mode="max"`
    there. The scores before the first step are in `baseline`.

    Args:
        features: [N, D] features of the validation items.
        labels: [N] their labels.
        ks: of Recall@K.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5, 10)):
        super().__init__()
        self.features = features
        self.labels = labels
        self.ks = ks

    def on_train_begin(self, logs=None):
        """Score the head as it is."""
        self.baseline = self._scores()

    def on_epoch_end(self, epoch, logs=None):
        """Score the epoch's head, in place in `logs`."""
        if logs is not None:
            logs.update(self._scores())

    def _scores(self) -> dict[str, float]:
        scores = evaluate_retrieval(embed(self.model.head, self.features), self.labels, ks=self.ks)
        return {f"val_{name}": value for name, value in scores.items()}
