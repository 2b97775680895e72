"""Stage 2: routes that may not do it are taken away, before anything leaves the device.

The floor is the strictest of policy, session, request, what the detectors found and what they
found earlier in the session. ``device`` leaves one route, or none: it never falls back. What the
policy has replaced by placeholders is not sent, and so raises nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from overspill.routing.detectors import detect
from overspill.routing.normalise import outgoing_text
from overspill.routing.policy import RoutingPolicy
from overspill.routing.redaction import hide
from overspill.routing.session_memory import SessionMemory
from overspill.routing.situation import Situation
from overspill.types.chat import Privacy, Request
from overspill.types.route import Route, StageReason

STAGE = 2
FOUND = "personal_data"
HIDDEN = "redacted"


def privacy(
    request: Request, situation: Situation, policy: RoutingPolicy, routes: tuple[Route, ...]
) -> tuple[StageReason, ...]:
    """What was found, the floor that follows, and which routes it and the evidence take away."""
    found, hidden = _findings(request, policy)
    floors = _floors(request, situation.session_floor, situation.memory, policy, found)
    floor, reason = _kept_to(floors, routes)
    reasons = [StageReason(STAGE, FOUND, (), found, f"floor {floors.found}")] if found else []
    if hidden:
        reasons.append(StageReason(STAGE, HIDDEN, (), hidden))
    reasons.append(reason)
    if floor is not Privacy.DEVICE:
        reasons += _evidence(floor, situation, routes)
        reasons += _consent(floor, request, situation, routes)
    return tuple(reasons)


class _Floors(NamedTuple):
    """What a request must keep to, by who demands it."""

    policy: Privacy
    session: Privacy
    request: Privacy
    found: Privacy
    taint: Privacy


@lru_cache(maxsize=512)
def _kept_to(floors: _Floors, routes: tuple[Route, ...]) -> tuple[Privacy, StageReason]:
    """The strictest floor and what it takes away; there are few, and they come again and again."""
    floor = _strictest(floors)
    away = _elsewhere(routes) if floor is Privacy.DEVICE else ()
    numbers = {name: one.strictness for name, one in floors._asdict().items()}
    return floor, StageReason(STAGE, "floor", away, numbers, floor)


def taint(found: Mapping[str, float], policy: RoutingPolicy) -> Privacy:
    """The floor that findings (counts by kind) raise a request, and its session, to."""
    if not found:
        return Privacy.ANY
    return _strictest(policy.detectors.get(kind, Privacy.ANY) for kind in found)


def floor_of(
    request: Request, session_floor: Privacy, memory: SessionMemory, policy: RoutingPolicy
) -> Privacy:
    """The floor of a request before anything else is known: whether a cloud may be contacted."""
    found, _ = _findings(request, policy)
    return _strictest(_floors(request, session_floor, memory, policy, found))


def _strictest(floors: Iterable[Privacy]) -> Privacy:
    return max(floors, key=lambda floor: floor.strictness, default=Privacy.ANY)


def _elsewhere(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    return tuple([route for route in routes if route is not Route.DEVICE])


def _findings(
    request: Request, policy: RoutingPolicy
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Counts by kind: of what would be seen elsewhere, and of what placeholders would stand for.

    Only what the policy redacts counts as hidden; a request that asks for more of it is as strict
    as before.
    """
    found = detect("\n".join(outgoing_text(request)), policy.wanted)
    veil = hide(request, policy, policy.redact) if found and policy.redact else None
    if veil is None:
        return found, {}
    seen = detect("\n".join(outgoing_text(veil.request)), policy.wanted)
    hidden = {kind: count - seen.get(kind, 0) for kind, count in found.items()}
    return seen, {kind: count for kind, count in hidden.items() if count > 0}


def _floors(
    request: Request,
    session_floor: Privacy,
    memory: SessionMemory,
    policy: RoutingPolicy,
    found: Mapping[str, float],
) -> _Floors:
    return _Floors(policy.floor, session_floor, request.privacy, taint(found, policy), memory.taint)


def _evidence(
    floor: Privacy, situation: Situation, routes: tuple[Route, ...]
) -> tuple[StageReason, ...]:
    """The cloud's verified evidence against the floor."""
    if Route.CLOUD not in routes:
        return ()
    result = situation.attestation
    if result is None:
        return (StageReason(STAGE, "not_verified", (Route.CLOUD,)),)
    numbers = {"assurance": int(result.assurance)}
    if result.accepted_until <= situation.now_unix:
        age = {"accepted_until_unix": result.accepted_until, "now_unix": situation.now_unix}
        return (StageReason(STAGE, "verification_expired", (Route.CLOUD,), numbers | age),)
    if floor is Privacy.ATTESTED and not result.satisfies_attested:
        return (StageReason(STAGE, "assurance", (Route.CLOUD,), numbers, result.assurance.name),)
    return (StageReason(STAGE, "evidence_accepted", (), numbers, result.assurance.name),)


def _consent(
    floor: Privacy, request: Request, situation: Situation, routes: tuple[Route, ...]
) -> tuple[StageReason, ...]:
    """A third party needs the floor ``any`` and a grant for this one request."""
    if Route.THIRD_PARTY not in routes:
        return ()
    away = (Route.THIRD_PARTY,)
    if floor is not Privacy.ANY:
        return (StageReason(STAGE, "third_party_floor", away, {}, floor),)
    grant = situation.grant
    if grant is None or grant.request_id != request.id:
        return (StageReason(STAGE, "consent_required", away),)
    if grant.expires_unix <= situation.now_unix:
        numbers = {"expires_unix": grant.expires_unix, "now_unix": situation.now_unix}
        return (StageReason(STAGE, "consent_expired", away, numbers),)
    return (StageReason(STAGE, "consent_given", (), {}, grant.provider),)
