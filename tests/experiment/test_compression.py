"""Which cut and codes keep a promise, on items made by hand."""

import types

import numpy as np
import pytest

from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.pairs import Side, pairs_of_positions
from xbm_keras.data.splits import Splits
from xbm_keras.evaluation.promises import PromisedItems, PromisedPairs, parse_promises
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.experiment import compression, trials
from xbm_keras.experiment.compression import Candidate, Cut, Embeddings, candidates_of, nearest_to_it, smallest
from xbm_keras.geometry import unit_rows
from xbm_keras.index.coded_search import CodedSearch, SearchForm
from xbm_keras.report.compression import Tried, front
from xbm_keras.stages.head.fc_layer import Head


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return unit_rows((rng.normal(size=(160, 16)) * np.linspace(2, 0.1, 16) + 0.3).astype("float32"))


def make_head(kind, width=8, **arguments):
    head = Head(width, kind, hidden_dim=6, **arguments)
    head.build((None, 16))
    rng = np.random.default_rng(1)
    head.set_weights([rng.normal(size=weight.shape) for weight in head.get_weights()])
    return head


def test_a_head_that_is_damaged_or_of_another_form_is_named(tmp_path):
    head, path = make_head("linear"), tmp_path / "held_out_head.npz"
    np.savez(path, *head.get_weights())
    content = path.read_bytes()
    np.testing.assert_array_equal(compression.held_out_head(tmp_path, head).kernel, head.kernel)
    np.savez(path, *(weight[:3] for weight in head.get_weights()))
    for damaged in (path.read_bytes(), content[:40], b"", b"PK\3\4", b"\x93NUMPY"):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"held_out_head\.npz, which is damaged"):
            compression.held_out_head(tmp_path, head)
    path.unlink()
    with pytest.raises(ConfigError, match=r"a run without held_out_head\.npz"):
        compression.held_out_head(tmp_path, head)


@pytest.mark.parametrize("kind", ["linear", "residual", "mlp", None])
@pytest.mark.parametrize("blocks", [0, 1, 5])
def test_the_head_of_a_cut_gives_the_cut_embedding(features, kind, blocks):
    source = Embeddings(kind and make_head(kind, power=0.5), features[:100])
    for width in (3, source.dim):
        cut = Cut("trained", blocks, width)
        embeddings = source.of_queries(features) @ source.matrix(cut)
        np.testing.assert_allclose(source.head_of(cut)(features), unit_rows(embeddings), atol=1e-5)
    whole = source.of_queries(features)
    np.testing.assert_allclose(embeddings @ embeddings.T, whole @ whole.T, atol=1e-5)  # nothing is cut, so nothing lost


@pytest.mark.parametrize("sides", ["query", "two"])
@pytest.mark.parametrize("kind", ["linear", "residual", "mlp"])
def test_documents_are_cut_as_queries_are(features, kind, sides):
    head = make_head(kind, 16 if sides == "query" else 8, sides=sides)
    source, cut = Embeddings(head, features[:100]), Cut("trained", 1, 3)
    whole = features if sides == "query" else head.row_layer(features).numpy()
    np.testing.assert_allclose(source.of_gallery(features), whole, atol=1e-6)
    found = source.head_of(cut)
    np.testing.assert_allclose(found.on_rows(features), unit_rows(whole @ source.matrix(cut)), atol=1e-5)
    np.testing.assert_allclose(found(features), unit_rows(head(features) @ source.matrix(cut)), atol=1e-5)


def test_directions_are_ordered_and_nested_ones_stay(features):
    turned = Embeddings(make_head("linear"), features)
    moments = ((turned.of_gallery(features) @ turned.matrix(Cut("trained", 0, 8))) ** 2).mean(axis=0)
    assert (np.diff(moments) <= 1e-6).all()
    nested = Embeddings(make_head("linear", widths=[2, 8]), features)
    assert nested.widths == [1, 2, 8]  # narrower than all that were trained, too
    whole = nested.of_gallery(features)
    cut = whole @ nested.matrix(Cut("trained", 0, 2))
    np.testing.assert_allclose(cut @ cut.T, whole[:, :2] @ whole[:, :2].T, atol=1e-6)
    moments = (cut**2).mean(axis=0)
    assert moments[0] > (whole[:, :2] ** 2).mean(axis=0).max() > moments[1]


@pytest.mark.parametrize("is_of_pairs", [False, True])
def test_candidates_are_measured_as_they_will_be_searched(features, is_of_pairs):
    promises = parse_promises("overlap@5 >= 0.9")
    trial = PromisedItems(features, None, promises, 40)
    if is_of_pairs:
        trial = PromisedPairs(features[:40] + 0.1, features, np.arange(40)[:, None], np.ones((40, 1)), promises)
    cut = Cut("frozen", 1, 16)
    found = list(candidates_of(cut, trial.queries, features, trial))
    assert {(each.form.search, each.form.rank, each.form.rescore) for each in found} == {
        ("int8", None, 1), ("int4", None, 1), ("binary", None, 1),
        *(("int4", "int8", n) for n in (2, 4, 8)),
        *(("binary", rank, n) for rank in ("int8", "int4") for n in (2, 4, 8)),
    }  # fmt: skip
    for each in found:
        nearest, _ = CodedSearch.of(features, each.form).find(trial.queries, trial.num_found)
        values = trial.values(nearest)
        assert each.means == pytest.approx([values[0].mean()])
        if each.means[0] >= 0.9:
            assert each.bounds == trial.bounds(values)


