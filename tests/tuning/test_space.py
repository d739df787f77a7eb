"""The search section, the space made of it, and the way back to a config."""

import itertools

import keras_tuner
import pytest

from xbm_keras.config.search_schema import Dimension, SearchSection
from xbm_keras.config.yaml_files import ConfigError, check_config
from xbm_keras.tuning.space import LOSSES, check_space, declare, default_space, overridden, to_overrides, trial_values


@pytest.fixture(scope="module")
def config():
    values = {"data": {"source": "features", "path": "x.npz"}, "backbone": {"kind": "none"}}
    return check_config({**values, "head": {"embedding_dim": 128}}, "x")


def with_space(config, space):
    return SearchSection.model_validate({"space": space}).space


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0, 64], [Dimension(values=[0, 64])]),
        ([8, "all"], [Dimension(values=[8, "all"])]),
        ({"min": 1e-5, "max": 1, "log": True}, [Dimension(min=1e-5, max=1, log=True)]),
        (
            {"values": [0.1, None], "when": {"loss.name": "triplet"}},
            [Dimension(values=[0.1, None], when={"loss.name": ["triplet"]})],
        ),
        (
            [{"min": 0, "max": 1, "when": {"a.b": [1]}}, {"values": [3], "when": {"a.b": [2]}}],
            [Dimension(min=0, max=1, when={"a.b": [1]}), Dimension(values=[3], when={"a.b": [2]})],
        ),
    ],
)
def test_forms_of_a_dimension(given, expected):
    space = SearchSection.model_validate({"space": {"a.c": given}}).space
    assert space == {"a.c": expected}
    assert SearchSection.model_validate({"space": space}).space == space


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "received no values"),
        ({}, "expected either values, or min and max"),
        ({"values": [1], "min": 0, "max": 1}, "expected either values, or min and max"),
        ({"min": 2, "max": 1}, "received min 2 and max 1; expected min below max"),
        ({"min": 0, "max": 1, "log": True}, "received log: true from 0"),
        ({"minimum": 0}, "minimum: extra inputs"),
        (3, "a.c: "),
    ],
)
def test_what_is_no_dimension_is_told(config, given, message):
    values = {**config.model_dump(mode="json"), "search": {"space": {"a.c": given}}}
    with pytest.raises(ConfigError, match=r"search\.space: a\.c: ") as error:
        check_config(values, "x")
    assert message in str(error.value)
    assert "write [a, b, c], or {min: a, max: b, log: true}" in str(error.value)


def draws(config, space, count=40):
    """Random trials of a space, as overrides."""
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=keras_tuner.Objective("x", "max"), max_trials=count, seed=1
    )
    hp = keras_tuner.HyperParameters()
    declare(hp, config, space)
    oracle.update_space(hp)
    return [to_overrides(space, oracle._random_values()) for _ in range(count)]


def test_each_draw_of_the_default_space_is_a_config(config):
    space = default_space(config, 5000)
    check_space(config, space)
    trials = draws(config, space)
    for trial in trials:
        made = check_config(overridden(config, trial), "trial")
        assert set(made.loss.model_dump()) >= set(LOSSES[made.loss.name])
        assert {key for key in trial if key.startswith("loss.")} == {
            "loss.name",
            *(f"loss.{name}" for name in LOSSES[made.loss.name]),
        }
        for key, value in trial.items():
            section, name = key.split(".")
            assert getattr(getattr(made, section), name) == value
    assert {trial["loss.name"] for trial in trials} == set(LOSSES)
    assert {trial["memory.memory_size"] for trial in trials} == {0, 128, 256, 512, 1024, 2048, 4096, 8192}


def test_the_defaults_are_those_of_the_config(config):
    head = {"start": "nda", "shrinkage": 0.4}
    config = config.model_copy(update={"head": config.head.model_copy(update=head)})
    hp = keras_tuner.HyperParameters()
    space = default_space(config, 100_000)
    declare(hp, config, space)
    own = to_overrides(space, hp.values)
    assert check_config(overridden(config, own), "own") == check_config(overridden(config, {}), "default")


@pytest.mark.parametrize(
    ("key", "dimension", "expected"),
    [
        ("memory.memory_size", [0, 128, 4096], 4096),  # the config's 65,536 is more
        ("top_k.num_negatives", [3, 9, 64, "all"], 9),
        ("training.start_alignment", {"min": 1e-6, "max": 1e-1, "log": True}, 1e-6),
        ("training.epochs", {"min": 2, "max": 6}, 6),
        ("head.start", ["pca", "lda"], "pca"),  # of what is no number, the first
    ],
)
def test_where_a_space_lacks_the_own_value_the_nearest_is_the_default(config, key, dimension, expected):
    space = with_space(config, {key: dimension})
    hp = keras_tuner.HyperParameters()
    declare(hp, config, space)
    assert to_overrides(space, hp.values) == {key: expected}


