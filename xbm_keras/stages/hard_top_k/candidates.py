"""Candidates: which rows may be a pick of which anchor, and the best of them."""

from typing import NamedTuple

import tensorflow as tf

from xbm_keras.stages.circular_memory.ring import Rows
from xbm_keras.stages.cosine_scores import Keys, scores_of_picks
from xbm_keras.stages.hard_top_k.sampled import is_quicker, sampled_top_k
from xbm_keras.stages.hard_top_k.streamed import LOWEST, Search, streamed_top_k


class Candidates(NamedTuple):
    """Which rows may be a pick of which anchor, in O(M + B^2) numbers rather than B M."""

    rows: Rows
    sample_ids: tf.Tensor
    """[B] int64, of the anchors."""
    common_code: tf.Tensor
    """B, an int64: rows of another label than all anchors, nearly all of a large memory."""
    codes: tf.Tensor
    """[M] int64: position of the row's label among the sorted labels of the batch; B for any other label; B + 1 for a
    row that is not valid."""
    classes: tf.Tensor
    """[B] int64, the code of the anchor's label; [B, P], those of the rows that are relevant to it."""
    own_class: tf.Tensor
    """[B + 2, B] float32, by code and anchor: 0 for rows of the anchor's label, else -inf."""
    other_classes: tf.Tensor
    """[B + 2, B] float32: 0 for rows of another label, else -inf."""

    @classmethod
    def of(cls, rows: Rows, labels: tf.Tensor, sample_ids: tf.Tensor) -> "Candidates":
        """For anchors of these labels and ids, each [B]."""
        ordered, num_anchors = tf.sort(labels), tf.size(labels, tf.int64)
        codes = tf.searchsorted(ordered, rows.labels, out_type=tf.int64)
        # A replica may have no anchors: the label behind the others is never looked at.
        one_more = tf.concat([ordered, tf.zeros([1], labels.dtype)], axis=0)
        is_in_batch = (codes < num_anchors) & (tf.gather(one_more, codes) == rows.labels)
        codes = tf.where(is_in_batch, codes, num_anchors)
        codes = tf.where(rows.is_valid, codes, num_anchors + 1)
        is_same = tf.pad(ordered[:, None] == labels[None, :], [[0, 2], [0, 0]])
        is_other = ~is_same & (tf.range(num_anchors + 2) <= num_anchors)[:, None]
        own_class, other_classes = (tf.where(mask, 0.0, LOWEST) for mask in (is_same, is_other))
        classes = tf.searchsorted(ordered, labels, out_type=tf.int64)
        return cls(rows, sample_ids, num_anchors, codes, classes, own_class, other_classes)

    @classmethod
    def of_relevant(cls, rows: Rows, relevant: tf.Tensor, sample_ids: tf.Tensor) -> "Candidates":
        """For anchors to which rows are relevant by their sample ids, [B, P]; -1 fills up, and is the id of no row.

        A code then is a place among the sorted ids of all that is relevant to an anchor of the batch, B P of them.
        """
        relevant, row_ids = (tf.cast(ids, tf.int64) for ids in (relevant, rows.sample_ids))
        ordered = tf.sort(tf.reshape(relevant, [-1]))
        num_ids, num_anchors = tf.size(ordered, tf.int64), tf.shape(relevant, tf.int64)[0]
        codes = tf.searchsorted(ordered, row_ids, out_type=tf.int64)
        one_more = tf.concat([ordered, tf.zeros([1], tf.int64)], axis=0)
        is_in_batch = (codes < num_ids) & (tf.gather(one_more, codes) == row_ids)
        codes = tf.where(rows.is_valid, tf.where(is_in_batch, codes, num_ids), num_ids + 1)
        classes = tf.reshape(
            tf.searchsorted(ordered, tf.reshape(relevant, [-1]), out_type=tf.int64), tf.shape(relevant)
        )
        anchors = tf.broadcast_to(tf.range(num_anchors)[:, None], tf.shape(relevant))
        cells = tf.stack([classes, anchors], axis=2)  # [B, P, 2] of the tables
        shape = tf.stack([num_ids + 2, num_anchors])
        own = tf.tensor_scatter_nd_update(tf.fill(shape, LOWEST), cells, tf.zeros(tf.shape(relevant)))
        is_other = (tf.range(num_ids + 2) <= num_ids)[:, None]
        others = tf.where(is_other & (own == LOWEST), 0.0, LOWEST)
        return cls(rows, sample_ids, num_ids, codes, classes, own, others)

    def place_of_own(self, indices, is_valid, otherwise):
        """Where in [B, k] the row with the anchor's own id stands, [B] int64; `otherwise` where it does not."""
        is_own = is_valid & (tf.gather(self.rows.sample_ids, indices) == self.sample_ids[:, None])
        place = tf.argmax(tf.cast(is_own, tf.float32), axis=1)  # a GPU has no argmax of integers
        return tf.where(tf.reduce_any(is_own, axis=1), place, otherwise)


Best = dict[str, tuple[tf.Tensor, tf.Tensor, tf.Tensor]]
"""For each search values, indices and validity of the best rows but the anchor's own, each [B, k]."""


def find_best(keys: Keys, searches: dict[str, Search], among: Candidates, guard: Keys | None = None) -> Best:
    """The best rows by key; `guard` is the space of the guard scores, if it is another."""
    if not searches:
        return {}
    one_more = [search._replace(k=search.k + 1) for search in searches.values()]  # the own row may be among them
    best: Best = {}
    for name, (values, indices) in zip(searches, streamed_top_k(keys, among.codes, one_more, guard), strict=True):
        best[name] = _but_own(values, indices, among)
    return best


def sample_pays(k: int, rows: Rows) -> bool:
    """Whether to ask `find_sampled` for k of these rows."""
    return is_quicker(k + 1, rows.labels.shape[0])


def find_sampled(keys: Keys, search: Search, among: Candidates) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor] | None:
    """What `find_best` finds for one search of the highest scores without ceilings, outside of graphs, by a sample of
    the rows; None where it does not tell."""
    found = sampled_top_k(keys, among.codes, search._replace(k=search.k + 1))
    return found and _but_own(*found, among)


def _but_own(values, indices, among):
    """Values, indices and validity [B, k] of the k + 1 best, without the anchor's own row or else the last."""
    is_valid = values > LOWEST
    indices = tf.where(is_valid, indices, 0)
    place = among.place_of_own(indices, is_valid, indices.shape[1] - 1)
    return without(place, values, indices, is_valid)


def find_and_rerank(keys: Keys, in_features: Keys, searches: dict[str, Search], among: Candidates, rerank: int) -> Best:
    """The same by feature score among the `rerank` k best by key."""
    wide = {name: search._replace(k=search.k * rerank, ceilings=None) for name, search in searches.items()}
    best: Best = {}
    for name, (_, indices, is_valid) in find_best(keys, wide, among).items():
        k, sign, _, ceilings, _ = searches[name]
        scores = scores_of_picks(in_features.anchors, tf.stop_gradient(among.rows.take(indices)))
        if ceilings is not None:
            is_valid &= scores <= ceilings[:, None]
        values, place = tf.math.top_k(tf.where(is_valid, sign * scores, LOWEST), k)
        best[name] = (values, *(tf.gather(each, place, batch_dims=1) for each in (indices, is_valid)))
    return best


def without(place: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Each tensor [B, k] without the column `place` [B]."""
    kept = tf.range(tensors[0].shape[1] - 1, dtype=tf.int64)[None, :]
    kept += tf.cast(kept >= place[:, None], tf.int64)
    return tuple(tf.gather(each, kept, batch_dims=1) for each in tensors)
