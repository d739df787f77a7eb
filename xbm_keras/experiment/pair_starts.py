"""Which closed form a head of queries and documents starts from: the best on held-out queries."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from xbm_keras.config import schema
from xbm_keras.config.yaml_files import blaming_config
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.pairs import evaluate_pairs
from xbm_keras.geometry import unit_rows
from xbm_keras.progress import track
from xbm_keras.stages.head.pair_starts import PairForms, candidates
from xbm_keras.stages.head.starts import Start

log = logging.getLogger("xbm_keras")
MAX_DOCUMENTS, MAX_QUERIES = 65_536, 2048  # that starts are compared on, of each fold


class PairHead(schema.HeadConfig):
    """A head whose start was chosen."""

    parameters: dict[str, Any] = Field(default_factory=dict)
    """Of the start, such as its shrinkage."""


def forms_of(dataset: PairDataset, queries: np.ndarray) -> PairForms:
    """Closed forms of these queries, the documents that answer them, and the corpus."""
    pairs = dataset.pairs
    is_chosen = (pairs.grade > 0) & np.isin(pairs.query, queries)
    places = np.full(len(pairs.queries.ids), -1)
    places[queries] = np.arange(len(queries))
    rows = UnitRows(dataset.queries, queries), UnitRows(dataset.documents)
    return PairForms(*rows, places[pairs.query[is_chosen]], pairs.document[is_chosen])


def make_pair_start(head: PairHead, dataset: PairDataset, queries: np.ndarray) -> Start:
    """The closed form that was chosen, of these queries."""
    with blaming_config():
        return getattr(forms_of(dataset, queries), head.start)(head.embedding_dim, **head.parameters)


def choose_pair_start(given: schema.HeadConfig, folds: Sequence[PairDataset]) -> PairHead:
    """The same head, with the start that gives the held-out queries of all folds the best nDCG@10.

    The frozen features are a candidate, where the head is as wide. Of equal scores the simpler form wins.

    Args:
        given: the head.
        folds: the data, each time with other queries held out.
    """
    width = folds[0].queries.shape[1]
    with blaming_config():
        given = given.for_features(width)
    fixed = given.model_dump()
    if given.start == "random":
        return PairHead(**fixed)
    tried = [
        (name, parameters)
        for name, parameters in candidates(given.sides, given.embedding_dim, width)
        if given.start in ("auto", name)
        and (given.shrinkage == "auto" or "shrinkage" not in parameters or parameters["shrinkage"] == given.shrinkage)
    ]
    if not tried:
        tried = [(given.start, {} if given.shrinkage == "auto" else {"shrinkage": given.shrinkage})]
    with blaming_config():
        scores = np.mean([_scores(given, tried, fold) for fold in folds], axis=0) if len(tried) > 1 else np.zeros(1)
    best = int(scores.argmax())
    name, parameters = tried[best]
    if len(tried) > 1:
        named = ", ".join(f"{key} {value}" for key, value in parameters.items())
        log.info(
            "Start: %s%s, nDCG@10 %.3f of held-out queries, the best of %d closed forms.",
            name,
            f" ({named})" if named else "",
            scores[best],
            len(tried),
        )
    return PairHead(**{**fixed, "start": name, "parameters": parameters})


def _scores(given: schema.HeadConfig, tried: list, fold: PairDataset) -> list[float]:
    """nDCG@10 of the validation queries of a fold under each start, the mean over the nested widths."""
    forms = forms_of(fold, fold.splits.train)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(fold.splits.validation)[:MAX_QUERIES])
    relevant, grades = fold.pairs.relevant(chosen)
    answers = np.unique(relevant[relevant >= 0])
    others = np.setdiff1d(np.arange(len(fold.documents)), answers)
    corpus = np.sort(np.concatenate([answers, rng.permutation(others)[:MAX_DOCUMENTS]]))
    relevant = np.where(relevant >= 0, np.searchsorted(corpus, relevant), -1)
    queries, documents = UnitRows(fold.queries, chosen)[:], UnitRows(fold.documents, corpus)[:]
    found = []
    for i in track(range(len(tried)), "choosing the start", len(tried), "closed forms"):
        name, parameters = tried[i]
        try:
            kernel, bias = getattr(forms, name)(given.embedding_dim, **parameters)
        except ValueError:  # a form that these pairs do not have, such as whitening where both of each pair are equal
            found.append(-np.inf)
            continue
        q = unit_rows(queries @ kernel + bias)
        d = documents if given.sides == "query" else unit_rows(documents @ kernel + bias)
        widths = given.widths or [given.embedding_dim]
        each = [evaluate_pairs(q[:, :w], d[:, :w], relevant, grades)["ndcg_at_10"].mean() for w in widths]
        found.append(float(np.mean(each)))
    return found
