"""Tokens per second: one stream and sixteen, in this process, in a worker, against each peer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median

from overspill.bench import ours, peers
from overspill.bench.figures import FigureSpec, at_least, at_most
from overspill.bench.peer_server import running
from overspill.bench.rounds import Samples, Side
from overspill.bench.stats import paired_difference, paired_ratio
from overspill.bench.streams import Target, aggregate_tokens_per_s
from overspill.bench.suite import Bench, Entry, Outcome
from overspill.bench.watched import outside_share, watched_engine
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.errors import ConfigurationError

TOKENS_PER_S = "tokens/s"
RATIO = "ratio"
CONTEXT_TOKENS = 256
"""Of each of many streams: 64 prompt and 128 generated tokens, and what caches round up to."""
ONE_PROMPT_TOKENS = 32

PeerCommand = Callable[[Bench, Path], peers.ServerCommand]


def plain_options(max_sequences: int, context_tokens: int) -> EngineOptions:
    """No speculation: nobody's peer speculates here either."""
    return EngineOptions(
        context_tokens=context_tokens,
        max_sequences=max_sequences,
        scheduler=SchedulerOptions(speculation="off"),
    )


# --- one stream ---------------------------------------------------------------------------------


def _bench_side(bench: Bench, model: Path) -> Side:
    program, tokens = bench.peer("llama_bench"), bench.effort.answer_tokens

    async def measure(_: int) -> float:
        return await peers.llama_bench(program, model, tokens)

    command = peers.bench_command(program, model, tokens)
    return Side("llama-bench", TOKENS_PER_S, measure, {"command": command})


def _decode_side(name: str, bench: Bench, target: Target) -> Side:
    async def measure(number: int) -> float:
        tokens = bench.effort.answer_tokens
        return (await target.stream(ONE_PROMPT_TOKENS, tokens, number)).decode_tokens_per_s

    return Side(name, TOKENS_PER_S, measure, {"prompt_tokens": ONE_PROMPT_TOKENS})


async def _against_llama_bench(
    bench: Bench, model: Path, mine: Side, ratio: FigureSpec, rate: FigureSpec
) -> Outcome:
    """Ours and theirs in turn; ours alone, and why, where theirs is absent."""
    try:
        theirs = _bench_side(bench, model)
    except ConfigurationError as absent:
        return _alone(await bench.alternate(mine), ratio, rate, str(absent))
    return _compared(await bench.alternate(mine, theirs), ratio, rate)


def _one_context(bench: Bench) -> int:
    return ONE_PROMPT_TOKENS + bench.effort.answer_tokens + CONTEXT_TOKENS // 2


def one_stream(name: str, shape: str, *, asked: float | None, optional: bool = False) -> Entry:
    """One stream's decoding in this process against llama-bench's ``tg``."""
    ratio = FigureSpec(
        f"engine.{name}.vs_llama_bench",
        RATIO,
        f"one stream's decoding, {shape}, in process, to llama-bench's tg",
        None if asked is None else at_least(asked),
    )
    rate = FigureSpec(f"engine.{name}.tokens_per_s", TOKENS_PER_S, f"one stream, {shape}")

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        async with ours.in_process(model, plain_options(1, _one_context(bench))) as target:
            return await _against_llama_bench(
                bench, model, _decode_side("overspill", bench, target), ratio, rate
            )

    return Entry(name, (ratio, rate), run, optional)


def sdk_stream(name: str, shape: str, *, asked: float) -> Entry:
    """The public ``stream()``, with speculation off as in all these rows, against llama-bench."""
    ratio = FigureSpec(
        f"engine.{name}.vs_llama_bench",
        RATIO,
        f"one stream's decoding, {shape}, through AsyncOverspill.stream(), to llama-bench's tg",
        at_least(asked),
    )
    rate = FigureSpec(f"engine.{name}.tokens_per_s", TOKENS_PER_S, f"stream(), {shape}")

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        async with ours.sdk_client(model) as client:

            async def measure(number: int) -> float:
                tokens = bench.effort.answer_tokens
                times = await ours.stream_by_sdk(client, ONE_PROMPT_TOKENS, tokens, number)
                return times.decode_tokens_per_s

            mine = Side("AsyncOverspill.stream", TOKENS_PER_S, measure)
            return await _against_llama_bench(bench, model, mine, ratio, rate)

    return Entry(name, (ratio, rate), run)


