"""Requests that come at the same time share passes over the model."""

import asyncio
import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MAX_RUNNING = 2  # passes at a time: one decodes while the other computes
WAIT = 0.002  # seconds


class Limits(NamedTuple):
    """Of one pass."""

    items: int
    cost: int
    """Of its items together; one that costs more by itself has a pass of its own."""


class Passes:
    """Joins the items of concurrent requests, as TF Serving's batching does.

    What waits is bounded by who lets requests in. An item whose pass fails is computed once more by itself, so that no
    request fails by another's.

    Args:
        run: a list of items to as many results; called in a thread.
        limits: of a pass.
        cost: of an item, such as its pixels.
        observe: is told the number of items of each pass.
    """

    def __init__(
        self, run: Callable[[list], Sequence], limits: Limits, cost: Callable[[Any], int], observe: Callable[[int], Any]
    ):
        self.run, self.limits, self.cost, self.observe = run, limits, cost, observe
        self.waiting: collections.deque[tuple[Any, asyncio.Future]] = collections.deque()
        self.running: set[asyncio.Task] = set()

    async def ask(self, items: Sequence) -> list:
        """The result of each item."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        self.waiting.extend(zip(items, futures, strict=True))
        if len(self.running) < MAX_RUNNING:
            task = loop.create_task(self._work())
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        return await asyncio.gather(*futures)

    async def _work(self) -> None:
        if len(self.waiting) < self.limits.items:
            await asyncio.sleep(WAIT)  # for others
        while some := self._take():
            await self._run(some)

    def _take(self) -> list[tuple[Any, asyncio.Future]]:
        """The first ones that fit into a pass, without those whose client went."""
        taken: list[tuple[Any, asyncio.Future]] = []
        cost = 0
        while self.waiting and len(taken) < self.limits.items:
            item, future = self.waiting[0]
            cost += self.cost(item)
            if taken and cost > self.limits.cost:
                break
            self.waiting.popleft()
            if future.done():
                cost -= self.cost(item)
            else:
                taken.append((item, future))
        return taken

    async def _run(self, some: list[tuple[Any, asyncio.Future]]) -> None:
        self.observe(len(some))
        try:
            results = await asyncio.to_thread(self.run, [item for item, _ in some])
        except Exception as error:  # of any kind: it is that of one item
            if len(some) > 1:
                for one in some:
                    await self._run([one])
            elif not some[0][1].done():
                some[0][1].set_exception(error)
            return
        for (_, future), result in zip(some, results, strict=True):
            if not future.done():
                future.set_result(result)
