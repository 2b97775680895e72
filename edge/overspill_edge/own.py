"""Our own routes, under ``/overspill/v1/``: what no dialect has a word for.

``plan`` and ``plans`` ask for the scope infer, ``models`` for infer or models; ``capabilities``,
``policy`` and ``status`` are for every token; ``receipts`` and ``events``, which tell of all apps,
ask for admin. No content anywhere.
"""

from __future__ import annotations

import base64
import os
import time
from dataclasses import asdict
from typing import Annotated, Any

import anyio
from pydantic import Field
from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse
from starlette.routing import Route as HttpRoute
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from overspill._version import __version__
from overspill.errors import InvalidRequest
from overspill.types.card import ModelCard
from overspill.types.reply import ReceiptRecord
from overspill.types.route import Plan
from overspill_edge.access import caller_of
from overspill_edge.body import NonEmpty, Parameters, Strict, checked
from overspill_edge.dialect import AUTO_MODEL, data_event
from overspill_edge.dialects import CHAT
from overspill_edge.endpoint import Endpoint, Service, require_any
from overspill_edge.overview import Overview, queue_seen_by
from overspill_edge.policy_shown import policy_in_force
from overspill_edge.problems import HttpProblem
from overspill_edge.residence import ModelBusy
from overspill_edge.tokens import Scope
from overspill_edge.work import unless_left

MAX_RECEIPTS = 1000
DIALECTS = {
    "openai": ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"],
    "anthropic": ["/v1/messages", "/v1/messages/count_tokens"],
}


def own_routes(service: Service) -> list[HttpRoute]:
    """All of them."""
    return [
        HttpRoute("/overspill/v1/plan", PlanOnly(service), methods=["POST"]),
        HttpRoute("/overspill/v1/plans/{id}", WaitingPlan(service), methods=["GET"]),
        HttpRoute("/overspill/v1/status", Status(service), methods=["GET"]),
        HttpRoute("/overspill/v1/overview", Overview(service), methods=["GET"]),
        HttpRoute("/overspill/v1/capabilities", Capabilities(service), methods=["GET"]),
        HttpRoute("/overspill/v1/models", Cards(service), methods=["GET"]),
        HttpRoute("/overspill/v1/models/prewarm", Prewarm(service), methods=["POST"]),
        HttpRoute("/overspill/v1/models/unload", Unload(service), methods=["POST"]),
        HttpRoute("/overspill/v1/policy", PolicyInForce(service), methods=["GET"]),
        HttpRoute("/overspill/v1/receipts", Receipts(service), methods=["GET"]),
        HttpRoute("/overspill/v1/events", Events(service), methods=["GET"]),
    ]


class PlanOnly(Endpoint):
    """``POST /overspill/v1/plan``: the same body as for a chat; nothing is generated."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Say where it would run, why, and what would leave."""
        _, request = await self._read(CHAT, scope, receive)
        plan = await self._service.answerer.plan_request(request)
        await JSONResponse(plan_object(plan))(scope, receive, send)


class WaitingPlan(Endpoint):
    """``GET /overspill/v1/plans/ID``: what ``consent_required`` named; an app sees its own."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Tell it, so that a person can be asked."""
        caller = caller_of(scope)
        caller.require(Scope.INFER)
        app = None if Scope.ADMIN in caller.scopes else caller.app
        plan = self._service.journal.plans.of(scope["path_params"]["id"], app)
        if plan is None:
            raise HttpProblem(404, "not_found", "No such plan waits for a person.")
        await JSONResponse(plan_object(plan))(scope, receive, send)


