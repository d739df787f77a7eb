"""Who trains, chooses and tests among queries: no document on two sides, unless the data's own split says so."""

import numpy as np
import pytest

from xbm_keras.data.errors import DataError
from xbm_keras.data.pair_dataset import PairDataset, split_pairs
from xbm_keras.data.pairs import Pairs, Side


def make_pairs(query, document, split="", grade=1.0):
    query, document = np.asarray(query), np.asarray(document)
    sides = [
        Side(np.array([f"{name}{i}" for i in range(1 + max(each))])) for name, each in (("q", query), ("d", document))
    ]
    splits = np.array(split.split(",") if "," in split else [split] * len(query))
    return Pairs(*sides, query, document, np.broadcast_to(grade, len(query)).astype(float), splits, {})


def documents_of(pairs, queries):
    relevant, _ = pairs.relevant(queries)
    return set(relevant[relevant >= 0].tolist())


def test_parts_share_no_query_and_no_document():
    rng = np.random.default_rng(0)
    pairs = make_pairs(np.repeat(np.arange(200), 2), rng.integers(0, 900, 400))
    splits = [split_pairs(pairs, 0.3, 0.2, seed=0, fold=fold) for fold in range(3)]
    for each in splits:
        parts = each.train, each.validation, each.test
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(200))
        held = [documents_of(pairs, part) for part in parts]
        assert sum(map(len, held)) == len(set.union(*held))
        assert 30 <= len(each.test) <= 60
        assert 15 <= len(each.validation) <= 30
    np.testing.assert_array_equal(splits[0].test, splits[1].test)
    assert not np.array_equal(splits[0].validation, splits[1].validation)


def test_a_split_of_the_data_is_taken_as_it_is_and_what_leaks_is_known():
    query = np.arange(8)
    pairs = make_pairs(query, [0, 1, 2, 3, 0, 5, 6, 7], "train,train,train,train,test,test,test,test")
    splits = split_pairs(pairs, 0.3, 0.25)
    assert splits.test.tolist() == [4, 5, 6, 7]
    assert sorted([*splits.train, *splits.validation]) == [0, 1, 2, 3]
    dataset = PairDataset(pairs, np.zeros((8, 2)), np.zeros((8, 2)), splits)
    assert dataset.is_unseen(splits.test, np.arange(4)).tolist() == [False, True, True, True]


def test_judged_and_not_relevant_is_no_connection():
    pairs = make_pairs([0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 1, 2], grade=[1, 1, 1, 1, 0, 0])
    dataset = PairDataset(pairs, np.zeros((4, 2)), np.zeros((4, 2)), split_pairs(pairs, 0.25, 0.34))
    assert dataset.is_unseen(np.array([0]), np.array([1, 2, 3])).all()


def test_validation_of_the_data_chooses_by_queries_with_documents_of_their_own():
    numbers = np.arange(60)
    document = np.where(numbers < 5, numbers + 30, numbers)  # of validation queries the first five share theirs
    names = ["validation" if i < 30 else "train" if i < 50 else "test" for i in numbers]
    splits = split_pairs(make_pairs(numbers, document, ",".join(names)), 0.3, 0.25)
    assert splits.validation.tolist() == list(range(5, 30))
    assert splits.train.tolist() == list(range(30, 50))
    few = ["train" if i < 40 else "validation" if i < 50 else "test" for i in numbers]
    splits = split_pairs(make_pairs(numbers, numbers, ",".join(few)), 0.3, 0.2)
    assert len(splits.validation) == 10  # drawn from all fifty: ten of the data's own are too few
    assert sorted([*splits.train, *splits.validation]) == list(range(50))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("test,test,test,test", "splits 'test'; expected 'train' and 'test'"),
        ("train,test,dev2,test", "'dev2', 'test', 'train'; expected"),
        ("train,train,train,test", "1 queries that are in two of the splits test, train, such as 'q2'"),
    ],
)
def test_splits_that_cannot_be_used(split, expected):
    query = [0, 1, 2, 2] if "two" in expected else [0, 1, 2, 3]
    with pytest.raises(DataError) as raised:
        split_pairs(make_pairs(query, [0, 1, 2, 3], split), 0.3, 0.3)
    assert expected in str(raised.value)


def test_queries_that_all_hang_together_cannot_be_split():
    with pytest.raises(DataError, match="connected by the documents"):
        split_pairs(make_pairs([0, 1, 2], [0, 0, 0]), 0.3, 0.3)


def test_keeping_some_queries_and_documents():
    pairs = make_pairs([0, 1, 2, 2], [0, 1, 2, 3])
    kept = pairs.keeping(np.array([0, 2]), np.array([0, 3]))
    assert kept.queries.ids.tolist() == ["q0", "q2"]
    assert kept.documents.ids.tolist() == ["d0", "d3"]
    assert list(zip(kept.query.tolist(), kept.document.tolist(), strict=True)) == [(0, 0), (1, 1)]
