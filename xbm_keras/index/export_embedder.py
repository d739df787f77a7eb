"""Items through an exported model, where there is no more of a run."""

import pathlib

import numpy as np

from xbm_keras import progress
from xbm_keras.data.arrays import Vectors
from xbm_keras.data.errors import UnreadableItem
from xbm_keras.data.sources import PictureFiles, RandomAccess
from xbm_keras.index.exported_model import BATCH_SIZE, ExportedModel, read_bytes, why_invalid
from xbm_keras.index.exported_texts import ExportedTexts

SIGNATURES = {"image": "serve_bytes", "text": "serving_default", "vector": "serve_features"}


class ExportEmbedder:
    """An `Embedder` that is an exported model alone. It keeps no features.

    Args:
        version: of the model.
        cache_dir: where the hashes of files are kept.
        modality: of the items: "image", "text" or "vector".

    Raises:
        ValueError: where it takes no such items.
    """

    def __init__(self, version: pathlib.Path, cache_dir: pathlib.Path, modality: str):
        self.model, self.cache_dir = ExportedModel(version, SIGNATURES[modality]), cache_dir
        self.fingerprint = self.model.fingerprint
        self.texts = ExportedTexts(self.model, version) if modality == "text" else None

    def network(self, source) -> None:
        """It does not say."""

    def embed(self, source, positions):
        """Vectors, their positions, and why others have none."""
        if isinstance(source, Vectors):
            return self.model.embed_features(np.asarray(source.features[positions], np.float32)), positions, {}
        rows, kept = [], []
        reasons: dict[int, str] = {}
        one = self._texts if source.modality == "text" else self._pictures
        with progress.bar("embedding", len(positions)) as bar:
            for start in range(0, len(positions), BATCH_SIZE):
                batch = positions[start : start + BATCH_SIZE].tolist()
                vectors, valid, why = one(source, batch)
                rows.append(vectors[valid])
                kept += np.array(batch)[valid].tolist()
                reasons |= why
                bar.advance(len(batch))
        width = self.model.loaded.signatures["serve_features"].structured_outputs["embeddings"].shape[1]
        return np.concatenate([np.zeros((0, width), np.float32), *rows]), np.array(kept, np.int64), reasons

    def _pictures(self, source: PictureFiles, batch: list[int]):
        paths = [source.root / source.paths[i] for i in batch]
        vectors, valid = self.model.embed([read_bytes(path) for path in paths])
        return vectors, valid, {batch[i]: why_invalid(paths[i]) for i in np.flatnonzero(~valid)}

    def _texts(self, source: RandomAccess, batch: list[int]):
        texts, reasons = [], {}
        for i in batch:
            try:
                texts.append(str(source.load(i)))
            except UnreadableItem as error:
                texts.append(".")
                reasons[i] = str(error)
        if self.texts is None:
            raise RuntimeError("Received texts for a model of none.")
        return self.texts.embed(texts), np.array([i not in reasons for i in batch]), reasons
