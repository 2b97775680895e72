"""A hedge: one answer is seen, the other is cancelled, and an error of one is not the end."""

import asyncio
from contextlib import aclosing

import pytest

from overspill.errors import EngineDied, StreamBroken
from overspill.hedging import HedgeShare, race
from overspill.types.reply import ReplyChunk
from overspill.types.route import Route, RouteDecision, RouteReason, RouteTaken

pytestmark = pytest.mark.anyio
DECISION = RouteDecision(Route.DEVICE, RouteReason.EASY_ENOUGH, ())
TAKEN = RouteTaken(Route.DEVICE, RouteReason.EASY_ENOUGH, DECISION, "m")


class Stream:
    """Gives its words once it is let go, or raises; notes whether it ended."""

    def __init__(self, words=(), error=None, waits=False):
        self.words, self.error = words, error
        self.go = asyncio.Event()
        if not waits:
            self.go.set()
        self.began = self.ended = False

    async def chunks(self):
        self.began = True
        try:
            await self.go.wait()
            if self.error is not None:
                raise self.error
            for word in self.words:
                yield ReplyChunk(TAKEN, word)
        finally:
            self.ended = True


async def texts(first, second, after_s, errors=None):
    told = [] if errors is None else errors
    async with aclosing(race(first.chunks(), second.chunks, after_s, told.append)) as chunks:
        return [chunk.text async for chunk in chunks]


async def test_the_second_is_not_begun_where_the_first_is_soon_enough():
    first, second = Stream("ab"), Stream("xy")
    assert await texts(first, second, 60.0) == ["a", "b"]
    assert not second.began


async def test_the_second_answers_where_the_first_is_late_and_the_first_is_cancelled():
    first, second = Stream("ab", waits=True), Stream("xy")
    assert await texts(first, second, 0.01) == ["x", "y"]
    assert first.ended


async def test_an_error_leaves_the_other_running_and_is_told():
    broken, errors = StreamBroken("gone"), []
    first, second = Stream(error=broken, waits=True), Stream("xy", waits=True)

    async def later():
        while not second.began:  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0)
        first.go.set()
        while not errors:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        second.go.set()

    found, _ = await asyncio.gather(texts(first, second, 0.01, errors), later())
    assert found == ["x", "y"]
    assert errors == [broken]


async def test_an_error_before_the_hedge_is_the_answer():
    with pytest.raises(EngineDied):
        await texts(Stream(error=EngineDied("dead")), Stream("xy"), 60.0)


def test_a_share_counts_the_next_hedge_too():
    share = HedgeShare()
    assert share.share == 0.01
    share.note(hedged=True)
    share.note(hedged=False)
    assert share.share == 0.02
