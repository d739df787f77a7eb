"""A gallery as the files of other stores, which their own clients read: exact search there finds what it finds here.

Each has the items' columns with their types, and `vector`, of unit length: cosine similarity is the dot product.
"""

import base64
import contextlib
import datetime
import json
import pathlib
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from xbm_keras.atomic_files import writing_folder, writing_whole
from xbm_keras.index.extras import import_library
from xbm_keras.index.gallery import Gallery

BLOCK = 10_000  # items that are in memory twice at a time
TABLE = "items"  # of a database, or its collection
VECTOR = "vector"
MODEL = "xbm_keras model"  # key of the fingerprint in the schema of a table
POINT_IDS = uuid.UUID("5f2d5c6e-7f0a-5c55-9a3e-0d5ba1a4b3c1")  # namespace of Qdrant's ids, which are no text


def export_gallery(store: str, path: pathlib.Path, gallery: Gallery, model: str) -> None:
    """Write a gallery for a store, whole or not at all.

    Args:
        store: a key of `STORES`.
        path: of the file or folder to write.
        gallery: the items.
        model: fingerprint of the model that embedded them, and that embeds queries.

    Raises:
        ValueError: for a path that is there, a column named `vector`, a value that the store cannot hold, or where its
            client is not installed.
    """
    if path.exists() or path.is_symlink():
        raise ValueError(f"Received {str(path)!r}, which is there; expected a new path. Delete it, or name another.")
    if VECTOR in gallery.items.column_names:
        raise ValueError(f"Received items with a column {VECTOR!r}, which is that of the vectors here; rename it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    STORES[store](path, gallery, model)


def write_parquet(path: pathlib.Path, gallery: Gallery, model: str) -> None:
    """A file of all columns, the vectors as lists of fixed size."""
    schema = _schema(gallery, model)
    with writing_whole(path) as side, pyarrow.parquet.ParquetWriter(side, schema) as writer:
        for batch in _batches(gallery, schema):
            writer.write_batch(batch)


def write_faiss(path: pathlib.Path, gallery: Gallery, model: str) -> None:
    """A folder of `index.faiss`, an IndexFlatIP, and `items.parquet`, whose rows its answers number."""
    faiss = import_library("faiss", "stores")
    index = faiss.IndexFlatIP(gallery.vectors.shape[1])
    for start in range(0, len(gallery.vectors), BLOCK):
        index.add(np.ascontiguousarray(gallery.vectors[start : start + BLOCK]))
    with writing_folder(path) as side:
        faiss.write_index(index, str(side / "index.faiss"))
        items = gallery.items.replace_schema_metadata({MODEL: model})
        pyarrow.parquet.write_table(items, side / "items.parquet")


def write_lancedb(path: pathlib.Path, gallery: Gallery, model: str) -> None:
    """A database with the table `items`."""
    lancedb, schema = import_library("lancedb", "stores"), _schema(gallery, model)
    if dotted := [name for name in schema.names if "." in name]:
        raise ValueError(
            f"Received the column {dotted[0]!r} for a table of LanceDB; expected a name without a dot. Rename it, or "
            "export to another store."
        )
    with writing_folder(path) as side:
        lancedb.connect(side).create_table(TABLE, _batches(gallery, schema), schema=schema)


def write_qdrant(path: pathlib.Path, gallery: Gallery, model: str) -> None:
    """A folder of Qdrant's local mode with the collection `items`; a point's id is the UUID of the item's id.

    The payload is JSON: times are text of ISO 8601, by which Qdrant filters.
    """
    qdrant = import_library("qdrant_client", "stores")
    models = qdrant.models
    with writing_folder(path) as side:
        with contextlib.closing(qdrant.QdrantClient(path=str(side))) as client:
            width = models.VectorParams(size=gallery.vectors.shape[1], distance=models.Distance.COSINE)
            client.create_collection(TABLE, vectors_config=width, metadata={MODEL: model})
            for start in range(0, len(gallery.vectors), BLOCK):
                payloads = [
                    {name: _plain(value) for name, value in row.items()}
                    for row in gallery.items.slice(start, BLOCK).to_pylist()
                ]
                ids = [str(uuid.uuid5(POINT_IDS, payload["id"])) for payload in payloads]
                vectors = gallery.vectors[start : start + BLOCK].tolist()
                client.upsert(TABLE, models.Batch(ids=ids, vectors=vectors, payloads=payloads))
        (side / ".lock").unlink(missing_ok=True)


def write_pgvector(path: pathlib.Path, gallery: Gallery, model: str) -> None:
    """A script for psql that makes the table `items`, or, where anything fails, none."""
    schema = gallery.items.schema
    columns = [f"{_quoted(field.name)} {_sql_type(field.type)}" for field in schema]
    columns[0] += " PRIMARY KEY"
    columns.append(f"{VECTOR} vector({gallery.vectors.shape[1]})")
    before = [
        r"\set ON_ERROR_STOP on",
        "BEGIN;",
        "SET LOCAL client_encoding = 'UTF8';",
        "SET LOCAL datestyle = 'ISO, YMD';",
        "CREATE EXTENSION IF NOT EXISTS vector;",
        f"CREATE TABLE {TABLE} ({', '.join(columns)});",
        f"COMMENT ON TABLE {TABLE} IS '{MODEL} {model}';",
        f"COPY {TABLE} FROM STDIN;",
    ]
    with writing_whole(path) as side, side.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join(before) + "\n")
        for start in range(0, len(gallery.vectors), BLOCK):
            items = gallery.items.slice(start, BLOCK).combine_chunks()
            fields = [_copied(name, items[name]) for name in items.column_names]
            fields.append(_vector_text(gallery.vectors[start : start + BLOCK]))
            lines = pyarrow.compute.binary_join_element_wise(*fields, "\t")
            file.writelines(f"{line}\n" for line in lines.to_pylist())
        file.write("\\.\nCOMMIT;\n")


