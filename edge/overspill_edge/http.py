"""The routes: translate, let :class:`overspill.AsyncOverspill` answer, translate back.

No path of its own: what a prompt may do, where it runs and why is decided below the client.
A failure before the first byte is a status; after it, an error event and no ``[DONE]``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.routing import Route as HttpRoute
from starlette.routing import Router
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from overspill._version import __version__
from overspill.errors import ContextOverflow, InvalidRequest, ModelNotFound
from overspill.types.card import ModelCard
from overspill.types.chat import Finish, Privacy, Request
from overspill.types.embedding import EmbedReply, EmbedRequest
from overspill.types.reply import ReplyChunk
from overspill.types.route import Plan
from overspill_edge.access import caller_of
from overspill_edge.openai_answers import (
    CompletionShape,
    model_list,
    model_object,
    overspill_object,
    route_headers,
)
from overspill_edge.openai_dialect import (
    AUTO_MODEL,
    DIALECT_NAMES,
    ChatCompletionRequest,
    parse_chat,
    to_request,
)
from overspill_edge.openai_embeddings import embedding_list, in_dialect, parse_embeddings
from overspill_edge.problems import log_failure, problem_of
from overspill_edge.tokens import Scope
from overspill_edge.work import (
    HttpLimits,
    Pieces,
    WorkRegistry,
    answering,
    read_body,
    unless_left,
)

PRIVACY_HEADER = "x-overspill-privacy"
LARGE_BODY_BYTES = 64 * 1024


class Answerer(Protocol):
    """The part of :class:`overspill.AsyncOverspill` that the daemon uses."""

    def run_request(self, request: Request) -> AsyncGenerator[ReplyChunk]:
        """The answer in pieces; closing the generator cancels the work."""

    async def plan_request(self, request: Request) -> Plan:
        """Where the request would run; nothing is generated."""

    async def run_embedding(self, request: EmbedRequest) -> EmbedReply:
        """The vectors, computed on this device."""

    async def models(self) -> tuple[ModelCard, ...]:
        """The models that can answer now."""


@dataclass(frozen=True, slots=True)
class Service:
    """What every route needs. ``started_unix`` is in seconds."""

    answerer: Answerer
    floor: Privacy
    registry: WorkRegistry
    limits: HttpLimits
    started_unix: int


def routes(service: Service) -> Router:
    """All routes; what is elsewhere is 404, another method 405."""
    return Router(
        [
            HttpRoute("/v1/chat/completions", ChatCompletions(service), methods=["POST"]),
            HttpRoute("/v1/embeddings", Embeddings(service), methods=["POST"]),
            HttpRoute("/v1/models", Models(service), methods=["GET"]),
            HttpRoute("/v1/models/{name:path}", OneModel(service), methods=["GET"]),
            HttpRoute("/overspill/v1/plan", PlanOnly(service), methods=["POST"]),
            HttpRoute("/overspill/v1/status", Status(service), methods=["GET"]),
        ],
        redirect_slashes=False,
    )


class _Endpoint:
    """A route as a plain ASGI app: `receive` stays in its hands."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def _read_chat(
        self, scope: AsgiScope, receive: Receive
    ) -> tuple[ChatCompletionRequest, Request]:
        caller = caller_of(scope)
        caller.require(Scope.INFER)
        chat = await _parse(await read_body(scope, receive, self._service.limits))
        request = to_request(
            chat,
            app=caller.app,
            floor=self._service.floor,
            header_privacy=Headers(scope=scope).get(PRIVACY_HEADER),
        )
        return chat, request


async def _parse(body: bytes) -> ChatCompletionRequest:
    """A large body is read in a thread: the streams of others go on meanwhile."""
    if len(body) < LARGE_BODY_BYTES:
        return parse_chat(body)
    return await anyio.to_thread.run_sync(parse_chat, body)


