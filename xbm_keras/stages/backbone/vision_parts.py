"""What the tokens of a vision transformer of keras_hub give: class token, mean of the patches, and others."""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import keras
from annotated_types import MinLen

Part = Literal["class", "patches", "gem", "blocks"]
PartNames = Annotated[Sequence[Part], MinLen(1)]
Parts = Literal["auto", "all", "pooled"] | PartNames
NAMED: dict[str, tuple[Part, ...]] = {"auto": ("class", "patches"), "all": ("class", "patches", "gem", "blocks")}
CHOICES: tuple[tuple[Part, ...], ...] = (
    ("class",), ("patches",), ("gem",), ("class", "patches"), ("class", "gem"), ("blocks",), ("blocks", "patches"),
)  # fmt: skip
"""What a run may take of "all"; of equally wide ones it prefers the first."""
NUM_BLOCKS = 4
GEM_POWER, GEM_LEAST = 3.0, 1e-6


class Tokens(NamedTuple):
    """Symbolic outputs of a vision transformer."""

    inputs: object
    """Of the network."""
    blocks: list
    """[B, L, D] each: the normalised tokens of the last four blocks, the last one last."""
    num_first: int
    """Tokens before those of the patches: the class token and registers."""
    pooled: object | None
    """[B, E], of CLIP and SigLIP the embedding that the network was trained to compare; None is the class token."""


def with_parts(network: keras.Model, parts: Parts) -> keras.Model | None:
    """The network, giving these parts, [B, D] each; None where `parts` are "pooled", or "auto" or "all" of no
    transformer.

    Args:
        network: a picture backbone of keras_hub: DINOv2, DINOv3, ViT, CLIP or SigLIP.
        parts: "class", the class token, or what the network itself makes of all (CLIP, SigLIP); "patches", the mean of
            the patches' tokens; "gem", their generalised mean of power three; "blocks", the class tokens of the last
            four blocks side by side, or without a class token the means of the patches. "auto" is class and patches,
            "all" are all four.

    Raises:
        ValueError: for parts of a network that is none of these.

    Reference:
        Class tokens of four blocks, and the class token beside the mean of the patches: Oquab et al., "DINOv2",
        TMLR 2024. Generalised mean: Radenovic et al., "Fine-tuning CNN Image Retrieval", 2019.
    """
    tokens = None if parts == "pooled" else _tokens_of(network)
    if tokens is None:
        if isinstance(parts, str):
            return None
        raise ValueError(
            f"Received backbone.parts {', '.join(parts)} of a {type(network).__name__}; expected a vision transformer "
            "of the kinds DINOv2, DINOv3, ViT, CLIP and SigLIP. Leave parts out, and see pooling."
        )
    outputs = [_part(tokens, each) for each in (NAMED[parts] if isinstance(parts, str) else parts)]
    return keras.Model(tokens.inputs, outputs, name=network.name)


def _part(tokens: Tokens, part: str):
    last = tokens.blocks[-1]
    if part == "class":
        return tokens.pooled if tokens.pooled is not None else _first(tokens, last)
    if part == "blocks":
        return keras.ops.concatenate([_first(tokens, each) for each in tokens.blocks], axis=-1)
    patches = last[:, tokens.num_first :]
    if part == "patches":
        return keras.ops.mean(patches, axis=1)
    powers = keras.ops.maximum(patches, GEM_LEAST) ** GEM_POWER
    return keras.ops.mean(powers, axis=1) ** (1 / GEM_POWER)


def _first(tokens: Tokens, block):
    return block[:, 0] if tokens.num_first else keras.ops.mean(block, axis=1)


def _tokens_of(network: keras.Model) -> Tokens | None:
    """None of a network that is no such transformer."""
    if hasattr(network, "pyramid_outputs") and hasattr(network, "num_register_tokens"):  # DINOv2, DINOv3
        blocks = list(network.pyramid_outputs.values())[1:][-NUM_BLOCKS:]  # behind the stem
        if not network.apply_layernorm:
            blocks = [network.layernorm(each) for each in blocks]
        return Tokens(network.input, blocks, 1 + network.num_register_tokens, None)
    vision = getattr(network, "vision_encoder", None)
    if vision is not None and hasattr(network, "get_vision_embeddings") and hasattr(vision, "encoder_layers"):
        outputs = [layer.output for layer in vision.encoder_layers[-NUM_BLOCKS:]]
        if hasattr(vision, "post_layer_norm"):  # SigLIP, whose output is pooled by attention
            return Tokens(vision.input, [vision.post_layer_norm(each) for each in outputs], 0, vision.output)
        pooled = network.vision_pooler(vision.output)
        if hasattr(network, "vision_post_layer_norm"):
            pooled = network.vision_post_layer_norm(pooled)
        blocks = [vision.layer_norm(each) for each in outputs]
        return Tokens(vision.input, blocks, 1, network.vision_projection(pooled))
    encoder = next((layer for layer in network.layers if type(layer).__name__ == "ViTEncoder"), None)
    if encoder is None:
        return None
    x, blocks = encoder.dropout(encoder.input), []
    for layer in encoder.encoder_layers:
        x = layer(x)
        blocks.append(encoder.layer_norm(x))
    return Tokens(network.input, blocks[-NUM_BLOCKS:], int(network.use_class_token), None)
