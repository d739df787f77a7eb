"""What serves from its start to its stop: loads in the background, takes up newer versions, and ends in good order."""

import asyncio
import contextlib
import logging
import pathlib
import time
from collections.abc import AsyncIterator

import uvicorn

from xbm_keras.serve.limits import Gate
from xbm_keras.serve.metrics import Metrics
from xbm_keras.serve.served import Served, choose, newest_of, tell_apart

RELOAD_SECONDS = 1.0
STOP_SECONDS = 30.0  # for what is running; its client may be slow

log = logging.getLogger("uvicorn.error")


class Service:
    """A model and its index as one: in each moment one pair answers, and whoever began with it ends with it.

    Args:
        model: what `--model` names.
        index: the folder of the index's versions; None is none.
        max_pixels: of a pass.
        precision: of hits that are matches; None tells none.
        approximate: whether the approximate search of the index is asked.
    """

    def __init__(
        self,
        model: str,
        index: pathlib.Path | None,
        max_pixels: int,
        precision: float | None = None,
        approximate: bool = False,
    ):
        self.model, self.index, self.max_pixels = model, index, max_pixels
        self.precision, self.approximate = precision, approximate
        self.metrics = Metrics()
        self.served: Served | None = None
        """The pair that answers; None while it is loaded for the first time."""
        self.error: Exception | None = None
        """Why it could not be loaded at the start."""
        self.told: set[tuple] = set()
        """Pairs that were left alone."""

    @contextlib.asynccontextmanager
    async def lifespan(self, _) -> AsyncIterator[None]:
        """Of the app: while it runs, load, and look for newer versions."""
        task = asyncio.create_task(self._keep_loaded())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _keep_loaded(self) -> None:
        try:
            await asyncio.to_thread(self._load, *choose(self.model, self.index))
        except Exception as error:  # of any kind: the program ends with it
            self.error = error
            return
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Take up the newest model and index that fit each other, if they are not those that answer already.

        What does not fit, or cannot be loaded, is left alone, and told once.
        """
        chosen = None
        try:
            newest = newest_of(self.model, self.index)
            chosen = choose(self.model, self.index)
            if newest != chosen:
                self._tell(newest, "these do not fit each other; %s stay until a model and an index do", _names(chosen))
            if tell_apart(*chosen) != (self.served and self.served.key) and tell_apart(*chosen) not in self.told:
                self._load(*chosen)
        except Exception as error:  # of any kind: what is served stays
            self._tell(chosen or (self.model, self.index), "left alone: %s", error)

    def _load(self, version: pathlib.Path, index: pathlib.Path | None) -> None:
        self.served = served = Served(version, index, self.metrics, self.max_pixels, self.precision, self.approximate)
        self.metrics.model_version.set(_number(version))
        self.metrics.index_version.set(_number(index))
        self.metrics.index_items.set(len(served.places))

    def _tell(self, pair: tuple, text: str, *values) -> None:
        key = tuple(map(str, pair))
        with contextlib.suppress(OSError):
            key = tell_apart(*pair)
        if key not in self.told:
            self.told.add(key)
            log.warning(f"%s: {text}", _names(pair), *values)


class Server(uvicorn.Server):
    """uvicorn's server, which on SIGTERM and Ctrl-C answers what is running before it ends, with exit code 0.

    What comes in the meantime is refused. A second signal ends it at once.

    Args:
        config: of uvicorn; its app is the gate.
        gate: knows what is running.
        service: ends the server where it cannot be loaded.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, service: Service):
        super().__init__(config)
        self.gate, self.service = gate, service
        self.deadline = 0.0

    async def startup(self, sockets=None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            print(f"http://{self.config.host}:{self.config.port} answers; Ctrl-C ends it.", flush=True)

    def handle_exit(self, sig: int, frame) -> None:
        """Of a signal."""
        if self.gate.is_stopping:
            self.should_exit = self.force_exit = True
        self.gate.is_stopping = True
        self.deadline = time.monotonic() + STOP_SECONDS

    async def on_tick(self, counter: int) -> bool:
        """Whether to end, asked ten times a second."""
        if self.gate.is_stopping and (not self.gate.answering or time.monotonic() > self.deadline):
            return True
        return self.service.error is not None or await super().on_tick(counter)


def _names(pair: tuple) -> str:
    return " and ".join(str(each) for each in pair if each is not None)


def _number(version: pathlib.Path | None) -> int:
    return int(version.name) if version is not None and version.name.isdecimal() else 0
