"""Tiny keras_hub presets with random weights; this module needs keras_hub only when they are made."""

import numpy as np

WORDS = [
    "how", "what", "time", "is", "it", "weather", "in", "play", "song", "by", "book", "flight", "to", "spell", "word",
    "the", "tell", "me", "joke", "about",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def randomise(network, seed=0):
    """Weights of this seed alone; biases and norms are not zeros and ones either, so that nothing cancels by chance."""
    rng = np.random.default_rng(seed)
    for weight in network.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.2 + ("gamma" in weight.path))
    return network


def tiny_bert(folder, lowercase=True, words=WORDS, seed=0):
    """A BERT of one layer, 16 wide, at most 128 tokens, and its tokenizer; the folder of the preset."""
    import keras_hub

    vocabulary = [*SPECIAL, *sorted({*words, *"abcdefghijklmnopqrstuvwxyz"})]
    network = keras_hub.models.BertBackbone(
        len(vocabulary), num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=128
    )
    randomise(network, seed).save_to_preset(str(folder))
    keras_hub.models.BertTokenizer(vocabulary, lowercase=lowercase).save_to_preset(str(folder))
    return str(folder)


def tiny_pictures(folder, family="DINOV2", image_size=(14, 14), num_layers=1, registers=0):
    """A vision transformer and its image converter; the folder of the preset."""
    import keras_hub

    shape = (*image_size, 3)
    if family == "DINOV2":
        network = keras_hub.models.DINOV2Backbone(
            patch_size=7, num_layers=num_layers, hidden_dim=16, num_heads=2, intermediate_dim=32, image_shape=shape,
            position_embedding_shape=shape, num_register_tokens=registers,
        )  # fmt: skip
    elif family == "ViT":
        network = keras_hub.models.ViTBackbone(shape, 7, num_layers=num_layers, num_heads=2, hidden_dim=16, mlp_dim=32)
    elif family == "DINOV3":
        network = keras_hub.models.DINOV3Backbone(
            7, num_layers, 16, 2, 32, num_register_tokens=registers, image_shape=shape
        )
    elif family == "SigLIP":
        vision = keras_hub.models.SigLIPVisionEncoder(7, 16, num_layers, 2, 32, image_shape=shape)
        text = keras_hub.models.SigLIPTextEncoder(64, 8, 16, 1, 2, 32, max_sequence_length=8)
        network = keras_hub.models.SigLIPBackbone(vision, text)
    elif family == "CLIP":
        vision = keras_hub.models.CLIPVisionEncoder(7, 16, num_layers, 2, 32, image_shape=shape)
        text = keras_hub.models.CLIPTextEncoder(64, 8, 16, 1, 2, 32, max_sequence_length=8)
        network = keras_hub.models.CLIPBackbone(vision, text, projection_dim=6)
    converter = getattr(keras_hub.layers, f"{family}ImageConverter")
    randomise(network).save_to_preset(str(folder))
    converter(image_size, scale=[0.02, 0.03, 0.01], offset=[-2.0, -1.0, -0.5]).save_to_preset(str(folder))
    return str(folder)
