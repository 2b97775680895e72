"""The work behind one HTTP request: bounded reading, and an end the moment its client leaves.

An answer is produced in a task of its own. Beside it runs ``await receive()``, the only way in
which ASGI says that a client has gone; then the producer is cancelled and with it the
generation, whether the answer was to be streamed or whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from overspill.errors import BusyError, Cancelled, EngineError
from overspill.types.reply import ReplyChunk
from overspill_edge.problems import HttpProblem

_Item = ReplyChunk | Exception
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one request may take; ``heartbeat_s`` is the longest silence of a stream."""

    max_body_bytes: int = 8 * 1024 * 1024
    body_timeout_s: float = 60.0
    heartbeat_s: float = 10.0


async def read_body(scope: Scope, receive: Receive, limits: HttpLimits) -> bytes:
    """The JSON body in whole. Raises 413 over the limit, 415 for another type, 408 when it is
    late, ``Cancelled`` when the client leaves."""
    headers = Headers(scope=scope)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpProblem(
            415, "unsupported_media_type", "The body is not JSON.", "Send application/json."
        )
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        # Not anyio's: the loop's own is lighter, and this is on the way of every request.
        async with asyncio.timeout(limits.body_timeout_s):
            return await _receive_all(receive, limits)
    except TimeoutError:
        raise HttpProblem(408, "body_timeout", "The body did not come in time.") from None


async def _receive_all(receive: Receive, limits: HttpLimits) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("The client left before its request was complete.")
        body += message.get("body", b"")
        if len(body) > limits.max_body_bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limits: HttpLimits) -> HttpProblem:
    return HttpProblem(
        413, "body_too_large", f"The body is over {limits.max_body_bytes} bytes.", "Send less."
    )


class WorkRegistry:
    """All answers that are being made: counted for the status, stopped when a drain is over."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._waiting: set[anyio.CancelScope] = set()
        self._listeners: set[anyio.CancelScope] = set()

    @property
    def active(self) -> int:
        """Answers in the making, the waiting ones among them."""
        return len(self._scopes)

    @property
    def waiting(self) -> int:
        """Answers whose first piece has not come."""
        return len(self._waiting)

    def stop_all(self) -> None:
        """Cancel every generation; each client is told that the daemon is closing."""
        for scope in self._scopes:
            scope.cancel()

    def stop_listening(self) -> None:
        """End those who wait for what happens next: a drain is not to wait for them."""
        for scope in self._listeners:
            scope.cancel()

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Waiting that is no work: not counted, ended by :meth:`stop_listening`."""
        with anyio.CancelScope() as scope:
            self._listeners.add(scope)
            try:
                yield
            finally:
                self._listeners.discard(scope)

    @contextmanager
    def counted(self) -> Iterator[anyio.CancelScope]:
        """Work that is done inside counts as active, and is cancelled by :meth:`stop_all`."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    async def produce(
        self, pieces: AsyncGenerator[ReplyChunk], into: MemoryObjectSendStream[_Item]
    ) -> None:
        """Hand ``pieces`` on, and what they raise as the last item."""
        with anyio.CancelScope() as scope, into:
            self._scopes.add(scope)
            self._waiting.add(scope)
            try:
                async with aclosing(pieces):
                    async for piece in pieces:
                        self._waiting.discard(scope)
                        await into.send(piece)
            except Exception as error:
                await into.send(error)
            finally:
                self._scopes.discard(scope)
                self._waiting.discard(scope)


class Pieces:
    """The pieces of one answer as they come; see :func:`answering`."""

    def __init__(self, items: MemoryObjectReceiveStream[_Item]) -> None:
        self._items = items
        self._finished = False

    async def next(self, patience_s: float) -> ReplyChunk | None:
        """The next piece, or None when none came in time. Raises what the work raised."""
        item: _Item | None = None
        with anyio.move_on_after(patience_s):
            try:
                item = await self._items.receive()
            except anyio.EndOfStream:
                raise self._early_end() from None
        if isinstance(item, Exception):
            raise item
        self._finished = item is not None and item.finish is not None
        return item

    async def rest(self) -> list[ReplyChunk]:
        """All pieces up to the last, the one with ``finish``."""
        pieces: list[ReplyChunk] = []
        while not self._finished:
            piece = await self.next(float("inf"))
            if piece is not None:
                pieces.append(piece)
        return pieces

    def _early_end(self) -> Exception:
        if self._finished:
            return EngineError("The answer was read beyond its end.")
        return BusyError(
            "The daemon is shutting down; the answer ends here.", mend="Ask again in a moment."
        )


@asynccontextmanager
async def answering(
    pieces: AsyncGenerator[ReplyChunk], receive: Receive, registry: WorkRegistry
) -> AsyncIterator[Pieces]:
    """Run the work beside the watch over the client. The block is cancelled with the work when
    the client leaves; what the block raises comes out as it is."""
    failure: Exception | None = None
    send_end, receive_end = anyio.create_memory_object_stream[_Item](0)
    async with anyio.create_task_group() as group, receive_end:
        group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
        group.start_soon(registry.produce, pieces, send_end)
        try:
            yield Pieces(receive_end)
        except Exception as error:
            # Kept for after the group, which would wrap it.
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def unless_left(
    work: Coroutine[Any, Any, _T], receive: Receive, registry: WorkRegistry
) -> _T:
    """Run work that has one result; cancelled when the client leaves or the daemon closes."""
    found: list[_T] = []
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
        try:
            with registry.counted() as scope:
                found.append(await work)
        except Exception as error:
            # Kept for after the group, which would wrap it.
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if found:
        return found[0]
    if scope.cancel_called:
        raise BusyError("The daemon is shutting down.", mend="Ask again in a moment.")
    raise Cancelled("The client left before its answer was complete.")


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
