"""The bridge from the scheduler's thread to the event loop that waits for an answer."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from queue import SimpleQueue
from typing import TypeAlias

from overspill.errors import OverspillError
from overspill.types.chat import Chunk

Item: TypeAlias = "Chunk | OverspillError"


class AnswerStream:
    """Chunks of one answer; lives on one event loop.

    A slow reader gets everything that gathered meanwhile as one chunk, so what is held grows
    with the answer's length and never with the number of steps.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.is_lost = False
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
                merged = merge(chunks)
                yield merged
                if merged.finish is not None:
                    return
            for item in items:
                if isinstance(item, OverspillError):
                    raise item


_Batch: TypeAlias = list[tuple[AnswerStream, Item]]


class Outbox:
    """What each step has for the waiting streams: one wake-up for each event loop.

    Waking a loop writes to a socket, which lets go of the GIL; the scheduler would get it back
    only when the loop has done its work or 5 ms have passed. So a thread of its own carries the
    items over, and does so while the backend computes the next step.
    """

    def __init__(self) -> None:
        self._items: _Batch = []
        self._handover: SimpleQueue[_Batch | None] = SimpleQueue()
        self._carrier = threading.Thread(target=self._carry, name="overspill-outbox", daemon=True)
        self._carrier.start()

    def put(self, stream: AnswerStream, item: Item) -> None:
        """Keep an item until ``flush``."""
        self._items.append((stream, item))

    def flush(self) -> None:
        """Hand everything to the carrier; returns at once."""
        if self._items:
            self._handover.put(self._items)
            self._items = []

    def close(self) -> None:
        """End the carrier once it has delivered everything."""
        self.flush()
        self._handover.put(None)

    def _carry(self) -> None:
        while (batch := self._handover.get()) is not None:
            loops: dict[asyncio.AbstractEventLoop, _Batch] = defaultdict(list)
            for stream, item in batch:
                loops[stream.loop].append((stream, item))
            for loop, items in loops.items():
                try:
                    loop.call_soon_threadsafe(_deliver, items)
                except RuntimeError:
                    # The loop is closed: nobody will ever read these streams.
                    for stream, _ in items:
                        stream.is_lost = True


def merge(chunks: Iterable[Chunk]) -> Chunk:
    """Neighbouring chunks as one."""
    chunks = list(chunks)
    if len(chunks) == 1:
        return chunks[0]
    return Chunk(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
        finish=chunks[-1].finish,
    )


def _deliver(items: _Batch) -> None:
    for stream, item in items:
        stream.deliver(item)
