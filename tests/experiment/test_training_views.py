"""Views of training pictures: which are made, what they are called, and whether a run takes them."""

import re

import keras
import numpy as np
import pytest
import yaml

from tests import reference_starts
from tests.cli.runs import run
from xbm_keras.config.yaml_files import check_config
from xbm_keras.data import dataset
from xbm_keras.data.splits import Splits
from xbm_keras.data.views import augment, turn
from xbm_keras.evaluation import wording
from xbm_keras.evaluation.retrieval import evaluate_retrieval
from xbm_keras.experiment import build, chosen_head, loading, selection
from xbm_keras.tuning import load_data

NUM_CLASSES, PER_CLASS, SIZE = 12, 5, 8


@pytest.fixture
def values(tmp_path):
    """A config of small pictures: features are the colour at the top left, so that crops and turns give others."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
    images = rng.integers(0, 255, (NUM_CLASSES, SIZE, SIZE, 3))[labels] + rng.integers(-9, 9, (60, SIZE, SIZE, 3))
    images = np.clip(images, 0, 255).astype(np.uint8)
    roles = np.where(labels < 8, "train", "test")
    np.savez(tmp_path / "pictures.npz", images=images, label=labels, split=roles)
    network = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Cropping2D(((0, 7), (0, 7)))])
    network.save(tmp_path / "net.keras")
    return {
        "data": {"source": "image_array", "path": f"{tmp_path}/pictures.npz", "split": {"column": "split"}},
        "backbone": {"kind": "file", "path": f"{tmp_path}/net.keras", "image_size": [SIZE, SIZE]},
        "cache": {"dir": f"{tmp_path}/cache"},
        "head": {"embedding_dim": 2},
        "training": {"epochs": 1, "folds": 1, "batch_size": 8, "samples_per_class": 2},
    }


def load(values, **views):
    """Config, items, and the items with the views that are to be tried."""
    config = check_config({**values, "views": views}, "x.yaml")
    backbone = build.make_backbone(config)
    dataset = loading.load_dataset(config, backbone)
    return config, dataset, loading.with_training_views(config, dataset, backbone)


def test_views_are_of_training_pictures_and_turned_ones_are_classes_of_their_own(values):
    _, plain, dataset = load(values, number=3, turned_classes=True)
    train = np.union1d(plain.splits.train, plain.splits.validation)
    assert len(train) == 40
    np.testing.assert_array_equal(dataset.view_origins, np.tile(train, 5))
    np.testing.assert_array_equal(dataset.view_rows, 60 + np.arange(200))
    assert dataset.num_computed == 260
    changes = [lambda x: augment(x, 1), lambda x: augment(x, 2), *(lambda x, q=q: turn(x, q) for q in (1, 2, 3))]
    for row, origin in zip(dataset.view_rows, dataset.view_origins, strict=True):
        number = (row - 60) // 40
        (picture,) = plain.source.read([origin], lambda picture: picture)
        changed = keras.ops.image.resize(changes[number](picture).astype(np.float32), (SIZE, SIZE))
        np.testing.assert_allclose(dataset.features[[row]][0], np.array(changed)[0, 0], atol=0.51)
        assert dataset.labels[row] == plain.labels[origin] + NUM_CLASSES * max(0, number - 1)
    np.testing.assert_array_equal(dataset.sample_ids[:60], plain.sample_ids)
    assert len(np.unique(dataset.sample_ids)) == 260  # else of all views of a picture one row of the memory counts
    np.testing.assert_array_equal(dataset.features[np.arange(60)], plain.features[np.arange(60)])
    assert load(values, number=3, turned_classes=True)[2].num_computed == 0


def test_views_train_beside_their_items(values):
    _, plain, dataset = load(values, number=2, turned_classes=True)
    some = plain.splits.train[:3]
    of_some = dataset.with_views(some)
    assert len(of_some) == 3 * 5
    np.testing.assert_array_equal(of_some[:3], some)
    np.testing.assert_array_equal(dataset.with_views(plain.splits.test), plain.splits.test)
    np.testing.assert_array_equal(plain.with_views(some), some)
    for augmented, turned in ((True, False), (False, True), (False, False)):
        kept = dataset.keeping_views(augmented, turned)
        assert len(kept.with_views(some)) == 3 * (1 + augmented + 3 * turned)
        assert (kept.labels[kept.with_views(some)] >= NUM_CLASSES).any() == turned


def test_a_view_without_features_is_left_out(values, tmp_path):
    with np.load(tmp_path / "pictures.npz") as data:
        arrays = dict(data)
    arrays["images"][7, 0, -1] = 99  # grey, and at the top left once it is turned
    np.savez(tmp_path / "pictures.npz", **arrays)
    _, plain, dataset = load(values, number=1, turned_classes=True)
    assert len(plain.keys) == 60
    assert not dataset.skipped
    expected = np.setdiff1d(np.arange(120), [7])
    np.testing.assert_array_equal(dataset.view_origins, np.tile(np.arange(40), 3)[expected])
    assert len(dataset.labels) == len(dataset.features) == len(dataset.sample_ids) == 60 + 119


def test_what_auto_tries(values, monkeypatch, caplog):
    caplog.set_level("INFO", "xbm_keras")

    def num_views(values, **views):
        return len(load(values, **views)[2].view_rows) // 40

    assert num_views(values) == 5
    assert "Views of 40 training pictures: 5 more passes of the network over them; views.number=1 and" in caplog.text
    assert num_views(values, number=4) == 6
    assert num_views(values, turned_classes=False) == 2
    assert num_views(values, number=1) == 3
    without = {**values, "loss": {"name": "similarity_alignment"}, "training": {"batch_size": 8}}
    assert num_views(without) == 0
    assert num_views(without, number=2) == 1
    monkeypatch.setattr(loading, "MAX_TRIED", 39)
    assert num_views(values) == 0
    assert "Views of 40 training pictures: more than 39 are viewed where views.number and" in caplog.text
    caplog.clear()
    assert num_views(values, number=2, turned_classes=True) == 4
    assert "Views of" not in caplog.text  # the user knows


def made_up(seed):
    """Items in noisy directions, with two augmented views of each and one turn, which may or may not help."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(12), 6)
    centers = np.repeat(rng.normal(size=(12, 20)), 6, axis=0)
    noise = np.linspace(0.2, 3, 20)
    copies = [centers + rng.normal(size=(72, 20)) * noise for _ in range(3)]
    turned = np.repeat(rng.normal(size=(12, 20)) * rng.choice([0.3, 2]), 6, axis=0) + rng.normal(size=(72, 20)) * noise
    ids, train = np.arange(72), np.arange(54)
    splits = Splits(ids[:36], ids[36:54], ids[54:], folds=(ids[36:54], ids[:18], ids[18:36]))
    features = np.concatenate([copies[0], copies[1][:54], copies[2][:54], turned[:54]]).astype(np.float32)
    origins = np.tile(train, 3)
    all_labels = np.concatenate([labels, labels[train], labels[train], 12 + labels[train]])
    rows = 72 + np.arange(162)
    given = (splits, {}, 0, None, ids, rows, origins)
    return dataset.Dataset(features, all_labels, [*range(12)], np.append(ids, origins), ids.astype(str), *given)


