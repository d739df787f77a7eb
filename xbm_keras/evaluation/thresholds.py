"""Whether a match is good enough: how often hits of at least some similarity are right, measured on held-out classes.

Letters: N items, E embedding width, C classes, G similarities of the table, K hits of a query.
"""

import dataclasses
import json
import pathlib

import numpy as np

from xbm_keras.atomic_files import write_whole
from xbm_keras.evaluation.exact_search import first_columns
from xbm_keras.evaluation.intervals import NUM_DRAWS
from xbm_keras.geometry import unit_rows
from xbm_keras.progress import track

FILE = "thresholds.json"
NUM_HITS = 10
NUM_SIMILARITIES = 100
SCORES = 1 << 24  # held at a time: 64 MB
ENDS = (5, 95)  # per cent: each end is a one-sided bound of 95 % confidence


@dataclasses.dataclass(frozen=True)
class MatchThresholds:
    """What hits of at least some similarity are worth, in a gallery like the one that it was measured on.

    Each item searched all others for its ten nearest. Each measure is [G, 3]: the value, and the ends of its interval,
    by bootstrap over classes, each end a bound of 95 % confidence. Where no hit of a draw passes its precision is 0.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat(np.arange(20), 8)
        >>> vectors = rng.normal(size=(20, 16))[labels] + 0.4 * rng.normal(size=(160, 16))
        >>> thresholds = measure_thresholds(vectors, labels)
        >>> threshold = thresholds.threshold_for(0.9)
        >>> thresholds.is_match(np.array([threshold - 0.1, threshold]), 0.9).tolist()
        [False, True]
    """

    similarities: np.ndarray
    """[G] ascending."""
    precision: np.ndarray
    """Share of the hits that pass which are of the query's class."""
    recall: np.ndarray
    """Share of the items of the query's class that are among its ten nearest and pass, of as many as ten could hold."""
    unknown: np.ndarray
    """Open set: share of the queries that something of another class matches, as it would if theirs was not there."""
    num_items: int
    num_classes: int

    def threshold_for(self, precision: float) -> float | None:
        """The lowest similarity from which on hits are right this often, with 95 % confidence; None where none is.

        Raises ValueError for a precision that is not within 0 and 1.
        """
        if not 0 < precision <= 1:
            raise ValueError(f"Received precision={precision}; expected a share above 0 and up to 1, such as 0.9.")
        enough = np.flatnonzero(self.precision[:, 1] >= precision)
        return float(self.similarities[enough[0]]) if len(enough) else None

    def is_match(self, similarities: np.ndarray, precision: float) -> np.ndarray:
        """Which hits of these cosine similarities are matches, bool of the same shape; none, if it is not reached."""
        threshold = self.threshold_for(precision)
        return np.asarray(similarities) >= (np.inf if threshold is None else threshold)

    def precision_at(self, similarity: float) -> float:
        """How often hits from a similarity on were right; of the highest of the table, where it is higher."""
        at = min(int(np.searchsorted(self.similarities, similarity)), len(self.similarities) - 1)
        return float(self.precision[at, 0])

    def told(self, precision: float) -> str:
        """What a precision takes and gives, or that it is not reached, in a sentence."""
        threshold = self.threshold_for(precision)
        of = f"held-out items of {self.num_classes} classes"
        if threshold is None:
            best = int(self.precision[:, 1].argmax())
            value, low, _ = self.precision[best]
            return (
                f"A precision of {precision:g} is not reached: of {self.num_items:,} {of} hits from a similarity of "
                f"{self.similarities[best]:.3f} on are right {value:.1%} of the time, surely {low:.1%}. Nothing counts "
                "as a match; ask for less."
            )
        at = int(np.searchsorted(self.similarities, threshold))
        return (
            f"Matches have a similarity of {threshold:.3f} or more: of {self.num_items:,} {of} "
            f"{self.precision[at, 0]:.1%} of such hits were right (surely {self.precision[at, 1]:.1%}), "
            f"{self.recall[at, 0]:.0%} of the right ones were found, and {self.unknown[at, 0]:.0%} of items of "
            "unknown classes would match something."
        )

    def write(self, folder: pathlib.Path) -> None:
        """Write `thresholds.json` into a folder: of a run, of an exported model, or of an index."""
        values = {name: getattr(self, name).round(6).tolist() for name in _MEASURES}
        write_whole(
            folder / FILE,
            json.dumps({"items": self.num_items, "classes": self.num_classes, "hits": NUM_HITS, **values}, indent=1),
        )


_MEASURES = ("similarities", "precision", "recall", "unknown")


