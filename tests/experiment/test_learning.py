"""Would more classes help: the chosen closed form by the number of training classes."""

import re
import threading

import numpy as np
import pytest

from tests import reference_starts
from xbm_keras.config.yaml_files import check_config
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.splits import Splits
from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.evaluation.retrieval import evaluate_retrieval, score_queries
from xbm_keras.experiment import learning
from xbm_keras.report.learning_curve import LearningCurve, section
from xbm_keras.stages.head.neighbor_scatter import BLAS

C, K, D = 40, 5, 12
TRAIN = np.arange(24 * K)
CONFIG = check_config(
    {"data": {"source": "features", "path": "x.npz"}, "backbone": {"kind": "none"}, "head": {"embedding_dim": 6}}, "x"
)
CHOSEN = {
    "start": "lda", "power": 1.0, "shrinkage": 0.4, "weighting": 0.5, "total_share": 0.0,
    "views": 1, "turned_classes": False,
}  # fmt: skip


def dataset_of(train=TRAIN, views=()):
    """Noise in some directions, which a form of many classes learns to leave out."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(C, D)), K, axis=0) + rng.normal(size=(C * K, D)) * np.linspace(0.2, 3, D)
    labels, ids = np.repeat(np.arange(C), K), np.arange(C * K)
    splits = Splits(train, np.arange(24 * K, 32 * K), np.arange(32 * K, C * K))
    views = np.asarray(views, int)
    features = np.concatenate([features, features[views] + rng.normal(size=(len(views), D))]).astype(np.float32)
    ids_of_all = np.append(ids, C * K + np.arange(len(views)))
    rows = C * K + np.arange(len(views))
    given = (splits, {}, 0, None, ids, rows, views)
    return Dataset(features, np.append(labels, labels[views]), [*range(C)], ids_of_all, ids.astype(str), *given)


def scores_by_hand(dataset, used):
    """MAP@R of the validation items under the form of these rows, and their classes."""
    unit = dataset.features / np.linalg.norm(dataset.features, axis=1, keepdims=True)
    kernel, bias = reference_starts.lda(unit[used], dataset.labels[used], 6, 0.4)
    held = dataset.splits.validation
    order, found = score_queries(unit[held] @ kernel + bias, dataset.labels[held])
    return found["map_at_r"], dataset.labels[held][order]


def test_all_classes_give_the_closed_form_and_some_give_less():
    dataset = dataset_of()
    curve = learning.class_learning_curve(CONFIG, dataset, CHOSEN)
    assert list(curve.scores) == [2, 5, 12, 24]
    full, classes = scores_by_hand(dataset, TRAIN)
    half_of_them = np.random.default_rng(0).permutation(24)[:12]
    half, _ = scores_by_hand(dataset, TRAIN[np.isin(dataset.labels[TRAIN], half_of_them)])
    assert curve.scores[24] == pytest.approx(full.mean(), abs=1e-6)
    assert curve.scores[12] == pytest.approx(half.mean(), abs=1e-6)
    assert curve.scores[2] < curve.scores[24]
    held = dataset.splits.validation
    frozen = evaluate_retrieval(dataset.features[held], dataset.labels[held])["map_at_r"]
    assert curve.frozen == pytest.approx(frozen, abs=1e-6)
    assert curve.doubling == pytest.approx(bootstrap_interval(full - half, classes), abs=1e-6)


def test_a_head_whose_width_nobody_told_is_as_wide_as_the_features():
    auto, own = (
        CONFIG.model_copy(update={"head": CONFIG.head.model_copy(update={"embedding_dim": dim})}) for dim in ("auto", D)
    )
    dataset = dataset_of()
    scores = learning.class_learning_curve(auto, dataset, CHOSEN).scores
    assert scores == learning.class_learning_curve(own, dataset, CHOSEN).scores
    assert scores != learning.class_learning_curve(CONFIG, dataset, CHOSEN).scores


def test_views_that_were_chosen_take_part():
    dataset = dataset_of(views=TRAIN)
    with_views = learning.class_learning_curve(CONFIG, dataset, {**CHOSEN, "views": 2})
    used = np.append(TRAIN, dataset.view_rows)
    assert with_views.scores[24] == pytest.approx(scores_by_hand(dataset, used)[0].mean(), abs=1e-6)
    without = learning.class_learning_curve(CONFIG, dataset, CHOSEN)
    assert without.scores[24] == pytest.approx(scores_by_hand(dataset, TRAIN)[0].mean(), abs=1e-6)


def test_there_is_none_of_few_classes_or_a_random_start():
    assert learning.class_learning_curve(CONFIG, dataset_of(), {**CHOSEN, "start": "random"}) is None
    assert learning.class_learning_curve(CONFIG, dataset_of(TRAIN[: 9 * K]), CHOSEN) is None


def test_parts_that_give_no_form_are_left_out():
    one_each = np.concatenate([TRAIN[: 12 * K], TRAIN[12 * K :: K]])  # the others have one item, and no variation
    curve = learning.class_learning_curve(CONFIG, dataset_of(one_each), CHOSEN)
    assert list(curve.scores)[-1] == 24
    assert learning.class_learning_curve(CONFIG, dataset_of(TRAIN[::K]), CHOSEN) is None


@pytest.mark.parametrize(
    ("scores", "doubling", "said"),
    [
        ({5: 0.5, 10: 0.625}, (0.1, 0.15), r"\+0.125 .* It still rises: more classes would likely help."),
        ({5: 0.5, 10: 0.51}, (-0.01, 0.03), "of 5 training classes gives 0.500.* No sure gain by the last classes."),
        ({5: 0.5, 10: 0.5004}, (0.0, 0.001), "hardly depends on the number of classes"),
    ],
)
def test_what_a_curve_says(scores, doubling, said):
    curve = LearningCurve(scores, 0.4, doubling, "MAP@R", "classes")
    page = section(curve, "lda")
    assert page.title == "Would more classes help"
    (paragraph, _, note) = page.blocks
    assert re.search(said, paragraph.text)
    assert "the form is lda" in note.text


def test_meanwhile():
    """The block goes on while it is made, gets what it came to, or its error, and stops it where it ends itself."""
    begun, ended = threading.Event(), []

    def make(value, stopped):
        begun.set()
        if value > 5:
            ended.append(stopped.wait(30))
            raise learning.Stopped
        return 10 // value

    threads = BLAS.info()
    with pytest.raises(KeyError), learning.meanwhile(make, 6):
        raise KeyError(begun.wait(30))
    assert ended == [True]
    assert BLAS.info() == threads
    with learning.meanwhile(make, 5) as made:
        assert made() == 2
    with pytest.raises(ZeroDivisionError), learning.meanwhile(make, 0) as made:
        made()


def test_a_curve_that_is_no_longer_wanted_ends_before_its_next_closed_form(monkeypatch):
    stopped, scored = threading.Event(), []

    def score(some):
        scored.append(len(some))
        if stopped.is_set():
            raise learning.Stopped
        stopped.set()
        return np.ones(3)

    with pytest.raises(learning.Stopped):
        learning.curve_of(np.arange(100), score, np.ones(3), "MAP@R", "classes")
    assert scored == [5, 10]
