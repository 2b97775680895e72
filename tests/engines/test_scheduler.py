"""The scheduler: who runs in a step, who waits, and when."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.scheduled import ScheduledEngine
from overspill.errors import BusyError, InvalidRequest


@pytest.fixture
def backend(stepped):
    return stepped.SteppedEcho()


@pytest.fixture
async def engine(backend, stepped):
    async with stepped.engine_of(backend) as running:
        yield running
        backend.allow()


@pytest.mark.anyio
async def test_a_long_prompt_never_stops_who_decodes(backend, stepped):
    async with stepped.engine_of(backend, speculation="off") as engine:
        first = asyncio.create_task(stepped.collect(engine, stepped.ask(10, max_tokens=16)))
        backend.allow(1)
        await stepped.until(lambda: len(backend.steps) == 1)
        long = asyncio.create_task(stepped.collect(engine, stepped.ask(1000, max_tokens=4)))
        await stepped.until(lambda: engine.status().queued + engine.status().active == 2)
        backend.allow()
        await asyncio.gather(first, long)
    beside = [step for step in backend.steps if any(size > 1 for _, _, size in step[1:])]
    # Step after step: one token of the decoder first, then at most a chunk of the prompt.
    assert len(beside) >= 10
    assert all(step[0][2] == 1 and step[1][2] <= stepped.CHUNK for step in beside)


@pytest.mark.anyio
async def test_waiting_prompts_share_the_room_round_robin(engine, backend, stepped):
    asked = [
        asyncio.create_task(stepped.collect(engine, stepped.ask(600, max_tokens=1)))
        for _ in range(6)
    ]
    await stepped.until(lambda: engine.status().queued + engine.status().active == 6)
    backend.allow(1)
    await stepped.until(lambda: backend.steps)
    mark = len(backend.steps)
    backend.allow()
    await asyncio.gather(*asked)
    done = {}
    for step in backend.steps[mark:]:
        assert sum(size for _, _, size in step) <= 256
        for sequence, position, size in step:
            done[sequence] = position + size
        started = [done.get(sequence, 0) for sequence in range(16) if sequence in done]
        # Nobody gets two chunks ahead of another who waits beside him.
        assert max(started) - min(started) <= 3 * stepped.CHUNK


@pytest.mark.anyio
async def test_beside_decoders_a_long_prompt_goes_in_chunks_that_keep_steps_short(stepped):
    """Steps take 1 ms and 0.1 ms a token, as seen by the engine's clock."""
    clock, backend = stepped.Clock(), EchoBackend(EchoOptions(batch_tokens=512))
    run, took, both, joined = backend.run, [], threading.Event(), threading.Event()

    def timed(rows):
        seconds = 0.001 + 0.0001 * sum(len(row.tokens) for row in rows)
        clock.now_s += seconds
        took.append((seconds, sum(len(row.tokens) == 1 for row in rows), len(rows)))
        if took[-1][1:] == (2, 2) and not both.is_set():
            both.set()
            joined.wait(30)  # the two would be done before this test's loop looks
        return run(rows)

    backend.run = timed
    options = EngineOptions(scheduler=SchedulerOptions(speculation="off"))
    engine = ScheduledEngine(
        lambda: backend, name="echo", runtime="echo", options=options, clock=clock
    )
    async with engine:
        await stepped.collect(engine, stepped.ask(1000, max_tokens=50))
        decoders = [
            asyncio.create_task(stepped.collect(engine, stepped.ask(400, max_tokens=400)))
            for _ in "xx"
        ]
        await stepped.until(both.is_set)
        idle_s = took[-1][0]
        long = asyncio.create_task(stepped.collect(engine, stepped.ask(4000, max_tokens=2)))
        await stepped.until(lambda: engine.status().queued + engine.status().active == 3)
        joined.set()
        await asyncio.gather(*decoders, long)
    beside = [seconds for seconds, decoding, rows in took if (decoding, rows) == (2, 3)]
    assert beside
    assert max(beside) <= 3 * idle_s


@pytest.mark.anyio
async def test_who_comes_together_begins_with_one_step(engine, backend, monkeypatch, stepped):
    """Prompts are tokenized one after the other; the first does not go ahead of the rest."""
    tokenize, turns = backend.tokenize, itertools.count()

    def slowly(text, *, special=True):
        threading.Event().wait(0.001 * (next(turns) % 3))
        return tokenize(text, special=special)

    monkeypatch.setattr(backend, "tokenize", slowly)
    backend.allow()
    await asyncio.gather(*(stepped.collect(engine, stepped.ask(5, max_tokens=2)) for _ in range(4)))
    assert len(backend.steps[0]) == 4


