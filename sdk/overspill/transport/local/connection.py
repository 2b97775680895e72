"""All answers of one caller over one connection, whoever answers."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from overspill import errors
from overspill.transport.handshake import MOVED
from overspill.transport.local.options import LocalOptions
from overspill.types.chat import Chunk
from overspill.types.embedding import EmbedReply
from overspill.wire import convert
from overspill.wire.v1 import chat_pb2, local_pb2


class Connection(ABC):
    """Takes orders, runs an answer for each, and gathers what they give.

    An engine hands a step's tokens to all streams in one turn of the event loop, and what is due is
    sent in the next: so they leave as one message. Implementers write ``_events`` and ``_wake``.
    """

    def __init__(self, options: LocalOptions) -> None:
        self._options = options
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._waiting: dict[int, str] = {}
        self._events_due: list[local_pb2.StreamEvent] = []
        self._beat_due = False
        self._closing = self._moved = False

    @abstractmethod
    def _events(self, message: chat_pb2.ChatRequest) -> AsyncGenerator[local_pb2.StreamEvent]:
        """One answer, its last event a ``final``."""

    @abstractmethod
    def _wake(self) -> None:
        """Something is due, or has ended."""

    async def _is_moving(self) -> bool:
        """Whether heartbeats may be sent: a stuck engine gives none."""
        return True

    def _queue_position(self, request_id: str) -> int | None:
        """How many requests wait ahead of this one; None where nobody knows."""
        return None

    def _answer_to(self, order: local_pb2.ConnectRequest) -> AsyncGenerator[local_pb2.StreamEvent]:
        """What an order asks for."""
        self._waiting[order.stream] = order.start.id
        return self._events(order.start)

    def take(self, order: local_pb2.ConnectRequest) -> None:
        """Begin what it asks for, or cancel it."""
        if order.WhichOneof("order") != "cancel":
            answering = self._answer(order.stream, order)
            self._answers[order.stream] = asyncio.create_task(answering)
        elif (answer := self._answers.get(order.stream)) is not None:
            answer.cancel()

    def close(self, *, moved: bool = False) -> None:
        """Take no new orders (``moved``: another daemon does), and end once what runs has ended."""
        self._closing, self._moved = True, self._moved or moved
        self._wake()

    def _due(self) -> local_pb2.EventBatch | None:
        """What has to be sent now; an empty batch is a sign of life."""
        if not self._events_due and not self._beat_due:
            return None
        events, self._events_due, self._beat_due = self._events_due, [], False
        return local_pb2.EventBatch(events=events)

    async def _answer(self, stream: int, order: local_pb2.ConnectRequest) -> None:
        seq = 0
        try:
            if self._closing:
                raise errors.BusyError(
                    "It is shutting down.",
                    mend="Ask again in a moment.",
                    reason=MOVED if self._moved else "",
                )
            async with aclosing(self._answer_to(order)) as events:
                async for event in events:
                    self._waiting.pop(stream, None)
                    if event.HasField("event"):
                        event.event.seq = seq
                        seq += 1
                    self._put(stream, event)
        except Exception as error:
            failed = chat_pb2.ChatEvent(seq=seq, error=convert.error_to_proto(_typed(error)))
            self._put(stream, local_pb2.StreamEvent(event=failed))
        finally:
            self._waiting.pop(stream, None)
            self._answers.pop(stream, None)
            self._wake()

    def _put(self, stream: int, event: local_pb2.StreamEvent) -> None:
        event.stream = stream
        self._events_due.append(event)
        self._wake()

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
            self._wake()


def _typed(error: Exception) -> errors.OverspillError:
    """Whoever waits hears of everything that went wrong, foreign or not."""
    if isinstance(error, errors.OverspillError):
        return error
    return errors.EngineError(
        f"The other side failed: {type(error).__name__}: {error}", mend="Run `overspill doctor`."
    )


class StreamedConnection(Connection):
    """Over one ``Connect`` call of gRPC."""

    def __init__(self, options: LocalOptions) -> None:
        super().__init__(options)
        self._ready = asyncio.Event()

    async def run(
        self, orders: AsyncIterator[local_pb2.ConnectRequest]
    ) -> AsyncGenerator[local_pb2.EventBatch]:
        """The messages to send; leaving it ends every answer."""
        helpers = [asyncio.create_task(self._read(orders)), asyncio.create_task(self._beat())]
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                if (batch := self._due()) is not None:
                    yield batch
                over = helpers[0].done() or self._closing
                if over and not self._answers and not self._events_due:
                    return
        finally:
            tasks = {*helpers, *self._answers.values()}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _wake(self) -> None:
        self._ready.set()

    async def _read(self, orders: AsyncIterator[local_pb2.ConnectRequest]) -> None:
        async for order in orders:
            self.take(order)
        self._ready.set()


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
    if chunk.has_content:
        events.append(event := chat_pb2.ChatEvent())
        convert.write_delta(chunk, event.delta)
    if chunk.finish is not None:
        events.append(chat_pb2.ChatEvent(final=convert.finish_to_final(chunk.finish)))
    return events