class ChatCompletions(_Endpoint):
    """``POST /v1/chat/completions``, whole or as server-sent events."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        chat, request = await self._read_chat(scope, receive)
        work = self._service.answerer.run_request(request)
        try:
            async with answering(work, receive, self._service.registry) as pieces:
                if chat.stream:
                    stream = EventStream(send, request, chat, self._service.limits.heartbeat_s)
                    await stream.run(pieces)
                else:
                    await _answer_whole(pieces, request, chat, scope, receive, send)
        except InvalidRequest as error:
            error.param = DIALECT_NAMES.get(error.param or "", error.param)
            raise


async def _answer_whole(
    pieces: Pieces,
    request: Request,
    chat: ChatCompletionRequest,
    scope: AsgiScope,
    receive: Receive,
    send: Send,
) -> None:
    answer = await pieces.rest()
    last = answer[-1]
    finish = _finish_of(last)
    body = CompletionShape(request, finish.model).whole(answer, finish)
    if chat.overspill is not None:
        body["overspill"] = overspill_object(request, last)
    headers = {**_common_headers(request), **route_headers(last)}
    await JSONResponse(body, headers=headers)(scope, receive, send)


class EventStream:
    """A streamed answer as server-sent events (WHATWG HTML, 9.2).

    Headers wait for the first piece, which brings the final route. When that takes longer than a
    client may care to wait, they go out without it and comment lines follow; the route is then
    told by the usage chunk alone.
    """

    def __init__(
        self, send: Send, request: Request, chat: ChatCompletionRequest, heartbeat_s: float
    ) -> None:
        self._send = send
        self._request = request
        self._with_usage = chat.include_usage
        self._heartbeat_s = heartbeat_s
        self._started = False

    async def run(self, pieces: Pieces) -> None:
        """Send the whole stream. Raises only before the first byte."""
        try:
            await self._answer(pieces)
            await self._write(b"data: [DONE]\n\n")
        except Exception as error:
            if not self._started:
                raise
            problem = problem_of(error)
            if problem.status == 500:
                log_failure(error, "a stream")
            await self._event(problem.body())
        await self._write(b"", more=False)

    async def _answer(self, pieces: Pieces) -> None:
        piece = await self._next(pieces)
        await self._start(route_headers(piece))
        shape = CompletionShape(self._request, piece.route.model, with_usage=self._with_usage)
        await self._event(shape.role_chunk())
        while True:
            for chunk in shape.piece_chunks(piece):
                await self._event(chunk)
            if piece.finish is not None:
                break
            piece = await self._next(pieces)
        await self._event(shape.finish_chunk(piece.finish))
        if self._with_usage:
            await self._event(shape.usage_chunk(piece, piece.finish.usage))

    async def _next(self, pieces: Pieces) -> ReplyChunk:
        while (piece := await pieces.next(self._heartbeat_s)) is None:
            await self._start({})
            await self._write(b": waiting\n\n")
        return piece

    async def _start(self, headers: Mapping[str, str]) -> None:
        if self._started:
            return
        self._started = True
        all_headers = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            **_common_headers(self._request),
            **headers,
        }
        raw = [(k.lower().encode(), v.encode("latin-1")) for k, v in all_headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _event(self, document: Mapping[str, Any]) -> None:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        await self._write(f"data: {text}\n\n".encode())

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _common_headers(request: Request) -> dict[str, str]:
    return {"X-Request-Id": request.id}


def _finish_of(piece: ReplyChunk) -> Finish:
    if piece.finish is None:
        raise AssertionError("the last piece has no finish")
    return piece.finish


class Embeddings(_Endpoint):
    """``POST /v1/embeddings``."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Embed the texts of one request; a client that leaves ends the work."""
        caller = caller_of(scope)
        caller.require(Scope.INFER)
        asked = parse_embeddings(await read_body(scope, receive, self._service.limits))
        work = self._service.answerer.run_embedding(asked.to_request(caller.app))
        try:
            reply = await unless_left(work, receive, self._service.registry)
        except (InvalidRequest, ContextOverflow) as error:
            raise in_dialect(error) from error
        body = embedding_list(reply, base64_data=asked.encoding_format == "base64")
        headers = {"X-Overspill-Route": "device", "X-Overspill-Reason": "only_route"}
        await JSONResponse(body, headers=headers)(scope, receive, send)


class Models(_Endpoint):
    """``GET /v1/models``: who may infer or look after models may list them."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """List them."""
        _require_any(scope, Scope.INFER, Scope.MODELS)
        cards = await self._service.answerer.models()
        body = model_list(cards, self._service.started_unix)
        await JSONResponse(body)(scope, receive, send)


class OneModel(_Endpoint):
    """``GET /v1/models/{id}``, or 404 with suggestions."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Describe one."""
        _require_any(scope, Scope.INFER, Scope.MODELS)
        name = scope["path_params"]["name"]
        names = [card.name for card in await self._service.answerer.models()]
        if name not in (AUTO_MODEL, *names):
            raise ModelNotFound.among(name, (AUTO_MODEL, *names))
        body = model_object(name, self._service.started_unix)
        await JSONResponse(body)(scope, receive, send)


def _require_any(scope: AsgiScope, *enough: Scope) -> None:
    caller = caller_of(scope)
    if not caller.scopes.intersection(enough):
        caller.require(enough[0])


class PlanOnly(_Endpoint):
    """``POST /overspill/v1/plan``: the same body as for a chat; nothing is generated."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Say where it would run, why, and what would leave."""
        _, request = await self._read_chat(scope, receive)
        plan = await self._service.answerer.plan_request(request)
        await JSONResponse(plan_object(plan))(scope, receive, send)


def plan_object(plan: Plan) -> dict[str, Any]:
    """A plan as JSON: the decision with the reason of each stage, and what it would take."""
    decision = plan.decision
    return {
        "route": plan.route.value,
        "reason": plan.reason.value,
        "model": plan.model,
        "prompt_tokens": plan.prompt_tokens,
        "would_leave": plan.would_leave,
        "bytes_leaving": plan.bytes_leaving,
        "estimated_s": plan.estimated_s,
        "estimated_cost": plan.estimated_cost,
        "assurance": plan.assurance,
        "alternatives": [route.value for route in decision.alternatives],
        "policy_sha256": decision.policy_sha256,
        "stages": [
            {
                "stage": stage.stage,
                "code": stage.code,
                "removed": [route.value for route in stage.removed],
                "numbers": dict(stage.numbers),
                "detail": stage.detail,
            }
            for stage in decision.stages
        ],
    }


class Status(_Endpoint):
    """``GET /overspill/v1/status``: what runs now, in numbers."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Version, models, answers in the making and those that wait."""
        _require_any(scope, Scope.INFER, Scope.MODELS, Scope.ADMIN)
        cards = await self._service.answerer.models()
        registry = self._service.registry
        body = {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": int(time.time()) - self._service.started_unix,
            "models": [{"name": c.name, "runtime": c.runtime, "context": c.context} for c in cards],
            "active": registry.active,
            "waiting": registry.waiting,
        }
        await JSONResponse(body)(scope, receive, send)
