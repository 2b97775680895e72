"""Sixteen streams over four LoRA adapters: what mixing costs, and how long an adapter waits."""

from __future__ import annotations

from dataclasses import replace

from overspill.bench import ours
from overspill.bench.figures import FigureSpec, at_least, at_most
from overspill.bench.rounds import Samples, Side
from overspill.bench.stats import paired_ratio
from overspill.bench.suite import Bench, Entry, Outcome
from overspill.bench.throughput import CONTEXT_TOKENS, RATIO, many_side, plain_options
from overspill.bench.watched import WatchedBackend, longest_wait, watched_engine

ADAPTERS = 4


def mixed_adapters(name: str, shape: str, *, asked: float, asked_wait: int) -> Entry:
    """Every stream with one of four adapters, against the same streams without any."""
    ratio = FigureSpec(
        f"engine.{name}.vs_none",
        RATIO,
        f"16 streams over 4 adapters, {shape}, aggregate, to the same without adapters",
        at_least(asked),
    )
    wait = FigureSpec(
        f"engine.{name}.longest_wait_steps",
        "steps",
        "most steps in a row that passed a stream over while others' adapters ran",
        at_most(asked_wait),
    )

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        files = {f"a{n}": str(await bench.adapter(shape, n)) for n in range(ADAPTERS)}
        plain = plain_options(bench.effort.streams, CONTEXT_TOKENS)
        engine, watch = watched_engine(model, replace(plain, adapters=files))
        async with ours.serving(engine, tuple(files)) as mixed:
            waits: list[float] = []
            side = _noting_waits(many_side("mixed", bench, mixed), watch.backend, waits)
            # Of one engine: beside the threads of a second one in this process, though it rests,
            # OpenMP's own no longer wait actively, and each operation's end is a sleep.
            none = many_side("no adapters", bench, mixed.without_adapters())
            samples = await bench.alternate(side, none)
        values = paired_ratio(samples[0].values, samples[1].values).value
        noted = Samples("longest wait", "steps", tuple(waits))
        return Outcome({ratio.name: values, wait.name: max(waits)}, [*samples, noted])

    return Entry(name, (ratio, wait), run)


def _noting_waits(side: Side, backend: WatchedBackend, waits: list[float]) -> Side:
    async def measure(number: int) -> float:
        # Slots are taken again in the next round: waits count within one.
        backend.steps.clear()
        sample = await side.measure(number)
        waits.append(float(longest_wait(backend.steps)))
        return sample

    return replace(side, measure=measure)
