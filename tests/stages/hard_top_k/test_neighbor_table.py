"""The table against the search of a step: the same picks, ties included, for every anchor that there is."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from tests.reference_pairs import picks_of_anchor
from xbm_keras import CircularMemory, HardTopK, NeighborTopK
from xbm_keras.stages.hard_top_k import neighbor_table
from xbm_keras.stages.hard_top_k.neighbor_table import NeighborTable

M, D = 150, 16


def filled(num_rows=M, num_ids=M, num_classes=7, seed=0, frozen=True):
    """A frozen memory: vectors of four components of 1/2, whose products are exact, so that many scores are equal.

    With fewer ids than rows some rows are superseded, as views of one item are. The last class has one item.
    """
    random = np.random.default_rng(seed)
    features = np.zeros((num_rows, D), np.float32)
    for row in features:
        row[random.choice(D, 4, replace=False)] = random.choice([-0.5, 0.5], 4)
    ids = 2**61 + random.permutation(num_rows) % num_ids
    labels = (ids - 2**61) % num_classes
    labels[ids == ids[3]] = 99
    memory = CircularMemory(M, frozen=frozen)
    memory.build((None, D))
    memory.prefill(features, labels, ids)
    return memory


def with_table(top_k, memory):
    table = NeighborTable(memory, top_k.search, top_k.num_known)
    for start in table.starts:
        table.fill(start, table.searched(start))
    top_k.table = table
    return top_k


def picks(top_k, memory, slots, mode="eager", is_known=True):
    def call(slots):
        rows = memory.read()._replace(numbers=slots if is_known else None)
        return top_k(*(memory.items(slots)[0], rows, *memory.items(slots)[1:]))

    return in_mode(call, mode)(tf.constant(slots))


VIEWS, HALF_FULL, ONE_CLASS = {"num_ids": 60}, {"num_rows": 90}, {"num_classes": 1}
CASES = {
    "negatives": (lambda: HardTopK(9, 0), {}),
    "negatives of views": (lambda: HardTopK(9, 0), VIEWS),
    "more than there are": (lambda: HardTopK(200, 0), HALF_FULL),
    "none but one": (lambda: HardTopK(9, 0), ONE_CLASS),
    "a guard, hardest positives": (lambda: HardTopK(9, 2, "hardest", max_score=0.6), VIEWS),
    "a margin, all positives": (lambda: HardTopK(9, "all", absolute_margin=0.3), HALF_FULL),
    "neighbours": (lambda: NeighborTopK(9, 0, centring=0.0), VIEWS),
}


def test_many_tables_are_made_in_silence(caplog):
    for _ in range(8):
        with_table(HardTopK(9, 0), filled())
    assert "retracing" not in caplog.text


@pytest.mark.parametrize("case", CASES)
def test_the_table_gives_what_a_step_would_find(case, monkeypatch):
    monkeypatch.setattr(neighbor_table, "BLOCK", 64)  # the last block reaches back into the one before it
    make, counts = CASES[case]
    memory, top_k = filled(**counts), make()
    if isinstance(top_k, NeighborTopK):
        top_k.build((None, D))
    with_table(top_k, memory)
    slots = np.random.default_rng(1).permutation(M)[:100].astype(np.int64)
    for known, searched in zip(picks(top_k, memory, slots), picks(top_k, memory, slots, is_known=False), strict=True):
        np.testing.assert_array_equal(known, searched)


def test_the_table_equals_the_oracle(mode):
    memory = filled(num_ids=100)
    top_k = with_table(HardTopK(6, 0), memory)
    found = picks(top_k, memory, np.arange(M), mode)
    features, labels, ids = (np.asarray(each) for each in memory.items(np.arange(M)))
    is_valid = memory.read().is_valid.numpy()
    for slot in range(M):
        expected = picks_of_anchor(
            features[slot] @ features.T, labels[slot], ids[slot], labels, ids, is_valid,
            positive=False, order="highest", count=6,
        )  # fmt: skip
        assert found.indices[slot][found.is_valid[slot]].numpy().tolist() == expected


def test_a_step_looks_up_and_does_not_search(monkeypatch):
    memory = filled()
    top_k = with_table(HardTopK(9, 2, max_score=0.6), memory)
    monkeypatch.setattr("xbm_keras.stages.hard_top_k.candidates.streamed_top_k", None)
    picks(top_k, memory, np.arange(5))
    with pytest.raises(TypeError):
        picks(top_k, memory, np.arange(5), is_known=False)


def test_random_positives_are_drawn_as_without_a_table():
    memory = filled()
    known, searched = with_table(HardTopK(3, 2, seed=5), memory), HardTopK(3, 2, seed=5)
    for a, b in zip(picks(known, memory, np.arange(40)), picks(searched, memory, np.arange(40)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_memory_whose_neighbours_are_known_stays_as_it_is():
    memory = filled()
    items = memory.items(np.arange(4))
    before = memory.features.numpy()
    NeighborTable(memory, HardTopK(2).search, 2)
    for change in (
        lambda: memory.prefill(*(each.numpy() for each in items)),
        memory.reset,
        lambda: memory.load_own_variables({}),
    ):
        with pytest.raises(ValueError, match="a memory whose neighbours are known; expected it to stay as it is"):
            change()
    np.testing.assert_array_equal(memory.enqueue(*items).features, before)
    with pytest.raises(ValueError, match="memory with frozen=False and memory_size=150, to search once; expected one"):
        NeighborTable(filled(frozen=False), HardTopK(2).search, 2)


def test_the_table_is_not_saved():
    top_k = with_table(HardTopK(3, 2), filled())
    assert not top_k.weights
    assert len(top_k.variables) == len(HardTopK(3, 2).variables)
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(top_k)).table is None


def test_features_to_adapt_to_come_before_the_search():
    memory, top_k = filled(), NeighborTopK(3, 0)
    top_k.adapt(memory.features.numpy())
    with_table(top_k, memory)
    with pytest.raises(ValueError, match="features to adapt to, after the neighbours were searched; expected them"):
        top_k.adapt(memory.features.numpy())
