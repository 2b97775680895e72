"""Leaving in every state, being late, and steps that fail: everybody frees what he held."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.scheduled import ScheduledEngine
from overspill.errors import DeadlineExceeded, EngineDied, EngineError
from overspill.types.chat import FinishReason, Message, Request


@pytest.fixture
def backend(stepped):
    return stepped.SteppedEcho()


@pytest.fixture
async def engine(backend, stepped):
    async with stepped.engine_of(backend) as running:
        yield running
        backend.allow()


@pytest.mark.anyio
async def test_who_leaves_while_queued_is_gone_at_once(stepped):
    backend = stepped.SteppedEcho(kv_tokens=200)
    async with stepped.engine_of(backend) as engine:
        running = asyncio.create_task(stepped.collect(engine, stepped.ask(100, max_tokens=50)))
        await stepped.until(lambda: engine.status().active == 1)
        queued = asyncio.create_task(stepped.collect(engine, stepped.ask(100, max_tokens=50)))
        await stepped.until(lambda: engine.status().queued == 1)
        queued.cancel()
        await asyncio.wait({queued})
        # No step was needed for it.
        assert (engine.status().queued, len(backend.steps)) == (0, 0)
        backend.allow()
        assert (await running)[-1].finish.reason is FinishReason.LENGTH


@pytest.mark.anyio
@pytest.mark.parametrize("steps", [2, 20])
async def test_who_leaves_in_prefill_or_decode_is_gone_within_a_step(
    engine, backend, steps, stepped
):
    # 640 tokens are 10 chunks: after 2 steps it prefills, after 20 it decodes.
    staying = asyncio.create_task(stepped.collect(engine, stepped.ask(60, max_tokens=60)))
    await stepped.until(lambda: engine.status().active == 1)
    leaving = asyncio.create_task(stepped.collect(engine, stepped.ask(600, max_tokens=100)))
    await stepped.until(lambda: engine.status().active + engine.status().queued == 2)
    backend.allow(steps)
    await stepped.until(lambda: len(backend.steps) == steps)
    leaving.cancel()
    await asyncio.wait({leaving})
    backend.allow(2)
    await stepped.until(lambda: len(backend.steps) == steps + 2)
    # The step that was already planned may hold both; the one after it holds one.
    assert len(backend.steps[-1]) == 1
    backend.allow()
    await staying
    await stepped.until(lambda: engine.status().active == 0)
    assert engine.status().kv_tokens_reserved == 0


@pytest.mark.anyio
async def test_leaving_a_step_that_runs_only_for_oneself_interrupts_it(stepped):
    backend = EchoBackend(EchoOptions(token_delay_s=3600.0))
    async with stepped.engine_of(backend) as engine:
        leaving = asyncio.create_task(stepped.collect(engine, stepped.ask(5)))
        await stepped.until(lambda: engine.status().active == 1)
        leaving.cancel()
        await asyncio.wait({leaving})
        await stepped.until(lambda: engine.status().active == 0)


class LeftAtTheDoor(EchoBackend):
    """Whose only stream leaves just when its first step is about to begin."""

    leave = None

    def run(self, rows):
        if self.leave is not None:
            self.leave()
        return super().run(rows)


@pytest.mark.anyio
async def test_leaving_just_before_ones_step_begins_interrupts_it_too(stepped):
    backend = LeftAtTheDoor(EchoOptions(token_delay_s=3600.0))
    async with stepped.engine_of(backend) as engine:
        scheduler = engine._scheduler
        left = []

        def leave():
            left.append(scheduler._running[0])
            scheduler.cancel(left[0])

        backend.leave = leave
        asked = asyncio.create_task(stepped.collect(engine, stepped.ask(5)))
        await stepped.until(lambda: left and engine.status().active == 0)
        asked.cancel()


@pytest.mark.anyio
async def test_who_leaves_while_it_loads_does_not_stop_the_others(stepped):
    opened = threading.Event()

    def slowly():
        opened.wait()
        return EchoBackend()

    engine = ScheduledEngine(slowly, name="echo", runtime="echo")
    leaving, staying = (
        asyncio.create_task(stepped.collect(engine, stepped.ask(3))) for _ in range(2)
    )
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    opened.set()
    assert (await staying)[-1].finish is not None
    await engine.aclose()


@pytest.mark.anyio
async def test_closing_ends_all_streams_with_an_error(backend, stepped):
    engine = stepped.engine_of(backend)
    await engine.start()
    streams = [asyncio.create_task(stepped.collect(engine, stepped.ask(5))) for _ in range(3)]
    await stepped.until(lambda: engine.status().active + engine.status().queued == 3)
    await engine.aclose()
    for stream in streams:
        with pytest.raises(EngineDied, match="closed"):
            await stream


@pytest.mark.anyio
async def test_closing_while_it_loads_ends_who_waits_for_it(stepped):
    opened = threading.Event()
    backend = EchoBackend()
    closed = []
    backend.close = lambda: closed.append(True)

    def slowly():
        opened.wait()
        return backend

    engine = ScheduledEngine(slowly, name="echo", runtime="echo")
    waiting = asyncio.create_task(stepped.collect(engine, stepped.ask(3)))
    await stepped.until(lambda: engine.status() is not None)
    closing = asyncio.create_task(engine.aclose())
    await stepped.until(lambda: engine.status() is None)
    opened.set()
    await closing
    with pytest.raises(EngineDied, match="closed while it loaded"):
        await waiting
    assert closed


@pytest.mark.anyio
async def test_a_deadline_that_passes_hands_over_what_there_is(backend, stepped):
    clock = stepped.Clock()
    async with stepped.engine_of(backend, clock) as engine:
        task = asyncio.create_task(
            stepped.collect(engine, stepped.ask(5, max_tokens=9, deadline_s=10.0))
        )
        backend.allow(4)
        await stepped.until(lambda: len(backend.steps) == 4)
        clock.now_s = 11.0
        backend.allow()
        with pytest.raises(DeadlineExceeded, match="10 s") as caught:
            await task
        # Four steps were seen to begin; one more may have been planned.
        assert caught.value.partial in ("echo", "echo:")
        assert engine.status().active == 0


@pytest.mark.anyio
async def test_a_first_token_that_is_late_is_an_error_in_the_queue_too(stepped):
    clock, backend = stepped.Clock(), stepped.SteppedEcho(kv_tokens=200)
    async with stepped.engine_of(backend, clock) as engine:
        running = asyncio.create_task(stepped.collect(engine, stepped.ask(100, max_tokens=50)))
        await stepped.until(lambda: engine.status().active == 1)
        late = asyncio.create_task(stepped.collect(engine, stepped.ask(100, first_token_s=2.0)))
        await stepped.until(lambda: engine.status().queued == 1)
        clock.now_s = 3.0
        backend.allow()
        with pytest.raises(DeadlineExceeded):
            await late
        assert (await running)[-1].finish is not None


@pytest.mark.anyio
@pytest.mark.parametrize(("deadline_s", "first_token_s"), [(5.0, 100.0), (100.0, 5.0)])
async def test_who_is_late_is_told_the_limit_that_passed(
    backend, stepped, deadline_s, first_token_s
):
    clock = stepped.Clock()
    async with stepped.engine_of(backend, clock) as engine:
        request = stepped.ask(100, deadline_s=deadline_s, first_token_s=first_token_s)
        late = asyncio.create_task(stepped.collect(engine, request))
        await stepped.until(lambda: engine.status() and engine.status().active)
        clock.now_s = 6.0
        backend.allow()
        with pytest.raises(DeadlineExceeded, match="within 5 s"):
            await late


@pytest.mark.anyio
async def test_a_deadline_that_cannot_be_met_is_refused_at_once(stepped):
    clock = stepped.Clock()
    backend = stepped.SteppedEcho()
    run = backend.run

    def one_second_a_step(rows):
        clock.now_s += 1.0
        return run(rows)

    backend.run = one_second_a_step
    backend.allow()
    async with stepped.engine_of(backend, clock) as engine:
        await stepped.collect(engine, stepped.ask(1000, max_tokens=1))
        before = len(backend.steps)
        with pytest.raises(DeadlineExceeded, match="at least") as caught:
            await stepped.collect(engine, stepped.ask(1000, first_token_s=5.0))
        assert caught.value.retry_after_s > 5.0
        assert len(backend.steps) == before
        # A short prompt is not held up by a long one, so it isn't refused for one either.
        long = asyncio.create_task(stepped.collect(engine, stepped.ask(3000, max_tokens=1)))
        await stepped.until(lambda: len(backend.steps) > before)
        assert (await stepped.collect(engine, stepped.ask(10, max_tokens=1, first_token_s=30.0)))[
            -1
        ].finish
        await long
        assert (await stepped.collect(engine, stepped.ask(1000, max_tokens=1, first_token_s=60.0)))[
            -1
        ].finish


@pytest.mark.anyio
async def test_a_failed_step_ends_its_streams_and_nothing_else(backend, stepped):
    async with stepped.engine_of(backend) as engine:
        task = asyncio.create_task(stepped.collect(engine, stepped.ask(5, max_tokens=9)))
        backend.allow(4)
        await stepped.until(lambda: len(backend.steps) == 4)
        backend.failures.append(EngineError("the step failed"))
        backend.allow()
        with pytest.raises(EngineError, match="the step failed") as caught:
            await task
        assert caught.value.partial in ("echo", "echo:")
        assert (await stepped.collect(engine, stepped.ask(5)))[-1].finish is not None
        assert (await engine.health()).ok


@pytest.mark.anyio
@pytest.mark.parametrize("failure", [EngineError("broken"), RuntimeError("broken")])
async def test_a_backend_that_keeps_failing_is_a_dead_engine(backend, failure, stepped):
    backend.allow()
    async with stepped.engine_of(backend, max_failed_steps=2) as engine:
        backend.failures += [failure] * 4
        for _ in range(2):
            with pytest.raises(EngineError):
                await stepped.collect(engine, stepped.ask(5))
        with pytest.raises(EngineDied, match="broken"):
            await stepped.collect(engine, stepped.ask(5))
        health = await engine.health()
        assert not health.ok
        assert "ended" in health.detail


@pytest.fixture
def spoiled(stepped):
    """Echo that computes no numbers for texts with ``poison`` in them, as long as it ``spoils``."""

    class Spoiled(stepped.SteppedEcho):
        spoils = True

        def run(self, rows):
            logits, at = super().run(rows), 0
            for row in rows:
                count = row.outputs if row.wants_logits else 0
                said = bytes(t for t in self._cache[row.sequence].tokens if t < 256)
                if self.spoils and b"poison" in said:
                    logits[at : at + count] = np.nan
                at += count
            return logits

    backend = Spoiled()
    backend.allow()
    return backend


def _ask_for(text, **options):
    return Request((Message("user", text),), max_tokens=40, **options)


@pytest.mark.anyio
async def test_one_streams_bad_numbers_end_no_other_stream_and_not_the_engine(spoiled, stepped):
    async with stepped.engine_of(spoiled, max_failed_steps=2) as engine:
        others = [
            asyncio.create_task(stepped.collect(engine, _ask_for(f"number {n} " * 3)))
            for n in range(3)
        ]
        for _ in range(3):
            with pytest.raises(EngineError, match="not numbers") as caught:
                await stepped.collect(engine, _ask_for("poison", cache_scope="s"))
            assert not isinstance(caught.value, EngineDied)
        assert all(chunks[-1].finish for chunks in await asyncio.gather(*others))
        # Nor is a spoiled cache kept for whoever asks the like.
        spoiled.spoils = False
        answer = await stepped.collect(engine, _ask_for("poison", cache_scope="s"))
        assert answer[-1].finish.usage.cached_tokens == 0
        again = await stepped.collect(engine, _ask_for("poison", cache_scope="s"))
        assert again[-1].finish.usage.cached_tokens > 0


@pytest.mark.anyio
async def test_a_model_that_computes_no_numbers_for_anybody_is_a_dead_engine(spoiled, stepped):
    async with stepped.engine_of(spoiled, max_failed_steps=2) as engine:
        for _ in range(2):
            asked = [stepped.collect(engine, _ask_for("poison")) for _ in range(4)]
            errors = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(error, EngineError) for error in errors)
        with pytest.raises(EngineDied, match="not numbers"):
            await stepped.collect(engine, _ask_for("poison"))


@pytest.mark.anyio
async def test_health_means_that_the_thread_moves(backend, stepped):
    clock = stepped.Clock()
    async with stepped.engine_of(backend, clock, stall_after_s=5.0) as engine:
        task = asyncio.create_task(stepped.collect(engine, stepped.ask(5)))
        await stepped.until(lambda: engine.status().active == 1)
        clock.now_s = 6.0
        health = await engine.health()
        assert not health.ok
        assert "not moved" in health.detail
        backend.allow()
        await task
        assert (await engine.health()).ok