def test_a_key_under_two_conditions(config):
    space = with_space(
        config,
        {
            "loss.margin": {"min": 0.1, "max": 0.2, "when": {"loss.name": "triplet"}},
            "loss.name": ["triplet", "contrastive"],
            "loss.negative_margin": [
                {"values": [0.3], "when": {"loss.name": "contrastive", "top_k.num_negatives": [8]}},
                {"values": [0.4], "when": {"loss.name": "contrastive", "top_k.num_negatives": ["all"]}},
            ],
            "top_k.num_negatives": [8, "all"],
        },
    )
    check_space(config, space)
    trials = draws(config, space)
    for trial in trials:
        check_config(overridden(config, trial), "trial")
        if trial["loss.name"] == "triplet":
            assert 0.1 <= trial["loss.margin"] <= 0.2
            assert "loss.negative_margin" not in trial
        else:
            assert trial["loss.negative_margin"] == {8: 0.3, "all": 0.4}[trial["top_k.num_negatives"]]
    kinds = {(trial["loss.name"], trial["top_k.num_negatives"]) for trial in trials}
    assert kinds == set(itertools.product(["triplet", "contrastive"], [8, "all"]))


def test_values_keep_their_types(config):
    space = with_space(
        config,
        {
            "memory.prefill": [True, False],
            "loss.name": ["triplet"],
            "loss.margin": {"values": [None, 0.1], "when": {"loss.name": "triplet"}},
            "training.start_alignment": [0, 0.1],
            "training.patience": {"min": 1, "max": 3},
            "training.steps_per_epoch": [None, 5],
        },
    )
    check_space(config, space)
    trials = draws(config, space)
    for key, types in {
        "memory.prefill": {bool},
        "loss.margin": {type(None), float},
        "training.start_alignment": {float},
        "training.patience": {int},
        "training.steps_per_epoch": {type(None), int},
    }.items():
        assert {type(trial[key]) for trial in trials} == types
    assert {trial["training.patience"] for trial in trials} == {1, 2, 3}


def test_numbers_are_written_with_four_digits(config):
    space = with_space(config, {"training.learning_rate": {"min": 1e-5, "max": 1e-2, "log": True}})
    assert to_overrides(space, {"training.learning_rate": 0.00012345678}) == {"training.learning_rate": 0.0001235}


def test_another_loss_drops_the_parameters_of_the_configs_own(config):
    own = check_config(overridden(config, {"loss.temperature": 0.3}), "x")
    assert overridden(own, {"loss.name": "info_nce"})["loss"] == {"name": "info_nce"}
    assert overridden(own, {"loss.name": "supcon"})["loss"] == {"name": "supcon", "temperature": 0.3}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"top_k.num_negative": [8]}, "did you mean 'num_negatives'"),
        ({"top_k.num_negatives": [8, -1]}, "top_k.num_negatives: received -1"),
        ({"training.learning_rate": {"min": 0.0, "max": 1.0}}, "training.learning_rate: received 0.0"),
        ({"data.path": ["a.npz"]}, "keys that can be searched are head.*"),
        ({"loss.margin": {"values": [0.1], "when": {"loss.name": "triplet"}}}, "when loss.name is ['triplet']"),
        (
            {"loss.name": ["supcon"], "loss.margin": {"values": [0.1], "when": {"loss.name": "triplet"}}},
            "expected another key of the space and values that it lists: supcon",
        ),
        ({"loss.temperature": {"values": [0.1], "when": {"loss.temperature": 0.1}}}, "when loss.temperature"),
    ],
)
def test_a_space_that_cannot_be_is_told(config, space, message):
    with pytest.raises(ConfigError) as error:
        check_space(config, with_space(config, space))
    assert message in str(error.value)


def test_conditions_in_a_circle_are_told(config):
    space = with_space(
        config,
        {
            "top_k.num_positives": {"values": [1], "when": {"top_k.num_negatives": 1}},
            "top_k.num_negatives": {"values": [1], "when": {"top_k.num_positives": 1}},
        },
    )
    with pytest.raises(ConfigError, match=r"in a circle: top_k\.num_negatives, top_k\.num_positives"):
        declare(keras_tuner.HyperParameters(), config, space)


def test_a_combination_that_does_not_go_together_is_left_to_the_search(config):
    check_space(config, with_space(config, {"memory.memory_size": [64, 1024]}))  # 64 is less than a batch of 128


def test_trials_stop_early_unless_they_search_when_to(config):
    for values, expected in [({}, 2), ({"training.patience": 5}, 5)]:
        assert trial_values(config, {"training.patience": []}, values)["training"]["patience"] == expected
    impatient = config.model_copy(update={"training": config.training.model_copy(update={"patience": 1})})
    assert trial_values(impatient, {}, {})["training"]["patience"] == 1


def test_trials_of_pairs_stop_as_the_config_says():
    """Under a rate that falls, scores come back."""
    given = {"data": {"source": "pairs", "path": "x"}, "backbone": {"kind": "none"}, "training": {"patience": 7}}
    assert trial_values(check_config(given, "x"), {}, {})["training"]["patience"] == 7
