"""The work behind one HTTP request: bounded reading, and an end the moment its client leaves.

The work is done in the request's own task. Beside it one more waits for ``await receive()``, the
only way in which ASGI says that a client has gone; then the work is cancelled and with it the
generation, whether the answer was to be streamed or whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import anyio
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from overspill.errors import BusyError, Cancelled
from overspill.types.reply import ReplyChunk
from overspill_edge.problems import HttpProblem

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


class _Cancellable(Protocol):
    """What a registry can end."""

    def cancel(self) -> None:
        """Cancel the block that this stands for."""


class WorkRegistry:
    """All answers that are being made: counted for the status, stopped when a drain is over."""

    def __init__(self) -> None:
        self._works: set[_Cancellable] = set()
        self._waiting: set[_Cancellable] = set()
        self._listeners: set[anyio.CancelScope] = set()

    @property
    def active(self) -> int:
        """Answers in the making, the waiting ones among them."""
        return len(self._works)

    @property
    def waiting(self) -> int:
        """Answers whose first piece has not come."""
        return len(self._waiting)

    def stop_all(self) -> None:
        """Cancel every generation; each client is told that the daemon is closing."""
        for work in tuple(self._works):
            work.cancel()

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
        with anyio.CancelScope() as scope, self.knowing(scope):
            yield scope

    @contextmanager
    def knowing(self, work: _Cancellable) -> Iterator[None]:
        """``work`` counts as active, and is cancelled by :meth:`stop_all`."""
        self._works.add(work)
        try:
            yield
        finally:
            self._works.discard(work)

    async def awaited(
        self, pieces: AsyncGenerator[ReplyChunk], work: _Cancellable
    ) -> AsyncGenerator[ReplyChunk]:
        """Hand ``pieces`` on; up to the first, ``work`` counts as waiting."""
        self._waiting.add(work)
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    self._waiting.discard(work)
                    yield piece
        finally:
            self._waiting.discard(work)


class _Watched:
    """A block of the current task that ends when its client leaves, or when it is cancelled.

    The limit never comes by itself: it is asyncio's own way to cancel a block and nothing else,
    and far lighter than a task group for each request.
    """

    def __init__(self) -> None:
        self.limit = asyncio.timeout(None)
        self.is_cancelled = False
        self._is_over = False

    def cancel(self) -> None:
        """End the block: the daemon closes."""
        self.is_cancelled = self.is_cancelled or not self._is_over
        self._end()

    async def until_left(self, receive: Receive) -> None:
        """End the block when the client leaves."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._end()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self.limit.reschedule(0)


@asynccontextmanager
async def _watching(receive: Receive, registry: WorkRegistry) -> AsyncIterator[_Watched]:
    """The block is cancelled when the client leaves, and goes on behind it; it raises
    ``BusyError`` when the daemon closes."""
    work = _Watched()
    try:
        async with work.limit:
            watch = asyncio.create_task(work.until_left(receive))
            try:
                with registry.knowing(work):
                    yield work
            finally:
                watch.cancel()
    except TimeoutError:
        if not work.limit.expired():
            raise
        if work.is_cancelled:
            raise BusyError(
                "The daemon is shutting down; the answer ends here.", mend="Ask again in a moment."
            ) from None


@asynccontextmanager
async def answering(
    pieces: AsyncGenerator[ReplyChunk], receive: Receive, registry: WorkRegistry
) -> AsyncIterator[AsyncIterator[ReplyChunk]]:
    """Hand the answer out as it is made. The block is cancelled with the work when the client
    leaves; when the daemon closes it raises ``BusyError``."""
    async with (
        _watching(receive, registry) as work,
        aclosing(registry.awaited(pieces, work)) as handed,
    ):
        yield handed


async def unless_left(
    work: Coroutine[Any, Any, _T], receive: Receive, registry: WorkRegistry
) -> _T:
    """Run work that has one result; cancelled when the client leaves or the daemon closes."""
    async with _watching(receive, registry):
        return await work
    raise Cancelled("The client left before its answer was complete.")
