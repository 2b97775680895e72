"""All answers of one caller over one ``Connect`` stream, whoever answers."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from overspill import errors
from overspill.engines.base import Engine
from overspill.transport.handshake import MOVED
from overspill.transport.local.options import LocalOptions
from overspill.types.chat import Chunk
from overspill.types.embedding import EmbedReply
from overspill.wire import convert
from overspill.wire.v1 import chat_pb2, local_pb2


class Connection(ABC):
    """Reads orders, runs an answer for each, and gathers what they give.

    An engine hands a step's tokens to all streams in one turn of the event loop, and the writer
    wakes up in the next: so they leave as one message. Implementers write ``_events``.
    """

    def __init__(self, options: LocalOptions) -> None:
        self._options = options
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._waiting: dict[int, str] = {}
        self._events_due: list[local_pb2.StreamEvent] = []
        self._beat_due = False
        self._closing = self._moved = False
        self._ready = asyncio.Event()

    @abstractmethod
    def _events(self, message: chat_pb2.ChatRequest) -> AsyncGenerator[local_pb2.StreamEvent]:
        """One answer, its last event a ``final``. Raises ``OverspillError`` only."""

    async def _is_moving(self) -> bool:
        """Whether heartbeats may be sent: a stuck engine gives none."""
        return True

    def _queue_position(self, request_id: str) -> int | None:
        """How many requests wait ahead of this one; None where nobody knows."""
        return None

    async def run(
        self, orders: AsyncIterator[local_pb2.ConnectRequest]
    ) -> AsyncGenerator[local_pb2.EventBatch]:
        """The messages to send; leaving it ends every answer."""
        helpers = [asyncio.create_task(self._read(orders)), asyncio.create_task(self._beat())]
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                events, self._events_due = self._events_due, []
                if events or self._beat_due:
                    self._beat_due = False
                    yield local_pb2.EventBatch(events=events)
                over = helpers[0].done() or self._closing
                if over and not self._answers and not self._events_due:
                    return
        finally:
            tasks = {*helpers, *self._answers.values()}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def close(self, *, moved: bool = False) -> None:
        """Take no new orders (``moved``: another daemon does), and end once what runs has ended."""
        self._closing, self._moved = True, self._moved or moved
        self._ready.set()

    async def _read(self, orders: AsyncIterator[local_pb2.ConnectRequest]) -> None:
        async for order in orders:
            if order.WhichOneof("order") == "start":
                self._answers[order.stream] = asyncio.create_task(
                    self._answer(order.stream, order.start)
                )
            elif (answer := self._answers.get(order.stream)) is not None:
                answer.cancel()
        self._ready.set()

    async def _answer(self, stream: int, message: chat_pb2.ChatRequest) -> None:
        seq = 0
        self._waiting[stream] = message.id
        try:
            if self._closing:
                raise errors.BusyError(
                    "It is shutting down.",
                    mend="Ask again in a moment.",
                    reason=MOVED if self._moved else "",
                )
            async with aclosing(self._events(message)) as events:
                async for event in events:
                    self._waiting.pop(stream, None)
                    event.event.seq = seq
                    seq += 1
                    self._put(stream, event)
        except errors.OverspillError as error:
            failed = chat_pb2.ChatEvent(seq=seq, error=convert.error_to_proto(error))
            self._put(stream, local_pb2.StreamEvent(event=failed))
        finally:
            self._waiting.pop(stream, None)
            self._answers.pop(stream, None)
            self._ready.set()

    def _put(self, stream: int, event: local_pb2.StreamEvent) -> None:
        event.stream = stream
        self._events_due.append(event)
        self._ready.set()

    async def _beat(self) -> None:
        """Heartbeats, with the queue positions of who waits."""
        while True:
            await asyncio.sleep(self._options.heartbeat_s)
            if not self._answers or not await self._is_moving():
                continue
            for stream, request_id in self._waiting.items():
                position = self._queue_position(request_id) or 0
                beat = chat_pb2.Heartbeat(queue_position=position)
                self._put(stream, local_pb2.StreamEvent(event=chat_pb2.ChatEvent(heartbeat=beat)))
            self._beat_due = True
            self._ready.set()


class EngineConnection(Connection):
    """The worker's: one engine answers."""

    def __init__(self, engine: Engine, options: LocalOptions) -> None:
        super().__init__(options)
        self._engine = engine

    async def _is_moving(self) -> bool:
        return (await self._engine.health()).ok

    def _queue_position(self, request_id: str) -> int | None:
        return self._engine.queue_position(request_id)

    async def _events(self, message: chat_pb2.ChatRequest) -> AsyncGenerator[local_pb2.StreamEvent]:
        request = convert.request_from_proto(message, local=True)
        async with aclosing(self._engine.generate(request)) as chunks:
            async for chunk in chunks:
                for event in chunk_events(chunk):
                    yield local_pb2.StreamEvent(event=event)


async def embed_events(
    work: Callable[[], Coroutine[Any, Any, EmbedReply]],
    options: LocalOptions,
    is_moving: Callable[[], Awaitable[bool]] | None = None,
) -> AsyncGenerator[local_pb2.EmbedEvent]:
    """The vectors and their end, or the error that ended them, with a heartbeat whenever that
    takes long and ``is_moving`` does not deny it. Leaving it cancels the work."""
    working = asyncio.create_task(work())
    try:
        while not (await asyncio.wait({working}, timeout=options.heartbeat_s))[0]:
            if is_moving is None or await is_moving():
                yield local_pb2.EmbedEvent(heartbeat=chat_pb2.Heartbeat())
        reply = await working
        for embedding in reply.embeddings:
            yield local_pb2.EmbedEvent(embedding=convert.embedding_to_proto(embedding))
        end = local_pb2.EmbedEnd(model=reply.model, pooling=reply.pooling)
        yield local_pb2.EmbedEvent(end=end)
    except errors.OverspillError as error:
        yield local_pb2.EmbedEvent(error=convert.error_to_proto(error))
    finally:
        working.cancel()


def chunk_events(chunk: Chunk) -> list[chat_pb2.ChatEvent]:
    """What the chunk holds, and its end, as events."""
    events = []
    if delta := convert.chunk_to_delta(chunk):
        events.append(chat_pb2.ChatEvent(delta=delta))
    if chunk.finish is not None:
        events.append(chat_pb2.ChatEvent(final=convert.finish_to_final(chunk.finish)))
    return events
