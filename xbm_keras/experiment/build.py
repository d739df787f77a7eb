"""From a config to the objects that it names: the one place that wires the stages."""

import functools
import logging
import math
from collections.abc import Callable

import keras
import numpy as np

from xbm_keras.arguments import arguments_of
from xbm_keras.config import schema
from xbm_keras.config.yaml_files import blaming_config
from xbm_keras.data import arrays, sources
from xbm_keras.data.batches import PKSampler, ShuffledSampler, alone_in_class
from xbm_keras.data.pairs import Pairs
from xbm_keras.model.fused_adam import FusedAdam
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.stages.hard_top_k.by_label import HardTopK
from xbm_keras.stages.hard_top_k.by_neighbors import NeighborTopK
from xbm_keras.stages.hard_top_k.by_relevance import RelevantTopK
from xbm_keras.stages.hard_top_k.mining import InEmbeddings, InFeatures, InSketch, Mining
from xbm_keras.stages.pair_losses.start_alignment import StartAlignment

log = logging.getLogger("xbm_keras")
LEAST_RATE = 1 / 30  # of the learning rate
GROWTH_EPOCHS = 10  # at most, until the learning rate is what the config says
SKETCH_DIM = 64


def make_source(config: schema.Config, is_training: bool = True) -> sources.Source | arrays.Vectors:
    """The items. Raises DataError for a table of no pictures, and for folders that are no classes to be trained on."""
    keeps = "cache_dir" in arguments_of(type(config.data).constructor)
    source = config.data.make(**({"cache_dir": config.cache.dir} if keeps else {}))
    if is_training and not config.is_without_labels and isinstance(source, sources.ImageFolder):
        source.require_classes()
    if isinstance(source, sources.ImageTable):
        source.require_pictures()
    return source


def make_backbone(config: schema.Config) -> Backbone | None:
    """The frozen network; None where the data are vectors."""
    return _made(config)


def make_whole_backbone(config: schema.Config) -> Backbone | None:
    """The same for a run that is to come: with all parts of its features, where the config lets it choose some.

    See `chosen_parts`. A finished run says in its config which these were.
    """
    key = key_of_parts(config)
    return _made(config, **({key: "all"} if key and leaves_parts_open(config) else {}))


def leaves_parts_open(config: schema.Config) -> bool:
    """Whether a run chooses which parts of its network make the features, where that has any."""
    return config.data.modality == "image" and key_of_parts(config) is not None


def key_of_parts(config: schema.Config) -> str | None:
    """The key of the backbone that leaves them open: `parts` of a transformer, `layers` of a convolutional network."""
    return next((key for key in ("parts", "layers") if getattr(config.backbone, key, None) == "auto"), None)


def _made(config: schema.Config, **others: str) -> Backbone | None:
    with blaming_config():
        backbone = config.backbone.make(**others)
        if getattr(backbone, "modality", config.data.modality) != config.data.modality:
            raise ValueError(
                f"Received data.source {config.data.source!r} with the preset {config.backbone.preset!r}, a network of "
                f"{backbone.modality}s; expected data of its kind. Change data.source or backbone.preset."
            )
        if config.export.average and backbone is not None and not backbone.image_size:
            raise ValueError(
                f"Received export.average {config.export.average} with a network that names no size of its pictures; "
                "expected one, to which views are resized. Give backbone.image_size."
            )
    return backbone


def sized(config: schema.Config, width: int | None) -> schema.Config:
    """The config with a head for features of a width. Raises ConfigError where there can be none: see `HeadConfig`."""
    with blaming_config():
        return config.model_copy(update={"head": config.head.for_features(width)})


def sized_for(
    config: schema.Config, source: sources.Source | arrays.Vectors | Pairs, backbone: Backbone | None
) -> schema.Config:
    """The config with a head for features that are yet to be computed; as it is where it is open how wide they will be.

    Raises ConfigError where there can be none.
    """
    choices = () if backbone is None else backbone.choices
    if not choices:
        return sized(config, width_of(source, backbone))
    sized(config, max(len(choice.columns) for choice in choices))  # or an error
    return config


