"""Search in few bits: a gallery's coarse codes in memory find candidates, finer ones, if wanted, rank these again.

Letters: Q queries, N gallery items, E embedding width, k answers, c candidates.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from xbm_keras.atomic_files import write_whole
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.geometry import unit_rows
from xbm_keras.stages.cosine_scores import all_bits_of_float32

FILE = "search.json"
BLOCK = 8192  # gallery items decoded at a time
SCORES = 1 << 22  # held at a time: 16 MB


@dataclasses.dataclass(frozen=True)
class SearchForm:
    """How a gallery is held and searched.

    Raises:
        ValueError: for a code that does not exist, a finer one that is not finer, or sizes below 1.
    """

    width: int
    """Dimensions, the first so many of the embedding."""
    search: str
    """The code that is searched: "float32", "float16", "int8", "int4" or "binary"."""
    rank: str | None = None
    """The finer code of the candidates; None ranks by the one that is searched."""
    rescore: int = 1
    """Candidates for each answer."""

    def __post_init__(self):
        names = list(CODES)
        known = self.search in names and (self.rank is None or self.rank in names[: names.index(self.search)])
        if not known or self.width < 1 or self.rescore < 1 or (self.rank is None) != (self.rescore == 1):
            raise ValueError(
                f"Received {self}; expected a width of at least 1, codes of {', '.join(names)}, of which the one that "
                "ranks is finer and stands together with a rescore of 2 or more. Export the model anew."
            )

    @property
    def bytes_in_memory(self) -> int:
        """Of an item, of what every search reads."""
        return CODES[self.search].bytes_per_item(self.width)

    @property
    def bytes_on_disk(self) -> int:
        """Of an item, of what only candidates are read from."""
        return CODES[self.rank].bytes_per_item(self.width) if self.rank else 0

    def __str__(self) -> str:
        """Such as "128 dimensions, binary, best 4 k ranked by int8"."""
        ranked = f", best {self.rescore} k ranked by {self.rank}" if self.rank else ""
        return f"{self.width} dimensions, {self.search}{ranked}"

    def write(self, folder: pathlib.Path) -> None:
        """Write `search.json` beside an exported model or an index."""
        write_whole(folder / FILE, json.dumps(dataclasses.asdict(self), indent=1))


def read_search_form(folder: pathlib.Path) -> SearchForm | None:
    """What `SearchForm.write` wrote, None where there is none. Raises ValueError for a damaged file."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return SearchForm(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"Received {path}, which is damaged: {error} Expected it as `xbm-keras compress` wrote it; run that again."
        ) from error


class CodedSearch:
    """Exact nearest items among what a gallery's codes stand for; queries stay float.

    No more than some thousand items are decoded, and 16 MB of scores held, at a time. Equal scores rank by position.

    Args:
        form: width and codes.
        codes: [N, ...] of the code that is searched, in memory.
        finer: [N, ...] of the code that ranks, which may be memory-mapped: only candidates are read.

    Raises:
        ValueError: for codes that do not fit the form or each other.

    Example:
        >>> vectors = np.random.default_rng(0).normal(size=(1000, 64)).astype("float32")
        >>> search = CodedSearch.of(vectors, SearchForm(64, "binary", "int8", rescore=4))
        >>> search.find(vectors[:2], k=1)[0].tolist()
        [[0], [1]]
    """

    def __init__(self, form: SearchForm, codes: np.ndarray, finer: np.ndarray | None = None):
        self.form, self.codes, self.finer = form, codes, finer
        sizes = [form.bytes_in_memory, form.bytes_on_disk]
        given = [_bytes_of(codes), 0 if finer is None else _bytes_of(finer)]
        if given != sizes or (finer is not None and len(finer) != len(codes)):
            raise ValueError(
                f"Received codes of {given} bytes an item for {form}; expected {sizes}, of the same items. Encode both "
                "from the vectors of one gallery."
            )

    @classmethod
    def of(cls, vectors: np.ndarray, form: SearchForm) -> "CodedSearch":
        """The search of a gallery of embeddings [N, E], E at least the form's width."""
        codes = [CODES[name].of(vectors[:, : form.width]) for name in (form.search, form.rank) if name]
        return cls(form, *codes)

    def find(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions [Q, min(k, N)] int64 and cosine similarities of the nearest items, best first.

        The similarities are of a query [E], cut to the width, and what the finest code of an item stands for.
        """
        candidates, similarities = self.candidates(queries, k * self.form.rescore)
        if self.finer is None:
            return candidates, similarities
        return self.ranked_again(queries, candidates, k)

    def candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The same by the code that is searched, for queries of the full width."""
        num_items = len(self.codes)
        queries, count = self._unit(queries), min(count, num_items)
        positions = np.zeros((len(queries), count), np.int64)
        similarities = np.full((len(queries), count), -np.inf, np.float32)
        some = max(1, SCORES // (count + BLOCK))
        with all_bits_of_float32():
            for start in range(0, num_items, BLOCK):
                block = self._decoded(self.form.search, self.codes[start : start + BLOCK])
                for first in range(0, len(queries), some):
                    rows = slice(first, first + some)
                    scores = tf.matmul(queries[rows], block, transpose_b=True).numpy()
                    place = start + np.broadcast_to(np.arange(len(block)), scores.shape)
                    # Earlier items first, so that `top_k`, which puts the first of two equal ones first, keeps them.
                    both = np.concatenate([similarities[rows], scores], axis=1)
                    best, chosen = tf.math.top_k(both, count)
                    found = np.concatenate([positions[rows], place], axis=1)
                    positions[rows] = np.take_along_axis(found, chosen.numpy(), axis=1)
                    similarities[rows] = best.numpy()
        return positions, similarities

    def ranked_again(self, queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of candidates [Q, c] by the finer code."""
        if self.finer is None:
            raise ValueError(
                f"Received candidates to rank again by {self.form}, which has no finer code; expected one."
            )
        queries, k = self._unit(queries), min(k, candidates.shape[1])
        positions, similarities = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        some = max(1, SCORES // max(1, candidates.shape[1] * self.form.width))
        for start in range(0, len(queries), some):
            rows = slice(start, start + some)
            asked = np.sort(candidates[rows], axis=1)
            shape = *asked.shape, self.form.width
            vectors = self._decoded(self.form.rank, self.finer[asked.ravel()]).reshape(shape)
            scores = np.einsum("qe,qce->qc", queries[rows], vectors)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            positions[rows] = np.take_along_axis(asked, order, axis=1)
            similarities[rows] = np.take_along_axis(scores, order, axis=1)
        return positions, similarities

    def _unit(self, queries: np.ndarray) -> np.ndarray:
        return unit_rows(np.asarray(queries, np.float32)[:, : self.form.width])

    def _decoded(self, name: str | None, codes: Any) -> np.ndarray:
        return unit_rows(CODES[name or self.form.search].decode(np.asarray(codes), self.form.width))


def _bytes_of(codes: np.ndarray) -> int:
    return codes.itemsize * int(np.prod(codes.shape[1:]))
