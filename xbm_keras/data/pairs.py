"""Queries and the documents that answer them: BEIR folders, tables of questions and answers, and vectors.

Letters: Q queries, N documents, J judgements.
"""

import collections
import dataclasses
import os
import pathlib

import numpy as np

from xbm_keras.data.errors import DataError
from xbm_keras.data.labels import as_text
from xbm_keras.data.sources import Items
from xbm_keras.data.tables import TABLES, Table, suffix_of
from xbm_keras.data.texts import Texts

GRADE_NAMES = ("score", "relevance", "grade", "label", "rel")
OF_A_FOLDER = ("corpus", "queries", "documents", "features")  # files that say nothing without the folder's others
SPLIT_OF = {"dev": "validation", "valid": "validation", "val": "validation"}  # names of one thing


@dataclasses.dataclass(frozen=True)
class Side:
    """The queries, or the documents."""

    ids: np.ndarray
    """[n] str, unique."""
    texts: list | None = None
    """[n], where there are; what is empty is None."""
    features: np.ndarray | None = None
    """[n, D], where some model already gave them."""

    def source(self, prefix: str = "") -> Texts:
        """Its texts as items, behind a prefix."""
        return Texts(self.texts or [], Items(self.ids, None, {}), prefix)

    def take(self, positions: np.ndarray) -> "Side":
        """Some of them."""
        texts = None if self.texts is None else [self.texts[i] for i in positions]
        return Side(self.ids[positions], texts, None if self.features is None else self.features[positions])


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Queries, documents, and which answers which."""

    queries: Side
    documents: Side
    query: np.ndarray
    """[J] int64, positions of judged queries. Each pair of query and document is there once."""
    document: np.ndarray
    """[J] int64, positions of the documents that were judged for them."""
    grade: np.ndarray
    """[J] float64: above 0 where the document answers the query; else it was judged and does not."""
    split: np.ndarray
    """[J] str: "train", "validation" or "test"; empty where the data do not say."""
    ignored: dict[str, int]
    """What was left out, and how often."""

    def relevant(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Documents that answer these queries, [q, P] positions and -1, and their grades, [q, P] and 0.

        P is the largest number of any of them, at least 1.
        """
        answers = np.flatnonzero((self.grade > 0) & np.isin(self.query, queries))
        row_of = np.full(len(self.queries.ids), -1)
        row_of[queries] = np.arange(len(queries))
        rows = row_of[self.query[answers]]
        order = np.argsort(rows, kind="stable")
        rows, answers = rows[order], answers[order]
        counts = np.bincount(rows, minlength=len(queries))
        columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        documents = np.full((len(queries), max(1, counts.max(initial=0))), -1, np.int64)
        grades = np.zeros(documents.shape)
        documents[rows, columns], grades[rows, columns] = self.document[answers], self.grade[answers]
        return documents, grades

    def keeping(self, queries: np.ndarray, documents: np.ndarray) -> "Pairs":
        """The same with these queries and documents alone, [q] and [n] ascending positions, and their judgements."""
        places = []
        for chosen, side in ((queries, self.queries), (documents, self.documents)):
            place = np.full(len(side.ids), -1)
            place[chosen] = np.arange(len(chosen))
            places.append(place)
        query, document = places[0][self.query], places[1][self.document]
        is_kept = (query >= 0) & (document >= 0)
        kept = (query[is_kept], document[is_kept], self.grade[is_kept], self.split[is_kept])
        return Pairs(self.queries.take(queries), self.documents.take(documents), *kept, self.ignored)


def read_pairs(path: str, query_column: str = "query", document_column: str = "document") -> Pairs:
    """Queries, documents and judgements.

    - A BEIR folder: `corpus` (`_id`, `title`, `text`), `queries` (`_id`, `text`) and `qrels/<split>.tsv` (query,
      document, grade, under a line of names; or TREC's four columns without). Beside or in place of the texts
      `features.npz` with `documents` [N, D], `document_id`, `queries` [Q, D] and `query_id`.
    - A folder of vectors: `queries.npy`, `documents.npy`, and judgements by row number, in `qrels/` or in `pairs.npy`
      [J, 2], or [J, 3] with grades.
    - A table with a column of queries and one of documents, and perhaps `score` and `split`. Equal texts are one query,
      or one document.

    Tables end in .jsonl, .parquet, .csv or .tsv, those of text perhaps in .gz. Judgements that name what there is not
    are left out and counted; so are queries that nothing answers.

    Args:
        path: the folder, or the table.
        query_column: of a table.
        document_column: of a table.

    Raises:
        DataError: for what is missing or cannot be read; an id that is there twice; a grade that is no number; one pair
            with two grades; or where no judgement is left, or none answers a query.
    """
    place = pathlib.Path(os.path.expanduser(path))
    if place.is_file():
        if place.name.partition(".")[0] in OF_A_FOLDER and (place.parent / "qrels").is_dir():
            raise DataError(
                f"Received data.path {path!r}, a file of a folder with qrels/; expected the folder. Say --set "
                f"data.path={place.parent}."
            )
        return _of_table(place, query_column, document_column)
    if not place.is_dir():
        raise DataError(
            f"Received data.path {path!r}, which is neither folder nor file; expected a folder with corpus.jsonl, "
            "queries.jsonl and qrels/, or a table of queries and documents."
        )
    return _of_folder(place)


