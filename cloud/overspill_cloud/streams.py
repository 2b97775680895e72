"""Running generations: an engine's chunks through a bounded queue, and ways to stop them.

The engine is pumped by a task of its own, so a slow or lost reader never stops the engine's
thread: when the queue is full the pump waits, and what the engine says meanwhile comes as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum

from overspill.errors import EngineError, OverspillError
from overspill.types.chat import Chunk, Finish

GATHERED_BYTES = 16 << 10
"""So much does not wait for more."""
_CHUNK_BYTES = 64
_TOKEN_BYTES = 8


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of each stream, in bytes and seconds, and of all that are kept."""

    max_arriving: int = 64
    """Requests that are not admitted yet; beyond it the longest gives way, once it had
    ``arriving_grace_s``."""
    arriving_grace_s: float = 2.0
    request_timeout_s: float = 30.0
    """From the head to the last frame of the request."""
    max_queued_bytes: int = 192 << 10
    """What an engine may be ahead of the reader of its answer: with the message that is being
    written for him and the piece that fills it, he has not 256 KiB waiting."""
    stall_timeout_s: float = 30.0
    """A reader that leaves the queue full for so long counts as gone."""
    heartbeat_s: float = 2.0
    gather_s: float = 0.025
    """So long after a frame of words the next may follow, with all that was said meanwhile: where
    tokens come faster, a frame for each would be the dearest part of them, on both ends. Longer
    while the node is late (:mod:`overspill_cloud.pace`). An answer's beginning and its end never
    wait."""
    batch_gather_s: float = 0.5
    """The same in the batch lane, where nobody watches words come."""
    detach_grace_s: float = 5.0
    """How long a stream whose connection was lost goes on."""
    ring_bytes: int = 4 << 20
    ring_s: float = 120.0
    """For how long, and up to which size, what was sent can be had again."""
    max_kept_bytes: int = 64 << 20
    """All streams that ended and can still be had again, together."""


class Stop(StrEnum):
    """Why a run was stopped from outside."""

    CANCELLED = "cancelled"
    DETACHED = "detached"
    DRAINED = "drained"


Ending = Stop | OverspillError | None
"""How a run ended; None is the engine's own end."""


class Wake:
    """An event that its one reader waits for, for a while each time, with one timer for all waits:
    a timer for each token of each stream would be the dearest part of a token."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0

    def set(self) -> None:
        """Wake the reader, if he waits."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self, wait_s: float) -> None:
        """Wait for :meth:`set`, at most ``wait_s`` seconds; who waited before is woken."""
        self.set()
        waiter = self._waiter = self._loop.create_future()
        self._due_s = self._loop.time() + wait_s
        if self._timer is None or self._timer.when() > self._due_s:
            self.stop()
            self._timer = self._loop.call_at(self._due_s, self._look)
        await waiter

    def stop(self) -> None:
        """Wake nobody any more when time is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Time may be over; if not, look again then."""
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() >= self._due_s:
            self.set()
        else:
            self._timer = self._loop.call_at(self._due_s, self._look)


class Run:
    """One generation. ``then`` is called once, when the engine has let go."""

    def __init__(
        self, chunks: AsyncGenerator[Chunk], limits: StreamLimits, then: Callable[[], None]
    ) -> None:
        self.ended = False
        self.ending: Ending = None
        self.tokens = 0
        """Tokens that the engine has given so far, read or not."""
        self.finish: Finish | None = None
        """The engine's end, as soon as it is queued."""
        self._limits = limits
        self._then = then
        self._stop: Stop | None = None
        self._queued: list[Chunk] = []
        self._queued_bytes = 0
        self._room = asyncio.Event()
        self._wake = Wake()
        self._gathers = False
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._pump(chunks))
        # Not in the pump: a task that is cancelled before its first step runs none of it.
        self._task.add_done_callback(self._on_done)

    @property
    def queued_bytes(self) -> int:
        """What waits for the reader, roughly."""
        return self._queued_bytes

    async def ready(self, wait_s: float) -> None:
        """Wait, at most ``wait_s`` seconds, until something is queued or the run has ended."""
        if not self._queued and not self.ended:
            await self._wake.wait(wait_s)

    async def gather(self, wait_s: float) -> None:
        """Wait for ``wait_s`` seconds, where something is queued, for what may go with it; less
        when the end comes, or when a lot is queued."""
        if wait_s <= 0 or not self._queued or self._goes_now:
            return
        self._gathers = True
        try:
            await self._wake.wait(wait_s)
        finally:
            self._gathers = False

    @property
    def _goes_now(self) -> bool:
        most = min(GATHERED_BYTES, self._limits.max_queued_bytes)
        return self.ended or self.finish is not None or self._queued_bytes >= most

    def take(self) -> list[Chunk]:
        """What is queued now."""
        chunks, self._queued = self._queued, []
        self._queued_bytes = 0
        self._room.set()
        return chunks

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._wake.set()

    def stop(self, why: Stop) -> None:
        """Stop the engine's work; the first reason counts. Queued chunks can still be read."""
        if self._stop is None and self._task is not None:
            self._stop = why
            self._task.cancel()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Wait until the engine let go, at most ``timeout_s`` seconds."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_s)

    async def _pump(self, chunks: AsyncGenerator[Chunk]) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._note(chunk)
                    if self._queued_bytes >= self._limits.max_queued_bytes:
                        await self._until_read()
        except OverspillError as error:
            # Without its history: the frames of a traceback hold the request, as long as it lives.
            error.__traceback__ = error.__cause__ = error.__context__ = None
            self.ending = error
        except Exception as error:
            # Only the kind: a foreign exception's text may quote the prompt.
            self.ending = EngineError(f"The engine failed ({type(error).__name__}).")

    def _note(self, chunk: Chunk) -> None:
        self._queued.append(chunk)
        self._queued_bytes += _size(chunk)
        self.tokens += len(chunk.token_ids)
        self.finish = chunk.finish
        if not self._gathers or self._goes_now:
            self._wake.set()

    async def _until_read(self) -> None:
        self._room.clear()
        try:
            async with asyncio.timeout(self._limits.stall_timeout_s):
                await self._room.wait()
        except TimeoutError:
            self.stop(Stop.DETACHED)
            await asyncio.sleep(0)  # where the cancellation arrives

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.ending = self._stop or Stop.CANCELLED
        self.ended = True
        self._wake.stop()
        self._wake.set()
        # The task, by its error, and whoever is told, who owns this run, hold it as it holds them:
        # without that all are gone with their last reader, not when Python next looks for cycles.
        then, self._then, self._task = self._then, _nothing, None
        then()


def _nothing() -> None:
    pass


def _size(chunk: Chunk) -> int:
    alternatives = sum(1 + len(one.top) for one in chunk.logprobs)
    said = len(chunk.text) + len(chunk.reasoning)
    said += sum(len(call.arguments) for call in chunk.tool_calls)
    said += sum(len(piece.arguments) for piece in chunk.tool_call_deltas)
    return _CHUNK_BYTES * (1 + alternatives) + _TOKEN_BYTES * len(chunk.token_ids) + said