def config_of(head, **views):
    values = {"source": "features", "path": "x.npz"}
    fixed = {"start": "lda", "shrinkage": 0.4, "weighting": 0.5, "total_share": 0, "power": 1, **head}
    config = check_config({"data": values, "backbone": {"kind": "none"}}, "x.yaml")
    head = chosen_head.HeadChoice(embedding_dim=6, **fixed)
    return config.model_copy(update={"head": head, "views": config.views.model_copy(update=views)})


def scores_by_hand(dataset):
    """MAP@R over both halves of the training classes by (views, turned classes)."""
    unit = dataset.features / np.linalg.norm(dataset.features, axis=1, keepdims=True)
    first, *others = dataset.splits.folds
    scores = {}
    for views, turned in ((1, False), (1, True), (3, False), (3, True)):
        kinds = [range(72, 72 + 108)] * (views > 1) + [range(72 + 108, 234)] * turned
        rows = np.array([row for kind in kinds for row in kind], int)
        of_folds = []
        for fold in (first, np.concatenate(others)):
            rest = np.setdiff1d(np.arange(54), fold)
            used = np.append(rest, rows[np.isin(np.tile(np.arange(54), 3)[rows - 72], rest)])
            kernel, bias = reference_starts.lda(unit[used], dataset.labels[used], 6, 0.4)
            z = unit[fold] @ kernel + bias
            of_folds.append(evaluate_retrieval(z, dataset.labels[fold])["map_at_r"])
        scores[views, turned] = np.mean(of_folds)
    return scores


