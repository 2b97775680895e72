"""Cancels, in prefill and in decoding: how many steps a cancelled stream still takes part in."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from overspill.bench.figures import FigureSpec, at_most
from overspill.bench.ours import OurTarget, serving
from overspill.bench.rounds import Samples
from overspill.bench.stats import percentile
from overspill.bench.suite import Bench, Entry, Outcome
from overspill.bench.throughput import plain_options
from overspill.bench.watched import Step, WatchedBackend, slot_of, watched_engine
from overspill.engines.scheduled import ScheduledEngine
from overspill.errors import EngineError
from overspill.types.chat import Request

GROUP = 4
"""Streams at once; they are cancelled one after the other, while the rest go on."""
PREFILL_TOKENS, DECODE_TOKENS, ANSWER_TOKENS = 600, 64, 1200
"""Who is cancelled in prefill has a prompt of more than a chunk; the others only have to begin."""
LATEST_PREFILL_CANCEL_S = 0.01
FREED_WITHIN_S = 2.0
LOOK_EVERY_S = 0.0005


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
        context = PREFILL_TOKENS + ANSWER_TOKENS
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
        tokens = PREFILL_TOKENS if in_prefill else DECODE_TOKENS
        streams = [self._stream(number, index, tokens) for index in range(GROUP)]
        for stream in streams:
            stream.start(self._engine)
        try:
            await self._submitted(streams)
            if in_prefill:
                await asyncio.sleep(chosen.uniform(0, LATEST_PREFILL_CANCEL_S))
            else:
                await asyncio.gather(*(stream.began.wait() for stream in streams))
            left = list(streams)
            while left:
                await self._cancel(left.pop(chosen.randrange(len(left))), len(left))
        finally:
            await asyncio.gather(*(stream.leave() for stream in streams))
        # Counted when all have left: no slot was given to a second stream until now, and what was
        # computed of one after it had been called free is late too.
        steps = tuple(self._backend.steps)
        self.late_steps += [stream.late_steps(steps) for stream in streams]
        self._backend.steps.clear()

    def _stream(self, number: int, index: int, prompt_tokens: int) -> _Stream:
        request = self._target.request(prompt_tokens, ANSWER_TOKENS, number, index)
        # Without a template around it the prompt's tokens are known here: they tell its slot.
        raw = replace(request, raw=True)
        bos_id = self._backend.vocabulary.bos_id
        tokens = self._backend.tokenize(raw.messages[-1].content)
        return _Stream(raw, tokens if bos_id is None else [bos_id, *tokens])

    async def _submitted(self, streams: Sequence[_Stream]) -> None:
        """Wait until the scheduler has all of them: before that there is no slot to free."""
        while self._taken() < len(streams):
            for stream in streams:
                stream.check_goes_on()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _cancel(self, stream: _Stream, left: int) -> None:
        """One cancel, while ``left`` other streams go on.

        It looks from time to time: a loop that never slept would take a core from what it measures.
        """
        stream.check_goes_on()
        await stream.leave()
        while self._taken() > left:
            if time.perf_counter() - stream.left_s > FREED_WITHIN_S:
                raise EngineError(f"A slot was still taken {FREED_WITHIN_S:g} s after a cancel.")
            await asyncio.sleep(LOOK_EVERY_S)
        self.freed_ms.append(1e3 * (time.perf_counter() - stream.left_s))

    def _taken(self) -> int:
        """Streams that the scheduler has, with slots or in the queue."""
        status = self._engine.status()
        return 0 if status is None else status.active + status.queued


class _Stream:
    """A stream that is read until somebody cancels it; ``began`` is set at its first piece.

    ``left_s`` is when it had been cancelled, in seconds of ``time.perf_counter``.
    """

    def __init__(self, request: Request, prompt: list[int]) -> None:
        self._request = request
        self._prompt = prompt
        self._task: asyncio.Task[None] | None = None
        self.began = asyncio.Event()
        self.left_s = math.inf

    def start(self, engine: ScheduledEngine) -> None:
        """Read it from now on."""
        self._task = asyncio.create_task(self._read(engine))

    def check_goes_on(self) -> None:
        """Raise what ended it, or :class:`EngineError` where it came to its end by itself."""
        if self._task is not None and self._task.done():
            self._task.result()
            raise EngineError("A stream came to its end before it was cancelled.")

    async def leave(self) -> None:
        """Cancel it, where nobody has, and wait for its reader."""
        if self._task is not None and self.left_s == math.inf:
            self._task.cancel()
            await asyncio.wait({self._task})
            self.left_s = time.perf_counter()

    def late_steps(self, steps: Sequence[Step]) -> int:
        """How many of them began after it had left, and computed it all the same."""
        slot = slot_of(self._prompt, steps)
        return sum(step.started_s > self.left_s and slot in step.sequences for step in steps)

    async def _read(self, engine: ScheduledEngine) -> None:
        try:
            async with aclosing(engine.generate(self._request)) as chunks:
                async for _ in chunks:
                    self.began.set()
        finally:
            # Whoever waits for a beginning must not wait for a stream that failed before it.
            self.began.set()
