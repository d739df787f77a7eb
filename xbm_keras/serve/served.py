"""A model and the index that it embedded, which are served together and change together."""

import functools
import itertools
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xbm_keras.atomic_files import versions
from xbm_keras.data import decoding
from xbm_keras.data.pictures import count_pixels
from xbm_keras.evaluation.thresholds import require_thresholds
from xbm_keras.geometry import unit_rows
from xbm_keras.index.exported_model import ExportedModel, exported_by, fingerprint_of
from xbm_keras.index.exported_texts import ExportedTexts, takes_texts
from xbm_keras.index.opened_index import OpenedIndex, described_items
from xbm_keras.index.where import sql_of
from xbm_keras.serve.metrics import Metrics
from xbm_keras.serve.passes import Limits, Passes

log = logging.getLogger("uvicorn.error")
ONE_PIXEL = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
# Networks give an item the same bits in all batches of 2 to 7; kernels add up single rows, and rows in groups of 8,
# in other orders. So passes have at most 6, and one that stands alone gets company; matrices get rows up to groups.
FEW = 6
ROWS = 8
TEXTS = 32
MANY = 256


class Asked(NamedTuple):
    """One item of a request."""

    content: Any
    """Encoded bytes of a picture, a text, or a vector."""
    k: int
    """Items to find; 0 for the embedding alone."""
    pixels: int = 0
    where: str | None = None
    """What the items that are found are to meet."""


class Answer(NamedTuple):
    """What an item of a request gets."""

    embedding: np.ndarray
    is_valid: bool
    hits: list[dict]
    """The nearest items, best first."""