def contended(name: str, shape: str, *, asked: float) -> Entry:
    """Decoding while another process keeps a core busy, against llama-bench beside the same."""
    ratio = FigureSpec(
        f"engine.{name}.vs_llama_bench",
        RATIO,
        f"one stream's decoding, {shape}, in a worker beside one busy process, to llama-bench's",
        at_least(asked),
    )
    inside = FigureSpec(
        f"engine.{name}.in_process.vs_llama_bench", RATIO, "the same without the worker process"
    )

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        options = plain_options(1, _one_context(bench))
        async with (
            ours.in_worker(model, options) as worker,
            ours.in_process(model, options) as here,
        ):
            sides = (
                _decode_side("worker", bench, worker),
                _decode_side("in process", bench, here),
                _bench_side(bench, model),
            )
            async with _busy_process():
                samples = await bench.alternate(*sides)
        worker_rates, here_rates, theirs = (s.values for s in samples)
        return Outcome(
            {
                ratio.name: paired_ratio(worker_rates, theirs).value,
                inside.name: paired_ratio(here_rates, theirs).value,
            },
            samples,
        )

    return Entry(name, (ratio, inside), run)


@asynccontextmanager
async def _busy_process() -> AsyncGenerator[None]:
    """Somebody else's work: one core's worth, for all rounds of all sides."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", "while True: pass", stdin=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# --- many streams -------------------------------------------------------------------------------


def many_side(name: str, bench: Bench, target: Target, **detail: object) -> Side:
    """So many streams at once: tokens of all over the time from the first call to the last end."""
    effort = bench.effort

    async def measure(number: int) -> float:
        streams = (
            target.stream(effort.prompt_tokens, effort.answer_tokens, number, index)
            for index in range(effort.streams)
        )
        return aggregate_tokens_per_s(await asyncio.gather(*streams))

    return Side(name, TOKENS_PER_S, measure, {"streams": effort.streams, **detail})


def many_streams(
    name: str,
    shape: str,
    open_target: ours.Opener,
    peer: str,
    command: PeerCommand,
    *,
    asked: float | None,
    optional: bool = False,
) -> Entry:
    """Sixteen streams at once, against a server with as many slots."""
    how = "in process" if open_target is ours.in_process else "through gRPC on a Unix socket"
    ratio = FigureSpec(
        f"engine.{name}.vs_{peer}",
        RATIO,
        f"16 streams, {shape}, {how}, aggregate, to {peer.replace('_', '-')} over SSE",
        None if asked is None else at_least(asked),
    )
    # Ours alone stands beside the first of its peers only: it is the same for each.
    is_first = peer == "llama_server"
    rate = FigureSpec(f"engine.{name}.tokens_per_s", TOKENS_PER_S, f"16 streams, {shape}, {how}")

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        options = plain_options(bench.effort.streams, CONTEXT_TOKENS)
        try:
            chosen = command(bench, model)
        except ConfigurationError as absent:
            if not is_first:
                raise
            async with open_target(model, options) as target:
                alone = await bench.alternate(many_side("overspill", bench, target))
            return _alone(alone, ratio, rate, str(absent))
        async with running(chosen) as server, open_target(model, options) as target:
            mine = many_side("overspill", bench, target)
            theirs = many_side(chosen.name, bench, server, command=chosen.command)
            samples = await bench.alternate(mine, theirs)
        return _compared(samples, ratio, rate)

    figures = (ratio, rate) if is_first else (ratio,)
    return Entry(f"{name}.vs_{peer}", figures, run, optional)


def llama_server(bench: Bench, model: Path) -> peers.ServerCommand:
    """llama-server with a slot for each stream."""
    return peers.llama_server(
        bench.peer("llama_server"),
        model,
        slots=bench.effort.streams,
        context_tokens=CONTEXT_TOKENS,
    )


def example_server(bench: Bench, model: Path) -> peers.ServerCommand:
    """The sdist's example server with a sequence for each stream."""
    return peers.example_server(
        bench.peer("example_server"),
        model,
        slots=bench.effort.streams,
        context_tokens=CONTEXT_TOKENS,
    )


def library_server(bench: Bench, model: Path) -> peers.ServerCommand:
    """The library's own server, which serves one at a time."""
    return peers.library_server(model, context_tokens=CONTEXT_TOKENS)


