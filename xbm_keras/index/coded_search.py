"""Search in few bits: a gallery's coarse codes find candidates, finer ones, if wanted, rank these again.

What computes here runs eagerly, and in the graph of an index.

Letters: Q queries, N gallery items, E embedding width, w width of a form, k answers, c candidates.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow as tf

from xbm_keras.atomic_files import write_whole
from xbm_keras.evaluation.quantization import CODES, EmbeddingCode
from xbm_keras.geometry import unit_rows
from xbm_keras.stages.cosine_scores import all_bits_of_float32

FILE = "search.json"
DECODED = 1 << 21  # numbers at a time: 8 MB, which a cache holds
SCORES = 1 << 22  # held at a time: 16 MB
ROWS = 64  # of which those of a block are a multiple, so that a block of float32 is no copy
RESCORE = 4
FORM = re.compile(r"(?:(\d+)\s+)?(\w+?)(?:\+(\w+?)(?:x(\d+))?)?")


@dataclasses.dataclass(frozen=True)
class SearchForm:
    """How a gallery is held and searched.

    Raises:
        ValueError: for a code that does not exist, a finer one that is not finer, or sizes below 1.
    """

    width: int
    """Dimensions, the first so many of the embedding."""
    search: str
    """The code that is searched: "float32", "float16", "int8", "int4", "trellis", "layers" or "binary"."""
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
                "ranks is finer and stands together with a rescore of 2 or more. Choose such ones."
            )

    @staticmethod
    def parse(text: str, width: int) -> "SearchForm":
        """The form that a user wrote.

        Args:
            text: a code, such as "int8", or two, "binary+int8", where the second ranks the best 4 k, or as many as
                "binary+int8x8" says; before it perhaps a width, "64 int8".
            width: E, where the text has none.

        Raises:
            ValueError: for what is none, or wider than E.

        Example:
            >>> str(SearchForm.parse("64 binary+int8", 128))
            '64 dimensions, binary, best 4 k ranked by int8'
        """
        found = FORM.fullmatch(text.strip())
        if found is None or int(found[1] or width) > width:
            raise ValueError(
                f"Received the form {text!r} for embeddings of width {width}; expected one or two of the codes "
                f"{', '.join(CODES)}, such as int8, binary+int8 or binary+int8x8, perhaps after a width of at most "
                f"{width}, such as '{width} int8'."
            )
        rank = found[3]
        return SearchForm(int(found[1] or width), found[2], rank, int(found[4] or RESCORE) if rank else 1)

    @property
    def codes(self) -> dict[str, EmbeddingCode]:
        """Which are held: the one of the `search` and, where it is another, the one that may `rank` again."""
        return {what: CODES[name] for what, name in (("search", self.search), ("rank", self.rank)) if name}

    @property
    def finest(self) -> str:
        """The last of `codes`, of what the answers' similarities are."""
        return "rank" if self.rank else "search"

    def cut(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings [N, E] to [N, w] of unit length."""
        return unit_rows(np.asarray(embeddings, np.float32)[:, : self.width])

    def encode(self, embeddings: np.ndarray) -> dict[str, np.ndarray]:
        """All codes [N, columns] of embeddings [N, E]. Raises ValueError where these are narrower than the form."""
        if embeddings.shape[1] < self.width:
            raise ValueError(
                f"Received embeddings of width {embeddings.shape[1]} to hold as {self}; expected at least its width. "
                "Choose another form."
            )
        shapes = {what: (len(embeddings), code.columns(self.width)) for what, code in self.codes.items()}
        found = {what: np.empty(shapes[what], code.dtype) for what, code in self.codes.items()}
        for start in range(0, len(embeddings), block := rows_of_block(self.width)):
            rows = self.cut(embeddings[start : start + block])
            for what, code in self.codes.items():
                found[what][start : start + block] = code.of(rows)
        return found

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Vectors [N, w] float32 of unit length that the finest codes [N, columns] stand for."""
        code = self.codes[self.finest]
        if code.name == "float32":
            return codes
        vectors = np.empty((len(codes), self.width), np.float32)
        for start in range(0, len(codes), block := rows_of_block(self.width)):
            part = np.asarray(codes[start : start + block])
            vectors[start : start + block] = unit_rows(code.decode(part, self.width).numpy())
        return vectors

    @property
    def bytes_in_memory(self) -> int:
        """Of an item, of what every search reads."""
        return self.codes["search"].bytes_per_item(self.width)

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


def rows_of_block(width: int) -> int:
    """Items that are decoded at a time."""
    rows = max(1, DECODED // width)
    return rows // ROWS * ROWS or rows


def cosines(queries: tf.Tensor, codes: tf.Tensor, code: EmbeddingCode) -> tf.Tensor:
    """Similarities [Q, n] of queries [Q, w] of unit length and what codes [n, columns] stand for.

    Or [Q, c] of what the codes [Q, c, columns] of each query's own items stand for.
    """
    width, is_own = queries.shape[1], len(codes.shape) == 3
    asked = tf.gather(queries, code.order(width), axis=1) if code.is_split else queries
    rows = code.unpack(tf.reshape(codes, [-1, codes.shape[-1]]), width)
    if code.length is not None:
        asked = asked / code.length(width)
    shape = tf.concat([tf.shape(codes)[:-1], [width]], axis=0)
    if is_own:
        products = tf.einsum("qw,qcw->qc", asked, tf.reshape(rows, shape))
    else:
        products = tf.matmul(asked, rows, transpose_b=True)
    if code.length is not None:
        return products
    lengths = tf.sqrt(tf.reduce_sum(rows * rows, axis=1))
    return products * tf.reshape(tf.math.divide_no_nan(1.0, lengths), shape[:-1])


def nearest(
    queries: tf.Tensor, codes: Any, num_rows: int, code: EmbeddingCode, count: Any, among: Any = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Similarities float32 and rows int64, both [Q, min(count, N)], of the nearest items, equal ones by position.

    Of the items no more than a block is decoded at a time.

    Args:
        queries: [Q, w] of unit length.
        codes: [N, columns], a tensor or an array.
        num_rows: N.
        code: of the codes.
        count: of the answers, a number or a tensor.
        among: [N] bool, those that may be found, where not all may: others have a similarity of -inf.
    """
    block = rows_of_block(queries.shape[1])

    def merge(start, similarities, rows):
        stop = tf.minimum(start + block, num_rows)
        scores = cosines(queries, tf.convert_to_tensor(codes[start:stop]), code)
        if among is not None:
            scores = tf.where(among[start:stop], scores, -np.inf)
        best, place = tf.math.top_k(scores, tf.minimum(count, stop - start))
        place = tf.cast(place, tf.int64) + tf.cast(start, tf.int64)
        # Earlier items first, so that `top_k`, which puts the first of two equal ones first, keeps them.
        return stop, *best_of([similarities, best], [rows, place], count)

    shape = [tf.shape(queries)[0], 0]
    state = tf.constant(0), tf.zeros(shape), tf.zeros(shape, tf.int64)
    if num_rows <= block:
        return merge(*state)[1:]
    free = tf.TensorShape([None, None])
    return tf.while_loop(
        lambda start, *_: start < num_rows, merge, state, (tf.TensorShape([]), free, free), parallel_iterations=2
    )[1:]


def best_of(similarities: list, rows: list, count: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """The best of several lists [Q, ...], side by side; of equal ones those that stand first."""
    scores = tf.concat(similarities, axis=1)
    best, chosen = tf.math.top_k(scores, tf.minimum(count, tf.shape(scores)[1]))
    return best, tf.gather(tf.concat(rows, axis=1), chosen, batch_dims=1)


def ranked(queries: tf.Tensor, rows: tf.Tensor, codes: tf.Tensor, code: EmbeddingCode, k: Any):
    """Similarities and rows [Q, min(k, c)] of the best of candidates: rows [Q, c], ascending, codes [Q, c, columns]."""
    return best_of([cosines(queries, codes, code)], [rows], k)


class CodedSearch:
    """Exact nearest items among what a gallery's codes stand for; queries stay float.

    No more than 8 MB of items are decoded, and 16 MB of scores held, at a time. Equal scores rank by position.

    Args:
        form: width and codes.
        codes: [N, ...] of the code that is searched, in memory; float32 of unit length.
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
        return cls(form, *form.encode(vectors).values())

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
        code, num_items = self.form.codes["search"], len(self.codes)
        some = max(1, SCORES // (count + rows_of_block(self.form.width)))
        return self._in_blocks(queries, some, lambda asked, _: nearest(asked, self.codes, num_items, code, count))

    def ranked_again(self, queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of candidates [Q, c] by the finer code."""
        finer = self.finer
        if finer is None:
            raise ValueError(
                f"Received candidates to rank again by {self.form}, which has no finer code; expected one."
            )

        def rank(asked, rows):
            own = np.sort(candidates[rows], axis=1)
            codes = np.asarray(finer[own.ravel()]).reshape(*own.shape, -1)
            return ranked(asked, tf.constant(own), tf.constant(codes), self.form.codes["rank"], k)

        return self._in_blocks(queries, max(1, SCORES // max(1, candidates.shape[1] * self.form.width)), rank)

    def _in_blocks(self, queries: np.ndarray, some: int, find) -> tuple[np.ndarray, np.ndarray]:
        """Positions and similarities, for so many queries at a time."""
        queries, found = self.form.cut(queries), []
        with all_bits_of_float32():
            for start in range(0, max(1, len(queries)), some):
                rows = slice(start, start + some)
                found.append([each.numpy() for each in find(tf.constant(queries[rows]), rows)])
        similarities, positions = (np.concatenate(each) for each in zip(*found, strict=True))
        return positions, similarities


def _bytes_of(codes: np.ndarray) -> int:
    return codes.itemsize * int(np.prod(codes.shape[1:]))
