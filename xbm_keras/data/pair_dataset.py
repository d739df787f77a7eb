"""Queries and documents with their features, and which queries train, validate and test."""

import dataclasses
import logging

import numpy as np

from xbm_keras.data.components import components, hold_out
from xbm_keras.data.errors import DataError
from xbm_keras.data.pairs import Pairs
from xbm_keras.data.splits import Splits
from xbm_keras.data.unit_rows import FeatureRows

log = logging.getLogger("xbm_keras")
MIN_VALIDATION = 20  # queries of a validation part of the data's own, with documents that no other answers


@dataclasses.dataclass(frozen=True)
class PairDataset:
    """Features of queries and documents, and who does what."""

    pairs: Pairs
    queries: FeatureRows
    """[Q, D]."""
    documents: FeatureRows
    """[N, D], the whole corpus."""
    splits: Splits
    """Positions of queries. Without a split of the data's own no document answers queries of two parts."""
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    """Queries and documents left out, and why."""
    num_computed: int = 0
    """Texts that passed the network in this run; the rest was cached."""

    def is_unseen(self, queries: np.ndarray, trained: np.ndarray) -> np.ndarray:
        """[q] bool: no document that answers the query answers any of those that trained."""
        relevant, _ = self.pairs.relevant(queries)
        seen, _ = self.pairs.relevant(trained)
        return np.logical_not(np.isin(relevant, seen[seen >= 0]).any(axis=1))


def split_pairs(pairs: Pairs, test: float | None, validation: float, seed: int = 0, fold: int = 0) -> Splits:
    """Which queries train, choose and test.

    A split that the data give is taken as it is, but that queries choose only where their documents answer none that
    train: else what is learnt by heart would be chosen. What is held out besides is whole connected components of the
    graph of queries and the documents that answer them.

    Args:
        pairs: of all queries.
        test: share of the queries that test, where the data do not say; None for none.
        validation: share of those that train that choose, where the data do not say.
        seed: of the draws.
        fold: another number holds out other queries to choose by.

    Raises:
        DataError: for a split without training queries, a query in two parts, or too few components.
    """
    is_relevant = pairs.grade > 0
    query, document, split = pairs.query[is_relevant], pairs.document[is_relevant], pairs.split[is_relevant]
    parts = {name: np.unique(query[split == name]) for name in np.unique(split).tolist()}
    _refuse_queries_in_two(pairs, parts)
    labels = components(query, document, len(pairs.queries.ids), len(pairs.documents.ids))
    if "test" in parts:
        others = sorted(set(parts) - {"train", "validation", "test"})
        if "train" not in parts or others:
            found = ", ".join(repr(name) for name in parts)
            raise DataError(
                f"Received judgements of the splits {found}; expected 'train' and 'test', and perhaps 'validation', or "
                "no split at all. Name the files in qrels, or the values of the column 'split', so."
            )
        tested, pool = parts["test"], np.union1d(parts["train"], parts.get("validation", parts["train"]))
    else:
        answered = np.unique(query)
        is_test = np.zeros(len(answered), bool) if test is None else hold_out(labels[answered], test, seed)
        tested, pool = answered[is_test], answered[~is_test]
    given = np.setdiff1d(parts.get("validation", pool[:0]), tested)
    trained = np.setdiff1d(pool, given)
    seen = document[np.isin(query, trained)]
    chosen = np.setdiff1d(given, query[np.isin(document, seen)])
    if len(chosen) >= MIN_VALIDATION and len(trained):
        log.info("%d of %d validation queries choose: their documents answer none that train.", len(chosen), len(given))
        return Splits(trained, chosen, tested)
    is_chosen = hold_out(labels[pool], validation, (seed, 1 + fold))
    return Splits(pool[~is_chosen], pool[is_chosen], tested)


def only_test_pairs(pairs: Pairs) -> Splits:
    """All queries test that something answers."""
    answered = np.unique(pairs.query[pairs.grade > 0])
    return Splits(answered[:0], answered[:0], answered)


def _refuse_queries_in_two(pairs: Pairs, parts: dict[str, np.ndarray]) -> None:
    everything = np.concatenate([*parts.values()])
    unique, counts = np.unique(everything, return_counts=True)
    if (counts > 1).any():
        twice = str(pairs.queries.ids[unique[counts > 1][0]])
        raise DataError(
            f"Received {(counts > 1).sum()} queries that are in two of the splits {', '.join(parts)}, such as "
            f"{twice!r}; expected each in one. Remove it from one of the files in qrels."
        )