def _of_folder(folder: pathlib.Path) -> Pairs:
    vectors = folder / "features.npz"
    arrays = _open(vectors) if vectors.is_file() else {}
    sides = {}
    for name, file, key in (("queries", "queries", "query_id"), ("documents", "corpus", "document_id")):
        table = _table_of(folder, file)
        side = _side(folder, table, name, file, arrays, key)
        sides[name] = side
    names, judged = _judgements(folder)
    return _pairs(sides["queries"], sides["documents"], names, judged, str(folder))


def _side(folder, table, name: str, file: str, arrays: dict, key: str) -> Side:
    """Queries or documents: texts of a table, features, or both, in the order of the features."""
    texts: dict[str, str | None] | None = None
    if table is not None:
        ids = _unique(table.texts("_id"), table.name)
        columns = [as_text(table[column]) for column in ("title", "text") if column in table.columns]
        if not columns:
            raise DataError(f"Received {table.name} without a column 'text'; it has {', '.join(table.columns)}.")
        joined = (" ".join(filter(None, map(str.strip, cells))) for cells in zip(*columns, strict=True))
        texts = {each: text or None for each, text in zip(ids, joined, strict=True)}
    plain = folder / f"{name}.npy"
    if name in arrays or plain.is_file():
        features = arrays[name] if name in arrays else _open(plain)[""]
        given = arrays.get(key)
        ids = [str(i) for i in range(len(features))] if given is None else _unique(given.astype(str).tolist(), key)
        if features.ndim != 2 or features.dtype.kind not in "fiu" or len(ids) != len(features):
            raise DataError(
                f"Received {name} of shape {features.shape} and dtype {features.dtype} with {len(ids)} ids in "
                f"{folder}; expected numbers [n, D], and an id for each."
            )
        if texts is not None and set(texts) != set(ids):
            missing = next(iter(set(texts) ^ set(ids)))
            raise DataError(
                f"Received {len(texts)} {name} as texts and {len(ids)} as vectors in {folder}, of which {missing!r} is "
                "not in both; expected the same ids. Compute the vectors anew, or remove them."
            )
        return Side(np.array(ids), None if texts is None else [texts[each] for each in ids], features)
    if texts is None:
        raise DataError(
            f"Received {folder}, which holds neither {file}.jsonl nor {name} in features.npz or {name}.npy; expected "
            "texts or vectors of them."
        )
    return Side(np.array(list(texts)), list(texts.values()))


def _table_of(folder: pathlib.Path, stem: str) -> Table | None:
    found = [path for path in sorted(folder.glob(f"{stem}.*")) if suffix_of(path) in TABLES]
    return Table(found[0]) if found else None