STORES: dict[str, Callable[[pathlib.Path, Gallery, str], None]] = {
    "faiss": write_faiss, "lancedb": write_lancedb, "parquet": write_parquet, "pgvector": write_pgvector,
    "qdrant": write_qdrant,
}  # fmt: skip


def _schema(gallery: Gallery, model: str) -> pyarrow.Schema:
    vector = pyarrow.field(VECTOR, pyarrow.list_(pyarrow.float32(), gallery.vectors.shape[1]))
    return gallery.items.schema.append(vector).with_metadata({MODEL: model})


def _batches(gallery: Gallery, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    """All columns of the items, block by block."""
    for start in range(0, max(1, len(gallery.vectors)), BLOCK):
        flat = pyarrow.array(np.ascontiguousarray(gallery.vectors[start : start + BLOCK]).ravel())
        vectors = pyarrow.FixedSizeListArray.from_arrays(flat, gallery.vectors.shape[1])
        items = gallery.items.slice(start, BLOCK).combine_chunks()
        columns = [*(pyarrow.concat_arrays(column.chunks) for column in items.columns), vectors]
        yield pyarrow.record_batch(columns, schema=schema)


def _plain(value):
    """A value of Arrow as JSON has it."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _sql_type(of: pyarrow.DataType) -> str:
    types = pyarrow.types
    if types.is_dictionary(of):
        return _sql_type(of.value_type)
    if types.is_timestamp(of):
        return "timestamptz" if of.tz else "timestamp"
    for is_type, name in (
        (types.is_boolean, "boolean"),
        (types.is_uint64, "numeric"),
        (types.is_integer, "bigint"),
        (types.is_floating, "double precision"),
        (types.is_decimal, "numeric"),
        (types.is_date, "date"),
        (types.is_time, "time"),
        (lambda each: types.is_string(each) or types.is_large_string(each) or types.is_null(each), "text"),
    ):
        if is_type(of):
            return name
    return "jsonb"


def _copied(name: str, column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """A column as the text of COPY. Raises ValueError for a zero byte, which no text of PostgreSQL holds."""
    if _sql_type(column.type) == "jsonb":
        found = (None if value is None else json.dumps(_plain(value)) for value in column.to_pylist())
        text = pyarrow.chunked_array([pyarrow.array(found, pyarrow.string())])
    else:
        text = column.cast(pyarrow.string())
    if pyarrow.compute.any(pyarrow.compute.match_substring(text, "\0")).as_py():
        raise ValueError(
            f"Received a zero byte in the column {name!r}, which no text of PostgreSQL holds; expected other signs. "
            "Leave the column out, or export to another store."
        )
    for sign, written in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = pyarrow.compute.replace_substring(text, sign, written)
    return text.fill_null("\\N")


def _vector_text(vectors: np.ndarray) -> pyarrow.ChunkedArray:
    """Vectors [n, E] as text, each number the shortest that reads as the same float32."""
    numbers = pyarrow.array(np.ascontiguousarray(vectors).ravel()).cast(pyarrow.string())
    offsets = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
    rows = pyarrow.compute.binary_join(pyarrow.ListArray.from_arrays(offsets, numbers), ",")
    return pyarrow.chunked_array([pyarrow.compute.binary_join_element_wise("[", rows, "]", "")])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
