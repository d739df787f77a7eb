"""Top-k sample for queries and documents: which memory rows, the documents, each query is paired with."""

import keras
import tensorflow as tf

from xbm_keras.stages.hard_top_k.by_label import HardTopK
from xbm_keras.stages.hard_top_k.candidates import Candidates
from xbm_keras.stages.hard_top_k.random_rows import random_bits


@keras.saving.register_keras_serializable("xbm_keras")
class RelevantTopK(HardTopK):
    """Per query the hardest documents that do not answer it, and a choice of those that do.

    Anchors are queries and memory rows documents, whose sample ids, 0 or more, name them. In place of a label a query
    has the ids of all its relevant documents: those of them that the memory holds are its positives, and none of them
    is ever a negative. All else is as in `HardTopK`, whose arguments these are: where hardness is measured, guards
    against documents that nobody judged and that answer the query nevertheless, random positives where there are more
    than `num_positives`.

    Raises:
        ValueError: as `HardTopK` does.

    Example:
        >>> documents = tf.math.l2_normalize(tf.constant([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), axis=1)
        >>> rows = batch_as_rows(documents, tf.zeros([3], tf.int64), tf.constant([7, 8, 9]))
        >>> queries, relevant = tf.constant([[1.0, 0.0]]), tf.constant([[8, -1]])
        >>> picks = RelevantTopK(2, 1)(queries, rows, relevant, tf.constant([-1]))
        >>> picks.indices[0].numpy().tolist(), picks.is_positive[0].numpy().tolist()
        ([1, 0, 2], [True, False, False])
    """

    by_relevance = True

    def call(self, features, rows, labels, sample_ids, anchors=None, embed=None):
        """Pick T rows for each query: first the positives, then the negatives. No gradient passes.

        Args:
            features: [B, D] unit vectors of the queries.
            rows: the memory, of documents.
            labels: [B, P] int64, sample ids of the documents that answer each query; -1 fills up.
            sample_ids: [B] int64 of the queries: -1, which no document has.
            anchors: [B, E] embeddings of the queries, to mine in embeddings.
            embed: what embeds the documents, likewise.
        """
        return super().call(features, rows, labels, sample_ids, anchors, embed)

    def _candidates(self, rows, labels, sample_ids):
        return Candidates.of_relevant(rows, labels, sample_ids)

    def _are_others(self, rows, labels, sample_ids):
        among = self._candidates(rows, labels, sample_ids)
        return tf.transpose(tf.gather(among.other_classes, among.codes)) == 0.0

    def _random_positives(self, among, k):
        """Indices and validity of at most k - 1 relevant documents of each query that the memory holds."""
        codes = among.classes  # [B, P]
        num_codes = tf.shape(among.own_class, tf.int64)[0]
        places = tf.range(tf.shape(among.codes, tf.int64)[0])
        held = tf.tensor_scatter_nd_update(
            tf.fill([num_codes], tf.constant(-1, tf.int64)), among.codes[:, None], places
        )
        indices = tf.gather(held, codes)
        # The ids that fill up have a code, too, which no row bears.
        is_valid = indices >= 0
        indices = tf.where(is_valid, indices, 0)
        num_wanted = k - 1
        if codes.shape[1] is not None and codes.shape[1] <= num_wanted:
            return indices, is_valid
        num_relevant = codes.shape[1] or tf.shape(codes)[1]
        bits = random_bits(tf.shape(codes)[0], num_relevant, self.seed_generator.next())
        missing = tf.fill([tf.shape(codes)[0], num_wanted], tf.constant(-1, tf.int64))  # where P is not known
        keys = tf.concat([tf.where(is_valid, bits, -1), missing], axis=1)
        keys, chosen = tf.math.top_k(keys, num_wanted)
        chosen = tf.minimum(tf.cast(chosen, tf.int64), tf.shape(codes, tf.int64)[1] - 1)
        return tf.where(keys >= 0, tf.gather(indices, chosen, batch_dims=1), 0), keys >= 0