class Served:
    """A model, and an index that it embedded, loaded and warm.

    Args:
        version: the exported model.
        index: a version of the index; None finds nothing.
        metrics: is told of each pass.
        max_pixels: of a pass.
        precision: of hits that are matches; None tells none.
        approximate: whether the approximate search of the index is asked.

    Raises:
        ValueError: where one of them cannot be loaded, neither knows which similarity makes a match, or the index has
            no approximate search.
    """

    def __init__(
        self,
        version: pathlib.Path,
        index: pathlib.Path | None,
        metrics: Metrics,
        max_pixels: int,
        precision: float | None = None,
        approximate: bool = False,
    ):
        self.version, self.index, self.key = version, index, tell_apart(version, index)
        self.model = ExportedModel(version, "serve_features")
        self.opened = None if index is None else OpenedIndex(index)
        ids = [] if self.opened is None else self.opened.kept_items["id"].to_pylist()
        self.places = {each: i for i, each in enumerate(ids)}
        self.thresholds, self.precision, self.approximate = None, precision, approximate
        if precision is not None:
            opened = self.opened
            self.thresholds = require_thresholds(version) if opened is None else opened.require_thresholds(version)
            log.warning("%s", self.thresholds.told(precision))
        embedders: dict[str, tuple[Callable, int]] = {}
        if "serve_bytes" in self.model.loaded.signatures:
            embedders["pictures"] = self._embed_pictures, FEW
        if takes_texts(self.model):
            self.texts = ExportedTexts(self.model, version)
            embedders["texts"] = self._embed_texts, TEXTS
        embedders["vectors"] = self._embed_features, MANY
        embedders["embeddings"] = self._take_embeddings, MANY
        self.embedders = embedders
        self.passes = {
            kind: Passes(
                functools.partial(self._answer, kind),
                Limits(limit, max_pixels),
                lambda asked: asked.pixels,
                metrics.pass_items.labels(kind).observe,
            )
            for kind, (_, limit) in embedders.items()
        }
        self._warm_up()

    @property
    def kinds(self) -> list[str]:
        """What it takes: "pictures", "texts", "vectors" (features of the network), "embeddings"."""
        return list(self.embedders)

    def width(self, kind: str) -> int:
        """Numbers of a vector of this kind."""
        function = self.model.loaded.signatures["serve_features"]
        if kind == "vectors":
            return function.structured_input_signature[1]["features"].shape[1]
        return function.structured_outputs["embeddings"].shape[1]

    def item(self, place: int) -> dict:
        """Id, label and metadata of the item at a place of the index."""
        items = self._opened().kept_items.slice(place, 1)
        return described_items(items)[0]

    def require_readable(self, where: str) -> None:
        """Raises ConditionError for a condition on the items that cannot be read."""
        sql_of(self._opened().items.schema, where)

    def _opened(self) -> OpenedIndex:
        if self.opened is None:
            raise RuntimeError("Received a search without an index; expected one.")
        return self.opened

    def _warm_up(self) -> None:
        """The first pass is slow, and so is the first look at a header."""
        count_pixels(ONE_PIXEL)
        examples = {"pictures": ONE_PIXEL, "texts": "a"}
        for kind in self.embedders:
            example = examples.get(kind, np.ones(self.width(kind), np.float32) if kind not in examples else None)
            self._answer(kind, [Asked(example, 0 if self.index is None else 1)])

    def _answer(self, kind: str, asked: list[Asked]) -> list[Answer]:
        embeddings, valid = self.embedders[kind][0]([each.content for each in asked])
        hits: list[list[dict]] = [[] for _ in asked]
        for k, where in {(each.k, each.where) for each, ok in zip(asked, valid, strict=True) if each.k and ok}:
            places = [i for i, each in enumerate(asked) if (each.k, each.where) == (k, where) and valid[i]]
            for i, found in zip(places, self._find(embeddings[places], k, where), strict=True):
                hits[i] = found
        return [Answer(*each) for each in zip(embeddings, valid.tolist(), hits, strict=True)]

    def _find(self, embeddings: np.ndarray, k: int, where: str | None) -> list[list[dict]]:
        asked = embeddings if self.approximate else _in_groups(embeddings)
        found = self._opened().find(asked, k, approximate=self.approximate, where=where)[: len(embeddings)]
        if self.thresholds is not None and self.precision is not None:
            for hit in itertools.chain.from_iterable(found):
                hit["is_match"] = bool(self.thresholds.is_match(hit["similarity"], self.precision))
        return found

    def _embed_pictures(self, encoded: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Zeros, and not valid, for what is no picture."""
        for company in ([ONE_PIXEL],) if len(encoded) == 1 else ([], [ONE_PIXEL]):
            embeddings, valid = self.model.embed([*encoded, *company], decoding.MAX_PIXELS)
            if valid.sum() != 1:  # else one stood alone among others that are none
                break
        return embeddings[: len(encoded)], valid[: len(encoded)]

    def _embed_texts(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return self.texts.embed(texts), np.ones(len(texts), bool)

    def _embed_features(self, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return self.model.embed_features(_in_groups(np.stack(rows)))[: len(rows)], np.ones(len(rows), bool)

    def _take_embeddings(self, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return unit_rows(np.stack(rows)), np.ones(len(rows), bool)


def choose(model: str, index: pathlib.Path | None) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The newest version of an index that a version of the model embedded, and the newest such model.

    Args:
        model: what `--model` names: of a version that alone counts, else all versions beside the newest.
        index: the folder of the index's versions; None is none.

    Raises:
        ValueError: where no two fit each other.
    """
    newest = exported_by(model)
    named = pathlib.Path(model)
    is_version = (named / "saved_model.pb").is_file() or named.is_file()
    models = [newest] if is_version else versions(newest.parent)[::-1]
    if index is None:
        return newest, None
    for candidate, version in itertools.product(versions(index)[::-1], models):
        if _model_of(candidate) == fingerprint_of(version):
            return version, candidate
    raise ValueError(
        f"Received --index {index}, which holds no version that this model embedded; expected an index of this model. "
        "Build one: xbm-keras index build."
    )


def newest_of(model: str, index: pathlib.Path | None) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The newest versions, whether they fit or not."""
    return exported_by(model), versions(index)[-1] if index else None


def _model_of(index: pathlib.Path) -> str | None:
    """Fingerprint of the model that embedded a version of an index; None where that is damaged."""
    try:
        return json.loads((index / "index.json").read_text("utf-8"))["model"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def tell_apart(version: pathlib.Path, index: pathlib.Path | None) -> tuple:
    """What tells these two from others, of the same numbers too."""
    files = [version / "saved_model.pb"] + ([] if index is None else [index / "index.json"])
    return tuple((str(file), file.stat().st_mtime_ns) for file in files)


def _in_groups(rows: np.ndarray) -> np.ndarray:
    """Rows [n, D], and zeros up to the next multiple of 8."""
    return np.pad(rows, [(0, -len(rows) % ROWS), (0, 0)])