def read_thresholds(folder: pathlib.Path) -> MatchThresholds | None:
    """What `MatchThresholds.write` wrote into a folder, None where there is none; ValueError for a damaged one."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        arrays = [np.asarray(found[name], np.float64) for name in _MEASURES]
        shapes = [each.shape for each in arrays]
        if shapes != [(len(arrays[0]),), *[(len(arrays[0]), 3)] * 3] or not len(arrays[0]):
            raise ValueError(f"shapes {shapes}")
        similarities, precision, recall, unknown = arrays
        counts = int(found["items"]), int(found["classes"])
        return MatchThresholds(similarities, precision, recall, unknown, *counts)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"Received {path}, which is damaged ({type(error).__name__}: {error}); expected it as it was written. "
            "Export the model, or build the index, anew."
        ) from error


def require_thresholds(folder: pathlib.Path) -> MatchThresholds:
    """The same; raises ValueError where there is none, too."""
    found = read_thresholds(folder)
    if found is None:
        raise ValueError(
            f"Received a precision with {folder}, which has no {FILE}; expected one. It is measured by runs whose held-"
            "out items have labels, from this version on, but not of exports that average views: train with labels, or "
            "leave the precision out."
        )
    return found


def measure_thresholds(
    vectors: np.ndarray, labels: np.ndarray, stored: np.ndarray | None = None, seed: int = 0
) -> MatchThresholds | None:
    """The table of items whose classes took no part in the training.

    Args:
        vectors: [N, E], of any length.
        labels: [N] integers from 0, or text.
        stored: [N, E] the same items as a gallery holds them, such as decoded ones; by default as they query.
        seed: of the draws.

    Returns:
        None for fewer than two classes of two items: nothing can be right there, or nothing wrong.

    Raises:
        ValueError: for vectors and labels that do not fit each other.
    """
    vectors, labels = np.asarray(vectors), np.asarray(labels)
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise ValueError(
            f"Received vectors {vectors.shape} and labels {labels.shape}; expected [N, E] and one label for each."
        )
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if (sizes > 1).sum() < 2:
        return None
    similarities, is_right, best_other = _hits(
        unit_rows(vectors), unit_rows(vectors if stored is None else stored), classes
    )
    table = np.unique(np.quantile(similarities, np.linspace(0, 0.99, NUM_SIMILARITIES)).astype(np.float32))
    counts = np.stack(
        [
            _per_class(similarities, classes, table),
            _per_class(np.where(is_right, similarities, -np.inf), classes, table),
            _per_class(best_other[:, None], classes, table),
        ]
    )  # [3, C, G]
    room = np.bincount(classes, np.minimum(sizes[classes] - 1, similarities.shape[1]))  # [C]
    drawn = np.random.default_rng(seed).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), NUM_DRAWS)
    weights = np.concatenate([np.ones((1, len(sizes))), drawn])  # [1 + draws, C], first all classes once
    passed, right, unknown = weights @ counts  # [1 + draws, G] each
    measures = [
        np.divide(above, below, where=below > 0, out=np.zeros_like(passed))
        for above, below in ((right, passed), (right, (weights @ room)[:, None]), (unknown, (weights @ sizes)[:, None]))
    ]
    precision, recall, strangers = (
        np.stack([each[0], *np.percentile(each[1:], ENDS, axis=0)], axis=1) for each in measures
    )
    return MatchThresholds(table.astype(np.float64), precision, recall, strangers, len(vectors), len(sizes))


def _hits(vectors: np.ndarray, stored: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities [N, K] of the nearest others, whether they are right, and the best of another class, [N]."""
    count = len(vectors)
    k = min(NUM_HITS, count - 1)
    found, is_right, others = np.empty((count, k), np.float32), np.empty((count, k), bool), np.empty(count, np.float32)
    block = max(1, SCORES // count)
    for start in track(range(0, count, block), "thresholds", count):
        rows = np.arange(start, min(start + block, count))
        scores = vectors[rows] @ stored.T
        scores[np.arange(len(rows)), rows] = -np.inf
        nearest = first_columns(scores, k)
        if nearest is None:  # many are as near as the last of them
            nearest = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found[rows] = np.take_along_axis(scores, nearest, axis=1)
        is_right[rows] = classes[nearest] == classes[rows, None]
        others[rows] = np.where(classes == classes[rows, None], -np.inf, scores).max(axis=1)
    return found, is_right, others


def _per_class(similarities: np.ndarray, classes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """How many of the similarities [N, K] are at least each of the table's, by class of the query, [C, G]."""
    num_classes, size = classes.max() + 1, len(table) + 1
    places = np.searchsorted(table, similarities, side="right") + size * classes[:, None]  # of the last one it passes
    counts = np.bincount(places.ravel(), minlength=num_classes * size).reshape(num_classes, size)
    return counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
