"""The routes: translate, let :class:`overspill.AsyncOverspill` answer, translate back.

No path of its own: what a prompt may do, where it runs and why is decided below the client.
A failure before the first byte is a status; after it, an event of the dialect and no good end.
"""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.routing import Route as HttpRoute
from starlette.routing import Router
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from overspill.errors import ContextOverflow, InvalidRequest, ModelNotFound
from overspill_edge import anthropic_answers, openai_answers
from overspill_edge.access import caller_of
from overspill_edge.anthropic_dialect import parse_count_tokens, prompt_request
from overspill_edge.dialect import AUTO_MODEL
from overspill_edge.dialects import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from overspill_edge.endpoint import Endpoint, Service, require_any
from overspill_edge.generate import Generation
from overspill_edge.openai_embeddings import embedding_list, in_dialect, parse_embeddings
from overspill_edge.own import own_routes
from overspill_edge.problems import speaks_anthropic
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
            *own_routes(service),
        ],
        redirect_slashes=False,
    )


class ChatCompletions(Generation):
    """``POST /v1/chat/completions``."""

    dialect = CHAT


class Completions(Generation):
    """``POST /v1/completions``."""

    dialect = COMPLETIONS


class Responses(Generation):
    """``POST /v1/responses``."""

    dialect = RESPONSES


class Messages(Generation):
    """``POST /v1/messages``."""

    dialect = MESSAGES


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