def candidate(search, low, rank=None, width=64, mean=0.97):
    form = SearchForm(width, search, rank, 4 if rank else 1)
    return Candidate(Cut("trained", 0, width), form, [mean], [low])


def test_the_smallest_that_surely_keeps_it_is_taken():
    trial = types.SimpleNamespace(promises=parse_promises("overlap@10 >= 0.95"))
    unsure, small, alone, large = (
        candidate("binary", 0.949),
        candidate("binary", 0.951, "int8"),
        candidate("int4", 0.952),
        candidate("int8", 0.96),
    )
    tried = [large, unsure, alone, small]
    assert smallest(trial, tried) is small  # 8 bytes are searched
    assert smallest(trial, tried, counts_all=True) is alone  # 32 in all, not 8 + 64
    assert smallest(trial, [unsure]) is None
    assert nearest_to_it(trial, [candidate("int8", 0.9), unsure, candidate("binary", 0.94)]) is unsure


def test_a_walk_tries_both_embeddings_on_items_that_query_all_training_items(features, monkeypatch):
    dataset = types.SimpleNamespace(
        features=features, labels=np.repeat(np.arange(20), 8), has_labels=True,
        labelled=lambda positions: positions,
        splits=types.SimpleNamespace(train=np.arange(100), validation=np.arange(100, 132), test=np.arange(132, 160)),
    )  # fmt: skip
    promises = parse_promises("overlap@3 >= 0.8")
    searches = trials.trials_of(dataset)
    with monkeypatch.context() as patch:
        patch.setattr(trials, "MAX_ROWS", 20)  # as where two classes are larger
        np.testing.assert_array_equal(searches.held_out(promises).trial.gallery, features[100:132])
    held_out = searches.held_out(promises)
    trial, tried = held_out.trial, compression.walk(held_out, make_head("linear"))
    np.testing.assert_array_equal(trial.queries, features[100:132])
    ordering, others = trials.halves(dataset, dataset.splits.train)
    np.testing.assert_array_equal(trial.gallery, features[[*range(100, 132), *others]])
    np.testing.assert_array_equal(held_out.ordering, features[ordering])
    assert sorted([*ordering, *others]) == list(range(100))
    assert not set(dataset.labels[ordering]) & set(dataset.labels[others])
    assert {each.cut.source for each in tried} == {"trained", "frozen"}
    full = next(each for each in tried if each.cut == Cut("frozen", 0, 16) and each.form.search == "float32")
    assert full.means == [1.0]
    chosen = smallest(trial, tried)
    assert chosen.form.bytes_in_memory < 64
    testing, who = searches.test(promises)
    assert who == "28 test items"
    embeddings = compression.final_embeddings(searches, make_head("linear"), "frozen")
    assert compression.tested(testing, embeddings, full).means == [1.0]


def test_queries_whose_documents_never_trained_search_all_documents(features, monkeypatch):
    pairs = pairs_of_positions(
        Side(np.arange(50).astype(str), features=features[:50]),
        Side(np.arange(100).astype(str), features=features[50:150]),
        np.array([[i, i] for i in range(50)] + [[45, 0], [30, 31]]),  # a test query shares a training query's document
        "here",
    )
    splits = Splits(np.arange(30), np.arange(30, 40), np.arange(40, 50))
    dataset = PairDataset(pairs, features[:50], features[50:150], splits)
    searches, promises = trials.trials_of(dataset), parse_promises("recall@3 >= 0.5")
    trial, ordering = searches.held_out(promises)
    np.testing.assert_array_equal(trial.queries, features[30:40])
    np.testing.assert_array_equal(trial.gallery, features[50:150])
    np.testing.assert_array_equal(ordering, features[50:150][[*range(30), *range(40, 100)]])  # but their answers
    itself = np.stack([np.arange(30, 40), np.full(10, 99), np.full(10, 98)], axis=1)
    assert trial.values(itself)[0].tolist() == [0.5, *[1] * 9]
    testing, who = searches.test(promises)
    assert who == "9 test queries, whose documents never trained,"
    np.testing.assert_array_equal(testing.queries, features[[40, 41, 42, 43, 44, 46, 47, 48, 49]])
    monkeypatch.setattr(trials, "MAX_ROWS", 15)
    some, _ = searches.held_out(promises)  # of a large corpus some documents, with all that answer
    assert len(some.gallery) == 15
    answers = [np.flatnonzero((some.gallery == features[50 + i]).all(axis=1))[0] for i in range(30, 40)]
    assert some.values(np.array(answers)[:, None])[0].tolist() == [0.5, *[1] * 9]


def test_the_front_is_what_nothing_smaller_equals():
    def tried(size, quality):
        return Tried("trained", 8, "int8", "", size, 0, quality, quality, True)

    a, b, c, d = tried(8, 0.5), tried(16, 0.4), tried(16, 0.7), tried(32, 0.7)
    assert front([d, c, b, a]) == [a, c]


def test_codes_that_a_form_may_name_are_those_that_are_tried():
    assert [code for code, _ in compression.FORMS] == [
        name for name in CODES if name != "layers"
    ]  # which `trellis` replaces
