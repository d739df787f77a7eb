"""Exact search as a TensorFlow module, which is saved with all that it needs.

Letters: Q queries, N gallery items, n rows of a segment, E embedding width, k answers.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from xbm_keras.geometry import unit_length
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.segments import Segment

SCORES = 1 << 24  # held at a time by a search: 64 MB
MIXING_POWER = 3.0


def mix(vectors: tf.Tensor, gallery: tf.Tensor, count: int) -> tf.Tensor:
    """Sum [n, E] of the `count` rows of a gallery [N, E] that are nearest to vectors [n, E], by cubed similarity."""
    best, nearest = tf.math.top_k(
        tf.matmul(vectors, gallery, transpose_b=True), tf.minimum(count, tf.shape(gallery)[0])
    )
    weights = tf.maximum(best, 0.0) ** MIXING_POWER
    return tf.einsum("bn,bne->be", weights, tf.gather(gallery, tf.cast(nearest, tf.int64)))


def mixed(gallery: Gallery, count: int) -> Segment:
    """A segment whose items are found by their vectors with the `count` nearest others mixed into each."""
    vectors = gallery.vectors
    block = max(1, SCORES // max(1, len(vectors)))
    parts = [vectors[start : start + block] for start in range(0, len(vectors), block)]
    # Each is the nearest to itself, with weight 1.
    found = [unit_length(mix(part, tf.constant(vectors), count + 1)).numpy() for part in parts]
    return Segment.of(gallery, np.concatenate(found) if found else vectors)


class SegmentVariables(tf.Module):
    """What a search needs of a segment; its rows, empty at first where only the graph is wanted."""

    def __init__(self, segment: Segment, width: int, is_empty: bool):
        super().__init__()
        num_rows = len(segment.items)
        self.num_rows, self.has_gone = num_rows, not segment.kept.all()
        vectors = np.zeros((0, width), np.float32) if is_empty else segment.read()
        ids, labels = ([] if is_empty else segment.items[name].to_pylist() for name in ("id", "label"))
        kept = segment.kept[:0] if is_empty else segment.kept
        self.vectors = tf.Variable(vectors, trainable=False, shape=(None, width), dtype=tf.float32)
        self.ids = tf.Variable(ids, trainable=False, shape=(None,), dtype=tf.string)
        self.labels = tf.Variable(labels, trainable=False, shape=(None,), dtype=tf.string)
        self.kept = tf.Variable(kept, trainable=False, shape=(None,))


class ExactSearch(tf.Module):
    """Exact search as a SavedModel: the k items of highest cosine similarity, best first, ties by position.

    Args:
        segments: of the items.
        width: E.
        num_mixed: nearest items that are mixed into each query before it is answered, weighted by cubed similarity, as
            they are into the items: see `mixed`. 0 is none.
        is_empty: whether the variables are to have no rows yet: see `write_segments`.

    Reference:
        Database-side augmentation: Arandjelovic and Zisserman, "Three things everyone should know to improve object
        retrieval", CVPR 2012; expansion weighted by a power: Radenovic et al., "Fine-tuning CNN Image Retrieval", 2019.
    """

    def __init__(self, segments: Sequence[Segment], width: int, num_mixed: int = 0, is_empty: bool = False):
        super().__init__()
        self.num_mixed = num_mixed
        self.num_items = sum(int(segment.kept.sum()) for segment in segments)
        parts = []
        for segment in segments:  # each under the name that its tensors have in a checkpoint
            parts.append(SegmentVariables(segment, width, is_empty))
            setattr(self, f"segment_{segment.name}", parts[-1])
        starts = np.cumsum([0, *(part.num_rows for part in parts)]).tolist()
        self._parts = lambda: zip(parts, starts, strict=False)  # a list would be tracked under names of its own
        signature = [tf.TensorSpec((None, width), tf.float32, "embeddings"), tf.TensorSpec((), tf.int32, "k")]
        self.rows = tf.function(self._rows, input_signature=signature)
        self.search = tf.function(self._search, input_signature=signature)

    @staticmethod
    def of(gallery: Gallery, num_mixed: int = 0) -> "ExactSearch":
        """The search of a gallery in memory."""
        segment = mixed(gallery, num_mixed) if num_mixed else Segment.of(gallery)
        return ExactSearch([segment], gallery.vectors.shape[1], num_mixed)

    def find(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows, those of all segments one behind the other, int64, and cosine similarities: both [Q, min(k, N)]."""
        similarities, rows = self.rows(tf.constant(queries, tf.float32), tf.constant(k))
        return rows.numpy(), similarities.numpy()

    def _rows(self, embeddings, k):
        """Of queries [Q, E] similarities float32 and rows int64, both [Q, min(k, N)]."""
        k = tf.minimum(k, self.num_items)
        queries = unit_length(embeddings)
        block = max(1, SCORES // max(1, *(part.num_rows for part, _ in self._parts())))
        num_queries = tf.shape(queries)[0]
        similarities = tf.TensorArray(tf.float32, 0, dynamic_size=True, infer_shape=False, element_shape=[None, None])
        rows = tf.TensorArray(tf.int64, 0, dynamic_size=True, infer_shape=False, element_shape=[None, None])
        for i in tf.range(tf.maximum(1, (num_queries + block - 1) // block)):  # once also where Q is 0
            best, nearest = self._nearest(queries[i * block : (i + 1) * block], k)
            similarities, rows = similarities.write(i, best), rows.write(i, nearest)
        shape = [num_queries, k]
        return tf.reshape(similarities.concat(), shape), tf.reshape(rows.concat(), shape)

    def _nearest(self, asked, k):
        """Similarities and rows [q, k] of a block of queries [q, E] of unit length."""
        if self.num_mixed:
            asked = unit_length(asked + mix(asked, next(self._parts())[0].vectors, self.num_mixed))
        similarities, rows = [], []
        for part, start in self._parts():
            scores = tf.matmul(asked, part.vectors, transpose_b=True)
            if part.has_gone:
                scores = tf.where(part.kept, scores, -np.inf)
            best, place = tf.math.top_k(scores, tf.minimum(k, part.num_rows))
            similarities.append(best)
            rows.append(tf.cast(place, tf.int64) + start)
        if len(rows) == 1:
            return similarities[0], rows[0]
        best, place = tf.math.top_k(tf.concat(similarities, 1), k)
        return best, tf.gather(tf.concat(rows, 1), place, batch_dims=1)

    def _search(self, embeddings, k):
        """Of queries [Q, E] `similarities` float32, `ids` and `labels`, all [Q, min(k, N)]."""
        similarities, rows = self._rows(embeddings, k)
        return {"similarities": similarities, "ids": self._gather("ids", rows), "labels": self._gather("labels", rows)}

    def _gather(self, what, rows):
        """Text of rows [Q, k] of all segments."""
        found = tf.fill(tf.shape(rows), "")
        for part, start in self._parts():
            place = tf.clip_by_value(rows - start, 0, max(0, part.num_rows - 1))
            is_there = (rows >= start) & (rows < start + part.num_rows)
            found = tf.where(is_there, tf.gather(getattr(part, what), place), found)
        return found
