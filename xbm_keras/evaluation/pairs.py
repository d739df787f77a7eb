"""Retrieval of the documents that answer a query, over a whole corpus, which is never scored at once.

Letters: Q queries, N documents, E embedding width, P relevant documents of a query at most.
"""

import numpy as np
import tensorflow as tf

from xbm_keras.evaluation import graded_metrics
from xbm_keras.evaluation.exact_search import CHUNK, MEMORY_MB, block_width, to_blocks
from xbm_keras.geometry import unit_rows
from xbm_keras.progress import track
from xbm_keras.stages.cosine_scores import all_bits_of_float32


def evaluate_pairs(
    queries: np.ndarray,
    documents: np.ndarray,
    relevant: np.ndarray,
    grades: np.ndarray | None = None,
    *,
    memory_mb: float = MEMORY_MB,
) -> dict[str, np.ndarray]:
    """Exact metrics of each query under cosine similarity; the whole corpus is ranked.

    Args:
        queries: [Q, E], of any length.
        documents: [N, E].
        relevant: [Q, P] positions of the documents that answer a query, each once; -1 fills up.
        grades: [Q, P], above 0 where `relevant` names a document; by default all are 1.
        memory_mb: for scores, beside the vectors and a float32 copy of the documents.

    Returns:
        `ndcg_at_10` (the gain is the grade), `mrr_at_10`, `recall_at_10`, `recall_at_100` (shares of the relevant
        documents), `hit_rate_at_10` and `map`, float64 [Q] each, in 0..1.

    Raises:
        ValueError: for shapes that do not fit, vectors that are not finite, positions outside of the corpus or named
            twice, or a query without a relevant document.

    Example:
        >>> documents = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> evaluate_pairs(np.array([[2.0, 1.0]]), documents, np.array([[1]]))["mrr_at_10"].tolist()
        [0.5]
    """
    ranks = ranks_of_relevant(queries, documents, relevant, memory_mb=memory_mb)
    grades = np.where(ranks > 0, 1.0 if grades is None else grades, 0.0)
    return {
        "ndcg_at_10": graded_metrics.ndcg_at_k(ranks, grades, 10),
        "mrr_at_10": graded_metrics.mrr_at_k(ranks, grades, 10),
        "recall_at_10": graded_metrics.found_at_k(ranks, grades, 10),
        "recall_at_100": graded_metrics.found_at_k(ranks, grades, 100),
        "hit_rate_at_10": graded_metrics.hit_rate_at_k(ranks, grades, 10),
        "map": graded_metrics.average_precision(ranks, grades),
    }


def ranks_of_relevant(
    queries: np.ndarray, documents: np.ndarray, relevant: np.ndarray, *, memory_mb: float = MEMORY_MB
) -> np.ndarray:
    """The rank of each relevant document among all, 1 for the nearest, [Q, P] int64; 0 where `relevant` is -1.

    Counted, not sorted: so many documents are nearer. Of equal scores the one of the lower position comes first. For
    arguments and errors see `evaluate_pairs`.
    """
    queries, documents, relevant = np.asarray(queries), np.asarray(documents), np.asarray(relevant, np.int64)
    _check(queries, documents, relevant)
    blocks = to_blocks(documents, width=block_width(memory_mb))
    ranks = np.zeros(relevant.shape, np.int64)
    # By their number, so that few documents are counted for most: those in front.
    in_front = np.argsort(relevant < 0, axis=1, kind="stable")
    counts = (relevant >= 0).sum(axis=1)
    order = np.argsort(counts, kind="stable")
    with all_bits_of_float32():
        for start in track(range(0, len(order), CHUNK), "evaluation", len(order)):
            rows = order[start : start + CHUNK]
            places = in_front[rows, : max(1, counts[rows].max())]
            missing = [(0, CHUNK - len(rows)), (0, 0)]
            wanted = np.pad(relevant[rows[:, None], places], missing, constant_values=-1)
            found = _ranks(np.pad(unit_rows(queries[rows]), missing), blocks, wanted, len(documents))
            ranks[rows[:, None], places] = found.numpy()[: len(rows)]
    return ranks


@tf.function(
    input_signature=[
        tf.TensorSpec([CHUNK, None], tf.float32),
        tf.TensorSpec([None, None, None], tf.float32),
        tf.TensorSpec([CHUNK, None], tf.int64),
        tf.TensorSpec([], tf.int64),
    ]
)
def _ranks(queries, blocks, relevant, num_documents):
    """Ranks [CHUNK, P] among the columns of the blocks [.., E, width].

    Two passes by the same products, so that a document's score is compared with itself to the last bit, and so are
    copies of it: first the scores of the relevant documents, then how many are higher.
    """
    num_blocks, width = tf.shape(blocks, tf.int64)[0], tf.shape(blocks, tf.int64)[2]
    own = tf.zeros(tf.shape(relevant))
    for i in tf.range(num_blocks):
        place = relevant - i * width
        is_here = (place >= 0) & (place < width)
        if tf.reduce_any(is_here):
            scores = tf.matmul(queries, blocks[i])  # [CHUNK, width]
            own = tf.where(is_here, tf.gather(scores, tf.clip_by_value(place, 0, width - 1), batch_dims=1), own)
    num_before = tf.zeros_like(relevant)
    for i in tf.range(num_blocks):
        positions = i * width + tf.range(width)
        scores = tf.where(positions < num_documents, tf.matmul(queries, blocks[i]), -float("inf"))
        for p in tf.range(tf.shape(relevant)[1]):
            score = own[:, p : p + 1]
            is_before = (scores > score) | ((scores == score) & (positions < relevant[:, p : p + 1]))
            counted = tf.math.count_nonzero(is_before, axis=1)[:, None]
            num_before += tf.where(tf.range(tf.shape(relevant)[1]) == p, counted, 0)
    return tf.where(relevant >= 0, 1 + num_before, 0)


def _check(queries: np.ndarray, documents: np.ndarray, relevant: np.ndarray) -> None:
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1] or not len(documents):
        raise ValueError(
            f"Received queries {queries.shape} and documents {documents.shape}; expected [Q, E] and [N, E] of one "
            "width. Embed both by the same model, or by the two heads of one."
        )
    for name, vectors in (("queries", queries), ("documents", documents)):
        is_bad = ~np.isfinite(vectors).all(axis=1)
        if is_bad.any():
            raise ValueError(
                f"Received NaN or infinite {name} in {is_bad.sum()} rows, such as row {is_bad.argmax()}; expected "
                "finite numbers. Remove or repair these rows."
            )
    if relevant.ndim != 2 or len(relevant) != len(queries) or relevant.min(initial=-1) < -1:
        raise ValueError(
            f"Received relevant documents {relevant.shape} for {len(queries)} queries; expected [Q, P] positions of "
            "documents, and -1 where a query has fewer than P."
        )
    if relevant.max(initial=-1) >= len(documents):
        raise ValueError(
            f"Received position {relevant.max()} of a relevant document in a corpus of {len(documents)}; expected "
            "positions below that. Count documents from 0."
        )
    in_order = np.sort(relevant, axis=1)
    is_twice = ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any(axis=1)
    if is_twice.any():
        raise ValueError(
            f"Received a relevant document twice for {is_twice.sum()} queries, such as number {is_twice.argmax()}; "
            "expected each once. Keep its highest grade."
        )
