"""A streamed answer as server-sent events (WHATWG HTML, 9.2), in whatever dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager

from starlette.types import Send

from overspill.errors import EngineError
from overspill.types.reply import ReplyChunk
from overspill_edge.dialect import Shape
from overspill_edge.openai_answers import route_headers
from overspill_edge.problems import log_failure, problem_of

Answering = AbstractAsyncContextManager[AsyncIterator[ReplyChunk]]
"""See :func:`overspill_edge.work.answering`."""


class EventStream:
    """Sends one answer as it comes.

    Headers wait for the first piece, which brings the final route. When that takes longer than a
    client may care to wait, they go out without it and comment lines follow; the route is then
    told by the usage chunk alone. ``waiting`` says what is waited for.
    """

    def __init__(
        self,
        send: Send,
        shape: Shape,
        headers: Mapping[str, str],
        *,
        heartbeat_s: float,
        waiting: Callable[[], str],
    ) -> None:
        self._send = send
        self._shape = shape
        self._headers = headers
        self._waiting = waiting
        self._started = False
        self._end = b""
        self._sending = asyncio.Lock()
        self._beat = _Heartbeat(heartbeat_s, self._comment)

    async def run(self, work: Answering) -> None:
        """Send the whole stream. Raises only before the first byte."""
        try:
            with self._beat:
                async with work as pieces:
                    await self._answer(pieces)
        except Exception as error:
            if not self._started:
                raise
            problem = problem_of(error)
            if problem.status == 500:
                log_failure(error, "a stream")
            self._end = b"".join(self._shape.failing(problem))
        if self._started:  # else the client left before there was anything to tell
            await self._write(self._end, more=False)

    async def _answer(self, pieces: AsyncIterator[ReplyChunk]) -> None:
        """The good end waits for the answer's own: then it is written down, and its slot free."""
        last: ReplyChunk | None = None
        async for piece in pieces:
            opening = self._shape.opening(piece) if last is None else ()
            body = b"".join((*opening, *self._shape.piece(piece)))
            if last is None:
                await self._write(body, route_headers(piece))
            elif body:
                await self._write(body)
            last = piece
        if last is None or last.finish is None:
            raise EngineError("The answer has no end.")
        self._end = b"".join(self._shape.closing(last))

    async def _comment(self) -> None:
        await self._write(f": {self._waiting()}\n\n".encode())

    async def _write(
        self, body: bytes, headers: Mapping[str, str] | None = None, *, more: bool = True
    ) -> None:
        """A part of the body, after the head where it is the first. One at a time: a comment may
        come while a slow reader keeps a piece waiting."""
        self._beat.reset()
        async with self._sending:
            if not self._started:
                await self._send(_head({**self._headers, **(headers or {})}))
                self._started = True
            await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _head(headers: Mapping[str, str]) -> dict[str, object]:
    all_headers = {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-store",
        **headers,
    }
    raw = [(k.lower().encode(), v.encode("latin-1")) for k, v in all_headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}


class _Heartbeat:
    """Calls ``beat`` after each ``every_s`` of silence, in a task of its own, while the block runs.

    A timer that looks at the clock, rather than a limit around each piece: most answers never
    need it, and pieces come quickly.
    """

    def __init__(self, every_s: float, beat: Callable[[], Coroutine[None, None, None]]) -> None:
        self._every_s = every_s
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self.reset()
        self._timer = self._loop.call_at(self._due_s, self._on_time)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()

    def reset(self) -> None:
        """Something was said."""
        self._due_s = self._loop.time() + self._every_s

    def _on_time(self) -> None:
        if self._loop.time() >= self._due_s:
            if self._beating is None or self._beating.done():
                self._beating = self._loop.create_task(self._beat())
            self.reset()
        self._timer = self._loop.call_at(self._due_s, self._on_time)
