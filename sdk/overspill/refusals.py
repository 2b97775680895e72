"""A decision without a route, as the typed error that a caller gets: one line, with numbers."""

from __future__ import annotations

from collections.abc import Mapping

from overspill.engines.base import no_vision
from overspill.errors import (
    BudgetExhausted,
    ConsentRequired,
    ContextOverflow,
    DoesNotFit,
    OverspillError,
    PolicyRefusal,
)
from overspill.routing.cost import PURSE, TOKENS
from overspill.types.card import ModelCard
from overspill.types.route import Route, RouteDecision, StageReason

_MENDS = {
    "context": "shorten the prompt or lower max_tokens",
    "memory": "close other programs or choose a smaller model",
    "modality": "choose a model that reads what was sent",
    "tools": "choose a model that supports tools",
    "json_schema": "choose a model that can be held to schemas and forced calls",
    "offline": "go online",
    "not_verified": "see why the node's evidence was refused: overspill cloud verify",
    "verification_expired": "have the node's evidence verified again",
    "assurance": 'use a node with hardware evidence, or set privacy = "any" in the settings',
    "floor": "allow a weaker privacy floor, if that is right for this text",
    "consent_required": "grant this one request",
    "unavailable": "see: overspill models",
}


Causes = Mapping[Route, list[StageReason]]
"""For each route that was a candidate: what took it away."""


def refusal(
    decision: RouteDecision, cards: Mapping[Route, ModelCard], problem: OverspillError | None
) -> OverspillError:
    """The error for a decision whose route is ``REFUSED``; ``cards`` as it was decided with.

    ``problem`` is what kept the cloud out: it is the answer where nothing else did.
    """
    causes = {route: [r for r in decision.stages if route in r.removed] for route in cards}
    if not causes:
        return PolicyRefusal(
            "There is neither a model on the device nor a cloud.",
            mend="See `overspill models`, or name a cloud in the settings.",
        )
    if problem is not None and _codes(causes, Route.CLOUD) == {"unavailable"}:
        return problem
    if _codes(causes, Route.THIRD_PARTY) == {"consent_required"}:
        return ConsentRequired(
            "Only a third party could answer this, and nobody granted it.",
            mend="Grant this one request, or allow another route.",
        )
    return _by_numbers(causes, cards) or _listed(causes)


def _by_numbers(causes: Causes, cards: Mapping[Route, ModelCard]) -> OverspillError | None:
    """The error of a type of its own, where one thing is what it comes down to."""
    codes = {route: _codes(causes, route) for route in causes}
    if all("modality" in found for found in codes.values()):
        return no_vision(" and ".join(card.name for card in cards.values()))
    if all("context" in found for found in codes.values()):
        return _overflow(causes, cards)
    if codes.get(Route.DEVICE) == {"context"}:
        return _overflow(causes, {Route.DEVICE: cards[Route.DEVICE]})
    for name, code in {"cost": PURSE, "tokens": TOKENS}.items():
        if any(code in found for found in codes.values()):
            return _unaffordable(causes, name, code)
    return None


def _unaffordable(causes: Causes, name: str, code: str) -> BudgetExhausted:
    """With what is left: the other routes were away for reasons of their own."""
    found = next(r for reasons in causes.values() for r in reasons if r.code == code)
    return BudgetExhausted(
        f"The chain's budget has {found.numbers[f'{name}_left']:g} left of {name}, and this call "
        "may take more.",
        mend=f"Give the budget more {name}, or lower 'max_tokens'.",
    )


def _codes(causes: Causes, route: Route) -> set[str]:
    return {reason.code for reason in causes.get(route, ())}


def _listed(causes: Causes) -> OverspillError:
    """Every cause by route, and every mend once."""
    message = "No route is left: " + "; ".join(
        f"{route}: {', '.join(map(_in_words, found))}" for route, found in causes.items()
    )
    mend = _mend([reason.code for found in causes.values() for reason in found])
    only_memory = len(causes) == 1 and _codes(causes, Route.DEVICE) == {"memory"}
    return (DoesNotFit if only_memory else PolicyRefusal)(f"{message}.", mend=mend)


def _overflow(causes: Causes, cards: Mapping[Route, ModelCard]) -> ContextOverflow:
    """By the route with the largest context: it came closest."""
    route = max(cards, key=lambda r: cards[r].context)
    numbers = next(cause.numbers for cause in causes[route] if cause.code == "context")
    return ContextOverflow(
        int(numbers["prompt_tokens"]),
        int(numbers["max_tokens"]),
        cards[route].context,
        cards[route].name,
    )


def _in_words(reason: StageReason) -> str:
    numbers = ", ".join(f"{name} {value:g}" for name, value in reason.numbers.items())
    inside = "; ".join(part for part in (reason.detail, numbers) if part)
    return f"{reason.code} ({inside})" if inside else reason.code


def _mend(codes: list[str]) -> str:
    mends = [_MENDS[code] for code in dict.fromkeys(codes) if code in _MENDS]
    if len(mends) > 1:
        return f"Either {', or '.join(mends)}."
    return "".join(f"{text[:1].upper()}{text[1:]}." for text in mends)
