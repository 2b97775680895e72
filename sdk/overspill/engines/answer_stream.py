"""The bridge from the scheduler's thread to the event loop that waits for an answer."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import TypeAlias

from overspill.errors import OverspillError
from overspill.types.chat import Chunk, merge_chunks

Item: TypeAlias = "Chunk | OverspillError"


class AnswerStream:
    """Chunks of one answer; lives on one event loop.

    A slow reader gets everything that gathered meanwhile as one chunk, so what is held grows
    with the answer's length and never with the number of steps.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._pending: list[Item] = []
        self._arrived = asyncio.Event()

    def deliver(self, item: Item) -> None:
        """Add an item; on the event loop only."""
        self._pending.append(item)
        self._arrived.set()

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """The answer up to its end; raises the error that ended it, after all text before it."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
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


class Outbox:
    """What one step has for the waiting streams: sent with one wake-up for each event loop."""

    def __init__(self) -> None:
        self._items: dict[asyncio.AbstractEventLoop, list[tuple[AnswerStream, Item]]] = defaultdict(
            list
        )

    def put(self, stream: AnswerStream, item: Item) -> None:
        """Keep an item until ``flush``."""
        self._items[stream.loop].append((stream, item))

    def flush(self, settle_s: float = 0.0) -> list[AnswerStream]:
        """Send everything; returns the streams whose event loop is gone.

        Waits up to ``settle_s`` until the readers have taken theirs: whoever is about to keep all
        cores busy waits for them either way, and longer once its threads have to make room.
        """
        lost: list[AnswerStream] = []
        taken = [self._send(loop, items, lost) for loop, items in self._items.items()]
        self._items.clear()
        if settle_s > 0:
            for lock in taken:
                lock.acquire(timeout=settle_s)
        return lost

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
