"""Which labels may be wrong: items that are nearly the same, and items among neighbours of another label.

Letters: N items, E width, k neighbours.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from xbm_keras.data.duplicates import contents_of
from xbm_keras.evaluation.exact_search import nearest
from xbm_keras.evaluation.near_duplicates import NEIGHBOURS, NearDuplicates, pairs_among

NUM_VOTES = 10
MAX_OWN, MIN_OTHER = 0.1, 0.7  # shares of an item's neighbours that bear its label, and one other
MIN_CLASS = 3  # items; fewer have few neighbours of their own in any case


class OutOfPlace(NamedTuple):
    """Items whose nearest items nearly all bear one other label, the clearest first."""

    item: np.ndarray
    """[n] positions."""
    label: np.ndarray
    """[n] that of their neighbours."""
    share: np.ndarray
    """[n] of the neighbours that bear it."""
    nearest: np.ndarray
    """[n, k] positions, best first."""
    score: np.ndarray
    """[n, k] cosine similarities."""


@dataclasses.dataclass(frozen=True)
class LabelNoise:
    """What to look at. Each part is sorted, the clearest first."""

    other_label: NearDuplicates
    """Nearly the same, and of different labels: one of them is wrong, or the classes are one."""
    same_label: NearDuplicates
    """Nearly the same, and of one label, or one has none: copies, which make scores too good."""
    out_of_place: OutOfPlace
    contents: np.ndarray
    """[N] numbers, equal for equal vectors."""

    def is_identical(self, pairs: NearDuplicates) -> np.ndarray:
        """[n] bool: which of the pairs are equal, number for number."""
        return self.contents[pairs.first] == self.contents[pairs.second]


def find_label_noise(vectors: np.ndarray, labels: np.ndarray, min_score: float = 0.98) -> LabelNoise:
    """Look at each item's nearest ones, in blocks: no [N, N] matrix.

    Exact but for items with more than 32 neighbours of this similarity, whose farther ones are left out.

    Args:
        vectors: [N, E], features or embeddings.
        labels: [N] text, empty where there is none.
        min_score: cosine similarity from which on two items are nearly the same, -1..1.

    Raises:
        ValueError: for a score outside -1..1.

    Example:
        >>> noise = find_label_noise(np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]), np.array(["a", "b", "b"]))
        >>> noise.other_label.first.tolist(), noise.other_label.second.tolist()
        ([0], [1])
    """
    vectors, labels = np.asarray(vectors), np.asarray(labels, dtype=object)
    found, scores = nearest(vectors, k=NEIGHBOURS)
    own = labels[:, None]
    differ = (labels[found] != own) & (labels[found] != "") & (own != "")
    other, same = (pairs_among(found, scores, is_meant, min_score) for is_meant in (differ, ~differ))
    return LabelNoise(other, same, _out_of_place(found, scores, labels), contents_of(vectors))


def _out_of_place(found: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> OutOfPlace:
    """Of the nearest items [N, 32]. Unlabelled items do not vote, nor are they looked at."""
    names, codes, counts = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    votes, k = found[:, :NUM_VOTES], min(NUM_VOTES, found.shape[1])
    rows = []
    for i in np.flatnonzero((labels != "") & (counts[codes] >= MIN_CLASS)) if k else ():
        near = codes[votes[i]]
        tally = np.bincount(near[names[near] != ""], minlength=len(names))
        best = int(tally.argmax())
        if best != codes[i] and tally[codes[i]] <= MAX_OWN * k and tally[best] >= MIN_OTHER * k:
            rows.append((tally[best] / k, scores[i, :k].mean(), i, best))
    rows.sort(key=lambda row: (-row[0], -row[1]))
    items = np.array([row[2] for row in rows], int)
    return OutOfPlace(
        items,
        np.array([names[row[3]] for row in rows], dtype=object),
        np.array([row[0] for row in rows]),
        votes[items],
        scores[items, :k],
    )
