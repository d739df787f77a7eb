"""Embeddings and nearest items over HTTP, from an exported model and an index."""

import base64
import hashlib
import json
import logging
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Annotated

import fastapi
import fastapi.responses
import PIL.Image
import tensorflow as tf
from fastapi.concurrency import run_in_threadpool

from xbm_keras.atomic_files import versions
from xbm_keras.data import decoding
from xbm_keras.data.pictures import count_pixels
from xbm_keras.index.exported_model import ExportedModel
from xbm_keras.index.gallery import read_items
from xbm_keras.serve.limits import Gate

MAX_PICTURES = 32  # per request
REQUEST_PIXELS = 4 * decoding.MAX_PIXELS  # of all its pictures; half a gigabyte while they are decoded
MAX_K = 100
RELOAD_SECONDS = 1.0
SHOWN = ("BMP", "GIF", "JPEG", "PNG", "WEBP")  # by browsers
ONE_PIXEL = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"

log = logging.getLogger("uvicorn.error")


class Index:
    """The newest version of an index. A newer one that was embedded by the same model is taken up while serving.

    Without a folder it has no items.
    """

    def __init__(self, folder: pathlib.Path | None, model: str):
        self.folder = folder
        self.model = model
        self.version = ""
        self.checked = 0.0
        self.labels: dict[str, str] = {}
        self.refresh()
        if folder is not None and not self.version:
            raise ValueError(
                f"Received --index {folder}, which holds no version that this model embedded; expected an index of "
                "this model. Build one: xbm-keras index build."
            )

    def refresh(self) -> None:
        """Look for a newer version, at most once in a while."""
        if self.folder is None or time.monotonic() - self.checked < RELOAD_SECONDS:
            return
        self.checked = time.monotonic()
        found = versions(self.folder)
        if found and found[-1].name != self.version:
            version = found[-1]
            about = json.loads((version / "index.json").read_text())
            if about["model"] != self.model:
                log.warning("%s was embedded by another model; the index stays as it is.", version)
                return
            loaded = tf.saved_model.load(str(version))
            items = read_items(version)
            labels = dict(zip(items["id"].to_pylist(), items["label"].to_pylist(), strict=True))
            self.loaded, self.labels, self.version = loaded, labels, version.name

    def search(self, embeddings: tf.Tensor, k: int) -> list[list[dict]]:
        """For each embedding the k nearest items, best first."""
        found = self.loaded.signatures["search"](embeddings=embeddings, k=tf.constant(k))
        columns = (found[name].numpy().tolist() for name in ("ids", "labels", "similarities"))
        return [
            [{"id": i.decode(), "label": label.decode(), "similarity": s} for i, label, s in zip(*row, strict=True)]
            for row in zip(*columns, strict=True)
        ]


