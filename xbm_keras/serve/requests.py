"""What clients send: pictures as a form; texts, vectors or ready embeddings as JSON."""

import json
from typing import Any

import fastapi
import numpy as np
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from xbm_keras.data import decoding
from xbm_keras.data.labels import counted
from xbm_keras.data.pictures import count_pixels
from xbm_keras.serve.served import Asked, Served

MAX_ITEMS = {"pictures": 32, "texts": 256, "vectors": 1024, "embeddings": 1024}  # per request
MAX_CHARACTERS = 100_000  # of a text; a network reads the first few hundred words
REQUEST_PIXELS = 4 * decoding.MAX_PIXELS  # of all its pictures; half a gigabyte while they are decoded
FORM, JSON = "multipart/form-data", "application/json"


async def asked_by(request: fastapi.Request, served: Served, k: int, max_pixels: int) -> tuple[str, list[Asked]]:
    """The kind and the items of a request.

    Args:
        request: its type of content decides: a form has `pictures`; JSON one of `texts`, `vectors`, `embeddings`.
        served: what it asks.
        k: items to find for each.
        max_pixels: of all its pictures.

    Raises:
        HTTPException: 4xx, with a sentence, for what cannot be answered.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type == JSON:
        body = await request.body()
        return await run_in_threadpool(_of_json, body, served, k)
    if content_type not in (FORM, ""):
        raise fastapi.HTTPException(415, f"content of the type {content_type!r}; expected {FORM} or {JSON}")
    _require("pictures", served)
    files = (await request.form()).getlist("pictures") if content_type else []
    if not files or not all(isinstance(each, UploadFile) for each in files):
        raise fastapi.HTTPException(422, "no files; expected a form with one or more files named 'pictures'")
    _require_few("pictures", files)
    encoded = [await file.read() for file in files if isinstance(file, UploadFile)]
    return "pictures", await run_in_threadpool(_of_pictures, encoded, k, max_pixels)


def _of_pictures(encoded: list[bytes], k: int, max_pixels: int) -> list[Asked]:
    pixels = [count_pixels(each) for each in encoded]
    total = sum(n for n in pixels if n <= max_pixels)
    if total > max_pixels:
        raise fastapi.HTTPException(
            413, f"{total / 1e6:.0f} megapixels; expected at most {max_pixels / 1e6:.0f} in one request"
        )
    return [Asked(each, k, n) if n <= max_pixels else Asked(b"", k) for each, n in zip(encoded, pixels, strict=True)]


def _of_json(body: bytes, served: Served, k: int) -> tuple[str, list[Asked]]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise fastapi.HTTPException(422, "no JSON; expected an object such as " + _example(served)) from None
    kinds = [kind for kind in ("texts", "vectors", "embeddings") if isinstance(found, dict) and kind in found]
    if len(kinds) != 1 or len(found) != 1:
        raise fastapi.HTTPException(422, "JSON of another form; expected an object such as " + _example(served))
    (kind,) = kinds
    _require(kind, served)
    if not isinstance(found[kind], list) or not found[kind]:
        raise fastapi.HTTPException(422, f"{kind} that are no list, or an empty one; expected one or more")
    _require_few(kind, found[kind])
    items = _texts(found[kind]) if kind == "texts" else _vectors(found[kind], served.width(kind), kind)
    return kind, [Asked(each, k) for each in items]


def _texts(texts: list[Any]) -> list[str]:
    if not all(isinstance(each, str) for each in texts):
        raise fastapi.HTTPException(422, "texts that are no strings; expected strings")
    if (longest := max(map(len, texts))) > MAX_CHARACTERS:
        raise fastapi.HTTPException(413, f"a text of {longest:,} characters; expected at most {MAX_CHARACTERS:,}")
    return [each.encode("utf-8", "replace").decode() for each in texts]  # JSON may hold halves of characters


def _vectors(rows: list[Any], width: int, kind: str) -> np.ndarray:
    try:
        vectors = np.array(rows, np.float32)
    except (ValueError, TypeError, OverflowError):
        vectors = np.empty(0, np.float32)
    if vectors.shape != (len(rows), width) or not np.isfinite(vectors).all():
        raise fastapi.HTTPException(422, f"{kind} of another form; expected lists of {width} finite numbers each")
    return vectors


def _require(kind: str, served: Served) -> None:
    if kind not in served.kinds:
        raise fastapi.HTTPException(415, f"{kind}; this model takes {', '.join(served.kinds)}")


def _require_few(kind: str, items: list) -> None:
    if len(items) > MAX_ITEMS[kind]:
        raise fastapi.HTTPException(413, f"{counted(len(items), kind[:-1])}; expected at most {MAX_ITEMS[kind]}")


def _example(served: Served) -> str:
    kind = "texts" if "texts" in served.kinds else "vectors"
    return '{"texts": ["..."]}' if kind == "texts" else f'{{"vectors": [[...]]}}, of {served.width(kind)} numbers each'