def plan_object(plan: Plan) -> dict[str, Any]:
    """A plan as JSON: the decision with the reason of each stage, and what it would take."""
    decision = plan.decision
    return {
        "id": plan.request_id,
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
    """``GET /overspill/v1/status``: what runs now, in numbers. Nobody is contacted for it."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Version, models, answers in the making, those that wait, and totals."""
        caller = require_any(scope, *Scope)
        cards = self._service.answerer.known_models()
        registry, residence = self._service.registry, self._service.device.residence
        body = {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": int(time.time()) - self._service.started_unix,
            "models": [{"name": c.name, "runtime": c.runtime, "context": c.context} for c in cards],
            "active": registry.active,
            "waiting": registry.waiting,
            "loading": self._service.loading(),
            "residence": None if residence is None else residence.document(),
            "queue": queue_seen_by(caller, self._service.device.turns),
            "totals": asdict(self._service.journal.totals),
        }
        await JSONResponse(body)(scope, receive, send)


class Capabilities(Endpoint):
    """``GET /overspill/v1/capabilities``: what can be asked here, and of whom."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Dialects, limits, and what each model can do."""
        caller = require_any(scope, *Scope)
        answerer = self._service.answerer
        availability, cards = await answerer.availability(), await answerer.models()
        body = {
            "version": __version__,
            "dialects": DIALECTS,
            "scopes": sorted(scope.value for scope in caller.scopes),
            "privacy_floor": self._service.floor.value,
            "max_body_bytes": self._service.limits.max_body_bytes,
            "device": {"state": availability.device.value, "reason": availability.device_reason},
            "cloud": {"state": availability.cloud.value, "reason": availability.cloud_reason},
            "models": [
                {
                    "name": card.name,
                    "context": card.context,
                    "tools": card.tools,
                    "json_schema": card.json_schema,
                    "modalities": list(card.modalities),
                }
                for card in cards
            ],
        }
        await JSONResponse(body)(scope, receive, send)


class Cards(Endpoint):
    """``GET /overspill/v1/models``: each model's card in whole."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """List them."""
        require_any(scope, Scope.INFER, Scope.MODELS)
        cards = await self._service.answerer.models()
        body = {"auto": AUTO_MODEL, "models": [card_object(card) for card in cards]}
        await JSONResponse(body)(scope, receive, send)


def card_object(card: ModelCard) -> dict[str, Any]:
    """A card as JSON."""
    return {**asdict(card), "skill_accuracy": dict(card.skill_accuracy)}


class _ModelOrder(Strict):
    model: NonEmpty | None = None
    keep_alive: str | Annotated[float, Field(ge=-1, le=10**7)] | None = None


def _model_order(body: bytes) -> _ModelOrder:
    return checked(_ModelOrder, body, Parameters())


class Prewarm(Endpoint):
    """``POST /overspill/v1/models/prewarm`` ``{"model", "keep_alive"}``, both optional."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Load the device's model, and say so when it is there; a client that leaves lets it."""
        caller_of(scope).require(Scope.MODELS)
        order = await self._parse(_model_order, scope, receive)
        work = self._service.device.prewarm(order.model, order.keep_alive)
        name = await unless_left(work, receive, self._service.registry)
        await JSONResponse({"model": name, "state": "loaded"})(scope, receive, send)


class Unload(Endpoint):
    """``POST /overspill/v1/models/unload`` ``{"model"}``; 409 ``model_busy`` while it works."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Free the device's model until it is needed again."""
        caller_of(scope).require(Scope.MODELS)
        order = await self._parse(_model_order, scope, receive)
        try:
            name, was_loaded = await self._service.device.unload(order.model)
        except ModelBusy as error:
            raise HttpProblem(409, error.code, error.message, error.mend) from error
        body = {"model": name, "state": "unloaded", "was_loaded": was_loaded}
        await JSONResponse(body)(scope, receive, send)


class PolicyInForce(Endpoint):
    """``GET /overspill/v1/policy``: the rules that every request is under."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Floor, threshold, detectors, the digest that each decision names, and what the
        administrator has above all that."""
        require_any(scope, *Scope)
        await JSONResponse(policy_in_force(self._service))(scope, receive, send)


class Receipts(Endpoint):
    """``GET /overspill/v1/receipts?limit=N``: what nodes signed, the newest first."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """List them."""
        caller_of(scope).require(Scope.ADMIN)
        limit = _whole_number(scope, "limit", default=100, most=MAX_RECEIPTS)
        records = await self._service.answerer.receipts(limit)
        body = {"receipts": [receipt_object(record) for record in records]}
        await JSONResponse(body)(scope, receive, send)


def receipt_object(record: ReceiptRecord) -> dict[str, Any]:
    """A receipt as JSON, its signed bytes in base64. The salt stays where it is."""
    return {
        "id": record.id,
        "request_id": record.request_id,
        "unix_s": record.unix_s,
        "node": record.node,
        "assurance": record.assurance,
        "data": base64.b64encode(record.data).decode(),
        "receipt_public_key": base64.b64encode(record.receipt_public_key).decode(),
    }


class Events(Endpoint):
    """``GET /overspill/v1/events?after=SEQ``: answers that ended; as events where the client
    accepts ``text/event-stream``, which then go on."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """List what is remembered, and go on where that is asked for."""
        caller_of(scope).require(Scope.ADMIN)
        after = _whole_number(scope, "after", default=0, most=2**53)
        accepted = Headers(scope=scope).get("accept", "")
        if "text/event-stream" in accepted:
            await self._follow(after, receive, send)
            return
        events = [event.document() for event in self._since(after)]
        body = {"events": events, "totals": asdict(self._service.journal.totals)}
        await JSONResponse(body)(scope, receive, send)

    def _since(self, after: int) -> list[Any]:
        return [event for event in self._service.journal.last if event.seq > after]

    async def _follow(self, after: int, receive: Receive, send: Send) -> None:
        """Until the client leaves or the daemon closes."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        headers.append((b"cache-control", b"no-store"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def write(body: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        async def until_left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        with self._service.journal.listening() as events:
            past = [data_event(event.document()) for event in self._since(after)]
            await write(b": listening\n\n" + b"".join(past))
            async with anyio.create_task_group() as group:
                group.start_soon(until_left)
                with self._service.registry.attending():
                    async for event in events:
                        await write(data_event(event.document()))
                group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await write(b"", more=False)


def _whole_number(scope: AsgiScope, name: str, *, default: int, most: int) -> int:
    text = QueryParams(scope.get("query_string", b"")).get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 16 or int(text) > most:
        raise InvalidRequest(f"'{name}' is no whole number up to {most}.", param=name)
    return int(text)
