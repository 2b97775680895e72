"""The routes that generate: translate, let :class:`overspill.AsyncOverspill` answer, translate
back, whole or streamed, the same way for every dialect."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, ClassVar

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from overspill.errors import ConsentRequired, ContextOverflow, InvalidRequest, OverspillError
from overspill.types.chat import Request
from overspill.types.reply import ReplyChunk
from overspill_edge.dialect import Asked, Dialect, Shape, json_bytes
from overspill_edge.endpoint import Answerer, Endpoint
from overspill_edge.openai_answers import route_headers
from overspill_edge.problems import HttpProblem
from overspill_edge.sse import Answering, EventStream
from overspill_edge.work import answering

LOADING_RETRY_AFTER_S = 2


class Generation(Endpoint):
    """``POST`` of one dialect, whole or as server-sent events."""

    dialect: ClassVar[Dialect[Any]]

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        asked, request = await self._read(self.dialect, scope, receive)
        self._check_loaded(asked, scope)
        shape = self.dialect.shape(asked, request)
        work = _work(self._service.answerer, self.dialect, request)
        work = self._service.journal.watched(request, work)
        keep_alive = asked.overspill and asked.overspill.keep_alive
        try:
            with self._service.device.keeping(request.id, keep_alive):
                answer = answering(work, receive, self._service.registry)
                if asked.stream:
                    await self._stream(shape, request, send).run(answer)
                else:
                    await _answer_whole(answer, shape, request, scope, receive, send)
        except ConsentRequired:
            with suppress(OverspillError):  # the refusal stands without it
                plan = await self._service.answerer.plan_request(request)
                self._service.journal.plans.keep(request.app, plan)
            raise
        except InvalidRequest as error:
            error.param = self.dialect.names.get(error.param or "", error.param)
            raise

    def _stream(self, shape: Shape, request: Request, send: Send) -> EventStream:
        return EventStream(
            send,
            shape,
            request_headers(request),
            heartbeat_s=self._service.limits.heartbeat_s,
            waiting=self._waiting,
        )

    def _waiting(self) -> str:
        share = self._service.loading()
        return "waiting" if share is None else f"loading {share:.0%}"

    def _check_loaded(self, asked: Asked, scope: AsgiScope) -> None:
        """503 for whoever would not wait until the model is loaded (RFC 7240, 4.3)."""
        share = self._service.loading()
        preferred = Headers(scope=scope).get("prefer", "").replace(" ", "").split(",")
        waits = (asked.overspill is None or asked.overspill.wait is not False) and (
            "wait=0" not in preferred
        )
        if share is not None and not waits:
            self._service.device.load_soon()
            raise HttpProblem(
                503,
                "model_loading",
                f"The model is being loaded: {share:.0%}.",
                "Ask again in a moment, or wait for it.",
                headers={"Retry-After": str(LOADING_RETRY_AFTER_S)},
            )


def _work(
    answerer: Answerer, dialect: Dialect[Any], request: Request
) -> AsyncGenerator[ReplyChunk]:
    return _in_window(answerer, request) if dialect.fills_window else answerer.run_request(request)


async def _in_window(answerer: Answerer, request: Request) -> AsyncGenerator[ReplyChunk]:
    """The answer, up to the end of the context where ``max_tokens`` would go beyond it.

    No prompt is cut: one that leaves no room for a token is ``ContextOverflow`` as ever.
    """
    try:
        async with aclosing(answerer.run_request(request)) as pieces:
            async for piece in pieces:
                yield piece
            return
    except ContextOverflow as error:
        room = error.context - error.prompt_tokens
        if error.partial or room < 1:
            raise
    async with aclosing(answerer.run_request(replace(request, max_tokens=room))) as pieces:
        async for piece in pieces:
            yield piece


async def _answer_whole(
    work: Answering,
    shape: Shape,
    request: Request,
    scope: AsgiScope,
    receive: Receive,
    send: Send,
) -> None:
    answer: list[ReplyChunk] = []
    async with work as pieces:
        answer.extend([piece async for piece in pieces])
    if not answer:  # the client left
        return
    headers = {**request_headers(request), **route_headers(answer[-1])}
    body = json_bytes(shape.whole(answer))
    response = Response(body, headers=headers, media_type="application/json")
    await response(scope, receive, send)


def request_headers(request: Request) -> dict[str, str]:
    """The request's id, by OpenAI's name and by Anthropic's."""
    return {"X-Request-Id": request.id, "Request-Id": request.id}
