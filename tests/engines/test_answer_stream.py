"""From a step to its readers: one wake-up for each loop, and time to read."""

from __future__ import annotations

import asyncio

import pytest

from overspill.engines.answer_stream import AnswerStream, Outbox
from overspill.types.chat import Chunk


@pytest.mark.anyio
async def test_a_step_wakes_each_loop_once_and_names_streams_whose_loop_is_gone():
    gone = asyncio.new_event_loop()
    gone.close()
    lost, here = AnswerStream(gone), AnswerStream(asyncio.get_running_loop())
    outbox = Outbox()
    for text in ("a", "b"):
        outbox.put(lost, Chunk(text))
        outbox.put(here, Chunk(text, (ord(text),)))
    assert set(outbox.flush()) == {lost}
    assert outbox.flush() == []
    # Both came with one wake-up, so they are one chunk for the reader.
    chunk = await anext(here.chunks())
    assert (chunk.text, chunk.token_ids) == ("ab", (97, 98))


@pytest.mark.anyio
async def test_readers_have_their_tokens_before_the_next_step_takes_all_cores():
    stream, outbox, read = AnswerStream(asyncio.get_running_loop()), Outbox(), []

    async def reader():
        async for chunk in stream.chunks():
            read.append(chunk.text)  # noqa: PERF401 - each as it comes

    def step(text):
        outbox.put(stream, Chunk(text))
        outbox.flush(settle_s=60.0)
        return list(read)

    task = asyncio.create_task(reader())
    assert await asyncio.to_thread(step, "a") == ["a"]
    assert await asyncio.to_thread(step, "b") == ["a", "b"]
    task.cancel()


@pytest.mark.anyio
async def test_readers_who_are_busy_hold_nobody_up_for_ever():
    stream, outbox = AnswerStream(asyncio.get_running_loop()), Outbox()
    outbox.put(stream, Chunk("a"))
    # On the loop's own thread: while this waits, nobody reads.
    assert outbox.flush(settle_s=0.01) == []
    assert (await anext(stream.chunks())).text == "a"
