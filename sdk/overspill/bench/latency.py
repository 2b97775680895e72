"""Time to the first token, and between tokens: shared prompts, and a long prompt that joins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

from overspill.bench import ours, peers
from overspill.bench.figures import FigureSpec, at_most
from overspill.bench.peer_server import running
from overspill.bench.rounds import Samples, Side
from overspill.bench.stats import paired_ratio, percentile
from overspill.bench.streams import StreamClock, Target
from overspill.bench.suite import Bench, Effort, Entry, Outcome
from overspill.bench.throughput import plain_options
from overspill.engines.options import EngineOptions
from overspill.errors import EngineError

NEW_TOKENS = 24
"""After the shared system prompt: the template's own tail is among them."""
SHORT_PROMPT_TOKENS = 32
BEHIND_S = 0.2
"""So long after the long prompt the short one arrives."""
_LOOK_EVERY_S = 0.002


def shared_prefix(name: str, shape: str, *, asked: float) -> Entry:
    """A new user prompt behind a system prompt that was computed before."""
    ratio = FigureSpec(
        f"engine.{name}.ttft_vs_llama_server",
        "ratio",
        f"TTFT, {shape}, warm: 1,000 shared and 24 new prompt tokens, to llama-server's",
        at_most(asked),
    )

    async def run(bench: Bench) -> Outcome:
        model, effort = await bench.model(shape), bench.effort
        context = effort.system_tokens + NEW_TOKENS + 256
        command = peers.llama_server(
            bench.peer("llama_server"), model, slots=4, context_tokens=context
        )

        def side(kind: str, target: Target) -> Side:
            async def measure(number: int) -> float:
                prompt = effort.system_tokens + NEW_TOKENS
                times = await target.stream(prompt, 2, number, system_tokens=effort.system_tokens)
                return 1e3 * times.ttft_s

            return Side(kind, "ms", measure)

        async with (
            running(command) as server,
            ours.in_process(model, plain_options(4, context)) as target,
        ):
            samples = await bench.alternate(
                side("overspill", target),
                side("llama-server", server),
                rounds=effort.short_rounds,
            )
        mine, theirs = (s.values for s in samples)
        return Outcome({ratio.name: paired_ratio(mine, theirs).value}, samples)

    return Entry(name, (ratio,), run)


# --- a long prompt joins ------------------------------------------------------------------------


def long_prompt_joins(name: str, shape: str, *, asked: float) -> Entry:
    """Decoders go on while a long prompt is computed beside them."""
    ratio = FigureSpec(
        f"engine.{name}.itl_p99_vs_idle",
        "ratio",
        f"ITL p99 of 8 decoders, {shape}, while an 8,000-token prompt joins, to theirs before",
        at_most(asked),
    )
    prefill = FigureSpec(
        f"engine.{name}.long_prompt_tokens_per_s",
        "tokens/s",
        f"of the 8,000-token prompt, {shape}, beside 8 decoders: its tokens over its own TTFT",
    )

    async def run(bench: Bench) -> Outcome:
        model, effort = await bench.model(shape), bench.effort
        async with ours.in_process(model, _options(effort)) as target:

            async def joined(number: int) -> _Join:
                async with _decoders(target, effort, number) as clocks:
                    return await _join(target, effort, clocks, number)

            joins = [await joined(number) for number in range(-effort.warmups, effort.rounds)]
        return _joined(joins[effort.warmups :], effort, ratio, prefill)

    return Entry(name, (ratio, prefill), run)


@dataclass(frozen=True, slots=True)
class _Join:
    """ITL p99 of all decoders together, alone and beside a long prompt; that prompt's TTFT."""

    idle_ms: float
    joined_ms: float
    ttft_s: float


def _joined(
    joins: Sequence[_Join], effort: Effort, ratio: FigureSpec, prefill: FigureSpec
) -> Outcome:
    idle, joined = [j.idle_ms for j in joins], [j.joined_ms for j in joins]
    ttfts = tuple(j.ttft_s for j in joins)
    return Outcome(
        {
            ratio.name: paired_ratio(joined, idle).value,
            prefill.name: effort.long_prompt_tokens / median(ttfts),
        },
        (
            Samples("ITL p99 idle", "ms", tuple(idle)),
            Samples("ITL p99 while a long prompt joins", "ms", tuple(joined)),
            Samples("TTFT of the long prompt", "s", ttfts),
        ),
    )


