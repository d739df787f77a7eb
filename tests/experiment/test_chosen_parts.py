"""Which parts of a network's features a run takes."""

import itertools

import keras
import numpy as np
import pytest

from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.evaluation.retrieval import score_queries
from xbm_keras.experiment import build, chosen_parts
from xbm_keras.experiment.fitting import fit_head
from xbm_keras.experiment.loading import dataset_of, with_training_views
from xbm_keras.feature_cache.cache import compute_features, fingerprint
from xbm_keras.stages.backbone.choices import choices_of
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.stages.head.starts import ClosedForms
from xbm_keras.tuning import load_data

PARTS = ("class", "patches")
WANTED = (("class", "patches"), ("class",), ("patches",))
TOLD_BY, NOISE = slice(0, 6), slice(6, 12)  # rows of the pictures


def network_of(told_by):
    """Gives rows of a picture [12, 8, 3] as "class" and the others as "patches", [B, 16] each."""
    rows = {"class": TOLD_BY, "patches": NOISE} if told_by == "class" else {"class": NOISE, "patches": TOLD_BY}
    picture = keras.Input((12, 8, 3))
    mean = {name: keras.layers.Flatten(name=f"{name}_flat")(picture[:, where, :, :2]) for name, where in rows.items()}
    return picture, {name: keras.layers.Dense(16, name=name)(x) for name, x in mean.items()}


def backbone_of(told_by):
    """Of these two parts, which a run may take alone or together; the classes are told apart by one of them."""
    keras.utils.set_random_seed(0)
    inputs, outputs = network_of(told_by)

    def make(parts):
        return Backbone(keras.Model(inputs, [outputs[name] for name in parts]), None, (12, 8))

    backbone = make(PARTS)
    backbone.choices = choices_of(PARTS, [16, 16], WANTED, make)
    return backbone


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Of 32 classes with their own upper half, and noise below."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(32), 4)
    of_class = rng.uniform(0, 255, (32, 6, 8, 3))[labels]
    upper = of_class + rng.normal(size=of_class.shape) * 60
    images = np.concatenate([upper, rng.uniform(0, 255, of_class.shape)], axis=1)
    path = tmp_path_factory.mktemp("pictures") / "x.npz"
    np.savez(path, images=np.clip(images, 0, 255).astype(np.uint8), label=labels)
    return path


@pytest.fixture
def config(pictures, tmp_path):
    def make(**others):
        data = {"source": "image_array", "path": str(pictures)}
        values = {"data": data, "backbone": {"kind": "keras_hub", "preset": "x"}, "cache": {"dir": str(tmp_path)}}
        return Config.model_validate({**values, "head": {"embedding_dim": 8}, **others})

    return make


def loaded(config, backbone, views=False):
    data = dataset_of(build.make_source(config), config, backbone)
    return with_training_views(config, data, backbone) if views else data


def test_the_maps_of_a_convolutional_network_are_chosen_in_the_same_way(config):
    backbone = backbone_of("patches")
    given = config(backbone={"kind": "keras_applications", "name": "MobileNetV2"})
    assert given.backbone.layers == "auto"
    chosen, data, _ = chosen_parts.choose_parts(given, loaded(given, backbone), backbone)
    assert chosen.backbone.layers == ["patches"]
    assert data.parts.chosen == ("patches",)
    assert build.leaves_parts_open(given)
    assert not build.leaves_parts_open(chosen)
    without = config(
        backbone={"kind": "keras_applications", "name": "MobileNetV2"}, loss={"name": "similarity_alignment"}
    )
    assert without.backbone.layers == "last"


