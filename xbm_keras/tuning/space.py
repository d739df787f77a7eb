"""The search space: which keys of the config vary, as KerasTuner's hyperparameters, and back to a config."""

import typing
from collections.abc import Mapping
from typing import Any

import keras_tuner
import pydantic
from keras_tuner.engine.hyperparameters import Choice, Float, HyperParameter, Int
from keras_tuner.src.engine.conditions import Parent  # `conditional_scope` cannot say "this and that"

from xbm_keras.config.schema import Config
from xbm_keras.config.search_schema import Dimension, Value
from xbm_keras.config.yaml_files import ConfigError, check_config, put

Space = dict[str, list[Dimension]]
SEARCHABLE = ("head", "memory", "top_k", "loss", "training")  # the others would change the features, or the data
PATIENCE = 2  # of a trial whose rate grows: scores that fall seldom come back, and most of a search is spent on those
TEMPERATURE = Dimension(min=0.02, max=0.5, log=True)
LOSSES: dict[str, dict[str, Dimension]] = {
    "supcon": {"temperature": TEMPERATURE},
    "info_nce": {"temperature": TEMPERATURE},
    "multi_similarity": {"beta": Dimension(min=5.0, max=100.0, log=True)},
    "circle": {"margin": Dimension(min=0.1, max=0.6)},
    "triplet": {"margin": Dimension(min=0.02, max=0.5, log=True)},
    "contrastive": {"negative_margin": Dimension(min=0.0, max=0.8)},
}
"""The losses that are searched by default, and which of their parameters. The others are near to one of these."""
WITHOUT_LABELS: Space = {
    "top_k.num_neighbors": [Dimension(values=[16, 32, 64, 128, 256])],
    "top_k.num_random": [Dimension(values=[0, 64, 256, 1024])],
    "top_k.centring": [Dimension(values=[0.0, 0.25, 0.5, 0.75, 1.0])],
    "loss.temperature": [Dimension(min=0.01, max=0.1, log=True)],
    "loss.embedding_temperature": [Dimension(min=0.01, max=0.1, log=True)],
    "training.learning_rate": [Dimension(min=1e-4, max=1e-2, log=True)],
    "training.start_alignment": [Dimension(values=[0.0, 3.0, 10.0, 30.0])],
}
"""What is searched beside the memory size, where the loss uses no labels."""


OF_PAIRS: Space = {
    "top_k.num_negatives": [Dimension(values=[4, 8, 16, 32, 64, 128, 256])],
    "top_k.mine_in": [Dimension(values=["features", "embeddings"])],
    "loss.temperature": [Dimension(min=0.02, max=0.2, log=True)],
    "training.learning_rate": [Dimension(min=1e-4, max=1e-2, log=True)],
}
"""What is searched beside the memory size, of queries and documents."""


