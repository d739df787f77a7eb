"""Exact retrieval evaluation over a whole set, in chunks, and the callback that puts it into the logs of `fit`.

Letters: Q queries, N gallery items, E embedding width; R of a query: the gallery items that have its label.
"""

import concurrent.futures
from collections.abc import Sequence

import keras
import numpy as np

from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.evaluation.exact_search import CHUNK, MEMORY_MB, block_width, search_blocks, to_blocks, without_own
from xbm_keras.evaluation.metrics import map_at_r, r_precision, recall_at_k
from xbm_keras.geometry import unit_length
from xbm_keras.progress import track
from xbm_keras.stages.cosine_scores import all_bits_of_float32
from xbm_keras.stages.head.fc_layer import Head

MAX_NAMED_ROWS = 8


def evaluate_retrieval(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    ks: Sequence[int] = (1, 5, 10),
    *,
    memory_mb: float = MEMORY_MB,
    counts: bool = False,
) -> dict[str, float]:
    """Exact retrieval metrics under cosine similarity, in float32.

    Without a gallery it is leave-one-out: each item queries all the others. The item itself is left out by position, so
    its copies stay. A query that finds none of its label in the gallery is left out of the means, though its item stays
    in the gallery of the others. Items of equal score rank by position in the gallery, the first one first, however the
    work is divided. A row of zeros scores 0 with everything.

    Args:
        queries: [Q, E], of any length.
        query_labels: [Q] integers or strings.
        gallery: [N, E].
        gallery_labels: [N].
        ks: of Recall@K. Where the gallery holds fewer than K items, all of them count.
        memory_mb: for scores and candidates, beside the vectors and a float32 copy of the gallery. More is faster only
            where classes have hundreds of items.
        counts: also return `num_queries`, those that the means are over, and `num_without_match`, those left out.

    Returns:
        `recall_at_<k>` for each k, `map_at_r`, `r_precision`: means over the queries, in 0..1.

    Raises:
        ValueError: for shapes or labels that do not fit, vectors that are not finite, or no query with a match.

    Example:
        >>> evaluate_retrieval(np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]]), ["a", "a", "b"], ks=[1])
        {'recall_at_1': 1.0, 'map_at_r': 1.0, 'r_precision': 1.0}

    Reference:
        Musgrave et al., "A Metric Learning Reality Check", arXiv 2003.08505.
    """
    order, scores = score_queries(queries, query_labels, gallery, gallery_labels, ks, memory_mb=memory_mb)
    metrics = {name: float(values.mean()) for name, values in scores.items()}
    if counts:
        metrics |= {"num_queries": len(order), "num_without_match": len(queries) - len(order)}
    return metrics


