"""Embeddings and nearest items over HTTP, from an exported model and an index."""

import base64
import hashlib
import pathlib
import re
from collections.abc import Sequence
from typing import Annotated

import fastapi
import fastapi.responses
import PIL.Image
from fastapi.responses import JSONResponse

from xbm_keras.index.roots import picture_of
from xbm_keras.index.where import ConditionError
from xbm_keras.serve.limits import Gate
from xbm_keras.serve.metrics import CONTENT_TYPE
from xbm_keras.serve.requests import asked_by
from xbm_keras.serve.served import Answer, Served
from xbm_keras.serve.service import Service

MAX_K = 100
SHOWN = ("BMP", "GIF", "JPEG", "PNG", "WEBP")  # by browsers

K = Annotated[int, fastapi.Query(ge=1, le=MAX_K)]
Where = Annotated[str | None, fastapi.Query(max_length=1000)]


def make_app(
    service: Service,
    folders: dict[str, pathlib.Path],
    *,
    hosts: Sequence[str] = (),
    patience: float = 10.0,
) -> Gate:
    """What answers, an ASGI app.

    Args:
        service: the model and its index.
        folders: of the pictures, to show them, by the name of their root in the index. The id of an item is the root's
            name and the path below its folder; the path alone for "".
        hosts: names of this server beside those of this machine.
        patience: seconds that a client may keep still.
    """
    page = pathlib.Path(__file__).with_name("page.html").read_text("utf-8")
    # Without the pages that load programs from elsewhere.
    app = fastapi.FastAPI(title="Nearest items", docs_url=None, redoc_url=None, lifespan=service.lifespan)
    headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": _policy(page)}
    gate = Gate(app, hosts, headers, patience, service.metrics.observe)

    def serving() -> Served:
        """The pair that answers a request from its first line to its last."""
        if service.served is None:
            raise fastapi.HTTPException(503, "the model is being loaded; come again", {"Retry-After": "1"})
        return service.served

    async def answer(served: Served, request: fastapi.Request, k: int, where: str | None = None) -> list[Answer]:
        kind, asked = await asked_by(request, served, k, service.max_pixels)
        return await served.passes[kind].ask([each._replace(where=where) for each in asked])

    @app.get("/health")
    def health() -> dict:
        """That the process lives, and what it serves."""
        served = service.served
        if served is None:
            return {"status": "ok", "model": None, "index": None, "items": 0, "takes": []}
        index = served.index and served.index.name
        about: dict = {"model": served.version.name, "index": index, "items": len(served.places), "takes": served.kinds}
        about["approximate"] = served.approximate
        if served.thresholds is not None and served.precision is not None:
            about |= {"precision": served.precision, "threshold": served.thresholds.threshold_for(served.precision)}
        return {"status": "ok", **about}

    @app.get("/ready")
    def ready():
        """Whether requests should be sent here."""
        state = "stopping" if gate.is_stopping else "loading" if service.served is None else "ready"
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @app.get("/metrics")
    def metrics():
        return fastapi.Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.post("/embed")
    async def embed(request: fastapi.Request):
        """Embeddings of items; zeros, and valid = false, for pictures that are none."""
        found = await answer(serving(), request, 0)
        embeddings = [each.embedding.tolist() for each in found]
        return JSONResponse({"embeddings": embeddings, "valid": [each.is_valid for each in found]})

    @app.post("/search")
    async def search(request: fastapi.Request, k: K = 10, where: Where = None):
        """The k nearest items of the index for each item; none, and valid = false, for a picture that is none.

        With `where` of those items that meet it.
        """
        served = serving()
        if served.index is None:
            raise fastapi.HTTPException(404, "no index to search: make one by xbm-keras index, and say --index")
        try:
            if where is not None:
                served.require_readable(where)  # before it is in a pass with others
            found = await answer(served, request, k, where)
        except ConditionError as error:
            raise fastapi.HTTPException(422, str(error)) from error
        results = [{"valid": each.is_valid, "items": each.hits} for each in found]
        return JSONResponse({"model": served.version.name, "index": served.index.name, "results": results})

    @app.get("/items")
    def items(count: K = 12):
        """Some items of the index, from all over it."""
        served = serving()
        num_items = len(served.places)
        return JSONResponse([served.item(i) for i in range(0, num_items, max(1, num_items // count))[:count]])

    @app.get("/picture/{item:path}")
    def picture(item: str):
        """The picture of an item of the index, and no other file."""
        path = picture_of(item, folders) if item in serving().places else None
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

    return gate


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
