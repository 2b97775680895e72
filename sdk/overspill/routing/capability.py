"""Stage 1: routes that cannot do it are taken away, with the numbers that were compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

from overspill.routing.language import UNKNOWN
from overspill.routing.normalise import NormalForm
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Request
from overspill.types.route import Route, StageReason

STAGE = 1
# Weights are not all that a model takes: its context and its buffers come on top.
_MEMORY_MARGIN = 1.25


class _Needs(NamedTuple):
    """What a request asks of any model."""

    answer_tokens: int
    tools: int
    constraint: bool
    images: bool

    @classmethod
    def of(cls, request: Request) -> Self:
        tools = len(request.tools) if request.offers_tools else 0
        return cls(request.max_tokens or 1, tools, request.needs_constraint, request.has_images)


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
    needs = _Needs.of(request)
    left = []
    for route in routes:
        if unavailable.get(route):
            continue
        card = cards[route]
        lacks = [*_room(route, card, needs, situation), *_skills(route, card, needs)]
        if lacks:
            reasons += lacks
        else:
            left.append(route)
    return (*reasons, *_language(form.language, cards, tuple(left)))


def _away(
    route: Route, code: str, numbers: dict[str, float] | None = None, detail: str = ""
) -> StageReason:
    return StageReason(STAGE, code, (route,), numbers or {}, detail)


def _room(route: Route, card: ModelCard, needs: _Needs, situation: Situation) -> list[StageReason]:
    """Whether there is a way to the model, and room in its context and in memory."""
    lacks = []
    if route is not Route.DEVICE and not situation.network.online:
        lacks.append(_away(route, "offline"))
    prompt = situation.tokens_for(route)
    # Prompt and answer must both fit: nothing is ever cut off.
    if prompt is not None and prompt + needs.answer_tokens > card.context:
        numbers: dict[str, float] = {
            "prompt_tokens": prompt,
            "max_tokens": needs.answer_tokens,
            "context_tokens": card.context,
        }
        lacks.append(_away(route, "context", numbers, card.name))
    free = situation.device.memory_free_bytes
    if free is not None and route is Route.DEVICE and not situation.device_loaded:
        needed = int(card.size_bytes * _MEMORY_MARGIN)
        if needed > free:
            numbers = {"needed_bytes": needed, "free_bytes": free}
            lacks.append(_away(route, "memory", numbers, card.name))
    return lacks


def _skills(route: Route, card: ModelCard, needs: _Needs) -> list[StageReason]:
    """Whether the model can do at all what is asked for."""
    lacks = []
    if needs.tools and not card.tools:
        lacks.append(_away(route, "tools", {"tools": needs.tools}, card.name))
    if needs.constraint and not card.json_schema:
        lacks.append(_away(route, "json_schema", detail=card.name))
    wanted = ("image", "text") if needs.images else ("text",)
    if missing := [one for one in wanted if one not in card.modalities]:
        lacks.append(_away(route, "modality", detail=f"{card.name}: {', '.join(missing)}"))
    return lacks


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
