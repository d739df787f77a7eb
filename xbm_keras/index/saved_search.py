"""Exact search as a TensorFlow module, which is saved with all that it needs.

Letters: Q queries, N gallery items, n rows of a segment, E embedding width, w width of the form, k answers.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from xbm_keras.evaluation.quantization import CODES, EmbeddingCode
from xbm_keras.geometry import unit_length
from xbm_keras.index.coded_search import SCORES, SearchForm, best_of, nearest, ranked, rows_of_block
from xbm_keras.index.gallery import Gallery, joined
from xbm_keras.index.segments import Segment, codes_of

MIXING_POWER = 3.0


def mix(similarities: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
    """Sum [Q, w] of vectors [Q, k, w], by cubed similarity [Q, k]."""
    return tf.einsum("qk,qkw->qw", tf.maximum(similarities, 0.0) ** MIXING_POWER, vectors)


def mixed(segments: Sequence[Segment], count: int) -> Segment:
    """A segment of all items, which are found by their vectors with the `count` nearest others mixed into each."""
    form, codes = segments[0].form, codes_of(segments)
    vectors = form.decode(codes)
    searched, block = np.empty_like(vectors), max(1, SCORES // ((count + 1) * form.width))
    for start in range(0, len(vectors), block):
        part = tf.constant(vectors[start : start + block])
        # Each is the nearest to itself, with weight 1.
        best, rows = nearest(part, vectors, len(vectors), CODES["float32"], count + 1)
        searched[start : start + block] = unit_length(mix(best, tf.constant(vectors[rows.numpy()]))).numpy()
    items = joined([segment.kept_items for segment in segments])
    return Segment.new(items, form, form.encode(searched) | {"plain": codes})


class SegmentVariables(tf.Module):
    """What a search needs of a segment.

    Args:
        segment: the segment.
        is_empty: whether the variables, those of texts too, are to have no rows yet. Else there are no texts, and of
            the codes that rank again candidates alone are read.
    """

    def __init__(self, segment: Segment, is_empty: bool):
        super().__init__()
        self.num_rows, self.has_gone = len(segment.items), not segment.kept.all()
        self.kept = _variable(segment.kept[:0] if is_empty else segment.kept)
        if is_empty:
            self.ids, self.labels = (_variable(np.array([], object)) for _ in range(2))
        for what, code in segment.form.codes.items():
            none = np.zeros((0, code.columns(segment.form.width)), code.dtype)
            if is_empty or what == "search":
                setattr(self, what, _variable(none if is_empty else segment.read(what)))
        self._rank = None if is_empty or segment.form.rank is None else segment.mapped("rank")

    def codes_at(self, what: str, code: EmbeddingCode, rows: tf.Tensor) -> tf.Tensor:
        """Codes [Q, c, columns] of rows [Q, c] int64."""
        if what == "rank" and self._rank is not None:
            found = tf.numpy_function(self._rank.__getitem__, [rows], code.dtype)
            return tf.ensure_shape(found, (None, None, self._rank.shape[1]))
        return tf.gather(getattr(self, what).read_value(), rows)  # not of the variable, of which it would make a copy


def _variable(value: np.ndarray) -> tf.Variable:
    dtype = tf.string if value.dtype == object else value.dtype
    return tf.Variable(value, trainable=False, shape=(None, *value.shape[1:]), dtype=dtype)


class ExactSearch(tf.Module):
    """Exact search as a SavedModel: the k items of highest cosine similarity, best first, ties by position.

    It is exact among what the codes that are searched stand for, the candidates of a form that ranks again among what
    its finer ones do. No more than 8 MB of items are decoded at a time.

    Args:
        segments: of the items.
        width: E.
        num_mixed: nearest items that are mixed into each query before it is answered, weighted by cubed similarity, as
            they are into the items: see `mixed`. 0 is none.
        is_empty: whether it is to be saved, with variables that have no rows yet: see `write_segments`.

    Reference:
        Database-side augmentation: Arandjelovic and Zisserman, "Three things everyone should know to improve object
        retrieval", CVPR 2012; expansion weighted by a power: Radenovic et al., "Fine-tuning CNN Image Retrieval", 2019.
    """

    def __init__(self, segments: Sequence[Segment], width: int, num_mixed: int = 0, is_empty: bool = False):
        super().__init__()
        self.form, self.num_mixed = segments[0].form, num_mixed
        self.num_items = sum(int(segment.kept.sum()) for segment in segments)
        parts = []
        for segment in segments:  # each under the name that its tensors have in a checkpoint
            parts.append(SegmentVariables(segment, is_empty))
            setattr(self, f"segment_{segment.name}", parts[-1])
        starts = np.cumsum([0, *(part.num_rows for part in parts)]).tolist()
        self._parts = lambda: zip(parts, starts, strict=False)  # a list would be tracked under names of its own
        signature = [tf.TensorSpec((None, width), tf.float32, "embeddings"), tf.TensorSpec((), tf.int32, "k")]
        some = [*signature, tf.TensorSpec((None,), tf.bool)]
        graphs = [tf.function(self._rows, input_signature=each, autograph=False) for each in (signature, some)]
        self._graphs = lambda: graphs  # as attributes they would be traced and saved with the search
        self.search = tf.function(self._search, input_signature=signature, autograph=False)

    @staticmethod
    def of(gallery: Gallery) -> "ExactSearch":
        """The search of a gallery in memory, in float32."""
        width = gallery.vectors.shape[1]
        return ExactSearch([Segment.of(gallery, SearchForm(width, "float32"))], width)

    def find(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows, those of all segments one behind the other, int64, and cosine similarities: both [Q, min(k, N)].

        Args:
            queries: [Q, E].
            k: answers of each.
            among: [rows] bool: those that may be found, where not all may.
        """
        given = tf.constant(queries, tf.float32), tf.constant(min(k, self.num_items))
        of_all, of_some = self._graphs()
        similarities, rows = of_all(*given) if among is None else of_some(*given, tf.constant(among))
        return rows.numpy(), similarities.numpy()

    def _rows(self, embeddings, k, among=None):
        """Of queries [Q, E] similarities float32 and rows int64, both [Q, min(k, N)]."""
        may = [part.kept if part.has_gone else None for part, _ in self._parts()]
        num_items = self.num_items
        if among is not None:
            may = [part.kept & among[start : start + part.num_rows] for part, start in self._parts()]
            num_items = tf.add_n([tf.math.count_nonzero(each, dtype=tf.int32) for each in may])
        k = tf.minimum(k, num_items)
        count = tf.minimum(tf.maximum(k, self.num_mixed) * self.form.rescore, num_items)
        queries = unit_length(embeddings[:, : self.form.width])
        # Scores of a block of items, and of the candidates the decoded vectors.
        block = SCORES // tf.maximum(count * (self.form.width if self.form.rank else 1), rows_of_block(self.form.width))
        block = tf.maximum(1, block)
        num_queries = tf.shape(queries)[0]
        num_blocks = tf.maximum(1, (num_queries + block - 1) // block)  # one also where Q is 0

        def next_block(i, *found):
            these = self._mixed(queries[i * block : (i + 1) * block], k, num_items, may)
            return i + 1, *(array.write(i, each) for array, each in zip(found, these, strict=True))

        blocks = [
            tf.TensorArray(dtype, 0, dynamic_size=True, infer_shape=False, element_shape=[None, None])
            for dtype in (tf.float32, tf.int64)
        ]
        _, *blocks = tf.while_loop(lambda i, *_: i < num_blocks, next_block, (tf.constant(0), *blocks))
        similarities, rows = (tf.reshape(each.concat(), [num_queries, k]) for each in blocks)
        return similarities, rows

    def _mixed(self, asked, k, num_items, may):
        """Similarities and rows [q, k] of a block of queries [q, w] of unit length."""
        if self.num_mixed:
            best, rows = self._nearest(asked, tf.minimum(self.num_mixed, num_items), num_items, may)
            code = self.form.codes[self.form.finest]
            codes = tf.reshape(self._codes_at(self.form.finest, rows), [-1, code.columns(self.form.width)])
            vectors = unit_length(code.decode(codes, self.form.width))
            shape = tf.concat([tf.shape(rows), [self.form.width]], axis=0)
            asked = unit_length(asked + mix(best, tf.reshape(vectors, shape)))
        return self._nearest(asked, k, num_items, may)

    def _nearest(self, asked, k, num_items, may):
        """The same of these queries as they are."""
        similarities, rows, count = [], [], tf.minimum(k * self.form.rescore, num_items)
        for (part, start), allowed in zip(self._parts(), may, strict=True):
            best, place = nearest(
                asked, part.search.read_value(), part.num_rows, self.form.codes["search"], count, allowed
            )
            similarities.append(best)
            rows.append(place + start)
        best, place = best_of(similarities, rows, count) if len(rows) > 1 else (similarities[0], rows[0])
        if self.form.rank is None:
            return best, place
        place = tf.sort(place, axis=1)  # equal ones by position
        return ranked(asked, place, self._codes_at("rank", place), self.form.codes["rank"], k)

    def _codes_at(self, what, rows):
        """Codes [q, c, columns] of rows [q, c] of all segments."""
        code, found = self.form.codes[what], None
        for part, start in self._parts():
            place = tf.clip_by_value(rows - start, 0, max(0, part.num_rows - 1))
            codes = part.codes_at(what, code, place)
            found = codes if found is None else tf.where((rows >= start)[:, :, None], codes, found)
        return found

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
