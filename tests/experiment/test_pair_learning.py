"""Would more pairs help: the chosen closed form by the number of training queries."""

import numpy as np
import pytest

from xbm_keras import Head
from xbm_keras.config.schema import Config
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.pairs import Pairs, Side
from xbm_keras.data.splits import Splits
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.evaluation.pairs import evaluate_pairs
from xbm_keras.experiment import pair_learning
from xbm_keras.experiment.pair_starts import PairHead, make_pair_start

N, Q, D = 260, 200, 12
NUM_TRAIN = 120
CONFIG = Config.model_validate(
    {"data": {"source": "pairs", "path": "x"}, "backbone": {"kind": "none"}, "head": {"embedding_dim": 6}}
)
CHOSEN = {"start": "whiten", "shrinkage": "auto", "parameters": {"shrinkage": 0.5}}


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(N, D)).astype(np.float32)
    queries = documents[:Q].copy()
    queries[:, 8:] += 3 * rng.normal(size=(Q, 4))  # directions that a form of many pairs learns to leave out
    queries += 0.5 * rng.normal(size=(Q, D)).astype(np.float32)
    everyone = np.arange(Q)
    sides = Side(everyone.astype(str)), Side(np.arange(N).astype(str))
    pairs = Pairs(*sides, everyone, everyone, np.ones(Q), np.full(Q, ""), {})
    splits = Splits(everyone[:NUM_TRAIN], everyone[NUM_TRAIN:160], everyone[160:])
    return PairDataset(pairs, queries, documents, splits)


def head(width=6):
    layer = Head(width)
    layer.build((None, D))
    return layer


def scores_of(dataset, queries):
    """nDCG@10 of the validation queries under the form of some queries, without the head."""
    start = make_pair_start(PairHead(embedding_dim=6, **CHOSEN), dataset, queries)
    rows = (
        UnitRows(dataset.queries, dataset.splits.validation)[:],
        UnitRows(dataset.documents, np.arange(len(dataset.documents)))[:],
    )
    relevant, grades = dataset.pairs.relevant(dataset.splits.validation)
    return evaluate_pairs(*(each @ start.kernel + start.bias for each in rows), relevant, grades)["ndcg_at_10"]


def test_a_head_whose_width_nobody_told_is_as_wide_as_the_features(dataset):
    own, auto = (
        CONFIG.model_copy(update={"head": CONFIG.head.model_copy(update={"embedding_dim": dim})}) for dim in (D, "auto")
    )
    expected = pair_learning.learning_curve(own, dataset, head(D), CHOSEN)
    assert pair_learning.learning_curve(auto, dataset, head(D), CHOSEN).scores == expected.scores


def test_all_queries_give_the_closed_form_and_some_give_less(dataset):
    layer = head()
    before = [np.copy(each) for each in layer.get_weights()]
    curve = pair_learning.learning_curve(CONFIG, dataset, layer, CHOSEN)
    assert list(curve.scores) == [6, 12, 24, 60, 120]
    full = scores_of(dataset, dataset.splits.train)
    assert curve.scores[120] == pytest.approx(full.mean(), abs=1e-6)
    assert curve.scores[6] < curve.scores[120]
    relevant, grades = dataset.pairs.relevant(dataset.splits.validation)
    frozen = evaluate_pairs(dataset.queries[120:160], dataset.documents, relevant, grades)["ndcg_at_10"]
    assert curve.frozen == pytest.approx(frozen.mean(), abs=1e-6)
    rng = np.random.default_rng(0)
    rng.permutation(40)  # of the validation queries
    half = scores_of(dataset, np.sort(rng.permutation(NUM_TRAIN)[:60]))
    assert curve.scores[60] == pytest.approx(half.mean(), abs=1e-6)
    assert curve.doubling == pytest.approx(bootstrap_interval(full - half), abs=1e-6)
    assert all(np.array_equal(*pair) for pair in zip(before, layer.get_weights(), strict=True))


def test_of_a_large_corpus_what_answers_stays(dataset, monkeypatch):
    monkeypatch.setattr(pair_learning, "MAX_DOCUMENTS", 10)
    part = pair_learning._part(dataset, np.random.default_rng(0))
    assert len(part.documents) == Q + 10
    ids = part.pairs.documents.ids[part.pairs.document]
    assert ids.tolist() == part.pairs.queries.ids[part.pairs.query].tolist()  # query i is answered by document i
    rows = dataset.documents[part.pairs.documents.ids.astype(int)]
    np.testing.assert_allclose(part.documents[:], rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)


def test_there_is_none_of_few_queries_or_a_random_start(dataset):
    assert pair_learning.learning_curve(CONFIG, dataset, head(), {**CHOSEN, "start": "random"}) is None
    few = PairDataset(dataset.pairs, dataset.queries, dataset.documents, Splits(np.arange(99), np.arange(120, 160), []))
    assert pair_learning.learning_curve(CONFIG, few, head(), CHOSEN) is None
