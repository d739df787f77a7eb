"""What the server lets in: hosts that are its own, connections on which something moves, bodies there is room for.

All of it is decided from what little a client has sent so far: nothing large is read before there is room for it.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.datastructures import Headers
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_BYTES = 32 << 20  # of a request
MAX_HELD = 256 << 20  # of all requests together
MAX_RUNNING = 64  # whole requests that wait for their pass, or are in it; more are told to come again
MAX_CONNECTIONS = 512
MIN_RATE = 32 << 10  # bytes a second that a body must come at
PIECE = 1 << 16
LOCAL = ("localhost", "127.0.0.1", "[::1]")
WHILE_STOPPING = ("/health", "/ready", "/metrics")  # are answered until the end
BUSY = 503, "busy; come again", {"Retry-After": "1"}
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:\[\]@/]+)(:[0-9]*)?")


class Refused(Exception):
    """A request that is not let in: status, reason and headers of the answer."""


class Gone(Exception):
    """The client went before its body was there."""


class Gate:
    """Lets requests pass to an app: those with a body once there is room for it and it is whole.

    A body takes at most half of the room that is left, so that small ones find some beside large ones. The size is the
    client's word, `Content-Length`, without which there is no body. Whoever is refused is told so at once. Every answer
    carries the headers given here.

    Args:
        app: what answers, an ASGI app.
        hosts: names that the header `Host` may have, beside those of this machine and the address that a connection
            came to. Any other name points here only to let a stranger's page read the answers (DNS rebinding).
        headers: of all answers.
        patience: seconds that a client may keep still in the middle of a body.
        observe: is told path, status and seconds of each answer.
    """

    def __init__(
        self,
        app,
        hosts: Sequence[str] = (),
        headers: dict[str, str] | None = None,
        patience: float = 10.0,
        observe: Callable[[str, int, float], Any] = lambda *_: None,
    ):
        self.app = app
        self.hosts = {host.lower() for host in (*LOCAL, *hosts)}
        self.headers = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        self.patience = patience
        self.observe = observe
        self.held, self.running = 0, 0
        self.answering = 0
        """Requests that are not answered yet, but for those that are while it stops."""
        self.is_stopping = False
        """Whether what comes from now on is refused."""

    async def __call__(self, scope, receive, send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        status, begin, is_counted = 0, time.monotonic(), scope["path"] not in WHILE_STOPPING

        async def send_with_headers(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
            await send(message)

        headers = Headers(scope=scope)
        self.answering += is_counted
        try:
            self._check_host(headers.get("host", ""), scope.get("server"))
            if self.is_stopping and is_counted:
                raise Refused(503, "stopping; ask another server", {"Retry-After": "1"})
            await self._pass(scope, headers, receive, send_with_headers)
        except Refused as refused:
            await self._refuse(receive, send_with_headers, *refused.args)
        except Gone:
            return
        finally:
            self.answering -= is_counted
            if status:
                self.observe(scope["path"], status, time.monotonic() - begin)

    def _check_host(self, received: str, server: tuple | None) -> None:
        match = HOST.fullmatch(received.lower())
        here = str(server[0]) if server else ""
        if not match or match[1] not in {*self.hosts, here, f"[{here}]"}:
            raise Refused(400, f"the host {received!r}; expected one of those that the server was started with")

    async def _pass(self, scope, headers: Headers, receive, send) -> None:
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers:
            raise Refused(411, "a body of unknown size; expected a Content-Length")
        if not length.isdecimal() or len(length) > 12 or int(length) > MAX_BYTES:
            raise Refused(413, f"more than {MAX_BYTES >> 20} MB")
        size = int(length)
        if size == 0:
            await self.app(scope, receive, send)
            return
        if 2 * size > MAX_HELD - self.held or self.running >= MAX_RUNNING:
            raise Refused(*BUSY)
        self.held += size
        try:
            body = await self._read(receive, size)
            if self.running >= MAX_RUNNING:
                raise Refused(*BUSY)
            self.running += 1
            try:
                await self.app(scope, _replay(body, receive), send)
            finally:
                self.running -= 1
        finally:
            self.held -= size

    async def _read(self, receive, size: int) -> bytearray:
        """The whole body. It must not keep still, nor trickle."""
        body, begin = bytearray(), asyncio.get_running_loop().time()
        while True:
            try:
                async with asyncio.timeout_at(begin + self.patience + len(body) / MIN_RATE):
                    message = await receive()
            except TimeoutError:
                raise Refused(408, f"{len(body)} of {size} bytes, and then nothing for long") from None
            if message["type"] == "http.disconnect":
                raise Gone
            body += message.get("body", b"")
            if len(body) > size:
                raise Refused(413, f"more than the {size} bytes that were announced")
            if not message.get("more_body", False):
                return body

    async def _refuse(self, receive, send, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        """Answer at once, and end the connection once the client, who may still be sending, had time to read it."""
        content = json.dumps({"detail": detail}).encode()
        fields = {"Content-Type": "application/json", "Connection": "close", **(headers or {})}
        fields["Content-Length"] = str(len(content))
        pairs = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": content, "more_body": True})
        ignored = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience):
                while ignored <= MAX_BYTES:
                    message = await receive()
                    ignored += len(message.get("body", b""))
                    if not message.get("more_body", False):  # its end, or the client went
                        break
        await send({"type": "http.response.body", "body": b""})


def _replay(body: bytearray, receive):
    """A `receive` that gives a body that is there already, piece by piece, and then what the client does."""
    starts = range(0, len(body), PIECE)
    pieces = ((bytes(body[start : start + PIECE]), start + PIECE < len(body)) for start in starts)

    async def replay():
        for piece, is_followed in pieces:
            return {"type": "http.request", "body": piece, "more_body": is_followed}
        return await receive()

    return replay


class WatchedConnection(H11Protocol):
    """A connection that ends where nothing moves: where a request's head does not come, or an answer is not taken.

    uvicorn itself waits for ever for both, and takes as many connections as there are files.
    """

    patience = 10.0

    def connection_made(self, transport) -> None:
        """Begin to watch, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self.connections.discard(self)
            transport.abort()
            return
        self.moved, self.unsent = self.loop.time(), 0
        self.timer = self.loop.call_later(self.patience / 4, self._watch)

    def connection_lost(self, exc) -> None:
        """End the watch."""
        if hasattr(self, "timer"):
            self.timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """From here on the next head is waited for."""
        self.moved = self.loop.time()
        super().on_response_complete()

    def _watch(self) -> None:
        unsent, now = self.transport.get_write_buffer_size(), self.loop.time()
        is_computing = self.cycle is not None and not self.cycle.response_complete
        if unsent != self.unsent or (is_computing and not unsent):
            self.moved = now
        self.unsent = unsent
        if now - self.moved > self.patience:
            self.transport.abort()
        else:
            self.timer = self.loop.call_later(self.patience / 4, self._watch)
