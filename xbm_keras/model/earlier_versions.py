"""Configs of models that earlier versions saved: flags, where now there are objects."""

import warnings
from typing import Any

import keras

from xbm_keras.stages.hard_top_k.mining import InEmbeddings, InFeatures, InSketch
from xbm_keras.stages.pair_losses.start_alignment import StartAlignment

FLAGS = ("mine_in", "enqueue", "key_refresh", "sketch", "rerank", "start_alignment", "start_l2")


def translated(config: dict) -> dict:
    """A config of `XBMModel` in the form of this version; one that is in it already as it is.

    What has no counterpart, `start_l2` and the head's dropout, is left out, and said where the model was trained by it.
    """
    if "mine_in" not in config:
        return config
    flags: dict[str, Any] = {name: config.get(name) for name in FLAGS}
    config = {name: value for name, value in config.items() if name not in FLAGS}
    mining = {
        "features": InFeatures,
        "embeddings": lambda: InEmbeddings(flags["key_refresh"]),
        "sketch": lambda: _in_sketch(**flags["sketch"]["config"], rerank=flags["rerank"]),
    }[flags["mine_in"]]()
    if config["top_k"]["class_name"] == "HardTopK":
        config["top_k"] = _with(config["top_k"], mining=keras.saving.serialize_keras_object(mining))
    config["memory"] = _with(config["memory"], frozen=flags["enqueue"] is False)
    if flags["start_alignment"]:
        config["start_alignment"] = keras.saving.serialize_keras_object(StartAlignment(flags["start_alignment"]))
    lost = {"start_l2": flags["start_l2"], "dropout of the head": config["head"]["config"].get("dropout")}
    if any(lost.values()):
        warnings.warn(
            f"Received a saved model with {', '.join(f'{name}={value}' for name, value in lost.items() if value)}; "
            "expected one without, which this version trains alone. Its embeddings are the same; it trains on without.",
            stacklevel=2,
        )
    return config


def _in_sketch(sketch_dim, seed, rerank, **_) -> InSketch:
    return InSketch(sketch_dim, rerank, seed)


def _with(serialized: dict, **arguments) -> dict:
    """A serialized object with more arguments."""
    return {**serialized, "config": {**serialized["config"], **arguments}}
