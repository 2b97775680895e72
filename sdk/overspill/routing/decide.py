"""The decision: a pure function from a request and its situation to a route with its reasons.

====  ==================  =====================================================================
 0    ``normalise``       one canonical form, or a typed error
 1    ``capability``      takes away what cannot do it
 2    ``privacy``         takes away what may not do it
 3    ``complexity``      of what is left: the device, or is leaving worth it
 4    ``lateness``        takes away what would miss the deadline, by measured speed, and
      ``cost``            what the purse cannot pay; weighs time, money and energy of the rest
 5-6  monitor, checks     run on the answer, in ``session``, and move to ``alternatives`` only
 7    calibration         writes the policy file and the scorer that are arguments here
====  ==================  =====================================================================

Stages 1, 2 and 4 return reasons; the only thing done with them is to take routes away, so no stage
can give back what an earlier one took. Nothing leaves the device to decide, and no prompt text
enters a decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

from overspill.routing.capability import capability
from overspill.routing.complexity import Scorer, shipped_scorer
from overspill.routing.cost import Scales, unaffordable
from overspill.routing.hedge import hedge
from overspill.routing.lateness import answer_length, estimates, lateness
from overspill.routing.normalise import normalise
from overspill.routing.policy import RoutingPolicy
from overspill.routing.preference import Case, Routes, prefer
from overspill.routing.privacy import FOUND, privacy, taint
from overspill.routing.session_memory import SessionMemory
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Request
from overspill.types.route import Hedge, Route, RouteDecision, RouteReason, StageReason

_ORDER = (Route.DEVICE, Route.CLOUD, Route.THIRD_PARTY)


def decide(
    request: Request,
    situation: Situation,
    policy: RoutingPolicy,
    cards: Mapping[Route, ModelCard],
    *,
    scorer: Scorer | None = None,
) -> RouteDecision:
    """Choose a route among those that have a card; ``situation.unavailable`` says why others don't.

    Raises :class:`~overspill.errors.InvalidRequest` only. With no route left the decision is
    ``REFUSED`` and its stages say, with numbers, what took each one away.
    """
    form = normalise(request)
    routes = tuple([r for r in _ORDER if r in cards or r in situation.unavailable])
    pinned = _pinned(situation, routes)
    left = _narrow(routes, pinned)
    able = capability(request, form, situation, cards, left)
    left = _narrow(left, able)
    allowed = privacy(request, situation, policy, left)
    left = _narrow(left, allowed)
    shape = _shape(len(request.messages), len(form.user_turns), form.language)
    reasons = (shape, *pinned, *able, *allowed)
    if not left:
        return _refused(reasons, policy)
    answer = answer_length(request, situation)
    paid = unaffordable(request, situation, answer, cards, left)
    left = _narrow(left, paid)
    if not left:
        return _refused((*reasons, *paid), policy)
    known = estimates(request, situation, left)
    late = lateness(request, known, left)
    left = _narrow(left, late)
    case = Case(request, form, situation, policy, cards, _scorer(scorer, policy))
    scales = Scales(request, situation, answer, known, cards, policy.prices)
    preference = prefer(case, scales, left, (*reasons, *paid, *late))
    return RouteDecision(
        route=preference.route,
        reason=preference.reason,
        stages=(*reasons, preference.stage, *paid, *late, *preference.weighed),
        alternatives=tuple([route for route in left if route is not preference.route]),
        p_device_right=preference.stage.numbers["p_device_right"],
        p_cloud_right=preference.stage.numbers["p_cloud_right"],
        threshold=preference.threshold,
        contributions=preference.score.contributions,
        policy_sha256=policy.sha256,
        tradeoffs=preference.tradeoffs,
        hedge=_hedge(case, scales, preference.route, left),
    )


def _scorer(given: Scorer | None, policy: RoutingPolicy) -> Scorer:
    return given or policy.scorer or shipped_scorer()


def _refused(reasons: tuple[StageReason, ...], policy: RoutingPolicy) -> RouteDecision:
    return RouteDecision(Route.REFUSED, RouteReason.NO_ROUTE, reasons, policy_sha256=policy.sha256)


def _hedge(case: Case, scales: Scales, route: Route, left: Routes) -> Hedge | None:
    cap = case.policy.prices.hedge_share
    if not cap or len(left) < 2 or case.form.in_tool_chain:
        return None
    return hedge(route, left, case.request, case.situation, scales.known, cap)


def remember(
    memory: SessionMemory, decision: RouteDecision, policy: RoutingPolicy
) -> SessionMemory:
    """The session's memory after a decision. Findings taint it even where the answer was no."""
    found = {
        kind: count
        for stage in decision.stages
        if stage.code == FOUND
        for kind, count in stage.numbers.items()
    }
    tainted = replace(memory, taint=memory.taint.tightened_by(taint(found, policy)))
    if decision.route is Route.REFUSED:
        return tainted
    return replace(
        tainted,
        turns=memory.turns + 1,
        route=decision.route,
        reason=decision.reason,
        # A difference of probabilities: the linear score may overshoot, what is held may not.
        held_gain=min(1.0, sum(decision.contributions.values())),
    )


def _narrow(routes: Routes, reasons: Iterable[StageReason]) -> Routes:
    """What a stage's reasons leave of the routes that it was asked about."""
    for reason in reasons:
        if reason.removed:
            routes = tuple([route for route in routes if route not in reason.removed])
    return routes


@lru_cache(maxsize=512)
def _shape(messages: int, user_turns: int, language: str) -> StageReason:
    """Nearly all conversations have one of a few shapes."""
    numbers = {"messages": messages, "user_turns": user_turns}
    return StageReason(0, "normal_form", (), numbers, language)


def _pinned(situation: Situation, routes: Routes) -> tuple[StageReason, ...]:
    pin = situation.pinned
    if pin is None:
        return ()
    return (StageReason(0, "pinned", tuple(r for r in routes if r is not pin), {}, pin),)