def score_queries(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    ks: Sequence[int] = (1, 5, 10),
    *,
    stored: np.ndarray | None = None,
    memory_mb: float = MEMORY_MB,
    chosen: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The metrics of each query that has a match, of which `evaluate_retrieval` takes the means.

    Arguments and errors are those of `evaluate_retrieval`, but for `chosen`: positions of the queries to score, by
    default all of them, while the others stay in the gallery where they are in it; and, for leave-one-out, `stored`
    [Q, E]: the items as a gallery holds them, by default as they query.

    Returns:
        Positions of these queries, [n], in an order that labels alone decide, and each metric of them, [n].
    """
    if not ks or min(ks) < 1 or memory_mb <= 0:
        raise ValueError(f"Received ks={ks} and memory_mb={memory_mb}; expected ks of 1 or more, and some memory.")
    if (gallery is None) != (gallery_labels is None):
        given, missing = ("gallery_labels", "gallery") if gallery is None else ("gallery", "gallery_labels")
        raise ValueError(f"Received {given} without {missing}; expected both, or neither for leave-one-out.")
    queries, query_labels = _checked("queries", queries, query_labels)
    is_leave_one_out = gallery is None
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels = queries if stored is None else stored, query_labels
    else:
        gallery, gallery_labels = _checked("gallery", gallery, gallery_labels)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"Received queries of width {queries.shape[1]} and a gallery of width {gallery.shape[1]}; expected one "
            "width. Embed both with the same model."
        )
    query_classes, gallery_classes = _class_numbers(query_labels, gallery_labels)
    class_sizes = np.bincount(gallery_classes, minlength=query_classes.max() + 1)
    num_relevant = class_sizes[query_classes] - is_leave_one_out
    # By R, so that the long lists of large classes are made for their own queries only.
    order = np.argsort(num_relevant, kind="stable")[np.count_nonzero(num_relevant == 0) :]
    if chosen is not None:
        order = order[np.isin(order, chosen)]
    if len(order) == 0:
        raise ValueError(
            f"Received {len(queries)} queries none of which has a match among {len(gallery)} items; expected labels "
            "that at least two items share. Check that the labels are classes, not ids of items."
        )
    num_others = len(gallery) - is_leave_one_out
    blocks = to_blocks(gallery, width=block_width(memory_mb))

    def score(start):
        asked = order[start : start + CHUNK]
        relevant = num_relevant[asked]
        k = min(max(*ks, relevant[-1]), num_others)
        if is_leave_one_out:
            nearest = without_own(search_blocks(queries[asked], blocks, len(gallery), k + 1), asked)
        else:
            nearest = search_blocks(queries[asked], blocks, len(gallery), k)
        hits = gallery_classes[nearest] == query_classes[asked, None]
        recalls = [recall_at_k(hits, each) for each in ks]
        return np.stack([*recalls, map_at_r(hits, relevant), r_precision(hits, relevant)])

    starts = range(0, len(order), CHUNK)
    pool = concurrent.futures.ThreadPoolExecutor(2)  # one chunk is searched while hits of another are counted
    try:
        with all_bits_of_float32():
            scored = pool.map(score, starts)
            values = [next(scored) for _ in track(starts, "evaluation", len(order))]
    finally:
        pool.shutdown(cancel_futures=True)
    names = [*(f"recall_at_{k}" for k in ks), "map_at_r", "r_precision"]
    return order, dict(zip(names, np.concatenate(values, axis=1), strict=True))


def _checked(name: str, vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays [N, E] and [N] that fit each other."""
    vectors, labels = np.asarray(vectors), np.asarray(labels)
    if vectors.ndim != 2 or not vectors.size or labels.shape != vectors.shape[:1]:
        raise ValueError(
            f"Received {name} of shape {vectors.shape} with labels of shape {labels.shape}; expected [N, E] with N "
            "labels, and at least one of each. Give each item one vector and one label."
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        named = ", ".join(map(str, bad[:MAX_NAMED_ROWS])) + (", ..." if len(bad) > MAX_NAMED_ROWS else "")
        raise ValueError(
            f"Received {name} with NaN or infinite values in {len(bad)} of {len(vectors)} rows: {named}; expected "
            "finite vectors. Leave these items out, or look for a diverged model or broken inputs."
        )
    return vectors, labels


def _class_numbers(query_labels: np.ndarray, gallery_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of any type as numbers of classes that both have in common, [Q] and [N]."""
    both = []
    for labels in (query_labels, gallery_labels):
        is_text = labels.dtype == object and all(isinstance(label, str) for label in labels)  # as from pandas
        both.append(labels.astype(str) if is_text else labels)
    kinds = {labels.dtype.kind for labels in both}
    if not (kinds <= set("UST") or (kinds <= set("biu") and np.result_type(*both).kind in "biu")):
        raise ValueError(
            f"Received labels of dtype {query_labels.dtype} and {gallery_labels.dtype}; expected integers for all, or "
            "strings for all. Convert them with astype, and leave out items without a label."
        )
    _, numbers = np.unique(np.concatenate(both), return_inverse=True)
    return numbers[: len(query_labels)], numbers[len(query_labels) :]


def embed(head: Head, features: FeatureRows, batch_size: int = 4096, of_rows: bool = False) -> np.ndarray:
    """Embeddings [N, E] float32 of features [N, D], as the model's encoder gives them.

    Args:
        head: the FC layer. It runs eagerly, so no shape is ever traced.
        features: of any length; read in slices, so they may be memory-mapped.
        batch_size: rows read at once.
        of_rows: whether they are documents, which a head may embed otherwise than queries.
    """
    layer = head.on_rows if of_rows else head
    embeddings = np.empty((len(features), head.embedding_dim), np.float32)
    for start in track(range(0, len(features), batch_size), "embedding", len(features)):
        rows = slice(start, start + batch_size)
        embeddings[rows] = layer(unit_length(features[rows]))
    return embeddings


class HeadEvaluation(keras.callbacks.Callback):
    """Writes scores of the head into the logs of `XBMModel.fit` after each epoch.

    Those of the head that training starts from are in `baseline`, under the same names.

    Args:
        prefix: of the names.
    """

    def __init__(self, prefix: str):
        super().__init__()
        self.prefix = prefix
        self.baseline: dict[str, float] = {}
        self.of_queries: np.ndarray | None = None
        """[n], the score of each query by the head that was scored last, of evaluations that tell it."""

    def scores(self) -> dict[str, float]:
        """Of the head as it is, means over its nested widths."""
        raise TypeError(f"{type(self).__name__} must define scores().")

    def on_train_begin(self, logs=None):
        """Score the head as it is."""
        self.baseline = {self.prefix + name: value for name, value in self.scores().items()}

    def on_epoch_end(self, epoch, logs=None):
        """Score the epoch's head, in place in `logs`."""
        if logs is not None:
            logs.update({self.prefix + name: value for name, value in self.scores().items()})


class RetrievalEvaluation(HeadEvaluation):
    """Writes `val_recall_at_1`, `val_map_at_r` and so on into the logs of `XBMModel.fit` after each epoch.

    Callbacks behind this one in the list, such as `ModelCheckpoint` and `EarlyStopping`, read them; say `mode="max"`
    there. Of a head with nested widths they are the means over the widths.

    Args:
        features: [N, D] features of the validation items.
        labels: [N] their labels.
        ks: of Recall@K.
        is_query: [N] bool: these items query the others. None is leave-one-out.
        prefix: of the names in the logs.
        from_inputs: `features` are inputs of the model's backbone instead, such as images [N, H, W, 3]. It is frozen,
            so they pass it once, when training begins.

    Raises:
        ValueError: for labels or a mask that do not fit; when training begins, for what `evaluate_retrieval` refuses.

    Example:
        >>> features, labels = np.random.default_rng(0).normal(size=(64, 32)).astype("float32"), np.arange(64) % 8
        >>> evaluation = RetrievalEvaluation(features, labels)
        >>> stop = keras.callbacks.EarlyStopping("val_map_at_r", mode="max", patience=3)
        >>> model = XBMModel(None, Head(8), CircularMemory(64), HardTopK(4, 2), SupConLoss())
        >>> model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
        >>> x = {"features": features, "sample_id": np.arange(64)}
        >>> history = model.fit(x, labels, verbose=0, callbacks=[evaluation, stop])
        >>> sorted(name for name in history.history if name.startswith("val_recall"))
        ['val_recall_at_1', 'val_recall_at_10', 'val_recall_at_5']
    """

    def __init__(
        self,
        features: FeatureRows,
        labels: np.ndarray,
        ks: Sequence[int] = (1, 5, 10),
        is_query: np.ndarray | None = None,
        prefix: str = "val_",
        from_inputs: bool = False,
    ):
        super().__init__(prefix)
        self.features = features
        self.labels = np.asarray(labels)
        self.ks = tuple(ks)
        self.is_query = None if is_query is None else np.asarray(is_query)
        self.from_inputs = from_inputs
        shape = (len(features),)
        if self.labels.shape != shape:
            raise ValueError(
                f"Received {len(features)} validation items with labels of shape {self.labels.shape}; expected "
                f"{shape}. Give each item one label."
            )
        if self.is_query is not None and (self.is_query.shape != shape or self.is_query.dtype != bool):
            raise ValueError(
                f"Received is_query of shape {self.is_query.shape} and dtype {self.is_query.dtype}; expected {shape} "
                "bool. Compare the column that holds the roles with the name of the queries'."
            )

    def on_train_begin(self, logs=None):
        """Score the head as it is."""
        self._rows = self._backbone_outputs() if self.from_inputs else self.features
        super().on_train_begin(logs)

    def _backbone_outputs(self) -> np.ndarray:
        backbone = self.model.backbone
        if backbone is None:
            raise ValueError(
                "Received from_inputs=True with a model that has no backbone; expected one. Give features, and "
                "from_inputs=False."
            )
        inputs = keras.Input(backbone.input_shape_per_item)
        return keras.Model(inputs, backbone(inputs)).predict(self.features, batch_size=32, verbose=0)

    def scores(self) -> dict[str, float]:
        """Recall@K, MAP@R and R-Precision."""
        vectors, labels, q = embed(self.model.head, self._rows), self.labels, self.is_query
        scores = []
        for width in self.model.head.widths:
            v = vectors[:, :width]
            chosen = slice(None) if q is None else q
            gallery: dict = {} if q is None else {"gallery": v[~q], "gallery_labels": labels[~q]}
            scores.append(evaluate_retrieval(v[chosen], labels[chosen], ks=self.ks, **gallery))
        return {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}