def test_held_out_classes_choose_the_views():
    chosen_ones = set()
    for seed in range(6):
        dataset = made_up(seed)
        config, chosen = selection.choose(config_of({}), dataset)
        scores = scores_by_hand(dataset)
        way = config.views.number, config.views.turned_classes
        assert scores[way] == pytest.approx(max(scores.values()))
        expected = dataset.keeping_views(way[0] > 1, way[1])
        np.testing.assert_array_equal(chosen.view_rows, expected.view_rows)
        chosen_ones.add(way)
    assert len(chosen_ones) >= 3


def test_what_is_given_is_not_chosen():
    for seed in range(3):
        dataset = made_up(seed)
        scores = scores_by_hand(dataset)
        for views, turned in scores:
            config, chosen = selection.choose(config_of({}, number=views, turned_classes=turned), dataset)
            assert (config.views.number, config.views.turned_classes) == (views, turned)
            assert len(chosen.view_rows) == 108 * (views > 1) + 54 * turned
        config, _ = selection.choose(config_of({}, number=1), dataset)
        assert config.views.number == 1
        assert config.views.turned_classes == (scores[1, True] > scores[1, False])


def test_the_head_is_chosen_again_for_the_views():
    """Not the one that was best without them."""
    differ = 0
    for seed in range(2):
        dataset = made_up(seed)
        head = config_of({"start": "auto", "shrinkage": "auto", "weighting": "auto", "total_share": "auto"}).head
        config, chosen = selection.choose(config_of(head.model_dump(exclude={"embedding_dim"})), dataset)
        assert config.head == selection.choose_start(head, chosen)
        differ += config.head != selection.choose_start(head, dataset.keeping_views(False, False))
    assert differ


def test_a_random_start_has_no_views_to_choose():
    config, chosen = selection.choose(config_of({"start": "random"}), made_up(0))
    assert (config.views.number, config.views.turned_classes) == (1, False)
    assert not len(chosen.view_rows)


def test_a_run_trains_on_views_and_tests_without(values, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(values))
    metrics = {}
    for name, num_views, turned in (("plain", 1, False), ("views", 2, True)):
        overrides = [f"views.number={num_views}", f"views.turned_classes={str(turned).lower()}"]
        metrics[name] = run(tmp_path / "x.yaml", tmp_path / name, *overrides, report=turned)
        rows = keras.saving.load_model(tmp_path / name / "model.keras").memory.read()
        assert np.count_nonzero(rows.is_valid) == 40 * (5 if name == "views" else 1)
        assert metrics[name]["validation"]["views"] == num_views
        assert metrics[name]["validation"]["turned_classes"] == turned
        said = (tmp_path / name / "export/1/model_card.md").read_text("utf-8")
        said += (tmp_path / name / "report.html").read_text("utf-8") if turned else ""
        assert said.count(", each with 1 augmented view and 3 turns as classes of their own") == 2 * turned
    assert "200 rows, float32" in said
    told = capsys.readouterr().out
    assert "1 of 6: features\n2 of 6: start and epoch, by what is held out\n" in told
    assert "1 of 8: features\n2 of 8: views of training pictures\n3 of 8: start and epoch, by" in told
    assert re.findall(r"(\d) of [68]: ", told) == [*"123456", *"12345678"]
    plain, views = (metrics[name]["leave_one_out"] for name in ("plain", "views"))
    assert plain["frozen"] == views["frozen"]
    assert plain["closed_form"] != views["closed_form"]


@pytest.mark.parametrize(
    ("num_views", "turned", "expected"),
    [
        (1, False, ""),
        (3, False, ", each with 2 augmented views"),
        (1, True, ", each with 3 turns as classes of their own"),
    ],
)
def test_what_is_said_of_views(num_views, turned, expected):
    assert wording.views({"views": num_views, "turned_classes": turned}) == expected


def test_a_search_chooses_views_once(values):
    given = check_config(values, "x.yaml")
    config, dataset = load_data(given, build.make_backbone(given))
    assert config.views.number in (1, 3)
    assert config.views.turned_classes in (True, False)
    expected = 2 * (config.views.number > 1) + 3 * config.views.turned_classes
    assert len(dataset.view_rows) == 40 * expected
    again, same = selection.choose(config, dataset)
    assert again.views == config.views
    np.testing.assert_array_equal(same.view_rows, dataset.view_rows)
