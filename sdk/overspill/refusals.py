"""A decision without a route, as the typed error that a caller gets: one line, with numbers."""

from __future__ import annotations

from collections.abc import Mapping

from overspill.errors import (
    ConsentRequired,
    ContextOverflow,
    DoesNotFit,
    OverspillError,
    PolicyRefusal,
)
from overspill.types.card import ModelCard
from overspill.types.route import Route, RouteDecision, StageReason

_MENDS = {
    "context": "shorten the prompt or lower max_tokens",
    "memory": "close other programs or choose a smaller model",
    "tools": "choose a model that supports tools",
    "json_schema": "choose a model that supports schemas",
    "offline": "go online",
    "not_verified": "see why the node's evidence was refused: overspill cloud verify",
    "verification_expired": "have the node's evidence verified again",
    "assurance": 'use a node with hardware evidence, or allow privacy = "any" for this request',
    "floor": "allow a weaker privacy floor, if that is right for this text",
    "consent_required": "grant this one request",
    "unavailable": "see: overspill models",
}


def refusal(
    decision: RouteDecision, cards: Mapping[Route, ModelCard], problem: OverspillError | None
) -> OverspillError:
    """The error for a decision whose route is ``REFUSED``; ``cards`` as it was decided with.

    ``problem`` is what kept the cloud out: it is the answer where nothing else did.
    """
    causes = {route: [r for r in decision.stages if route in r.removed] for route in cards}
    codes = {route: {reason.code for reason in found} for route, found in causes.items()}
    if not causes:
        return PolicyRefusal(
            "There is neither a model on the device nor a cloud.",
            mend="See `overspill models`, or name a cloud in the settings.",
        )
    if problem is not None and codes.get(Route.CLOUD) == {"unavailable"}:
        return problem
    if codes.get(Route.THIRD_PARTY) == {"consent_required"}:
        return ConsentRequired(
            "Only a third party could answer this, and nobody granted it.",
            mend="Grant this one request, or allow another route.",
        )
    if all("context" in found for found in codes.values()):
        return _overflow(causes, cards)
    message = "No route is left: " + "; ".join(
        f"{route}: {', '.join(map(_in_words, found))}" for route, found in causes.items()
    )
    mend = _mend([reason.code for found in causes.values() for reason in found])
    if codes.get(Route.DEVICE) == {"memory"} and len(codes) == 1:
        return DoesNotFit(f"{message}.", mend=mend)
    if codes.get(Route.DEVICE) == {"context"}:
        return _overflow(causes, {Route.DEVICE: cards[Route.DEVICE]})
    return PolicyRefusal(f"{message}.", mend=mend)


def _overflow(
    causes: Mapping[Route, list[StageReason]], cards: Mapping[Route, ModelCard]
) -> ContextOverflow:
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
