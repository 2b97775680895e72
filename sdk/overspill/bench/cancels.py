"""Cancels, in prefill and in decoding: how many steps a cancelled stream still takes part in."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing

from overspill.bench.figures import FigureSpec, at_most
from overspill.bench.ours import OurTarget, serving
from overspill.bench.rounds import Samples
from overspill.bench.stats import percentile
from overspill.bench.suite import Bench, Entry, Outcome
from overspill.bench.throughput import plain_options
from overspill.bench.watched import WatchedBackend, watched_engine
from overspill.engines.scheduled import ScheduledEngine
from overspill.errors import EngineError
from overspill.types.chat import Request

GROUP = 4
"""Streams at once; they are cancelled one after the other, while the rest go on."""
PROMPT_TOKENS, ANSWER_TOKENS = 600, 1200
LATEST_PREFILL_CANCEL_S = 0.01
FREED_WITHIN_S = 2.0


def cancels(name: str, shape: str) -> Entry:
    """Ten thousand cancels, half of them before the first token."""
    late = FigureSpec(
        f"engine.{name}.late_steps",
        "steps",
        f"most steps, {shape}, that began after a cancel and still computed the stream",
        at_most(1),
    )
    count = FigureSpec(f"engine.{name}.count", "cancels", "of which the first figure is the worst")
    freed = FigureSpec(
        f"engine.{name}.freed_p99_ms", "ms", "from a cancel until its slot is free, p99"
    )

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        context = PROMPT_TOKENS + ANSWER_TOKENS
        engine, watch = watched_engine(model, plain_options(GROUP, context))
        async with serving(engine) as target:
            trial = _Trial(engine, watch.backend, target)
            for number in range(max(1, bench.effort.cancels // GROUP)):
                await trial.group(number)
        return Outcome(
            {
                late.name: max(trial.late_steps),
                count.name: len(trial.late_steps),
                freed.name: percentile(trial.freed_ms, 0.99),
            },
            (
                Samples("late steps", "steps", tuple(map(float, trial.late_steps))),
                Samples("freed", "ms", tuple(trial.freed_ms)),
            ),
        )

    return Entry(name, (late, count, freed), run)


class _Trial:
    """Starts streams in groups, cancels them, and counts what each cancel left to be done."""

    def __init__(self, engine: ScheduledEngine, backend: WatchedBackend, target: OurTarget) -> None:
        self._engine = engine
        self._backend = backend
        self._target = target
        self.late_steps: list[int] = []
        self.freed_ms: list[float] = []

    async def group(self, number: int) -> None:
        """Cancel ``GROUP`` streams, in a random order, each in prefill or while it decodes.

        Raises :class:`EngineError` for a stream that ended by itself, or a slot that stays taken.
        """
        chosen = random.Random(number)  # noqa: S311 - when to cancel, no secret
        in_prefill = number % 2 == 0
        streams = [_Stream(self._request(number, index)) for index in range(GROUP)]
        tasks = [asyncio.create_task(stream.read(self._engine)) for stream in streams]
        try:
            if in_prefill:
                await asyncio.sleep(chosen.uniform(0, LATEST_PREFILL_CANCEL_S))
            else:
                await asyncio.gather(*(stream.began.wait() for stream in streams))
            for left in reversed(range(GROUP)):
                await self._cancel(tasks.pop(chosen.randrange(len(tasks))), left)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
        self._backend.steps.clear()

    def _request(self, number: int, index: int) -> Request:
        return self._target.request(PROMPT_TOKENS, ANSWER_TOKENS, number, index)

    async def _cancel(self, task: asyncio.Task[None], left: int) -> None:
        """One cancel, while ``left`` other streams go on."""
        if task.done():
            task.result()
            raise EngineError("A stream came to its end before it was cancelled.")
        task.cancel()
        await asyncio.wait({task})
        cancelled_s = time.perf_counter()
        while (status := self._engine.status()) is not None and (
            status.active + status.queued > left
        ):
            if time.perf_counter() - cancelled_s > FREED_WITHIN_S:
                raise EngineError(f"A slot was still taken {FREED_WITHIN_S:g} s after a cancel.")
            await asyncio.sleep(0)
        freed_s = time.perf_counter()
        self.freed_ms.append(1e3 * (freed_s - cancelled_s))
        self.late_steps.append(
            sum(
                step.started_s > cancelled_s and len(step.sequences) > left
                for step in tuple(self._backend.steps)
            )
        )


class _Stream:
    """A stream that is read until somebody cancels it; ``began`` is set at its first piece."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.began = asyncio.Event()

    async def read(self, engine: ScheduledEngine) -> None:
        try:
            async with aclosing(engine.generate(self._request)) as chunks:
                async for _ in chunks:
                    self.began.set()
        finally:
            # Whoever waits for a beginning must not wait for a stream that failed before it.
            self.began.set()
