"""Words that come faster than frames should: together, in order, and the end without waiting."""

from __future__ import annotations

import asyncio

import pytest

from overspill.types.chat import Chunk, Finish, FinishReason
from overspill.types.usage import Usage
from overspill_cloud.streams import GATHERED_BYTES, Run, Stop, StreamLimits

pytestmark = pytest.mark.anyio
LONG_S = 3600.0
END = Chunk(finish=Finish(FinishReason.STOP, Usage(), "m"))


class Engine:
    """Says what it is told to."""

    def __init__(self):
        self.said = asyncio.Queue()

    async def chunks(self):
        while (chunk := await self.said.get()) is not None:
            yield chunk

    async def say(self, *chunks):
        for chunk in chunks:
            self.said.put_nowait(chunk)
        for _ in range(10 + 2 * len(chunks)):  # the pump takes them in turns of the loop
            await asyncio.sleep(0)


@pytest.fixture
async def engine():
    return Engine()


@pytest.fixture
async def run(engine):
    run = Run(engine.chunks(), StreamLimits(), lambda: None)
    yield run
    run.stop(Stop.CANCELLED)
    await run.wait()


async def test_words_wait_for_more_until_the_end_comes(engine, run):
    await engine.say(Chunk("a"))
    gathering = asyncio.create_task(run.gather(LONG_S))
    await engine.say(Chunk("b"), Chunk("c"))
    assert not gathering.done()
    await engine.say(END)
    await gathering
    assert "".join(chunk.text for chunk in run.take()) == "abc"


async def test_words_wait_no_longer_than_that(engine, run):
    await engine.say(Chunk("a"))
    await run.gather(0.001)
    assert [chunk.text for chunk in run.take()] == ["a"]


async def test_a_lot_does_not_wait(engine, run):
    await engine.say(Chunk("a"))
    gathering = asyncio.create_task(run.gather(LONG_S))
    await engine.say(Chunk("b" * GATHERED_BYTES))
    await gathering


async def test_an_engine_that_fails_ends_the_wait(engine, run):
    await engine.say(Chunk("a"))
    gathering = asyncio.create_task(run.gather(LONG_S))
    await engine.say(None)
    await gathering
    assert run.ended


async def test_a_reader_who_is_displaced_waits_no_longer(engine, run):
    await engine.say(Chunk("a"))
    gathering = asyncio.create_task(run.gather(LONG_S))
    await asyncio.sleep(0)
    run.wake()
    await gathering


async def test_nothing_is_gathered_behind_an_end_or_of_nothing(engine, run):
    await run.gather(LONG_S)
    await engine.say(END)
    await run.gather(LONG_S)


async def test_batch_work_comes_in_larger_pieces_and_ends_at_once(cloud, tmp_path):
    limits = StreamLimits(gather_s=0.0, batch_gather_s=LONG_S)
    async with cloud.world(tmp_path, cloud.engine(token_delay_s=0.001), streams=limits) as here:
        client = await here.enrolled()
        pieces = {}
        for lane in ("interactive", "batch"):
            chunks = await cloud.collect(client, cloud.ask("word " * 20, lane=lane))
            pieces[lane] = [chunk.text for chunk in chunks if chunk.text]
        assert "".join(pieces["batch"]) == "".join(pieces["interactive"])
        assert len(pieces["interactive"]) > 20
        assert len(pieces["batch"]) <= 3  # the first words, and all others with the end
