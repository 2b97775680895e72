"""The routes: translate, let :class:`overspill.AsyncOverspill` answer, translate back.

No path of its own: what a prompt may do, where it runs and why is decided below the client.
A failure before the first byte is a status; after it, an event of the dialect and no good end.
"""

from __future__ import annotations

import os
import time
from typing import Any

from starlette.responses import JSONResponse
from starlette.routing import Route as HttpRoute
from starlette.routing import Router
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from overspill._version import __version__
from overspill.errors import ContextOverflow, InvalidRequest, ModelNotFound
from overspill.types.chat import Request
from overspill.types.route import Plan
from overspill_edge import (
    anthropic_answers,
    anthropic_dialect,
    completions_dialect,
    openai_answers,
    responses_dialect,
)
from overspill_edge.access import caller_of
from overspill_edge.anthropic_answers import MessageShape
from overspill_edge.anthropic_dialect import (
    MessagesRequest,
    messages_request,
    parse_count_tokens,
    parse_messages,
    prompt_request,
)
from overspill_edge.completions_answers import TextCompletionShape
from overspill_edge.completions_dialect import (
    CompletionRequest,
    completion_request,
    parse_completion,
)
from overspill_edge.dialect import AUTO_MODEL, Dialect, Source
from overspill_edge.endpoint import Endpoint, Service, require_any
from overspill_edge.generate import Generation
from overspill_edge.openai_answers import CompletionShape
from overspill_edge.openai_dialect import (
    DIALECT_NAMES,
    ChatCompletionRequest,
    parse_chat,
    to_request,
)
from overspill_edge.openai_embeddings import embedding_list, in_dialect, parse_embeddings
from overspill_edge.problems import speaks_anthropic
from overspill_edge.responses_answers import ResponseShape
from overspill_edge.responses_dialect import (
    ResponsesRequest,
    parse_responses,
    responses_request,
    told_back,
)
from overspill_edge.tokens import Scope
from overspill_edge.work import unless_left


def routes(service: Service) -> Router:
    """All routes; what is elsewhere is 404, another method 405."""
    return Router(
        [
            HttpRoute("/v1/chat/completions", ChatCompletions(service), methods=["POST"]),
            HttpRoute("/v1/completions", Completions(service), methods=["POST"]),
            HttpRoute("/v1/responses", Responses(service), methods=["POST"]),
            HttpRoute("/v1/messages", Messages(service), methods=["POST"]),
            HttpRoute("/v1/messages/count_tokens", CountTokens(service), methods=["POST"]),
            HttpRoute("/v1/embeddings", Embeddings(service), methods=["POST"]),
            HttpRoute("/v1/models", Models(service), methods=["GET"]),
            HttpRoute("/v1/models/{name:path}", OneModel(service), methods=["GET"]),
            HttpRoute("/overspill/v1/plan", PlanOnly(service), methods=["POST"]),
            HttpRoute("/overspill/v1/status", Status(service), methods=["GET"]),
        ],
        redirect_slashes=False,
    )


def _chat_request(chat: ChatCompletionRequest, source: Source) -> Request:
    return to_request(
        chat, app=source.app, floor=source.floor, header_privacy=source.header_privacy
    )


def _chat_shape(chat: ChatCompletionRequest, request: Request) -> CompletionShape:
    with_route = chat.overspill is not None
    return CompletionShape(request, with_usage=chat.include_usage, with_route=with_route)


CHAT = Dialect(parse_chat, _chat_request, _chat_shape, names=DIALECT_NAMES)


class ChatCompletions(Generation):
    """``POST /v1/chat/completions``."""

    dialect = CHAT


def _text_shape(asked: CompletionRequest, request: Request) -> TextCompletionShape:
    with_route = asked.overspill is not None
    return TextCompletionShape(request, with_usage=asked.include_usage, with_route=with_route)


class Completions(Generation):
    """``POST /v1/completions``."""

    dialect = Dialect(
        parse_completion, completion_request, _text_shape, names=completions_dialect.NAMES
    )


def _response_shape(asked: ResponsesRequest, request: Request) -> ResponseShape:
    with_route = asked.overspill is not None
    return ResponseShape(request, told_back(asked, request), with_route=with_route)


class Responses(Generation):
    """``POST /v1/responses``."""

    dialect = Dialect(
        parse_responses, responses_request, _response_shape, names=responses_dialect.NAMES
    )


def _message_shape(asked: MessagesRequest, request: Request) -> MessageShape:
    with_route = asked.overspill is not None
    return MessageShape(request, tells_thoughts=asked.tells_thoughts, with_route=with_route)


class Messages(Generation):
    """``POST /v1/messages``."""

    dialect = Dialect(
        parse_messages,
        messages_request,
        _message_shape,
        names=anthropic_dialect.NAMES,
        fills_window=True,
    )


class CountTokens(Endpoint):
    """``POST /v1/messages/count_tokens``: by the tokenizer of the model that would answer."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Count; nothing is generated."""
        asked = await self._parse(parse_count_tokens, scope, receive)
        request = prompt_request(asked, self._source(scope))
        plan = await self._service.answerer.plan_request(request)
        await JSONResponse({"input_tokens": plan.prompt_tokens})(scope, receive, send)


class Embeddings(Endpoint):
    """``POST /v1/embeddings``."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Embed the texts of one request; a client that leaves ends the work."""
        caller = caller_of(scope)
        caller.require(Scope.INFER)
        asked = await self._parse(parse_embeddings, scope, receive)
        work = self._service.answerer.run_embedding(asked.to_request(caller.app))
        try:
            reply = await unless_left(work, receive, self._service.registry)
        except (InvalidRequest, ContextOverflow) as error:
            raise in_dialect(error) from error
        body = embedding_list(reply, base64_data=asked.encoding_format == "base64")
        headers = {"X-Overspill-Route": "device", "X-Overspill-Reason": "only_route"}
        await JSONResponse(body, headers=headers)(scope, receive, send)


class Models(Endpoint):
    """``GET /v1/models``: who may infer or look after models may list them."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """List them."""
        require_any(scope, Scope.INFER, Scope.MODELS)
        cards = await self._service.answerer.models()
        shape = anthropic_answers if speaks_anthropic(scope) else openai_answers
        body = shape.model_list(cards, self._service.started_unix)
        await JSONResponse(body)(scope, receive, send)


class OneModel(Endpoint):
    """``GET /v1/models/{id}``, or 404 with suggestions."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Describe one."""
        require_any(scope, Scope.INFER, Scope.MODELS)
        name = scope["path_params"]["name"]
        cards = {card.name: card for card in await self._service.answerer.models()}
        if name != AUTO_MODEL and name not in cards:
            raise ModelNotFound.among(name, (AUTO_MODEL, *cards))
        created = self._service.started_unix
        if speaks_anthropic(scope):
            body = anthropic_answers.model_object(name, cards.get(name), created)
        else:
            body = openai_answers.model_object(name, created)
        await JSONResponse(body)(scope, receive, send)


class PlanOnly(Endpoint):
    """``POST /overspill/v1/plan``: the same body as for a chat; nothing is generated."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Say where it would run, why, and what would leave."""
        _, request = await self._read(CHAT, scope, receive)
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


class Status(Endpoint):
    """``GET /overspill/v1/status``: what runs now, in numbers."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Version, models, answers in the making and those that wait."""
        require_any(scope, Scope.INFER, Scope.MODELS, Scope.ADMIN)
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