def width_of(source: sources.Source | arrays.Vectors | Pairs, backbone: Backbone | None) -> int | None:
    """Of the features, told before one is computed; None where the network does not say it."""
    if backbone is None:
        features = getattr(source.queries if isinstance(source, Pairs) else source, "features", None)
        return None if features is None else features.shape[1]
    shape = backbone.input_shape_per_item
    inputs = {name: (None, *each) for name, each in shape.items()} if isinstance(shape, dict) else (None, *shape)
    return backbone.compute_output_shape(inputs)[-1]


def make_top_k(config: schema.Config, width: int) -> HardTopK | NeighborTopK:
    """The choice of pairs among features of a width, by label, by relevance, or by neither."""
    c = config.top_k
    others: dict = {"seed": config.training.seed, "name": "top_k"}
    if isinstance(c, schema.TopK):
        sketch = functools.partial(InSketch, min(SKETCH_DIM, width))
        spaces: dict[str, Callable[[], Mining]]
        spaces = {"features": InFeatures, "embeddings": InEmbeddings, "sketch": sketch}
        others["mining"] = spaces[c.mine_in]() if isinstance(c.mine_in, str) else InEmbeddings(c.mine_in)
    return RelevantTopK(**c.arguments(), **others) if config.is_of_pairs else c.make(**others)


def make_model(
    config: schema.Config,
    backbone: Backbone | None,
    width: int,
    num_rows: int,
    rate: keras.optimizers.schedules.LearningRateSchedule,
    power: float,
) -> XBMModel:
    """The model for features of a width, raised to a power; its memory holds at most the rows that there are."""
    memory_size = min(config.memory.memory_size, num_rows)
    alignment = config.training.start_alignment
    model = XBMModel(
        backbone,
        config.head.make(power=power, seed=config.training.seed, name="head"),
        config.memory.make(memory_size=memory_size, frozen=holds_all(config, num_rows), name="memory"),
        make_top_k(config, width),
        config.loss.make(),
        StartAlignment(alignment) if alignment else None,
        name="xbm",
    )
    model.build({"features": (None, width)})
    model.compile(FusedAdam(rate))
    model.optimizer.build(model.trainable_variables)  # Keras warns on loading a model whose optimizer took no step
    return model


def rate_of_steps(config: schema.Config, steps_per_epoch: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate of each step, which grows by a constant factor, or of pairs falls: see `schema.Training`."""
    rate, num_epochs = config.training.learning_rate, config.training.epochs
    first, factor = rate, LEAST_RATE
    if not config.is_of_pairs:
        first, num_epochs, factor = LEAST_RATE * rate, min(num_epochs, GROWTH_EPOCHS), 1 / LEAST_RATE
    return keras.optimizers.schedules.ExponentialDecay(first, max(1, num_epochs * steps_per_epoch), factor)


def tell_memory(config: schema.Config, memory_size: int, what: str = "training rows") -> None:
    """Say where the memory is smaller than the config allows, since there is no more to hold."""
    wanted = config.memory.memory_size
    if memory_size < wanted:
        log.info("The memory holds all %s %s (memory.memory_size is %s).", f"{memory_size:,}", what, f"{wanted:,}")


def holds_all(config: schema.Config, num_rows: int) -> bool:
    """Whether the memory is prefilled with all there is, and so has nothing to learn from a batch."""
    return config.memory.prefill and config.memory.memory_size >= num_rows


def left_out(config: schema.Config, labels: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
    """[N] bool, items that no batch draws: as anchors they are never valid, and as negatives the memory holds them."""
    if config.is_without_labels or not holds_all(config, len(labels)):
        return np.zeros(len(labels), bool)
    is_alone = alone_in_class(labels, sample_ids)
    return is_alone & ~is_alone.all()


def make_sampler(config: schema.Config, labels: np.ndarray, sample_ids: np.ndarray) -> PKSampler | ShuffledSampler:
    """Batches of items with these labels and ids."""
    c = config.training
    if config.is_without_labels:
        return ShuffledSampler(len(labels), min(c.batch_size, len(labels)), c.seed)
    is_left_out = left_out(config, labels, sample_ids)
    num_classes = len(np.unique(labels[~is_left_out]))
    return PKSampler(labels, min(config.classes_per_batch, num_classes), c.samples_per_class, c.seed, is_left_out)


def steps_per_epoch(config: schema.Config, sampler: PKSampler | ShuffledSampler) -> int:
    """By default as many as draw the number of items once."""
    return config.training.steps_per_epoch or math.ceil(sampler.num_items / sampler.batch_size)