def test_classes_that_are_told_by_what_is_where_take_maps_in_cells(tmp_path):
    """Each class has the same four colours, in an order of its own, and the middle of the pictures is noise."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    fine = keras.layers.Conv2D(6, 3, 2, padding="same")(inputs)
    keras.Model(inputs, keras.layers.Conv2D(7, 3, 2, padding="same")(fine)).save(tmp_path / "network.keras")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 5)
    colours = rng.uniform(0, 255, (4, 3))[np.array(list(itertools.permutations(range(4))))[labels]]
    images = np.repeat(np.repeat(colours.reshape(-1, 2, 2, 3), 8, axis=1), 8, axis=2)
    images[:, 6:10, 6:10] = rng.uniform(0, 255, (120, 4, 4, 3))
    np.savez(tmp_path / "x.npz", images=images.astype(np.uint8), label=labels)
    network = {"kind": "file", "path": str(tmp_path / "network.keras"), "image_size": [16, 16], "layers": "auto"}
    data, cache = {"source": "image_array", "path": str(tmp_path / "x.npz")}, {"dir": str(tmp_path / "cache")}
    given = Config.model_validate(
        {"data": data, "backbone": network, "cache": cache, "head": {"embedding_dim": 4, "shrinkage": 0.3}}
    )
    backbone = build.make_whole_backbone(given)
    chosen, dataset, narrow = chosen_parts.choose_parts(given, loaded(given, backbone), backbone)
    assert all(name.endswith("/2x2") for name in dataset.parts.chosen)
    scores = {name: score for name, score in dataset.parts.scores.items() if "2x2" not in name}
    assert dataset.parts.scores[" + ".join(dataset.parts.chosen)] > max(scores.values()) + 0.2
    # The config opens the same network again.
    again = build.make_backbone(chosen)
    assert fingerprint(again) == fingerprint(narrow)
    np.testing.assert_array_equal(again(images[:2]), narrow(images[:2]))


@pytest.mark.parametrize("told_by", PARTS)
def test_the_parts_that_tell_held_out_classes_apart_are_taken(config, told_by):
    backbone = backbone_of(told_by)
    given = config()
    whole = loaded(given, backbone)
    chosen, data, narrow = chosen_parts.choose_parts(given, whole, backbone)
    assert data.parts.chosen == (told_by,)
    assert list(data.parts.scores) == ["class", "patches", "class + patches"]  # the narrowest come first
    other = next(name for name in PARTS if name != told_by)
    assert data.parts.scores[told_by] > data.parts.scores[other] + 0.3
    assert chosen.backbone.parts == [told_by]
    assert chosen.model_copy(update={"backbone": given.backbone}) == given
    columns = np.arange(16) + 16 * PARTS.index(told_by)
    np.testing.assert_array_equal(data.features[:], whole.features[:][:, columns])
    raw = narrow(np.stack([data.source.load(int(i)) for i in data.source_positions]).astype(np.float32)).numpy()
    np.testing.assert_allclose(data.features[:], raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-5)
    # What else runs by that network finds its features.
    source = build.make_source(given)
    assert compute_features(source, narrow, given.cache.dir, **given.cache.arguments()).num_computed == 0


def test_the_narrowest_within_one_standard_error_of_the_best(config, monkeypatch):
    backbone, given = backbone_of("class"), config()
    whole = loaded(given, backbone)
    rng = np.random.default_rng(0)
    best = rng.uniform(0.5, 0.9, 12)
    lacking = rng.normal(size=12)
    lacking = (lacking - lacking.mean()) / lacking.std(ddof=1) * 0.1  # a standard error of 0.1 / sqrt(12)
    for share, expected in ((0.9, ("class",)), (1.1, ("class", "patches"))):
        found = {16: best - lacking - share * 0.1 / np.sqrt(12), 32: best}
        monkeypatch.setattr(chosen_parts, "_by_class", lambda head, choice, data: found[len(choice.columns)])  # noqa: B023
        data = chosen_parts.choose_parts(given, whole, backbone)[1]
        assert data.parts.chosen == expected
        assert data.parts.scores["class + patches"] == pytest.approx(best.mean())


@pytest.mark.parametrize("head", [{"start": "whiten", "shrinkage": 0.4}, {"start": "lda"}, {"start": "random"}])
def test_scores_are_those_of_closed_forms_by_hand(config, head):
    backbone, given = backbone_of("class"), config(head={"embedding_dim": 8, **head})
    whole = loaded(given, backbone)
    folds = []
    for fold in chosen_parts.HeldOutFolds(whole).folds:
        train, held_out = fold.splits.train, fold.splits.validation
        scores = {}
        for name, columns in (("class", slice(0, 16)), ("patches", slice(16, 32))):
            rows = whole.features[:][:, columns]
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            forms = forms_of(rows[train], whole.labels[train], **head)
            scores[name] = [
                score_queries(rows[held_out] @ kernel + bias, whole.labels[held_out])[1]["map_at_r"].mean()
                for kernel, bias in forms
            ]
        folds.append(scores)
    _, data, _ = chosen_parts.choose_parts(given, whole, backbone)
    for name in PARTS:
        best = np.mean([scores[name] for scores in folds], axis=0).max()
        assert data.parts.scores[name] == pytest.approx(best, abs=1e-6)


def forms_of(rows, labels, start, shrinkage=None):
    """The closed forms that are tried for a head of that start."""
    forms = ClosedForms(rows, labels)
    dim = 16 if start == "random" else 8  # a random start may be as wide as it likes
    shrinkages = (0.3, 0.9) if shrinkage is None else (shrinkage,)
    whitened, told = [forms.whiten(dim, a) for a in shrinkages], [forms.lda(dim, a, 0.3, 0.0) for a in shrinkages]
    return {"whiten": whitened, "lda": told, "random": [forms.pca(dim), *whitened, *told]}[start]


def test_views_are_narrowed_too_and_play_no_part(config):
    given, backbone = config(views={"number": 2, "turned_classes": True}), backbone_of("class")
    whole = loaded(given, backbone, views=True)
    assert len(whole.view_rows) > len(whole.keys)
    _, data, _ = chosen_parts.choose_parts(given, whole, backbone)
    np.testing.assert_array_equal(data.features[:], whole.features[:][:, :16])
    plain = loaded(config(), backbone)
    assert data.parts == chosen_parts.choose_parts(config(), plain, backbone)[1].parts


def test_parts_narrower_than_the_embedding_are_none(config):
    backbone = backbone_of("class")
    given = build.sized_for(config(head={"embedding_dim": 20}), None, backbone)
    chosen, data, _ = chosen_parts.choose_parts(given, loaded(given, backbone), backbone)
    assert data.parts.chosen == ("class", "patches")
    assert chosen.head.embedding_dim == 20
    with pytest.raises(ConfigError, match="embedding_dim=40 for features of width 32; expected at most 32"):
        build.sized_for(config(head={"embedding_dim": 40}), None, backbone)
    assert build.sized_for(config(head={"embedding_dim": 40, "start": "random"}), None, backbone)
    open_width = build.sized_for(config(head={}), None, backbone)
    assert open_width.head.embedding_dim == "auto"  # it is not known yet
    assert chosen_parts.choose_parts(open_width, loaded(given, backbone), backbone)[0].head.embedding_dim == 16


def test_of_many_items_those_of_some_classes_choose(config, monkeypatch):
    backbone, given = backbone_of("class"), config()
    whole = loaded(given, backbone)
    monkeypatch.setattr(chosen_parts, "MAX_ITEMS", 32)
    seen = []
    by_class = chosen_parts._by_class
    monkeypatch.setattr(chosen_parts, "_by_class", lambda *given: (seen.append(given[2]), by_class(*given))[1])
    _, data, _ = chosen_parts.choose_parts(given, whole, backbone)
    some = seen[0].splits
    for these, all_of_these in zip(some.folds, whole.splits.folds, strict=True):
        assert 0 < len(these) < len(all_of_these)
        kept = np.unique(whole.labels[these])
        np.testing.assert_array_equal(these, all_of_these[np.isin(whole.labels[all_of_these], kept)])  # whole classes
    assert {*np.concatenate(some.folds)} == {*some.train, *some.validation}
    np.testing.assert_array_equal(some.validation, some.folds[0])
    np.testing.assert_array_equal(data.splits.train, whole.splits.train)


def test_nothing_is_chosen_where_nothing_is_open(config):
    backbone = backbone_of("class")
    given = config()
    whole = loaded(given, backbone)
    without_labels = config(loss={"name": "similarity_alignment"}, head={"embedding_dim": 8, "start": "pca"})
    for asked, network in ((without_labels, backbone), (given, backbone.choices[0].make()), (given, None)):
        found = chosen_parts.choose_parts(asked, whole, network)
        assert found[0] is asked
        assert found[1] is whole
        assert found[2] is network
    assert len({fingerprint(each.make()) for each in backbone.choices}) == 3


def test_a_head_fitted_in_code_has_the_parts_that_were_taken(pictures, tmp_path):
    with np.load(pictures) as given:
        images, labels = given["images"], given["label"]
    settings = {"head.embedding_dim": 8, "head.start": "lda", "training.epochs": 0, "cache.dir": str(tmp_path)}
    settings |= {"views.number": 1, "views.turned_classes": False}
    fitted = fit_head(images, labels, backbone=backbone_of("patches"), settings=settings)
    assert fitted.scores["parts"] == ("patches",)
    assert fitted.scores["tried_parts"].keys() == {"class", "patches", "class + patches"}
    assert fitted.features(images[:3]).shape == (3, 16)
    assert fitted.transform(images[:3]).shape == (3, 8)


def test_a_search_is_of_the_parts_that_were_taken(config):
    searched, data = load_data(config(views={"number": 1, "turned_classes": False}), backbone_of("patches"))
    assert searched.backbone.parts == ["patches"]
    assert data.features.shape[1] == 16
