"""Echo that steps when a test says so: the ``stepped`` fixture, as test modules import nobody."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

from overspill.engines.answer_text import AnswerText
from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.generation import Generation
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.sampling import TokenSampler
from overspill.engines.scheduled import ScheduledEngine
from overspill.types.chat import Message, Request

CHUNK = 64


class SteppedEcho(EchoBackend):
    """Echo that waits for leave before each step and keeps a list of what each step held."""

    def __init__(self, options=None, kv_tokens=None):
        super().__init__(options or EchoOptions(context_tokens=4096, batch_tokens=256))
        self._kv_tokens = kv_tokens or super().kv_tokens
        self._leave = threading.Semaphore(0)
        self.steps = []
        self.failures = []
        self.stepped = threading.Condition()

    @property
    def kv_tokens(self):
        return self._kv_tokens

    def run(self, rows):
        self._leave.acquire()
        with self.stepped:
            self.steps.append([(row.sequence, row.position, len(row.tokens)) for row in rows])
            self.stepped.notify_all()
        if self.failures:
            raise self.failures.pop()
        return super().run(rows)

    def allow(self, steps=10_000):
        self._leave.release(steps)

    def interrupt(self):
        super().interrupt()
        self.allow()


@dataclass
class Clock:
    """Time that passes when a test says so."""

    now_s: float = 0.0

    def __call__(self):
        return self.now_s


async def until(condition):
    """Wait for another thread; a test that waits in vain ends by pytest's own timeout."""
    while not condition():  # noqa: ASYNC110 - the other side is a thread
        await asyncio.sleep(0.002)


def ask(size, max_tokens=8, **options):
    return Request((Message("user", "x" * size),), max_tokens=max_tokens, **options)


def generation(slot, prompt, computed=0):
    """One that runs, and decodes where its prompt is computed."""
    request = ask(1)
    return Generation(
        request=request,
        prompt=prompt,
        max_tokens=8,
        sampler=TokenSampler(request.sampling, vocabulary_size=256),
        text=AnswerText(request),
        stream=None,
        submitted_s=0.0,
        slot=slot,
        computed=computed,
        tokens=[1] if computed else [],
    )


async def collect(engine, request):
    return [chunk async for chunk in engine.generate(request)]


def tokens(chunks):
    return sum(len(chunk.token_ids) for chunk in chunks)


def engine_of(backend, clock=None, **options):
    settings_ = SchedulerOptions(prefill_chunk_tokens=CHUNK, **options)
    kwargs = {} if clock is None else {"clock": clock}
    return ScheduledEngine(
        lambda: backend,
        name="echo",
        runtime="echo",
        options=EngineOptions(scheduler=settings_),
        **kwargs,
    )