def _open(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays of an `.npz`, or that of an `.npy` under "" (memory-mapped)."""
    try:
        if path.suffix == ".npy":
            return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"Received {path}, which cannot be read: {error}. Write it anew by numpy.") from error


def _unique(ids: list[str], where: str) -> list[str]:
    twice = [each for each, count in collections.Counter(ids).items() if count > 1]
    if twice:
        raise DataError(
            f"Received {len(twice)} ids that are there more than once in {where}, such as {twice[0]!r}; expected each "
            "once. Remove the others, or rename them."
        )
    return ids


def _judgements(folder: pathlib.Path) -> tuple[list[tuple[str, str]], list[tuple[float, str]]]:
    """Ids of query and document, and grade and split, of each judgement."""
    files = [path for path in sorted((folder / "qrels").glob("*")) if suffix_of(path) in TABLES]
    if files:
        names, judged = [], []
        for path in files:
            stem = path.name.partition(".")[0]
            split = SPLIT_OF.get(stem, stem)
            for query, document, grade in _rows(path):
                names.append((query, document))
                judged.append((grade, split))
        return names, judged
    plain = folder / "pairs.npy"
    if plain.is_file():
        return _by_number(_open(plain)[""], str(plain))
    raise DataError(
        f"Received {folder}, which holds neither qrels/*.tsv nor pairs.npy; expected judgements, such as "
        "qrels/train.tsv with the columns query-id, corpus-id and score."
    )


def _by_number(array: np.ndarray, where: str) -> tuple[list[tuple[str, str]], list[tuple[float, str]]]:
    """The same of an array of row numbers."""
    if array.ndim != 2 or array.shape[1] not in (2, 3) or array.dtype.kind not in "iuf":
        raise DataError(
            f"Received {where} of shape {array.shape} and dtype {array.dtype}; expected numbers [J, 2], of query and "
            "document, or [J, 3] with grades."
        )
    names = [(str(int(q)), str(int(d))) for q, d in array[:, :2].tolist()]
    return names, [(float(g), "") for g in (array[:, 2] if array.shape[1] == 3 else np.ones(len(array)))]


def pairs_of_positions(queries: Side, documents: Side, pairs: np.ndarray, where: str) -> Pairs:
    """Judgements [J, 2], or [J, 3] with grades, of sides whose ids are row numbers; `where` they stand, for messages.

    Raises DataError as `read_pairs` does.
    """
    return _pairs(queries, documents, *_by_number(pairs, where), where)


def _rows(path: pathlib.Path) -> list[tuple[str, str, float]]:
    """Query, document and grade of each line of qrels; the names of its columns do not matter, if they are names."""
    table = Table(path)
    columns = [as_text(column).tolist() for column in table.columns.values()]
    header = list(table.columns)
    if len(header) == 1 and suffix_of(path) != ".jsonl":  # TREC's own, with blanks between
        lines = [line.split() for line in (header[0], *columns[0])]
        header, columns = lines[0], [list(cells) for cells in zip(*lines[1:], strict=False)] or [[] for _ in lines[0]]
    if len(header) not in (3, 4) or len(columns) != len(header):
        raise DataError(
            f"Received {path} with the columns {', '.join(header)}; expected three, of query, document and grade."
        )
    rows = [list(cells) for cells in zip(*columns, strict=True)]
    if _number(header[-1]) is not None:  # no line of names
        rows.insert(0, header)
    found = []
    for number, cells in enumerate(rows, 1):
        grade = _number(cells[-1])
        if grade is None:
            raise DataError(
                f"Received {path}, whose judgement {number} has the grade {cells[-1]!r}; expected a number: 0 for "
                "judged and not relevant, 1 or more for relevant."
            )
        found.append((cells[0], cells[-2], grade))
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _of_table(path: pathlib.Path, query_column: str, document_column: str) -> Pairs:
    table = Table(path)
    sides, places = [], []
    for column in (query_column, document_column):
        texts = as_text(table[column]).tolist()
        known: dict[str, int] = {}
        places.append([known.setdefault(text.strip(), len(known)) for text in texts])
        sides.append(Side(np.array([str(i) for i in range(len(known))]), [text or None for text in known]))
    grades = next((table.columns[name] for name in GRADE_NAMES if name in table.columns), None)
    values = [1.0] * len(table) if grades is None else [_number(text) for text in as_text(grades).tolist()]
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        row = [value is None for value in values].index(True)
        raise DataError(
            f"Received {path}, whose row {row} has no number as its score; expected one in each: 0 for not relevant, 1 "
            "or more for relevant."
        )
    splits = as_text(table["split"]).tolist() if "split" in table.columns else [""] * len(table)
    names = [(str(q), str(d)) for q, d in zip(*places, strict=True)]
    judged = [(value, SPLIT_OF.get(split, split)) for value, split in zip(numbers, splits, strict=True)]
    return _pairs(sides[0], sides[1], names, judged, str(path))


def _pairs(queries: Side, documents: Side, names: list, judged: list, where: str) -> Pairs:
    """Judgements by position, each once, without those that name what there is not or what is empty."""
    places = [_places(side) for side in (queries, documents)]
    ignored: collections.Counter = collections.Counter()
    kept: dict[tuple[int, int], tuple[float, str]] = {}
    for (query, document), (grade, split) in zip(names, judged, strict=True):
        unknown = "query" if query not in places[0] else "document" if document not in places[1] else ""
        if unknown:
            ignored[f"judgements of a {unknown} that there is not, or is empty"] += 1
            continue
        pair = places[0][query], places[1][document]
        if pair in kept and kept[pair] != (grade, split):
            raise DataError(
                f"Received {where} with two judgements of query {query!r} and document {document!r}, {kept[pair]} and "
                f"{(grade, split)}; expected one. Remove the other."
            )
        ignored["judgements that are there twice"] += pair in kept
        kept[pair] = grade, split
    if not any(grade > 0 for grade, _ in kept.values()):
        example = f", such as {names[0][0]!r} with {names[0][1]!r}" if names else ""
        raise DataError(
            f"Received {len(names)} judgements in {where}{example}, none of which says that a document that there is "
            "answers a query that there is; expected such. Compare the ids in qrels with those of corpus and queries."
        )
    grades = np.array([grade for grade, _ in kept.values()])
    pairs = np.array(list(kept), np.int64)
    answered = np.unique(pairs[grades > 0, 0])
    ignored["queries that nothing answers"] += len(queries.ids) - len(answered)
    is_kept = np.isin(pairs[:, 0], answered)
    split = np.array([split for _, split in kept.values()])
    return Pairs(
        queries, documents, pairs[is_kept, 0], pairs[is_kept, 1], grades[is_kept], split[is_kept],
        {what: count for what, count in ignored.items() if count},
    )  # fmt: skip


def _places(side: Side) -> dict[str, int]:
    """Of the ids; without those whose text is empty, where nothing else is known of them."""
    texts = side.texts if side.features is None and side.texts is not None else side.ids
    return {each: i for i, (each, text) in enumerate(zip(side.ids.tolist(), texts, strict=True)) if text}
