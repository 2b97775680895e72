"""Running generations: an engine's chunks through a bounded queue, and ways to stop them.

The engine is pumped by a task of its own, so a slow or lost reader never stops the engine's
thread: when the queue is full the pump waits, and when the reader is gone the run is cancelled
after a grace.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum

from overspill.errors import EngineError, OverspillError
from overspill.sealing.schedule import KeySchedule, check_cancel_mac
from overspill.types.chat import Chunk


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """``detach_grace_s``: how long a stream whose connection was lost goes on."""

    max_arriving: int = 64
    """Requests that are not admitted yet."""
    max_queued_chunks: int = 64
    heartbeat_s: float = 2.0
    detach_grace_s: float = 2.0
    request_timeout_s: float = 30.0
    """From the head to the last frame of the request."""


class Stop(StrEnum):
    """Why a run was stopped from outside."""

    CANCELLED = "cancelled"
    DETACHED = "detached"
    DRAINED = "drained"


Ending = Stop | OverspillError | None
"""How a run ended; None is the engine's own end."""


class Run:
    """One generation. Whoever made it hands it to :meth:`Running.leave` at the end."""

    def __init__(self, chunks: AsyncGenerator[Chunk], limits: StreamLimits) -> None:
        self.ended = False
        self.ending: Ending = None
        self._stop: Stop | None = None
        self._queued: deque[Chunk] = deque()
        self._room = asyncio.Semaphore(limits.max_queued_chunks)
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._pump(chunks))
        # Not in the pump: a task that is cancelled before its first step runs none of it.
        self._task.add_done_callback(self._on_done)

    async def batch(self, wait_s: float) -> list[Chunk]:
        """What is queued, after at most ``wait_s`` seconds; empty when nothing came, or at the
        end (``ended``)."""
        if not self._queued and not self.ended:
            self._wake.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                return []
        chunks = list(self._queued)
        self._queued.clear()
        for _ in chunks:
            self._room.release()
        return chunks

    def stop(self, why: Stop) -> None:
        """Stop the engine's work; the first reason counts. Queued chunks can still be read."""
        if self._stop is None and not self.ended:
            self._stop = why
            self._task.cancel()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Wait until the engine let go, at most ``timeout_s`` seconds."""
        await asyncio.wait([self._task], timeout=timeout_s)

    async def _pump(self, chunks: AsyncGenerator[Chunk]) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await self._room.acquire()
                    self._queued.append(chunk)
                    self._wake.set()
        except OverspillError as error:
            self.ending = error
        except Exception as error:
            # Only the kind: a foreign exception's text may quote the prompt.
            self.ending = EngineError(f"The engine failed ({type(error).__name__}).")

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.ending = self._stop or Stop.CANCELLED
        self.ended = True
        self._wake.set()


class Running:
    """All runs of a node by stream id: for explicit cancels, lost connections and the drain."""

    def __init__(self, limits: StreamLimits) -> None:
        self._limits = limits
        self._runs: dict[bytes, tuple[KeySchedule, Run]] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __contains__(self, stream: bytes) -> bool:
        return stream in self._runs

    def add(self, stream: bytes, keys: KeySchedule, run: Run) -> None:
        """Make a run known under its stream id."""
        self._runs[stream] = (keys, run)
        self._idle.clear()

    def cancel(self, stream: bytes, mac: bytes) -> None:
        """Stop a stream for who began it. An unknown stream is already what was asked for.

        Raises ``StreamCorrupt`` for a MAC that is not its client's.
        """
        found = self._runs.get(stream)
        if found is not None:
            keys, run = found
            check_cancel_mac(keys, stream, mac)
            run.stop(Stop.CANCELLED)

    def leave(self, stream: bytes, *, complete: bool, then: Callable[[], None]) -> None:
        """The reader is gone: stop the run, after the grace unless it is ``complete``, forget it,
        and call ``then``."""
        _, run = self._runs[stream]
        grace_s = 0.0 if complete else self._limits.detach_grace_s
        task = asyncio.create_task(self._end(stream, run, grace_s, then))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _end(self, stream: bytes, run: Run, grace_s: float, then: Callable[[], None]) -> None:
        try:
            await run.wait(grace_s)
            run.stop(Stop.DETACHED)
            await run.wait()
        finally:
            del self._runs[stream]
            then()
            if not self._runs:
                self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Wait until all runs ended; after ``timeout_s`` tell the rest to go on elsewhere."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            for _, run in tuple(self._runs.values()):
                run.stop(Stop.DRAINED)
            await self._idle.wait()
