"""The learning curve of queries and documents: see `learning`."""

import dataclasses

import numpy as np

from xbm_keras.config.schema import Config
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.pairs import evaluate_pairs
from xbm_keras.evaluation.retrieval import embed
from xbm_keras.experiment.learning import curve_of
from xbm_keras.experiment.pair_starts import MAX_DOCUMENTS, MAX_QUERIES, PairHead, make_pair_start
from xbm_keras.experiment.phases import copy_head
from xbm_keras.report.learning_curve import LearningCurve
from xbm_keras.stages.head.fc_layer import Head

MIN_QUERIES = 100


def learning_curve(config: Config, dataset: PairDataset, head: Head, chosen: dict) -> LearningCurve | None:
    """nDCG@10 of the validation queries under the closed form of 5 to 100 % of the training queries.

    Of large data a part: the documents that answer, and of the others some.

    Args:
        config: of the run.
        dataset: the data.
        head: as wide as the one that trained, and of the same sides.
        chosen: the start and its parameters, as `metrics.json` has them.

    Returns:
        None where the start is random, or fewer than 100 queries train.
    """
    train = dataset.splits.train
    if chosen["start"] == "random" or len(train) < MIN_QUERIES:
        return None
    keys = ("start", "shrinkage", "parameters")
    given = config.head.for_features(dataset.queries.shape[1])
    start = PairHead(**{**given.model_dump(), **{key: chosen[key] for key in keys}})
    rng = np.random.default_rng(0)
    dataset = _part(dataset, rng)
    validation = np.sort(rng.permutation(dataset.splits.validation)[:MAX_QUERIES])
    relevant, grades = dataset.pairs.relevant(validation)
    documents = UnitRows(dataset.documents)
    queries = UnitRows(dataset.queries, validation)
    frozen = evaluate_pairs(queries[:], documents[:], relevant, grades)["ndcg_at_10"]
    head = copy_head(head)

    def score(some: np.ndarray) -> np.ndarray:
        head.set_start(make_pair_start(start, dataset, some).scaled())
        embedded = embed(head, queries), embed(head, documents, of_rows=True)
        return evaluate_pairs(*embedded, relevant, grades)["ndcg_at_10"]

    return curve_of(rng.permutation(train), score, frozen, "nDCG@10", "queries")


def _part(dataset: PairDataset, rng: np.random.Generator) -> PairDataset:
    """The same with at most `MAX_DOCUMENTS` of the documents that answer no query."""
    pairs = dataset.pairs
    answers = np.unique(pairs.document[pairs.grade > 0])
    others = np.setdiff1d(np.arange(len(dataset.documents)), answers)
    if len(others) <= MAX_DOCUMENTS:
        return dataset
    kept = np.sort(np.concatenate([answers, rng.permutation(others)[:MAX_DOCUMENTS]]))
    pairs = pairs.keeping(np.arange(len(dataset.queries)), kept)
    return dataclasses.replace(dataset, pairs=pairs, documents=UnitRows(dataset.documents, kept))