def default_space(config: Config, num_rows: int) -> Space:
    """Memory size, k, loss, start and width of the head, learning rate; without labels, and of pairs, what there is.

    Args:
        config: the embedding is never searched wider than its `head.embedding_dim`, since a wider one costs more to
            serve. Memories are 0, or at least as large as its batch.
        num_rows: training items, or documents; the largest memory is the first power of two that holds them all, or
            65,536.
    """
    sizes = [0] + [2**i for i in range(17) if config.training.batch_size <= 2**i < 2 * num_rows]
    if config.is_of_pairs:
        has_temperature = "temperature" in type(config.loss).model_fields
        others = {key: value for key, value in OF_PAIRS.items() if key != "loss.temperature" or has_temperature}
        return {"memory.memory_size": [Dimension(values=sizes)], **others}
    if config.is_without_labels:
        return {"memory.memory_size": [Dimension(values=sizes)], **WITHOUT_LABELS}
    width = config.head.embedding_dim
    space = {
        "memory.memory_size": [Dimension(values=sizes)],
        "top_k.num_negatives": [Dimension(values=[4, 8, 16, 32, 64, 128, 256])],
        "top_k.num_positives": [Dimension(values=[1, 2, 4, 8, 16, 32])],
        "top_k.num_random": [Dimension(values=[0, 64, 256, 1024])],
        "top_k.mine_in": [Dimension(values=["features", "embeddings"])],
        "loss.name": [Dimension(values=list(LOSSES))],
        # Random starts train longest, and end lowest. "auto" would be one value for all that the keys below do.
        "head.start": [Dimension(values=["nda", "lda", "whiten", "pca"])],
        "head.shrinkage": [Dimension(min=0.05, max=0.95, when={"head.start": ["nda", "lda", "whiten"]})],
        "head.embedding_dim": [Dimension(values=[max(1, width // 2), width] if width > 1 else [1])],
        "training.learning_rate": [Dimension(min=1e-5, max=1e-2, log=True)],
    }
    for loss, parameters in LOSSES.items():
        for name, dimension in parameters.items():
            when = dimension.model_copy(update={"when": {"loss.name": [loss]}})
            space.setdefault(f"loss.{name}", []).append(when)
    return space


def check_space(config: Config, space: Space) -> None:
    """Try each value of each key by itself.

    Raises:
        ConfigError: for a key that does not exist or is none to search, for a value that it does not take, or for a
            condition on a key or value that is not in the space.
    """
    for key, dimensions in space.items():
        if key.split(".")[0] not in SEARCHABLE or "." not in key:
            known = ", ".join(f"{section}.*" for section in SEARCHABLE)
            raise ConfigError(f"Received search.space with {key!r}; keys that can be searched are {known}.")
        for dimension in dimensions:
            conditions: dict[str, Value] = {}
            for other, wanted in dimension.when.items():
                known_values = [value for d in space.get(other, []) for value in d.values or []]
                unknown = [value for value in wanted if value not in known_values]
                if other == key or unknown:
                    raise ConfigError(
                        f"Received search.space with {key} when {other} is {unknown or wanted}; expected another key "
                        f"of the space and values that it lists{': ' if known_values else ''}"
                        f"{', '.join(map(str, known_values))}."
                    )
                conditions[other] = wanted[0]
            for value in dimension.values or [dimension.min, dimension.max]:
                try:
                    check_config(overridden(config, {**conditions, key: value}), f"search.space with {key}: {value}")
                except ConfigError as error:
                    # What lies at no key is a combination that does not go together: in the search a failed trial.
                    cause = error.__cause__
                    if not isinstance(cause, pydantic.ValidationError) or any(e["loc"] for e in cause.errors()):
                        raise


def declare(hp: keras_tuner.HyperParameters, config: Config, space: Space) -> None:
    """Register the space; the defaults, which the first trial takes, are the config's own values or those nearest."""
    waiting = [(key, dimension) for key, dimensions in space.items() for dimension in dimensions]
    while waiting:  # KerasTuner wants the keys of a condition first
        keys = {key for key, _ in waiting}
        ready = [(key, dimension) for key, dimension in waiting if not keys & set(dimension.when)]
        if not ready:
            raise ConfigError(f"Received search.space with conditions in a circle: {', '.join(sorted(keys))}.")
        for key, dimension in ready:
            name, own = _name(key, dimension, space), own_value(config, key)
            conditions = [
                Parent(other, [_encode(value, space[other][0]) for value in wanted])
                for other, wanted in dimension.when.items()
            ]
            hp.merge([_hyperparameter(name, dimension, own, conditions)], overwrite=False)
        waiting = [each for each in waiting if each not in ready]


def _name(key: str, dimension: Dimension, space: Space) -> str:
    """Of the hyperparameter: KerasTuner takes a name once only, a key may have other values under other conditions."""
    if len(space[key]) == 1:
        return key
    conditions = [f"{other} is {'|'.join(map(str, wanted))}" for other, wanted in dimension.when.items()]
    return f"{key} when {' and '.join(conditions)}"


def _hyperparameter(name: str, dimension: Dimension, own: Any, conditions: list[Parent]) -> HyperParameter:
    if dimension.values is None:
        low, high = typing.cast(float, dimension.min), typing.cast(float, dimension.max)
        kind = Int if isinstance(low, int) and isinstance(high, int) else Float
        default = (int if kind is Int else float)(min(max(own, low), high)) if isinstance(own, int | float) else None
        sampling = "log" if dimension.log else "linear"
        return kind(name, low, high, sampling=sampling, default=default, conditions=conditions)
    if own not in dimension.values and isinstance(own, int | float):
        numbers = [value for value in dimension.values if isinstance(value, int | float)]
        own = min(numbers, key=lambda value: abs(value - own), default=None)
    values, own = [_encode(value, dimension) for value in dimension.values], _encode(own, dimension)
    return Choice(name, values, default=own if own in values else None, conditions=conditions)


def _encode(value: Value, dimension: Dimension) -> Value:
    """As KerasTuner takes it, where the values of a key have one type: a list that is not of numbers is text."""
    types = {type(each) for each in dimension.values or []}
    if not types <= {int, float}:
        return str(value)
    return float(value) if float in types and isinstance(value, int) else value


def own_value(config: Config, key: str) -> Any:
    """The config's value of a key; None where it has no such key, such as a parameter of another loss."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def to_overrides(space: Space, values: Mapping[str, Any]) -> dict[str, Value]:
    """A trial's values as overrides of the config; decimal numbers to four digits."""
    overrides = {}
    for name, value in values.items():
        key = name.split(" ")[0]  # what follows is the condition
        if key in space:  # else KerasTuner's own, such as "tuner/epochs"
            if isinstance(value, str):
                listed = [each for dimension in space[key] for each in dimension.values or []]
                value = next(each for each in listed if str(each) == value)
            overrides[key] = float(f"{value:.4g}") if isinstance(value, float) else value
    if "tuner/epochs" in values:
        overrides["training.epochs"] = int(values["tuner/epochs"])
    return overrides


def trial_values(config: Config, space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a trial with these values, as nested dicts, unchecked."""
    patience = config.training.patience if config.is_of_pairs else min(config.training.patience, PATIENCE)
    return overridden(config, {"training.patience": patience, **to_overrides(space, values)})


def overridden(config: Config, overrides: Mapping[str, Value]) -> dict[str, Any]:
    """The config as nested dicts, unchecked, with these keys changed, and without its search section."""
    nested = config.model_dump(mode="json")
    nested.pop("search", None)
    if overrides.get("loss.name", config.loss.name) != config.loss.name:
        nested["loss"] = {}  # the parameters of another loss
    for key, value in overrides.items():
        put(nested, key.split("."), value)
    return nested
