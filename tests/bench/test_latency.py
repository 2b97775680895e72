"""A long prompt that joins, on streams whose pieces come when the test says."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from statistics import median

import pytest

from overspill.bench import latency
from overspill.bench.streams import StreamClock
from overspill.errors import EngineError


class Scripted:
    """Decoders give a piece every ``step_s``; a long prompt stops them all for ``stall_s``."""

    def __init__(self, effort, *, step_s=0.002, stall_s=0.3, decoder_tokens=10**6):
        self.effort = effort
        self.step_s, self.stall_s, self.decoder_tokens = step_s, stall_s, decoder_tokens
        self.free = asyncio.Event()
        self.free.set()
        self.cancelled = 0
        self.asked = []

    async def stream(self, prompt_tokens, max_tokens, *seed, system_tokens=0, clock=None):
        clock = clock or StreamClock()
        self.asked.append(prompt_tokens)
        try:
            if prompt_tokens == self.effort.long_prompt_tokens:
                self.free.clear()
                try:
                    await asyncio.sleep(self.stall_s)
                finally:
                    self.free.set()
            for _ in range(min(max_tokens, self.decoder_tokens)):
                await self.free.wait()
                await asyncio.sleep(self.step_s)
                clock.note(1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return clock.times()


@pytest.fixture
def effort(small_bench):
    return replace(small_bench.effort, window_s=0.3, decoders=3)


@pytest.mark.anyio
async def test_a_stall_shows_in_the_joined_p99_and_not_in_the_idle_one(effort):
    target = Scripted(effort)
    async with latency._decoders(target, effort, 0) as clocks:
        join = await latency._join(target, effort, clocks, 0)
    # The gap in which the long prompt arrived is the stall itself, however slow the machine is.
    assert join.joined_ms >= 1e3 * target.stall_s / 2
    assert join.idle_ms > 0
    assert target.cancelled == effort.decoders


@pytest.mark.anyio
async def test_the_long_prompt_s_own_first_token_is_measured_beside_the_decoders(
    small_bench, monkeypatch
):
    effort = replace(small_bench.effort, window_s=0.05)
    target = Scripted(effort, stall_s=0.1)

    @asynccontextmanager
    async def in_process(model, options):
        yield target

    monkeypatch.setattr(latency.ours, "in_process", in_process)
    entry = latency.long_prompt_joins("join", "mini", asked=3.0)
    outcome = await entry.run(replace(small_bench, effort=effort))
    (ttfts,) = (s.values for s in outcome.samples if s.side == "TTFT of the long prompt")
    assert len(ttfts) == effort.rounds
    assert min(ttfts) >= target.stall_s / 2
    rate = outcome.values["engine.join.long_prompt_tokens_per_s"]
    assert rate == effort.long_prompt_tokens / median(ttfts)


@pytest.mark.anyio
async def test_a_short_prompt_is_asked_behind_the_long_one(effort, monkeypatch):
    monkeypatch.setattr(latency, "BEHIND_S", 0.01)
    target = Scripted(effort)
    assert await latency._short_ttft_ms(target, effort, 0) > 0
    assert target.asked == [effort.long_prompt_tokens, latency.SHORT_PROMPT_TOKENS]


@pytest.mark.anyio
async def test_a_long_prompt_that_is_not_done_is_cancelled_when_the_short_one_is(
    effort, monkeypatch
):
    monkeypatch.setattr(latency, "BEHIND_S", 0.01)
    target = Scripted(effort, stall_s=60)
    target.free.clear = lambda: None  # it stops nobody
    await latency._short_ttft_ms(target, effort, 0)
    assert target.cancelled == 1


@pytest.mark.anyio
async def test_decoders_that_end_by_themselves_are_no_measurement(effort):
    with pytest.raises(EngineError, match="came to its end"):
        async with latency._decoders(Scripted(effort, decoder_tokens=2), effort, 0):
            await asyncio.sleep(0.2)
