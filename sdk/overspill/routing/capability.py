"""Stage 1: routes that cannot do it are taken away, with the numbers that were compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from overspill.routing.language import UNKNOWN
from overspill.routing.normalise import NormalForm
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Request
from overspill.types.route import Route, StageReason

STAGE = 1
# Weights are not all that a model takes: its context and its buffers come on top.
_MEMORY_MARGIN = 1.25


_Check = Callable[[Route, ModelCard, Request, Situation], StageReason | None]


def capability(
    request: Request,
    form: NormalForm,
    situation: Situation,
    cards: Mapping[Route, ModelCard],
    routes: tuple[Route, ...],
) -> tuple[StageReason, ...]:
    """One reason for each thing that a route lacks; a route may lack several.

    ``routes`` may hold some that have no card, where ``situation.unavailable`` says why.
    """
    unavailable = situation.unavailable
    away = [(route, unavailable[route]) for route in routes if unavailable.get(route)]
    reasons = [StageReason(STAGE, "unavailable", (route,), {}, why) for route, why in away]
    left = []
    for route in routes:
        if unavailable.get(route):
            continue
        card = cards[route]
        lacks = [reason for check in _CHECKS if (reason := check(route, card, request, situation))]
        if lacks:
            reasons += lacks
        else:
            left.append(route)
    return (*reasons, *_language(form.language, cards, tuple(left)))


def _away(
    route: Route, code: str, numbers: Mapping[str, float] | None = None, detail: str = ""
) -> StageReason:
    return StageReason(STAGE, code, (route,), dict(numbers or {}), detail)


def _online(
    route: Route, _card: ModelCard, _request: Request, situation: Situation
) -> StageReason | None:
    reachable = route is Route.DEVICE or situation.network.online
    return None if reachable else _away(route, "offline")


def _context(
    route: Route, card: ModelCard, request: Request, situation: Situation
) -> StageReason | None:
    """Prompt and answer must both fit: nothing is ever cut off."""
    prompt = situation.tokens_for(route)
    if prompt is None:
        return None
    answer = request.max_tokens or 1
    if prompt + answer <= card.context:
        return None
    numbers = {"prompt_tokens": prompt, "max_tokens": answer, "context_tokens": card.context}
    return _away(route, "context", numbers, card.name)


def _memory(
    route: Route, card: ModelCard, _request: Request, situation: Situation
) -> StageReason | None:
    free = situation.device.memory_free_bytes
    if free is None or route is not Route.DEVICE or situation.device_loaded:
        return None
    needed = int(card.size_bytes * _MEMORY_MARGIN)
    if needed <= free:
        return None
    return _away(route, "memory", {"needed_bytes": needed, "free_bytes": free}, card.name)


def _tools(
    route: Route, card: ModelCard, request: Request, _situation: Situation
) -> StageReason | None:
    if card.tools or not request.offers_tools:
        return None
    return _away(route, "tools", {"tools": len(request.tools)}, card.name)


def _schema(
    route: Route, card: ModelCard, request: Request, _situation: Situation
) -> StageReason | None:
    if card.json_schema or not request.needs_constraint:
        return None
    return _away(route, "json_schema", detail=card.name)


def _modality(
    route: Route, card: ModelCard, request: Request, _situation: Situation
) -> StageReason | None:
    wanted = ("image", "text") if request.has_images else ("text",)
    lacking = [one for one in wanted if one not in card.modalities]
    if not lacking:
        return None
    return _away(route, "modality", detail=f"{card.name}: {', '.join(lacking)}")


_CHECKS: tuple[_Check, ...] = (
    _online,
    _context,
    _memory,
    _tools,
    _schema,
    _modality,
)


def _language(
    language: str, cards: Mapping[Route, ModelCard], routes: tuple[Route, ...]
) -> tuple[StageReason, ...]:
    """Prefer models that claim the language; a guess alone never takes the last route."""
    if language == UNKNOWN:
        return ()
    lacking = tuple(route for route in routes if language not in cards[route].languages)
    if not lacking:
        return ()
    if len(lacking) == len(routes):
        return (StageReason(STAGE, "language_unclaimed", (), {}, language),)
    return (StageReason(STAGE, "language", lacking, {}, language),)