def batched_bench(name: str, shape: str) -> Entry:
    """Beside the servers: llama.cpp's own batched decoding, with neither sampling nor clients."""
    ratio = FigureSpec(
        f"engine.{name}.vs_llama_batched_bench",
        RATIO,
        f"16 streams, {shape}, in process, to llama-batched-bench (no sampling, no clients)",
    )

    async def run(bench: Bench) -> Outcome:
        model, effort = await bench.model(shape), bench.effort
        command = peers.batched_command(
            bench.peer("llama_batched_bench"),
            model,
            streams=effort.streams,
            prompt=effort.prompt_tokens,
            tokens=effort.answer_tokens,
            context_tokens=CONTEXT_TOKENS,
        )

        async def measure(_: int) -> float:
            return await peers.llama_batched_bench(command, effort.streams)

        options = plain_options(effort.streams, CONTEXT_TOKENS)
        theirs = Side("llama-batched-bench", TOKENS_PER_S, measure, {"command": command})
        async with ours.in_process(model, options) as target:
            samples = await bench.alternate(many_side("overspill", bench, target), theirs)
        return Outcome({ratio.name: _ratio(samples)}, samples)

    return Entry(f"{name}.vs_llama_batched_bench", (ratio,), run)


# --- where the time goes ------------------------------------------------------------------------


def overhead(name: str, shape: str) -> Entry:
    """Sixteen streams: the time between the runtime's steps, which is Python's and the scheduler's.

    Beside the ratios to peers, it says how much of a difference is this engine's to mend.
    """
    share = FigureSpec(
        f"engine.{name}.share", "share", f"16 streams, {shape}: of the time, outside the runtime"
    )
    each = FigureSpec(
        f"engine.{name}.us_per_token", "us", f"16 streams, {shape}: the same for each token"
    )

    async def run(bench: Bench) -> Outcome:
        model, effort = await bench.model(shape), bench.effort
        engine, watch = watched_engine(model, plain_options(effort.streams, CONTEXT_TOKENS))
        async with ours.serving(engine) as target:
            many = many_side("16 streams", bench, target)

            async def measure(number: int) -> float:
                watch.backend.steps.clear()
                await many.measure(number)
                return outside_share(watch.backend.steps)

            shares, rates = await bench.alternate(
                replace(many, name="outside the runtime", unit="share", measure=measure), many
            )
        return Outcome(
            {
                share.name: median(shares.values),
                each.name: 1e6 * median(shares.values) / median(rates.values),
            },
            (shares, rates),
        )

    return Entry(name, (share, each), run)


# --- what the worker process adds ---------------------------------------------------------------


def worker_throughput(name: str, shape: str, *, asked: float) -> Entry:
    """Throughput that the worker process costs, as a share of that in process."""
    loss = FigureSpec(
        f"engine.{name}.throughput_loss",
        "share",
        f"16 streams, {shape}: what a worker process takes from the throughput in process",
        at_most(asked),
    )

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        options = plain_options(bench.effort.streams, CONTEXT_TOKENS)
        async with (
            ours.in_worker(model, options) as worker,
            ours.in_process(model, options) as here,
        ):
            samples = await bench.alternate(
                many_side("worker", bench, worker), many_side("in process", bench, here)
            )
        return Outcome({loss.name: 1.0 - _ratio(samples)}, samples)

    return Entry(f"{name}.throughput", (loss,), run)


def worker_ttft(name: str, shape: str, *, asked_ms: float) -> Entry:
    """Time to first token that the worker process adds."""
    added = FigureSpec(
        f"engine.{name}.ttft_added_ms",
        "ms",
        f"one stream, {shape}: what a worker process adds to the time to the first token",
        at_most(asked_ms),
    )

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        options = plain_options(1, _one_context(bench))

        def side(kind: str, target: Target) -> Side:
            async def measure(number: int) -> float:
                times = [
                    await target.stream(ONE_PROMPT_TOKENS, 2, number, index)
                    for index in range(bench.effort.ttft_requests)
                ]
                return median(1e3 * each.ttft_s for each in times)

            return Side(kind, "ms", measure, {"requests_per_sample": bench.effort.ttft_requests})

        async with AsyncExitStack() as stack:
            worker = await stack.enter_async_context(ours.in_worker(model, options))
            here = await stack.enter_async_context(ours.in_process(model, options))
            samples = await bench.alternate(side("worker", worker), side("in process", here))
        return Outcome({added.name: paired_difference(*(s.values for s in samples))}, samples)

    return Entry(f"{name}.ttft", (added,), run)


def _ratio(samples: list[Samples]) -> float:
    mine, theirs = samples
    return paired_ratio(mine.values, theirs.values).value


def _compared(samples: list[Samples], ratio: FigureSpec, rate: FigureSpec) -> Outcome:
    values = {ratio.name: _ratio(samples), rate.name: median(samples[0].values)}
    return Outcome(values, samples)


def _alone(samples: list[Samples], ratio: FigureSpec, rate: FigureSpec, why: str) -> Outcome:
    return Outcome({rate.name: median(samples[0].values)}, samples, {ratio.name: why})