@pytest.mark.anyio
async def test_a_step_holds_neighbouring_sequences_in_their_order(engine, backend, stepped):
    """Runtimes compute neighbours in one pass, and start another at each gap."""
    backend.allow()
    for _ in range(2):  # the second time the slots hold what the first left there
        await asyncio.gather(
            *(stepped.collect(engine, stepped.ask(40 + n, cache_scope="s")) for n in range(5)),
        )
    for step in backend.steps:
        sequences = [sequence for sequence, _, _ in step]
        assert sequences == sorted(sequences)
    assert [0, 1, 2, 3, 4] in [[sequence for sequence, _, _ in step] for step in backend.steps]


@pytest.mark.anyio
async def test_nobody_waits_for_a_request_that_is_refused(engine, backend, stepped):
    backend.allow()
    with pytest.raises(InvalidRequest):
        await stepped.collect(engine, stepped.ask(5, stop=("",)))
    assert await stepped.collect(engine, stepped.ask(5, max_tokens=2))


@pytest.mark.anyio
async def test_streams_join_and_leave_between_steps(engine, backend, stepped):
    backend.allow()
    sizes = [3, 9, 27]
    answers = await asyncio.gather(
        *(stepped.collect(engine, stepped.ask(5, max_tokens=size)) for size in sizes),
    )
    assert [stepped.tokens(chunks) for chunks in answers] == [3, 9, 11]
    assert engine.status().kv_tokens_reserved == 0


@pytest.mark.anyio
async def test_a_token_is_there_as_soon_as_its_step_is_done(engine, backend, stepped):
    stream = engine.generate(stepped.ask(5, max_tokens=8))
    for letter in "echo":
        backend.allow(1)
        assert (await anext(stream)).text == letter
    await stream.aclose()


@pytest.mark.anyio
async def test_admission_counts_kv_tokens_and_not_requests(stepped):
    backend = stepped.SteppedEcho(kv_tokens=400)
    async with stepped.engine_of(backend) as engine:
        tasks = [
            asyncio.create_task(stepped.collect(engine, stepped.ask(100, max_tokens=50)))
            for _ in range(5)
        ]
        await stepped.until(lambda: engine.status().queued + engine.status().active == 5)
        backend.allow(1)
        await stepped.until(lambda: engine.status().active == 2)
        status = engine.status()
        # About 180 tokens each: two fit into 400, though there are 16 sequences.
        assert (status.active, status.queued) == (2, 3)
        assert 0 < status.kv_tokens_reserved <= 400
        backend.allow()
        assert all(chunks[-1].finish for chunks in await asyncio.gather(*tasks))
        assert engine.status().kv_tokens_reserved == 0


@pytest.mark.anyio
async def test_two_requests_of_one_id_have_a_place_each(stepped):
    backend = stepped.SteppedEcho(kv_tokens=200)
    async with stepped.engine_of(backend) as engine:
        tasks = []
        for n, name in enumerate(("runs", "twice", "twice")):
            asked = stepped.ask(100, max_tokens=50, id=name)
            tasks.append(asyncio.create_task(stepped.collect(engine, asked)))
            await stepped.until(
                lambda n=n: engine.status().queued + engine.status().active == n + 1
            )
        assert engine.queue_position("twice") == 0
        tasks[2].cancel()
        await asyncio.wait(tasks[2:])
        assert engine.queue_position("twice") == 0
        backend.allow()
        await asyncio.gather(*tasks[:2])
        assert engine.queue_position("twice") is None


@pytest.mark.anyio
async def test_the_queue_position_is_visible_and_counts_down(backend, stepped):
    async with stepped.engine_of(stepped.SteppedEcho(kv_tokens=200)) as engine:
        backend = engine._open_backend()
        requests = [stepped.ask(100, max_tokens=50, id=f"r{i}") for i in range(3)]
        tasks = []
        for n, request in enumerate(requests):
            tasks.append(asyncio.create_task(stepped.collect(engine, request)))
            await stepped.until(
                lambda n=n: engine.status().queued + engine.status().active == n + 1
            )
        await stepped.until(lambda: engine.queue_position("r0") is None)
        assert [engine.queue_position(f"r{i}") for i in range(3)] == [None, 0, 1]
        backend.allow()
        await asyncio.gather(*tasks)
        assert [engine.queue_position(f"r{i}") for i in range(3)] == [None] * 3


@pytest.mark.anyio
async def test_a_full_queue_is_busy_and_says_when_to_come_back(stepped):
    backend = stepped.SteppedEcho(kv_tokens=200)
    async with stepped.engine_of(backend, max_queued=1) as engine:
        running = asyncio.create_task(stepped.collect(engine, stepped.ask(100, max_tokens=50)))
        await stepped.until(lambda: engine.status().active == 1)
        waiting = asyncio.create_task(stepped.collect(engine, stepped.ask(100, max_tokens=50)))
        await stepped.until(lambda: engine.status().queued == 1)
        with pytest.raises(BusyError, match="queue is full") as caught:
            await stepped.collect(engine, stepped.ask(1))
        assert caught.value.retry_after_s
        backend.allow()
        await asyncio.gather(running, waiting)
