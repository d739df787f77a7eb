"""Labels that the nearest items suggest, how surely, and none where nothing is near enough.

Letters: N labelled items, Q items asked for, E embedding width, k neighbours.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.optimize

from xbm_keras.evaluation.exact_search import nearest

NUM_NEIGHBOURS = 10
TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
UNSEEN = 0.01  # of a vote's weight, for labels that no neighbour bears


class Suggestions(NamedTuple):
    """One for each item that was asked for."""

    label: np.ndarray
    """[Q] str; empty where none of the labels fits."""
    confidence: np.ndarray
    """[Q] float, how often such a vote was right; also where the label is left out."""
    nearest: np.ndarray
    """[Q] positions of the nearest items."""
    similarity: np.ndarray
    """[Q] of it."""


class Checked(NamedTuple):
    """What suggestions were worth when each labelled item was left out and asked for."""

    num_items: int
    accuracy: float
    """Share of right ones, if each item got one."""
    coverage: float
    """Share of items that got one."""
    precision: float
    """Share of right ones among these; NaN where none got one."""


@dataclasses.dataclass(frozen=True)
class NeighborLabels:
    """Suggests labels by a vote of the k nearest items.

    A neighbour of similarity s votes by exp(s / temperature). The confidence is the share of right votes among those of
    such a majority, when each labelled item was left out in turn: it is measured, and grows with the majority.

    Args:
        vectors: [N, E] of items that have labels.
        labels: [N] str.
        precision: a suggestion that is right less often than this is none.
        min_similarity: of the nearest item; None asks for no more than confidence.

    Raises:
        ValueError: for fewer than two labels, labels that are all of single items, or a precision outside 0..1.

    Example:
        >>> vectors = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> suggest = NeighborLabels(vectors, np.array(["a", "a", "b", "b"]), precision=0.5, min_similarity=0.9)
        >>> suggest(np.array([[1.0, 0.05], [1.0, 1.0]])).label.tolist()
        ['a', '']
    """

    vectors: np.ndarray
    labels: np.ndarray
    precision: float = 0.9
    min_similarity: float | None = None
    temperature: float = dataclasses.field(init=False)
    votes: "_Votes" = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        labels = np.asarray(self.labels, dtype=object)
        if not 0 < self.precision <= 1:
            raise ValueError(f"Received precision={self.precision}; expected a share above 0 and up to 1, such as 0.9.")
        counts = np.unique(labels.astype(str), return_counts=True)[1]
        if len(counts) < 2 or counts.max() < 2:
            raise ValueError(
                f"Received {len(labels)} labelled items of {len(counts)} labels; expected at least two labels, and two "
                "items of one. Label some items by hand first."
            )
        found, scores = nearest(self.vectors, k=NUM_NEIGHBOURS)
        tries = [_Votes(labels[found], scores, temperature) for temperature in TEMPERATURES]
        losses = [-np.log(each.share_of(labels) * (1 - UNSEEN) + UNSEEN / len(counts)).mean() for each in tries]
        best = int(np.argmin(losses))
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "temperature", TEMPERATURES[best])
        object.__setattr__(self, "votes", tries[best])

    def __call__(self, vectors: np.ndarray) -> Suggestions:
        """Suggestions for vectors [Q, E]."""
        found, scores = nearest(vectors, self.vectors, k=NUM_NEIGHBOURS)
        votes = _Votes(self.labels[found], scores, self.temperature)
        confidence = self._calibrated(slice(None))(votes.majority)
        label = np.where(self._is_enough(confidence, scores[:, 0]), votes.label, "")
        return Suggestions(label, confidence, found[:, 0], scores[:, 0])

    def check(self) -> Checked:
        """Leave each labelled item out and ask for it; its confidence is measured on the other half of the items."""
        votes, is_right = self.votes, self.votes.label == self.labels
        halves = np.arange(len(is_right)) % 2
        confidence = np.empty(len(is_right))
        for half in (0, 1):
            confidence[halves == half] = self._calibrated(halves != half)(votes.majority[halves == half])
        given = self._is_enough(confidence, votes.best)
        precision = float(is_right[given].mean()) if given.any() else float("nan")
        return Checked(len(is_right), float(is_right.mean()), float(given.mean()), precision)

    def _is_enough(self, confidence: np.ndarray, similarity: np.ndarray) -> np.ndarray:
        near = -np.inf if self.min_similarity is None else self.min_similarity
        return (confidence >= self.precision) & (similarity >= near)

    def _calibrated(self, rows):
        """A function from majorities to the share of right votes, measured on some of the items."""
        order = np.argsort(self.votes.majority[rows], kind="stable")
        majority = self.votes.majority[rows][order]
        is_right = (self.votes.label == self.labels)[rows][order].astype(float)
        shares = scipy.optimize.isotonic_regression(is_right).x
        return lambda asked: np.interp(asked, majority, shares)


class _Votes:
    """Votes of neighbours: labels [Q, k] and similarities [Q, k], best first, at a temperature."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray, temperature: float):
        weights = np.exp((scores - scores[:, :1]) / temperature)
        self.labels, self.weights = labels, weights / weights.sum(axis=1, keepdims=True)
        self.best = scores[:, 0]
        shares = np.stack([self.share_of(column) for column in labels.T], axis=1)  # of each neighbour's label
        winner = shares.argmax(axis=1)
        self.label = np.take_along_axis(labels, winner[:, None], axis=1)[:, 0]
        self.majority = np.take_along_axis(shares, winner[:, None], axis=1)[:, 0]

    def share_of(self, labels: np.ndarray) -> np.ndarray:
        """[Q] share of the votes for these labels [Q]."""
        return (self.weights * (self.labels == labels[:, None])).sum(axis=1)