def behind_long_prompt(name: str, shape: str, *, asked: float) -> Entry:
    """A short prompt that arrives just behind a long one, beside decoders."""
    ratio = FigureSpec(
        f"engine.{name}.ttft_vs_llama_server",
        "ratio",
        f"TTFT, {shape}, of a short prompt behind an 8,000-token one, to llama-server's",
        at_most(asked),
    )

    async def run(bench: Bench) -> Outcome:
        model, effort = await bench.model(shape), bench.effort
        command = peers.llama_server(
            bench.peer("llama_server"),
            model,
            slots=_slots(effort),
            context_tokens=_context(effort),
        )

        def side(kind: str, target: Target) -> Side:
            async def measure(number: int) -> float:
                async with _decoders(target, effort, number):
                    ttft_ms = await _short_ttft_ms(target, effort, number)
                # Whoever answers this has let go of what was cancelled: a server that is still
                # computing a long prompt would take the other side's cores.
                await target.stream(SHORT_PROMPT_TOKENS, 1, number, effort.decoders + 2)
                return ttft_ms

            return Side(kind, "ms", measure)

        async with (
            running(command) as server,
            ours.in_process(model, _options(effort)) as target,
        ):
            samples = await bench.alternate(side("overspill", target), side("llama-server", server))
        mine, theirs = (s.values for s in samples)
        return Outcome({ratio.name: paired_ratio(mine, theirs).value}, samples)

    return Entry(name, (ratio,), run)


def _slots(effort: Effort) -> int:
    """The decoders, the long prompt and the short one."""
    return effort.decoders + 2


def _context(effort: Effort) -> int:
    return effort.long_prompt_tokens + 512


def _options(effort: Effort) -> EngineOptions:
    return plain_options(_slots(effort), _context(effort))


@asynccontextmanager
async def _decoders(
    target: Target, effort: Effort, number: int
) -> AsyncGenerator[list[StreamClock]]:
    """Streams that decode while the block runs; they are cancelled with it."""
    clocks = [StreamClock() for _ in range(effort.decoders)]
    room = _context(effort) - effort.prompt_tokens
    tasks = [
        asyncio.create_task(_outlast(target, effort.prompt_tokens, room, (number, index), clock))
        for index, clock in enumerate(clocks)
    ]
    try:
        await _more_pieces(clocks, tasks, 1)
        yield clocks
        for task in tasks:
            if task.done():
                task.result()  # raises what ended it
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _outlast(
    target: Target, prompt: int, tokens: int, seed: tuple[int, int], clock: StreamClock
) -> None:
    """A stream that somebody else ends.

    Raises :class:`EngineError` where it comes to its own end first.
    """
    await target.stream(prompt, tokens, *seed, clock=clock)
    raise EngineError("A decoder came to its end while it was looked at.")


async def _more_pieces(
    clocks: Sequence[StreamClock], tasks: Sequence[asyncio.Task[None]], count: int
) -> None:
    """Wait until each stream has ``count`` more pieces; raises what ended one."""
    wanted = [len(clock.pieces) + count for clock in clocks]
    while any(len(c.pieces) < want for c, want in zip(clocks, wanted, strict=True)):
        for task in tasks:
            if task.done():
                task.result()
        await asyncio.sleep(_LOOK_EVERY_S)


async def _join(
    target: Target, effort: Effort, clocks: Sequence[StreamClock], number: int
) -> _Join:
    """The decoders alone, then from the long prompt's arrival to a piece of each after it.

    The gap in which it arrives, and the one in which it ends, belong to the second.
    """
    began_s = time.perf_counter()
    await asyncio.sleep(effort.window_s)
    arrived_s = time.perf_counter()
    long = await target.stream(effort.long_prompt_tokens, 1, number, effort.decoders)
    await _more_pieces(clocks, (), 1)
    ended_s = time.perf_counter()

    def p99_ms(begin_s: float, end_s: float) -> float:
        gaps = [gap for clock in clocks for gap in clock.gaps_s(begin_s, end_s)]
        if not gaps:
            raise EngineError("The decoders gave no two pieces in the time that was looked at.")
        return 1e3 * percentile(gaps, 0.99)

    return _Join(p99_ms(began_s, arrived_s), p99_ms(arrived_s, ended_s), long.ttft_s)


async def _short_ttft_ms(target: Target, effort: Effort, number: int) -> float:
    """TTFT of a short prompt, ``BEHIND_S`` after a long one; that is cancelled then."""
    long = asyncio.create_task(target.stream(effort.long_prompt_tokens, 1, number, effort.decoders))
    try:
        await asyncio.sleep(BEHIND_S)
        times = await target.stream(SHORT_PROMPT_TOKENS, 2, number, effort.decoders + 1)
    finally:
        long.cancel()
        await asyncio.wait({long})
    return 1e3 * times.ttft_s
