"""Texts through an exported model: its tokenizer is in this process, since its operations are not in TensorFlow."""

import importlib
import pathlib

import numpy as np
import tensorflow as tf

from xbm_keras.index.exported_model import ExportedModel

INPUTS = ("token_ids", "padding_mask")
SHORTEST = 8  # tokens, the padding included; else 16, 32, ...
FEW = 6  # of a pass: networks give an item the same bits among 2 to 7, see `serve.served`


class ExportedTexts:
    """Texts to embeddings.

    Args:
        model: an exported model of texts.
        version: its folder. The tokenizer lies in it, beside it, or beside the folder of the versions, where a run
            writes it.

    Raises:
        ValueError: if it takes no texts, if its tokenizer is not there, or without keras_hub.
    """

    def __init__(self, model: ExportedModel, version: pathlib.Path):
        self.model = model  # kept: the signature uses its variables
        self.embed_tokens = model.loaded.signatures["serving_default"]
        if not takes_texts(model):
            raise ValueError(
                f"Received {str(version)!r}, which takes no texts; it has the signatures "
                f"{', '.join(sorted(model.loaded.signatures))}. Give a model of texts."
            )
        self.preprocess = _load_preprocessing(version)

    def embed(self, texts: list[str]) -> np.ndarray:
        """Embeddings [N, E] of texts; of a model of queries and documents they are those of queries.

        Texts of about one length pass together, so that what a text gets does not depend on the others, to the bit.
        """
        tokens = self.preprocess(tf.constant(texts, tf.string))
        tokens = {name: np.asarray(tokens[name], np.int32) for name in INPUTS}
        mask = tokens["padding_mask"]
        used = mask.shape[1] - mask[:, ::-1].argmax(axis=1)  # up to the last token
        lengths = np.maximum(2 ** np.ceil(np.log2(used)).astype(int), SHORTEST)
        embeddings: list = [None] * len(texts)
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            for start in range(0, len(places), FEW):
                some = places[start : start + FEW]
                rows = np.resize(some, max(len(some), 2))  # one alone is summed in another order
                batch = {name: tf.constant(each[rows, :length]) for name, each in tokens.items()}
                found = self.embed_tokens(**batch)["embeddings"].numpy()
                for place, embedding in zip(some, found, strict=False):
                    embeddings[place] = embedding
        return np.stack(embeddings)


def takes_texts(model: ExportedModel) -> bool:
    """Whether an exported model begins with token ids."""
    return set(INPUTS) <= set(model.loaded.signatures["serving_default"].structured_input_signature[1])


def _load_preprocessing(version: pathlib.Path):
    """What makes token ids and mask of texts, from `tokenizer/`."""
    version = version.absolute()
    places = [folder / "tokenizer" for folder in (version, version.parent, version.parent.parent)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ValueError(
            f"Received {str(version)!r}, a model of texts without its tokenizer; expected {places[-1]}, which a run "
            "writes. Copy tokenizer/ of the run there, or serve it from the run's folder."
        )
    try:
        hub = importlib.import_module("keras_hub")
    except ImportError as error:
        raise ValueError(
            f"Received a model of texts, and keras_hub cannot be imported ({error}); expected the extra [hub]. Install "
            'it with: pip install ".[hub]"'
        ) from error
    try:
        return hub.models.TextClassifierPreprocessor.from_preset(str(found))
    except ValueError:  # some families only embed
        return hub.models.TextEmbedderPreprocessor.from_preset(str(found))
