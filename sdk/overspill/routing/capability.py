"""Stage 1: routes that cannot do it are taken away, with the numbers that were compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from overspill.routing.language import UNKNOWN
from overspill.routing.normalise import NormalForm
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Request
from overspill.types.route import Route, StageReason

STAGE = 1
# Weights are not all that a model takes: its context and its buffers come on top.
_MEMORY_MARGIN = 1.25
_TEXT = frozenset({"text"})
_TEXT_AND_IMAGE = frozenset({"text", "image"})


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One route and all that its checks compare."""

    route: Route
    card: ModelCard
    request: Request
    situation: Situation


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
        candidate = _Candidate(route, cards[route], request, situation)
        lacks = [reason for check in _CHECKS if (reason := check(candidate))]
        if lacks:
            reasons += lacks
        else:
            left.append(route)
    return (*reasons, *_language(form.language, cards, tuple(left)))


def _away(
    candidate: _Candidate, code: str, numbers: Mapping[str, float] | None = None, detail: str = ""
) -> StageReason:
    return StageReason(STAGE, code, (candidate.route,), dict(numbers or {}), detail)


def _online(candidate: _Candidate) -> StageReason | None:
    reachable = candidate.route is Route.DEVICE or candidate.situation.network.online
    return None if reachable else _away(candidate, "offline")


def _context(candidate: _Candidate) -> StageReason | None:
    """Prompt and answer must both fit: nothing is ever cut off."""
    prompt = candidate.situation.tokens_for(candidate.route)
    if prompt is None:
        return None
    answer = candidate.request.max_tokens or 1
    if prompt + answer <= candidate.card.context:
        return None
    numbers = {
        "prompt_tokens": prompt,
        "max_tokens": answer,
        "context_tokens": candidate.card.context,
    }
    return _away(candidate, "context", numbers, candidate.card.name)


def _memory(candidate: _Candidate) -> StageReason | None:
    free = candidate.situation.device.memory_free_bytes
    if candidate.route is not Route.DEVICE or candidate.situation.device_loaded or free is None:
        return None
    needed = int(candidate.card.size_bytes * _MEMORY_MARGIN)
    if needed <= free:
        return None
    numbers = {"needed_bytes": needed, "free_bytes": free}
    return _away(candidate, "memory", numbers, candidate.card.name)


def _tools(candidate: _Candidate) -> StageReason | None:
    request, card = candidate.request, candidate.card
    if not request.offers_tools or card.tools:
        return None
    return _away(candidate, "tools", {"tools": len(request.tools)}, card.name)


def _schema(candidate: _Candidate) -> StageReason | None:
    if not candidate.request.needs_constraint or candidate.card.json_schema:
        return None
    return _away(candidate, "json_schema", detail=candidate.card.name)


def _modality(candidate: _Candidate) -> StageReason | None:
    wanted = _TEXT_AND_IMAGE if candidate.request.has_images else _TEXT
    lacking = wanted.difference(candidate.card.modalities)
    if not lacking:
        return None
    detail = f"{candidate.card.name}: {', '.join(sorted(lacking))}"
    return _away(candidate, "modality", detail=detail)


_CHECKS: tuple[Callable[[_Candidate], StageReason | None], ...] = (
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
