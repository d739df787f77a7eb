"""Which cut and codes keep a promise, on items made by hand."""

import types

import numpy as np
import pytest

from xbm_keras.evaluation.promises import PromisedItems, parse_promises
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.experiment import compression
from xbm_keras.experiment.compression import Candidate, Cut, Embeddings, candidates_of, nearest_to_it, smallest
from xbm_keras.geometry import unit_rows
from xbm_keras.index.coded_search import CodedSearch, SearchForm
from xbm_keras.report.compression import Tried, front
from xbm_keras.stages.head.fc_layer import Head


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return unit_rows((rng.normal(size=(160, 16)) * np.linspace(2, 0.1, 16) + 0.3).astype("float32"))


def make_head(kind, **arguments):
    head = Head(8, kind, hidden_dim=6, **arguments)
    head.build((None, 16))
    rng = np.random.default_rng(1)
    head.set_weights([rng.normal(size=weight.shape) for weight in head.get_weights()])
    return head


@pytest.mark.parametrize("kind", ["linear", "residual", "mlp", None])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_the_head_of_a_cut_gives_the_cut_embedding(features, kind, is_mixed):
    source = Embeddings(kind and make_head(kind, power=0.5), features[:100])
    for width in (3, source.dim):
        cut = Cut("trained", is_mixed, width)
        embeddings = source.of(features) @ source.matrix(cut)
        np.testing.assert_allclose(source.head_of(cut)(features), unit_rows(embeddings), atol=1e-5)
    whole = source.of(features)
    np.testing.assert_allclose(embeddings @ embeddings.T, whole @ whole.T, atol=1e-5)  # nothing is cut, so nothing lost


def test_directions_are_ordered_and_nested_ones_stay(features):
    turned = Embeddings(make_head("linear"), features)
    moments = ((turned.of(features) @ turned.matrix(Cut("trained", False, 8))) ** 2).mean(axis=0)
    assert (np.diff(moments) <= 1e-6).all()
    nested = Embeddings(make_head("linear", widths=[2, 8]), features)
    assert nested.widths == [2, 8]
    np.testing.assert_array_equal(nested.matrix(Cut("trained", False, 2)), np.eye(8)[:, :2])


def test_candidates_are_measured_as_they_will_be_searched(features):
    items = PromisedItems(features, None, parse_promises("overlap@5 >= 0.9"), 40)
    cut = Cut("frozen", True, 16)
    found = list(candidates_of(cut, features, items))
    assert {(each.form.search, each.form.rank, each.form.rescore) for each in found} == {
        ("int8", None, 1), ("int4", None, 1), ("binary", None, 1),
        *(("int4", "int8", n) for n in (2, 4, 8)),
        *(("binary", rank, n) for rank in ("int8", "int4") for n in (2, 4, 8)),
    }  # fmt: skip
    for each in found:
        nearest, _ = CodedSearch.of(features, each.form).find(features[items.queries], 6)
        others = [[j for j in hits if j != i][:5] for i, hits in zip(items.queries, nearest, strict=True)]
        values = items.values(np.array(others))
        assert each.means == pytest.approx([values[0].mean()])
        if each.means[0] >= 0.9:
            assert each.bounds == items.bounds(values)


def candidate(search, low, rank=None, width=64, mean=0.97):
    form = SearchForm(width, search, rank, 4 if rank else 1)
    return Candidate(Cut("trained", False, width), form, [mean], [low])


def test_the_smallest_that_surely_keeps_it_is_taken():
    items = types.SimpleNamespace(promises=parse_promises("overlap@10 >= 0.95"))
    unsure, small, alone, large = (
        candidate("binary", 0.949),
        candidate("binary", 0.951, "int8"),
        candidate("int4", 0.952),
        candidate("int8", 0.96),
    )
    tried = [large, unsure, alone, small]
    assert smallest(items, tried) is small  # 8 bytes are searched
    assert smallest(items, tried, counts_all=True) is alone  # 32 in all, not 8 + 64
    assert smallest(items, [unsure]) is None
    assert nearest_to_it(items, [candidate("int8", 0.9), unsure, candidate("binary", 0.94)]) is unsure


def test_a_walk_tries_both_embeddings_on_items_that_query_all_training_items(features, monkeypatch):
    dataset = types.SimpleNamespace(
        features=features, labels=np.repeat(np.arange(20), 8), has_labels=True,
        labelled=lambda positions: positions,
        splits=types.SimpleNamespace(train=np.arange(100), validation=np.arange(100, 132), test=np.arange(132, 160)),
    )  # fmt: skip
    promises = parse_promises("overlap@3 >= 0.8")
    items, tried = compression.walk(dataset, make_head("linear"), promises)
    assert len(items.queries) == 32
    assert items.nearest.max() >= 32  # a training item
    ordering, others = compression.halves(dataset, dataset.splits.train)
    assert sorted([*ordering, *others]) == list(range(100))
    assert not set(dataset.labels[ordering]) & set(dataset.labels[others])
    assert {each.cut.source for each in tried} == {"trained", "frozen"}
    full = next(each for each in tried if each.cut == Cut("frozen", False, 16) and each.form.search == "float32")
    assert full.means == [1.0]
    chosen = smallest(items, tried)
    assert chosen.form.bytes_in_memory < 64
    tested = compression.tested(
        dataset, compression.final_embeddings(dataset, make_head("linear"), "frozen"), full, promises
    )
    assert tested.means == [1.0]


def test_the_front_is_what_nothing_smaller_equals():
    def tried(size, quality):
        return Tried("trained", 8, "int8", "", size, 0, quality, quality, True)

    a, b, c, d = tried(8, 0.5), tried(16, 0.4), tried(16, 0.7), tried(32, 0.7)
    assert front([d, c, b, a]) == [a, c]


def test_codes_that_a_form_may_name_are_those_that_are_tried():
    assert [code for code, _ in compression.FORMS] == list(CODES)
