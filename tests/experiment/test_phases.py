"""What a run chooses by itself."""

import collections
import dataclasses
import itertools

import keras
import numpy as np
import pytest

from tests import reference_starts
from tests.evaluation.test_neighbors import overlap_by_hand
from tests.small_models import assert_same_training
from xbm_keras.config.schema import Config
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.splits import Splits
from xbm_keras.evaluation.retrieval import evaluate_retrieval, score_queries
from xbm_keras.experiment import chosen_head, held_out, phases, selection


@pytest.fixture
def dataset():
    """Few items in many noisy directions, so that the shrinkage matters."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 6)
    centers = np.repeat(rng.normal(size=(12, 20)), 6, axis=0)
    features = centers + rng.normal(size=(72, 20)) * np.linspace(0.2, 3, 20)
    ids = np.arange(72)
    splits = Splits(ids[:36], ids[36:54], ids[54:], folds=(ids[36:54], ids[:18], ids[18:36]))
    features = features.astype("float32")
    return Dataset(features, labels, [*range(12)], ids, ids.astype(str), splits, {}, 0, None, ids)


def config_of(**head):
    data = {"source": "features", "path": "x.npz"}
    config = Config.model_validate({"data": data, "backbone": {"kind": "none"}})
    return config.model_copy(update={"head": chosen_head.HeadChoice(**{"embedding_dim": 6, **head})})


def halves(dataset):
    """One fold, and the two others."""
    first, *others = dataset.splits.folds
    return [first, np.concatenate(others)]


STARTS = ("pca", "local", "whiten", "lda", "nda")


def scores_by_hand(dataset, starts):
    """MAP@R of each held-out class [9] by start and its arguments, so that halves of 3 and 6 classes count the same."""
    unit = dataset.features / np.linalg.norm(dataset.features, axis=1, keepdims=True)
    shrinkages = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 0.99)
    tried = {
        "pca": [()],
        "local": [(shrinkage,) for shrinkage in (0.8, 0.9, 0.95, 0.98)],
        "whiten": [(shrinkage,) for shrinkage in shrinkages],
        "lda": [*itertools.product(shrinkages, (0.3, 1.0), (0.0, 0.3))],
    }
    scores = collections.defaultdict(list)
    for fold in halves(dataset):
        rest = np.setdiff1d(np.arange(54), fold)
        for name in starts:
            given = (unit[rest], *([] if name in ("pca", "local") else [dataset.labels[rest]]), 6)
            for arguments in tried["lda" if name == "nda" else name]:
                kernel, bias = getattr(reference_starts, name)(*given, *arguments)
                order, found = score_queries(unit[fold] @ kernel + bias, dataset.labels[fold])
                labels = dataset.labels[fold][order]
                of_class = [found["map_at_r"][labels == label].mean() for label in np.unique(labels)]
                scores[name, *arguments] += [value * 4.5 / len(of_class) for value in of_class]
    return {choice: np.array(values) for choice, values in scores.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("start", ["whiten", "lda", "auto"])
def test_of_starts_about_as_good_as_the_best_the_one_that_takes_most_from_classes(dataset, start, seed):
    noise = np.random.default_rng(seed).normal(size=dataset.features.shape).astype(np.float32)
    dataset = dataclasses.replace(dataset, features=dataset.features + noise)
    scores = scores_by_hand(dataset, STARTS if start == "auto" else (start,))
    best = max(scores, key=lambda choice: scores[choice].mean())
    lacking = {choice: scores[best] - values for choice, values in scores.items()}
    close = [choice for choice, lack in lacking.items() if lack.mean() <= lack.std(ddof=1) / 3 + 1e-12]
    assert len(close) < len(scores)
    ranks = {choice: (STARTS.index(choice[0]), -(choice[1:] or (1.0,))[0], scores[choice].mean()) for choice in close}
    chosen = selection.choose_start(config_of(start=start, power=1).head, dataset)
    names = {"pca": (), "local": ("shrinkage",), "whiten": ("shrinkage",)}
    found = tuple(getattr(chosen, name) for name in names.get(chosen.start, ("shrinkage", "weighting", "total_share")))
    assert ranks[chosen.start, *found] == pytest.approx(max(ranks.values()))
    most = max(values.mean() for (name, *_), values in scores.items() if name == chosen.start)
    assert max(chosen.tried[chosen.start].values()) == pytest.approx(most)


def test_features_as_they_are_are_tried_where_nothing_is_cut(dataset):
    tried = selection.choose_start(config_of(start="auto", power=1, embedding_dim=20).head, dataset).tried
    assert list(tried) == ["identity", "centred", *STARTS]


def test_without_labels_the_shrinkage_keeps_most_neighbours(dataset):
    unit = dataset.features / np.linalg.norm(dataset.features, axis=1, keepdims=True)
    train, validation = unit[dataset.splits.train], unit[dataset.splits.validation]
    scores = {}
    for shrinkage in (0.8, 0.9, 0.95, 0.98):
        kernel, bias = reference_starts.local(train, 6, shrinkage)
        z = validation @ kernel + bias
        scores[shrinkage] = np.mean([overlap_by_hand(z[:, :width], validation, 10) for width in (3, 6)])
    assert len(set(scores.values())) > 1
    dataset.labels[:] = np.random.default_rng(0).permutation(dataset.labels)  # nobody looks at them
    folds = held_out.HeldOutFolds(dataset, uses_labels=False)
    chosen = selection.choose_start(config_of(start="local", power=1, widths=[3, 6]).head, dataset, folds)
    assert scores[chosen.shrinkage] == pytest.approx(max(scores.values()))


@pytest.mark.parametrize("start", ["identity", "pca", "lda"])
def test_the_power_is_the_best_over_the_halves(dataset, start):
    scores = []
    for power in (1.0, 0.5):
        powered = np.sign(dataset.features) * np.abs(dataset.features) ** power
        powered /= np.linalg.norm(powered, axis=1, keepdims=True)
        of_folds = []
        for fold in halves(dataset):
            rest = np.setdiff1d(np.arange(54), fold)
            if start == "identity":
                kernel, bias = np.eye(20)[:, :6], 0
            elif start == "pca":
                kernel, bias = reference_starts.pca(powered[rest], 6)
            else:
                kernel, bias = reference_starts.lda(powered[rest], dataset.labels[rest], 6, 0.4)
            of_folds.append(evaluate_retrieval(powered[fold] @ kernel + bias, dataset.labels[fold])["map_at_r"])
        scores.append(np.mean(of_folds))
    assert scores[0] != scores[1]
    chosen = selection.choose_start(config_of(start=start, shrinkage=0.4, weighting=0.5, total_share=0).head, dataset)
    assert chosen.power == (1.0, 0.5)[int(np.argmax(scores))]


def test_choosing_for_several_heads_sums_and_scores_once(dataset, monkeypatch):
    summed, scored = [], []
    of_dataset, score = chosen_head.closed_forms_of, held_out.score_queries
    monkeypatch.setattr(
        held_out, "closed_forms_of", lambda *args, **how: summed.append(args[2]) or of_dataset(*args, **how)
    )
    monkeypatch.setattr(held_out, "score_queries", lambda *args, **how: scored.append(1) or score(*args, **how))
    folds = held_out.HeldOutFolds(dataset)
    heads = [config_of(start=start).head for start in ("auto", "lda", "nda", "auto")]
    chosen = [selection.choose_start(head, dataset, folds) for head in heads]
    assert chosen == [selection.choose_start(head, dataset) for head in heads]
    assert chosen[0] == chosen[3]
    alone = len(scored)
    summed.clear(), scored.clear()
    for head in heads:
        selection.choose_start(head, dataset, folds)
    assert alone > len(scored) == len(summed) == 0
    selection.choose_start(config_of(start="nda", embedding_dim=4).head, dataset, folds)
    assert not summed


def test_few_classes_are_held_out_by_halves_and_many_by_one_fold(dataset, monkeypatch):
    folds = [fold.splits for fold in held_out.HeldOutFolds(dataset).folds]
    for splits, half in zip(folds, halves(dataset), strict=True):
        np.testing.assert_array_equal(splits.validation, np.sort(half))
        np.testing.assert_array_equal(splits.train, np.setdiff1d(np.arange(54), half))
    monkeypatch.setattr(held_out, "ENOUGH_CLASSES", 3)
    assert held_out.HeldOutFolds(dataset).folds == [dataset]


def test_large_folds_are_scored_by_some_of_their_classes(dataset, monkeypatch):
    monkeypatch.setattr(held_out, "MAX_SCORED_ITEMS", 12)
    fold = dataset.splits.folds[0]
    some = held_out.some_classes(fold, dataset.labels)
    assert len(some) == 12
    assert set(some) < set(fold)
    assert len(np.unique(dataset.labels[some])) == 2
    monkeypatch.setattr(held_out, "MAX_SCORED_ITEMS", 1000)
    assert list(held_out.some_classes(fold, dataset.labels)) == list(fold)


def test_what_a_sample_of_the_queries_puts_far_behind_is_not_asked_about_all(dataset, monkeypatch):
    head = config_of(start="auto", power=1).head
    every = selection.choose_start(head, dataset)
    monkeypatch.setattr(held_out, "MIN_SAMPLE", 5)
    monkeypatch.setattr(held_out, "SAMPLE_SHARE", 2)
    monkeypatch.setattr(selection, "FAR", 1.0)
    asked = []
    score = held_out.score_queries

    def listen(*args, chosen=None):
        asked.append(chosen)
        return score(*args, chosen=chosen)

    monkeypatch.setattr(held_out, "score_queries", listen)
    found = selection.choose_start(head, dataset)
    all_queries, samples = [c for c in asked if c is None], [c for c in asked if c is not None]
    assert len(samples) == 2 * 68  # starts and folds
    assert {len(sample) for sample in samples} == {9, 18}  # halves of the folds
    assert 2 < len(all_queries) < len(samples)
    same = [found.tried[s][a] == every.tried[s][a] for s in found.tried for a in found.tried[s]]
    assert any(same)
    assert not all(same)
    assert found.tried[found.start][str(found.shrinkage)] == every.tried[found.start][str(found.shrinkage)]
    assert list(found.tried) == list(every.tried)


def test_what_the_config_gives_stays(dataset):
    chosen = selection.choose_start(config_of(start="lda", shrinkage=0.45, power=0.7).head, dataset)
    assert (chosen.start, chosen.shrinkage, chosen.power) == ("lda", 0.45, 0.7)
    assert selection.choose_start(config_of(start="pca").head, dataset).start == "pca"
    assert selection.choose_start(config_of(start="random").head, dataset).power == 1


@pytest.mark.parametrize("start", ["identity", "pca", "whiten", "lda", "nda"])
def test_a_model_starts_at_its_closed_form(dataset, start):
    train = dataset.splits.train
    config = config_of(start=start, shrinkage=0.4, weighting=0.5, total_share=0.2, power=1)
    model = phases.start_model(config, dataset, None, train)
    unit = (dataset.features / np.linalg.norm(dataset.features, axis=1, keepdims=True))[train]
    labels = dataset.labels[train]
    if start == "identity":
        z = unit[:, :6]
    elif start == "pca":
        kernel, bias = reference_starts.pca(unit, 6)
        z = unit @ kernel + bias
    else:
        arguments = (0.4,) if start == "whiten" else (0.4, 0.5, 0.2)
        kernel, bias = getattr(reference_starts, start)(unit, labels, 6, *arguments)
        z = unit @ kernel + bias
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    embeddings = model.head(unit).numpy()
    np.testing.assert_allclose(embeddings @ embeddings.T, z @ z.T, atol=1e-3)


@pytest.mark.parametrize(("epochs", "until"), [(4, 4), (10, 10), (20, 10)])
def test_the_rate_grows_by_a_constant_factor(epochs, until, dataset):
    config = config_of()
    config = config.model_copy(update={"training": config.training.model_copy(update={"epochs": epochs})})
    model = phases.start_model(config, dataset, None, dataset.splits.train)
    steps = until * 2  # 36 items of 6 classes: two batches of 6 x 4
    rates = np.array([float(model.optimizer._learning_rate(step)) for step in range(steps + 1)])
    assert rates[0] == pytest.approx(config.training.learning_rate / 30, rel=1e-4)
    assert rates[-1] == pytest.approx(config.training.learning_rate, rel=1e-4)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 30 ** (1 / steps), rtol=1e-4)
    beyond = float(model.optimizer._learning_rate(2 * steps))
    assert beyond == pytest.approx(30 * config.training.learning_rate, rel=1e-4)  # and on at the same pace


@pytest.mark.parametrize("memory_size", [40, 20, 0])
def test_items_alone_in_their_class_are_drawn_only_where_the_memory_does_not_hold_them(dataset, memory_size, caplog):
    config = config_of(start="pca", power=1)
    config = config.model_copy(update={"memory": config.memory.model_copy(update={"memory_size": memory_size})})
    dataset.sample_ids[30:33] = dataset.sample_ids[30]  # an item and its views
    positions = np.r_[0:25, 30:33]  # four classes of six items, and two of one
    holds_all = memory_size == 40
    with caplog.at_level("INFO", "xbm_keras"):
        model = phases.start_model(config, dataset, None, positions)
    assert ("2 items alone in their class" in caplog.text) == holds_all
    sampler = phases.make_sampler(config, dataset.labels[positions], dataset.sample_ids[positions])
    assert sampler.num_items == (24 if holds_all else 28)
    if holds_all:
        assert set(dataset.sample_ids[positions]) == set(model.memory.sample_ids.numpy())


@pytest.mark.parametrize(("num_steps", "of_call"), [(12, 12), (34, 2)])
def test_several_steps_of_a_call_are_the_same_steps(dataset, num_steps, of_call, monkeypatch):
    config = config_of(start="pca", power=1)
    training = config.training.model_copy(update={"steps_per_epoch": num_steps, "batch_size": 12})
    top_k = config.top_k.model_copy(update={"mine_in": "embeddings"})  # no bar of a neighbour table
    config = config.model_copy(update={"training": training, "top_k": top_k})
    kernels, calls, advances = [], [], []
    monkeypatch.setattr(phases.progress.Bar, "advance", lambda bar, count=1, note=None: advances.append(count))
    for most in (phases.MAX_STEPS_OF_CALL, 1):
        monkeypatch.setattr(phases, "MAX_STEPS_OF_CALL", most)
        model = phases.start_model(config, dataset, None, np.arange(54))
        advances.clear()  # those of the prefill
        note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: calls.append(batch))
        phases.fit(config, dataset, model, np.arange(54), 2, [note])
        kernels.append(model.head.kernel.numpy())
        assert int(model.optimizer.iterations) == sum(advances) == 2 * num_steps
    np.testing.assert_array_equal(*kernels)
    assert calls == 2 * [*range(of_call - 1, num_steps, of_call)] + 2 * [*range(num_steps)]


def test_folds_hold_out_other_items(dataset):
    first, *others = held_out.held_out(dataset, 4)
    assert first is dataset
    assert [list(fold.splits.validation) for fold in others] == [list(range(18)), list(range(18, 36))]
    for fold in others:
        assert sorted([*fold.splits.train, *fold.splits.validation]) == list(range(54))
        assert fold.splits.test is dataset.splits.test
    assert len(held_out.held_out(dataset, 2)) == 2
    assert held_out.held_out(dataset, 1) == [dataset]


def test_the_epoch_is_the_best_on_the_mean_over_folds():
    assert selection.best_epoch([[0.5, 0.6, 0.4], [0.5, 0.3, 0.9]]) == 2
    assert selection.best_epoch([[0.5, 0.6], [0.5, 0.5, 0.7, 0.4]]) == 2  # the first fold stays at 0.6
    assert selection.best_epoch([[0.5, 0.5]]) == 0
    assert selection.best_epoch([[]]) == 0


def test_of_several_folds_the_simplest_epoch_within_two_standard_errors_counts():
    folds = [[0.50, 0.56, 0.57], [0.40, 0.46, 0.48], [0.60, 0.66, 0.675]]
    assert selection.best_epoch(folds) == 2
    assert selection.best_epoch(folds, simplest=True) == 2  # 0.015 farther on average, with an error of 0.003
    folds[2][2] = 0.66
    assert selection.best_epoch(folds, simplest=True) == 1  # 0.010, with an error of 0.006
    assert selection.best_epoch(folds[:1], simplest=True) == 2
    assert selection.best_epoch([[0.5, 0.5], [0.4, 0.4]], simplest=True) == 0


@pytest.mark.parametrize("storage_dtype", ["float32", "float16", "int8"])
def test_rows_that_are_searched_once_train_as_those_that_each_step_searches(dataset, storage_dtype, monkeypatch):
    config = config_of(start="pca", power=1.0)
    changes = {
        "top_k": {"mine_in": "features", "num_negatives": 5},
        "memory": {"storage_dtype": storage_dtype},
        "training": {"batch_size": 16},
    }
    config = config.model_copy(update={name: getattr(config, name).model_copy(update=c) for name, c in changes.items()})
    models = []
    for is_known in (True, False):
        if not is_known:
            monkeypatch.setattr(phases, "know_neighbors", lambda *arguments: None)
        model = phases.start_model(config, dataset, None, dataset.splits.train)
        phases.fit(config, dataset, model, dataset.splits.train, 3, show_progress=False)
        assert (model.top_k.table is not None) == is_known
        models.append(model)
    assert_same_training(*models)


def test_ctrl_c_while_neighbours_are_searched_leaves_the_best_head_so_far(dataset, monkeypatch):
    class Restored:
        def restore(self, model, best):
            best.restore(1, [0.1, 0.2], [np.full(weight.shape, 7.0) for weight in model.head.get_weights()])
            return 1

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(phases, "know_neighbors", killed)
    config = config_of(start="pca", power=1.0)
    model = phases.start_model(config, dataset, None, dataset.splits.train)
    with pytest.raises(phases.Interrupted) as interrupted:
        phases.select(config, dataset, model, checkpoints=Restored())
    assert interrupted.value.epoch == 1
    assert (model.head.get_weights()[0] == 7.0).all()
