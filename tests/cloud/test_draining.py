"""A drain waits for whoever was let in, on his way or not admitted yet; and counts what is late."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import anyio
import pytest

from overspill.errors import BusyError, StreamBroken
from overspill.testing import FakeEngine
from overspill.transport.memory import MemoryTransport
from overspill_cloud.streams import StreamLimits

pytestmark = pytest.mark.anyio
WAIT_S = 20.0


class Slow(MemoryTransport):
    """Sends its request when it is told to; ``begun`` once the node waits for it."""

    def __init__(self, node):
        super().__init__(node)
        self.begun, self.goes_on = asyncio.Event(), asyncio.Event()

    async def _outgoing(self, frames):
        self.begun.set()
        await self.goes_on.wait()
        async for frame in frames:
            yield frame


@asynccontextmanager
async def _asking(cloud, engine, request):
    """A request on its way within the block; gives its task."""
    asked = asyncio.create_task(cloud.collect(engine, request))
    try:
        yield asked
    finally:
        asked.cancel()
        await asyncio.wait([asked])


async def test_a_request_that_still_arrives_is_waited_for_and_answered(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        road = Slow(here.node)
        engine = await here.enrolled(road)
        async with _asking(cloud, engine, cloud.ask("late")) as asked:
            await road.begun.wait()
            draining = asyncio.create_task(here.node.drain(WAIT_S))
            await asyncio.wait([draining], timeout=0.3)
            assert not draining.done()
            road.goes_on.set()
            assert cloud.text_of(await asked) == "echo: late"
            await draining
        [line] = here.store.usage()
        assert line["outcome"] == "stop"


async def test_a_request_that_dawdles_is_told_to_go_elsewhere(cloud, tmp_path):
    streams = StreamLimits(arriving_grace_s=0.05)
    async with cloud.world(tmp_path, streams=streams) as here:
        road = Slow(here.node)
        engine = await here.enrolled(road, idle_timeout_s=60.0)
        async with _asking(cloud, engine, cloud.ask()) as asked:
            await road.begun.wait()
            with anyio.fail_after(WAIT_S / 2):
                await here.node.drain(WAIT_S)
            with pytest.raises(BusyError, match="shutting down") as caught:
                await asked
            assert caught.value.reason == "DRAINING"


async def test_who_is_admitted_when_the_time_is_over_moves_on_at_once(cloud, tmp_path):
    """His admission waits for the database, which is busy until the drain's time is over."""
    free = threading.Event()
    async with cloud.world(tmp_path, FakeEngine("never", delay_s=60.0)) as here:
        engine, database = await here.enrolled(), here.node._parts.database
        held = asyncio.create_task(database.call(lambda: free.wait(WAIT_S)))
        async with _asking(cloud, engine, cloud.ask()) as asked:
            with anyio.fail_after(WAIT_S):
                while not here.node._live._beginning:  # noqa: ASYNC110 - no event tells it
                    await anyio.sleep(0.005)
            draining = asyncio.create_task(here.node.drain(0.0))
            await asyncio.wait([draining], timeout=0.3)
            assert not draining.done()
            free.set()
            with pytest.raises(StreamBroken, match="shutting down"):
                await asked
            await draining
        assert await held
        [line] = here.store.usage()
        assert line["outcome"] == "drained"
