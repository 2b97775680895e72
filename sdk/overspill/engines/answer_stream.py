"""The bridge from the scheduler's thread to the event loop that waits for an answer."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from overspill.errors import OverspillError
from overspill.types.chat import Chunk, merge_chunks

Item: TypeAlias = "Chunk | OverspillError"
MAX_GATHERED = 4
"""Steps whose tokens go out together, at most: a stream of a tiny model stays one."""


class AnswerStream:
    """Chunks of one answer; lives on one event loop.

    A slow reader gets everything that gathered meanwhile as one chunk, so what is held grows
    with the answer's length and never with the number of steps.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.has_begun = False
        """Whether something that shows was put into the outbox: its thread alone looks at this."""
        self._pending: list[Item] = []
        self._waits: asyncio.Future[None] | None = None
        """Of its one reader: a bare future, which takes 0.9 us a token less than an event."""

    def deliver(self, item: Item) -> None:
        """Add an item; on the event loop only."""
        self._pending.append(item)
        if self._waits is not None and not self._waits.done():
            self._waits.set_result(None)

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """The answer up to its end; raises the error that ended it, after all text before it."""
        while True:
            if not self._pending:
                self._waits = self.loop.create_future()
                await self._waits
            items, self._pending = self._pending, []
            chunks = [item for item in items if isinstance(item, Chunk)]
            if chunks:
                merged = merge_chunks(chunks)
                yield merged
                if merged.finish is not None:
                    return
            for item in items:
                if isinstance(item, OverspillError):
                    raise item


@dataclass(slots=True)
class _Parcel:
    """What waits for one event loop: since when, for how many steps, and whether it may wait."""

    since_s: float
    items: list[tuple[AnswerStream, Item]] = field(default_factory=list)
    steps: int = 0
    is_urgent: bool = False

    def add(self, stream: AnswerStream, item: Item) -> None:
        """A beginning and an end go at once."""
        self.items.append((stream, item))
        if isinstance(item, Chunk) and item.finish is None and stream.has_begun:
            return
        self.is_urgent = True
        stream.has_begun = stream.has_begun or not isinstance(item, Chunk) or item.is_visible


class Outbox:
    """What steps have for the waiting streams: sent with one wake-up for each event loop.

    A wake-up takes cores from the next step, the more so where another process reads. So with
    ``gather_s`` tokens wait for the next step's, those of ``MAX_GATHERED`` steps at most, if that
    will be over before the first of them has waited so long. An answer's beginning and its end
    never wait.
    """

    def __init__(self, gather_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._gather_s = gather_s
        self._clock = clock
        self._parcels: dict[asyncio.AbstractEventLoop, _Parcel] = {}

    def put(self, stream: AnswerStream, item: Item) -> None:
        """Keep an item until ``flush``."""
        parcel = self._parcels.get(stream.loop)
        if parcel is None:
            parcel = self._parcels[stream.loop] = _Parcel(self._clock())
        parcel.add(stream, item)

    def flush(self, settle_s: float = 0.0, next_s: float = math.inf) -> list[AnswerStream]:
        """Send what may not wait for a step that takes ``next_s``; returns the streams whose event
        loop is gone.

        Waits up to ``settle_s`` until the readers have taken theirs: whoever is about to keep all
        cores busy waits for them either way, and longer once its threads have to make room.
        """
        lost: list[AnswerStream] = []
        due = [loop for loop, parcel in self._parcels.items() if not self._waits(parcel, next_s)]
        taken = [self._send(loop, self._parcels.pop(loop).items, lost) for loop in due]
        if settle_s > 0:
            for lock in taken:
                lock.acquire(timeout=settle_s)
        return lost

    def _waits(self, parcel: _Parcel, next_s: float) -> bool:
        parcel.steps += 1
        if parcel.is_urgent or parcel.steps >= MAX_GATHERED:
            return False
        return self._clock() - parcel.since_s + next_s <= self._gather_s

    @staticmethod
    def _send(
        loop: asyncio.AbstractEventLoop,
        items: list[tuple[AnswerStream, Item]],
        lost: list[AnswerStream],
    ) -> threading.Lock:
        """A lock that is free once the loop has handed the items on, or is gone."""
        taken = threading.Lock()
        taken.acquire()
        try:
            loop.call_soon_threadsafe(_deliver, items, taken)
        except RuntimeError:
            lost += [stream for stream, _ in items]
            taken.release()
        return taken


def _deliver(items: list[tuple[AnswerStream, Item]], taken: threading.Lock) -> None:
    for stream, item in items:
        stream.deliver(item)
    # Behind the readers, whom the deliveries have just put into the loop's queue.
    asyncio.get_running_loop().call_soon(taken.release)
