"""What a call sends, to a reader who may stop reading.

gRPC's flow control makes a write wait for its reader, and would for ever: a connection on which
nobody reads looks alive, for its pings are answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from overspill.wire.v1 import sealed_pb2

_Context = grpc.aio.ServicerContext[Any, Any]


class Unread(Exception):
    """The reader took nothing for too long, and counts as gone."""


class Writer:
    """One call's messages. One timer looks after all its writes, each once it was too long: a timer
    for each token of each stream would be the dearest part of a token."""

    def __init__(self, context: _Context, stall_s: float, cut: asyncio.Timeout) -> None:
        self._context = context
        self._stall_s = stall_s
        self._cut = cut
        self._loop = asyncio.get_running_loop()
        self._begun_s: float | None = None
        """When the write began that is under way."""
        self._timer = self._loop.call_later(stall_s, self._look)

    async def write(self, message: Any) -> None:
        """Send a message, once there is room for it."""
        self._begun_s = self._loop.time()
        await self._context.write(message)
        self._begun_s = None

    async def send(self, frames: Sequence[bytes], *, bundles: bool) -> None:
        """Send frames, in one message for a reader of bundles."""
        if bundles and frames:
            self._begun_s = self._loop.time()
            await self._context.write(sealed_pb2.SealedFrame(frame=frames[0], more=frames[1:]))
            self._begun_s = None
            return
        for frame in frames:
            await self.write(sealed_pb2.SealedFrame(frame=frame))

    def close(self) -> None:
        """Look after nothing any more."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        since = now if self._begun_s is None else self._begun_s
        if now - since >= self._stall_s:
            self._cut.reschedule(now)
        else:
            self._timer = self._loop.call_at(since + self._stall_s, self._look)


@asynccontextmanager
async def writing(context: _Context, stall_s: float) -> AsyncIterator[Writer]:
    """A call's writer. Raises ``Unread`` when one of its writes takes ``stall_s`` seconds."""
    cut = asyncio.timeout(None)
    writer = None
    try:
        async with cut:
            writer = Writer(context, stall_s, cut)
            yield writer
    except TimeoutError:
        if not cut.expired():
            raise
        raise Unread from None
    finally:
        if writer is not None:
            writer.close()
