"""Embeddings and nearest items over HTTP, from an exported model and an index. Needs TensorFlow, FastAPI and uvicorn.

python examples/serve/server.py --model runs/grocery/export --index runs/grocery/index --pictures my_photos
"""

import argparse
import asyncio
import contextlib
import json
import logging
import pathlib
import time
from typing import Annotated

import fastapi
import fastapi.responses
import tensorflow as tf
import uvicorn
from fastapi.concurrency import run_in_threadpool

MAX_PICTURES = 32  # per request
MAX_BYTES = 32 << 20  # per request
MAX_K = 100
MAX_RUNNING = 2  # requests computed at a time; each uses all cores
MAX_WAITING = 64  # more are told to come again
RELOAD_SECONDS = 1.0
ONE_PIXEL = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"

log = logging.getLogger("uvicorn.error")


class Index:
    """The newest version of an index. A newer one that was embedded by the same model is taken up while serving.

    Without a folder it has no items.
    """

    def __init__(self, folder: pathlib.Path | None, model: str):
        self.folder = folder
        self.model = model
        self.version = 0
        self.checked = 0.0
        self.labels: dict[str, str] = {}
        self.refresh()
        if folder is not None and not self.version:
            raise SystemExit(f"Received --index {folder}, which holds no version that this model embedded.")

    def refresh(self) -> None:
        """Look for a newer version, at most once in a while."""
        if self.folder is None or time.monotonic() - self.checked < RELOAD_SECONDS:
            return
        self.checked = time.monotonic()
        newest = _newest(self.folder)
        if newest > self.version:
            version = self.folder / str(newest)
            about = json.loads((version / "index.json").read_text())
            if about["model"] != self.model:
                log.warning("Version %d of the index was embedded by another model; keeping %d.", newest, self.version)
                return
            loaded = tf.saved_model.load(str(version))
            items = json.loads((version / "items.json").read_text("utf-8"))
            labels = dict(zip(items["ids"], items["labels"], strict=True))
            self.loaded, self.labels, self.version = loaded, labels, newest

    def search(self, embeddings: tf.Tensor, k: int) -> list[list[dict]]:
        """For each embedding the k nearest items, best first."""
        found = self.loaded.signatures["search"](embeddings=embeddings, k=tf.constant(k))
        columns = (found[name].numpy().tolist() for name in ("ids", "labels", "similarities"))
        return [
            [{"id": i.decode(), "label": label.decode(), "similarity": s} for i, label, s in zip(*row, strict=True)]
            for row in zip(*columns, strict=True)
        ]


def make_app(model: pathlib.Path, index: pathlib.Path | None, folder: pathlib.Path | None) -> fastapi.FastAPI:
    """The service.

    Args:
        model: the folder of the exported versions.
        index: the folder of the index's versions; None embeds pictures, and finds nothing.
        folder: where the ids of items are paths of pictures, to show them; None shows none.
    """
    version = model / str(_newest(model))
    loaded = tf.saved_model.load(str(version))
    serve = loaded.signatures["serve_bytes"]
    gallery = Index(index, tf.saved_model.experimental.read_fingerprint(str(version)).singleprint())
    embeddings = serve(bytes=tf.constant([ONE_PIXEL]))["embeddings"]  # the first pass is slow
    if index is not None:
        gallery.search(embeddings, 1)
    running, waiting = asyncio.Semaphore(MAX_RUNNING), 0

    app = fastapi.FastAPI(title="Nearest items")
    app.state.model = loaded  # the signatures use its variables

    @app.middleware("http")
    async def limit_size(request: fastapi.Request, call_next):
        if request.method == "POST":
            length = request.headers.get("content-length", "")
            if not length.isdecimal():
                return fastapi.responses.JSONResponse({"detail": "expected a Content-Length"}, 411)
            if int(length) > MAX_BYTES:
                return fastapi.responses.JSONResponse({"detail": f"more than {MAX_BYTES >> 20} MB"}, 413)
        return await call_next(request)

    @contextlib.asynccontextmanager
    async def turn():
        nonlocal waiting
        if waiting >= MAX_WAITING:
            raise fastapi.HTTPException(503, "busy; come again", {"Retry-After": "1"})
        waiting += 1
        try:
            await running.acquire()
        finally:
            waiting -= 1
        try:
            yield
        finally:
            running.release()

    async def compute(files: list[fastapi.UploadFile], function):
        if len(files) > MAX_PICTURES:
            raise fastapi.HTTPException(413, f"{len(files)} pictures; expected at most {MAX_PICTURES}")
        data = [await file.read() for file in files]
        async with turn():
            return await run_in_threadpool(function, data)

    @app.get("/health")
    def health() -> dict:
        gallery.refresh()
        found = {"index": str(gallery.version) if index is not None else None, "items": len(gallery.labels)}
        return {"status": "ok", "model": version.name, **found}

    @app.post("/embed")
    async def embed(pictures: list[fastapi.UploadFile]) -> dict:
        """Embeddings of encoded pictures; zeros, and valid = false, for what is none."""

        def run(data):
            outputs = serve(bytes=tf.constant(data))
            return {name: value.numpy().tolist() for name, value in outputs.items()}

        return await compute(pictures, run)

    @app.post("/search")
    async def search(pictures: list[fastapi.UploadFile], k: Annotated[int, fastapi.Query(ge=1, le=MAX_K)] = 10) -> dict:
        """For each encoded picture the k nearest items; none, and valid = false, for what is no picture."""
        if index is None:
            raise fastapi.HTTPException(
                404, "no index to search: make one by python -m xbm_keras.index, and say --index"
            )

        def run(data):
            gallery.refresh()
            outputs = serve(bytes=tf.constant(data))
            valid = outputs["valid"].numpy().tolist()
            found = gallery.search(outputs["embeddings"], k)
            results = [{"valid": ok, "items": items if ok else []} for ok, items in zip(valid, found, strict=True)]
            return {"index": str(gallery.version), "results": results}

        return await compute(pictures, run)

    @app.get("/items")
    def items(count: Annotated[int, fastapi.Query(ge=1, le=MAX_K)] = 12) -> list[dict]:
        """Some items of the index, from all over it."""
        ids = list(gallery.labels)
        return [{"id": i, "label": gallery.labels[i]} for i in ids[:: max(1, len(ids) // count)][:count]]

    @app.get("/picture/{item:path}")
    def picture(item: str):
        """The picture of an item of the index, and no other file."""
        path = folder / item if folder is not None and item in gallery.labels else None
        if path is None or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise fastapi.HTTPException(404, "no such item")
        return fastapi.responses.FileResponse(path)

    @app.get("/")
    def page():
        return fastapi.responses.FileResponse(pathlib.Path(__file__).with_name("page.html"))

    return app


def _newest(folder: pathlib.Path) -> int:
    """The highest version in a folder; 0 where there is none."""
    return max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, required=True, help="the folder of the exported versions")
    parser.add_argument("--index", type=pathlib.Path, help="the folder of the index's versions, to search")
    parser.add_argument("--pictures", type=pathlib.Path, help="the folder of the items' pictures, to show them")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    app = make_app(options.model, options.index, options.pictures)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
