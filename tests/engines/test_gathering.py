"""Tokens that wait for the next ones: how long, and which never do."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.answer_stream import MAX_GATHERED, AnswerStream, Outbox
from overspill.errors import BusyError
from overspill.types.chat import Chunk


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


class NotingLoop:
    """An event loop that only notes what it was woken up for, and when."""

    def __init__(self, clock, handed):
        self._clock, self._handed = clock, handed

    def call_soon_threadsafe(self, _, items, taken):
        self._handed.append((self._clock(), items))
        taken.release()


@given(
    gather_s=st.floats(0.0, 0.1),
    steps_s=st.lists(st.floats(0.0001, 0.2), min_size=1, max_size=30),
    rhythm_s=st.none() | st.floats(0.0001, 0.2),
)
def test_a_token_waits_no_longer_than_it_may_and_ends_never(gather_s, steps_s, rhythm_s):
    """Steps that keep a rhythm hold nobody back for longer, whatever the rhythm is."""
    clock, handed = Clock(), []
    stream, outbox = AnswerStream(NotingLoop(clock, handed)), Outbox(gather_s, clock)
    put_s = []
    for number, step_s in enumerate(steps_s):
        clock.now_s += rhythm_s or step_s
        is_last = number == len(steps_s) - 1
        put_s.append(clock.now_s)
        outbox.put(stream, Chunk("x", (number,), finish=object() if is_last else None))
        outbox.flush(next_s=rhythm_s or step_s)
    tokens = [token for _, items in handed for _, chunk in items for token in chunk.token_ids]
    assert tokens == list(range(len(steps_s)))
    assert all(len(items) <= MAX_GATHERED for _, items in handed)
    at_s = {chunk.token_ids[0]: when_s for when_s, items in handed for _, chunk in items}
    for end in (0, len(steps_s) - 1):
        assert at_s[end] == put_s[end]
    if rhythm_s is not None:
        assert all(at_s[n] - put_s[n] <= gather_s + 1e-9 for n in at_s)


def test_what_shows_nothing_is_no_beginning_and_an_error_does_not_wait():
    clock, handed = Clock(), []
    stream, outbox = AnswerStream(NotingLoop(clock, handed)), Outbox(1.0, clock)
    sent = (Chunk(token_ids=(1,)), Chunk("a", (2,)), Chunk("b", (3,)), BusyError("no"))
    seen = []
    for item in sent:
        outbox.put(stream, item)
        outbox.flush(next_s=0.0)
        seen.append(len(handed))
    # "b" goes with the error behind it.
    assert seen == [1, 2, 2, 3]
    assert [item for _, item in handed[-1][1]] == list(sent[2:])


@pytest.mark.anyio
async def test_what_waits_is_handed_over_before_a_prompt_is_computed(stepped):
    backend, seen = stepped.SteppedEcho(), []

    async def read(request):
        async for chunk in engine.generate(request):
            seen.extend(chunk.token_ids)

    async with stepped.engine_of(backend, Clock(), gather_s=1.0, speculation="off") as engine:
        reading = asyncio.create_task(read(stepped.ask(10, max_tokens=16)))
        backend.allow(1)
        await stepped.until(lambda: len(seen) == 1)
        backend.allow(1)
        await stepped.until(lambda: len(backend.steps) == 2)
        joining = asyncio.create_task(stepped.collect(engine, stepped.ask(40, max_tokens=2)))
        await stepped.until(lambda: engine.status().queued == 1)
        # The third step was planned without the newcomer; the fourth has his prompt.
        backend.allow(1)
        await stepped.until(lambda: len(seen) == 3)
        assert len(backend.steps) == 3
        backend.allow()
        await asyncio.gather(reading, joining)
    assert len(seen) == 16