def make_app(
    model: pathlib.Path,
    index: pathlib.Path | None,
    folders: dict[str, pathlib.Path],
    *,
    hosts: Sequence[str] = (),
    max_pixels: int = REQUEST_PIXELS,
    patience: float = 10.0,
) -> Gate:
    """The service, an ASGI app.

    Args:
        model: the exported model, a folder such as `export/1`.
        index: the folder of the index's versions; None embeds pictures, and finds nothing.
        folders: of the pictures, to show them, by the name of their root in the index. The id of an item is the root's
            name and the path below its folder; the path alone for "".
        hosts: names of this server beside those of this machine.
        max_pixels: of all pictures of a request together.
        patience: seconds that a client may keep still.
    """
    exported = ExportedModel(model)  # reads what training reads, also where TensorFlow does not know the format
    gallery = Index(index, exported.fingerprint)
    embeddings, _ = exported.embed([ONE_PIXEL])  # the first pass is slow
    if index is not None:
        gallery.search(tf.constant(embeddings), 1)
    page = pathlib.Path(__file__).with_name("page.html").read_text("utf-8")

    app = fastapi.FastAPI(title="Nearest items", docs_url=None, redoc_url=None)  # those load programs from elsewhere

    async def compute(files: list[fastapi.UploadFile], function):
        if len(files) > MAX_PICTURES:
            raise fastapi.HTTPException(413, f"{len(files)} pictures; expected at most {MAX_PICTURES}")
        data = [await file.read() for file in files]

        def run():
            pixels = [count_pixels(encoded) for encoded in data]
            allowed = [encoded if n <= max_pixels else b"" for encoded, n in zip(data, pixels, strict=True)]
            total = sum(n for n in pixels if n <= max_pixels)
            if total > max_pixels:
                raise fastapi.HTTPException(
                    413, f"{total / 1e6:.0f} megapixels; expected at most {max_pixels / 1e6:.0f} in one request"
                )
            return function(allowed)

        return await run_in_threadpool(run)

    @app.get("/health")
    def health() -> dict:
        gallery.refresh()
        found = {"index": gallery.version or None, "items": len(gallery.labels)}
        return {"status": "ok", "model": model.name, **found}

    @app.post("/embed")
    async def embed(pictures: list[fastapi.UploadFile]) -> dict:
        """Embeddings of encoded pictures; zeros, and valid = false, for what is none."""

        def run(data):
            embeddings, valid = exported.embed(data, decoding.MAX_PIXELS)
            return {"embeddings": embeddings.tolist(), "valid": valid.tolist()}

        return await compute(pictures, run)

    @app.post("/search")
    async def search(pictures: list[fastapi.UploadFile], k: Annotated[int, fastapi.Query(ge=1, le=MAX_K)] = 10) -> dict:
        """For each encoded picture the k nearest items; none, and valid = false, for what is no picture."""
        if index is None:
            raise fastapi.HTTPException(404, "no index to search: make one by xbm-keras index, and say --index")

        def run(data):
            gallery.refresh()
            embeddings, valid = exported.embed(data, decoding.MAX_PIXELS)
            found = gallery.search(tf.constant(embeddings), k)
            results = [
                {"valid": ok, "items": items if ok else []} for ok, items in zip(valid.tolist(), found, strict=True)
            ]
            return {"index": gallery.version, "results": results}

        return await compute(pictures, run)

    @app.get("/items")
    def items(count: Annotated[int, fastapi.Query(ge=1, le=MAX_K)] = 12) -> list[dict]:
        """Some items of the index, from all over it."""
        ids = list(gallery.labels)
        return [{"id": i, "label": gallery.labels[i]} for i in ids[:: max(1, len(ids) // count)][:count]]

    @app.get("/picture/{item:path}")
    def picture(item: str):
        """The picture of an item of the index, and no other file."""
        path = _find(item, folders) if item in gallery.labels else None
        if path is None:
            raise fastapi.HTTPException(404, "no such item")
        try:
            with PIL.Image.open(path, formats=SHOWN) as opened:  # a name says nothing
                kind = opened.get_format_mimetype()
        except Exception as error:  # what is no such picture raises what it likes
            raise fastapi.HTTPException(404, "no picture that browsers show") from error
        return fastapi.responses.FileResponse(path, media_type=kind)

    @app.get("/")
    def show_page():
        return fastapi.responses.HTMLResponse(page)

    headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": _policy(page)}
    return Gate(app, hosts, headers, patience)


def _find(item: str, folders: dict[str, pathlib.Path]) -> pathlib.Path | None:
    """The file of an item, in the folder of its root and nowhere else."""
    for root, folder in folders.items():
        prefix = f"{root}/" if root else ""
        path = folder / item.removeprefix(prefix)
        if item.startswith(prefix) and path.resolve().is_relative_to(folder.resolve()) and path.is_file():
            return path
    return None


def _policy(page: str) -> str:
    """What a browser may run and load: this page's own script and style, and pictures and answers of this server."""

    def hashes(tag: str) -> str:
        contents = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
