"""A plan's numbers: what would leave, how long it would take, what it would cost."""

from __future__ import annotations

from overspill.gathering import Gathered
from overspill.routing.lateness import answer_length, expected_s
from overspill.types.card import ModelCard
from overspill.types.chat import Request
from overspill.types.route import Plan, Route, RouteDecision

SEAL_OVERHEAD_BYTES = 1_408
"""Head, encapsulated key, request signature and frame headers around one request."""


def forecast(request: Request, decision: RouteDecision, gathered: Gathered) -> Plan:
    """The plan for a decision; nothing is generated and nothing is sent. Seconds are by the speeds
    that were measured, the cost by the length that answers of this kind have."""
    route = _in_question(decision)
    card = gathered.cards.get(route)
    prompt_tokens = gathered.situation.tokens_for(route) or 0
    answer_tokens = answer_length(request, gathered.situation).tokens
    result = gathered.cloud.result
    assurance = result.assurance.name if result and route is Route.CLOUD else "NONE"
    return Plan(
        decision=decision,
        model=card.name if card else "",
        prompt_tokens=prompt_tokens,
        would_leave=_would_leave(route, assurance, card),
        bytes_leaving=_bytes_leaving(request, route),
        estimated_s=expected_s(route, request, gathered.situation),
        estimated_cost=card.cost(prompt_tokens, answer_tokens) if card else 0.0,
        assurance=assurance,
    )


def _in_question(decision: RouteDecision) -> Route:
    """The route, or the third party's where nothing is missing but a person's consent."""
    away = [stage.code for stage in decision.stages if Route.THIRD_PARTY in stage.removed]
    asks = decision.route is Route.REFUSED and away == ["consent_required"]
    return Route.THIRD_PARTY if asks else decision.route


def _bytes_leaving(request: Request, route: Route) -> int:
    if route is Route.CLOUD:
        return _payload_bytes(request) + SEAL_OVERHEAD_BYTES
    return _payload_bytes(request) if route is Route.THIRD_PARTY else 0


def _payload_bytes(request: Request) -> int:
    """UTF-8 bytes of what a model would see: turns, tools and schema."""
    parts = [m.content for m in request.messages]
    parts += [c.name + c.arguments for m in request.messages for c in m.tool_calls]
    parts += [f"{t.name}{t.description}{dict(t.parameters)}" for t in request.tools]
    return sum(len(part.encode()) for part in parts)


def _would_leave(route: Route, assurance: str, card: ModelCard | None) -> str:
    if route is Route.CLOUD:
        return f"the conversation and its tools, sealed to a node proven as {assurance}"
    if route is Route.THIRD_PARTY and card is not None:
        return f"the conversation and its tools, readable by {card.runtime}, which proves nothing"
    return "nothing"
