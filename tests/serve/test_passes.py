"""Passes that requests share: who shares one, and that nobody suffers from another."""

import asyncio

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")

from xbm_keras.serve.passes import Limits, Passes


class Doubling:
    """Doubles items, and keeps what it was given. A text is an error."""

    def __init__(self):
        self.passes = []

    def __call__(self, items):
        self.passes.append(items)
        return [2 * item if isinstance(item, int) else int(item) for item in items]


def asked(requests, cost=lambda item: 1):
    """Answers, or errors, of concurrent requests, and the passes that gave them."""
    run, sizes = Doubling(), []

    async def main():
        passes = Passes(run, Limits(4, 100), cost, sizes.append)
        return await asyncio.wait_for(asyncio.gather(*map(passes.ask, requests), return_exceptions=True), 20)

    answers = asyncio.run(main())
    assert sizes == list(map(len, run.passes))
    return answers, run.passes


def test_requests_that_come_together_share_passes_and_get_their_own():
    answers, passes = asked([[i] for i in range(8)] + [[8, 9]])
    assert answers == [[2 * i] for i in range(8)] + [[16, 18]]
    assert passes == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_request_may_need_several_passes():
    answers, passes = asked([list(range(9))])
    assert answers == [[2 * i for i in range(9)]]
    assert list(map(len, passes)) == [4, 4, 1]


def test_what_costs_much_has_a_pass_of_its_own():
    _, passes = asked([[1], [500], [2], [60], [70]], cost=lambda item: item)
    assert passes == [[1], [500], [2, 60], [70]]


def test_an_error_of_one_reaches_no_other():
    answers, passes = asked([[1], ["wrong"], [3]])
    assert [answers[0], answers[2]] == [[2], [6]]
    assert isinstance(answers[1], ValueError)
    assert passes[0] == [1, "wrong", 3]


def test_who_goes_is_not_computed():
    run = Doubling()

    async def main():
        passes = Passes(run, Limits(4, 100), lambda item: 1, lambda size: None)
        gone, stays = (asyncio.ensure_future(passes.ask([i])) for i in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert asyncio.run(main()) == [4]
    assert run.passes == [[2]]
