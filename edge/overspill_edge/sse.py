"""A streamed answer as server-sent events (WHATWG HTML, 9.2), in whatever dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from starlette.types import Send

from overspill.types.reply import ReplyChunk
from overspill_edge.dialect import Shape
from overspill_edge.openai_answers import route_headers
from overspill_edge.problems import log_failure, problem_of
from overspill_edge.work import Pieces


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
        self._heartbeat_s = heartbeat_s
        self._waiting = waiting
        self._started = False

    async def run(self, pieces: Pieces) -> None:
        """Send the whole stream. Raises only before the first byte."""
        try:
            await self._answer(pieces)
        except Exception as error:
            if not self._started:
                raise
            problem = problem_of(error)
            if problem.status == 500:
                log_failure(error, "a stream")
            await self._write(self._shape.failing(problem))
        await self._body(b"", more=False)

    async def _answer(self, pieces: Pieces) -> None:
        piece = await self._next(pieces)
        await self._start(route_headers(piece))
        await self._write((*self._shape.opening(piece), *self._shape.piece(piece)))
        while piece.finish is None:
            piece = await self._next(pieces)
            await self._write(self._shape.piece(piece))
        await self._write(self._shape.closing(piece))

    async def _next(self, pieces: Pieces) -> ReplyChunk:
        while (piece := await pieces.next(self._heartbeat_s)) is None:
            await self._start({})
            await self._body(f": {self._waiting()}\n\n".encode())
        return piece

    async def _start(self, headers: Mapping[str, str]) -> None:
        if self._started:
            return
        self._started = True
        all_headers = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            **self._headers,
            **headers,
        }
        raw = [(k.lower().encode(), v.encode("latin-1")) for k, v in all_headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _write(self, events: Iterable[bytes]) -> None:
        body = b"".join(events)
        if body:
            await self._body(body)

    async def _body(self, body: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
