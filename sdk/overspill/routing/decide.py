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

from collections.abc import Mapping
from dataclasses import dataclass, replace

from overspill.routing.capability import capability
from overspill.routing.complexity import STAGE as COMPLEXITY
from overspill.routing.complexity import Score, Scorer, shipped_scorer
from overspill.routing.cost import Scales, unaffordable
from overspill.routing.features import extract
from overspill.routing.hedge import hedge
from overspill.routing.lateness import LATE, answer_length, estimates, lateness
from overspill.routing.lateness import STAGE as WEIGHED
from overspill.routing.normalise import NormalForm, normalise
from overspill.routing.policy import RoutingPolicy
from overspill.routing.privacy import FOUND, privacy, taint
from overspill.routing.session_memory import SessionMemory, replay, with_memory
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Privacy, Request
from overspill.types.route import Hedge, Route, RouteDecision, RouteReason, StageReason

_ORDER = (Route.DEVICE, Route.CLOUD, Route.THIRD_PARTY)
_REPLAYED_TURNS = 4
# Of what stage 1 compares, these are about room; the rest is about what a model can do at all.
_CAPACITY = frozenset({"context", "memory", "unavailable", LATE, "all_late"})
Routes = tuple[Route, ...]
_Verdict = tuple[Route, RouteReason, str]


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
    routes = tuple(r for r in _ORDER if r in cards or r in situation.unavailable)
    reasons = [_shape(request, form), *_pinned(situation, routes)]
    left = _narrow(routes, reasons)
    reasons += capability(request, form, situation, cards, left)
    left = _narrow(left, reasons)
    reasons += privacy(request, situation, policy, left)
    left = _narrow(left, reasons)
    if not left:
        return _refused(reasons, policy)
    chosen = scorer or policy.scorer or shipped_scorer()
    case = _Case(request, form, situation, policy, cards, chosen)
    answer = answer_length(request, situation)
    afterwards = list(unaffordable(request, situation, answer, cards, left))
    left = _narrow(left, afterwards)
    if not left:
        return _refused([*reasons, *afterwards], policy)
    known = estimates(request, situation, left)
    afterwards += lateness(request, known, left)
    left = _narrow(left, afterwards)
    scales = Scales(request, situation, answer, known, cards, policy.prices)
    preference = _prefer(case, scales, left, [*reasons, *afterwards])
    return RouteDecision(
        route=preference.route,
        reason=preference.reason,
        stages=(*reasons, preference.stage, *afterwards, *preference.weighed),
        alternatives=tuple(route for route in left if route is not preference.route),
        p_device_right=preference.stage.numbers["p_device_right"],
        p_cloud_right=preference.stage.numbers["p_cloud_right"],
        threshold=preference.threshold,
        contributions=preference.score.contributions,
        policy_sha256=policy.sha256,
        tradeoffs=preference.tradeoffs,
        hedge=_hedge(case, scales, preference.route, left),
    )


def _refused(reasons: list[StageReason], policy: RoutingPolicy) -> RouteDecision:
    return RouteDecision(
        Route.REFUSED, RouteReason.NO_ROUTE, tuple(reasons), policy_sha256=policy.sha256
    )


def _hedge(case: _Case, scales: Scales, route: Route, left: Routes) -> Hedge | None:
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


@dataclass(frozen=True, slots=True)
class _Case:
    """What stage 3 weighs."""

    request: Request
    form: NormalForm
    situation: Situation
    policy: RoutingPolicy
    cards: Mapping[Route, ModelCard]
    scorer: Scorer

    def score(self, form: NormalForm) -> Score:
        return self.scorer.score(extract(form, self.request, self.scorer.buckets), self.cards)


@dataclass(frozen=True, slots=True)
class _Preference:
    """Stage 3's outcome, and what stage 4 laid on the scales beside it."""

    route: Route
    reason: RouteReason
    stage: StageReason
    score: Score
    threshold: float
    tradeoffs: Mapping[str, float]
    weighed: tuple[StageReason, ...]


def _narrow(routes: Routes, reasons: list[StageReason]) -> Routes:
    removed = {route for reason in reasons for route in reason.removed}
    return tuple(route for route in routes if route not in removed)


def _shape(request: Request, form: NormalForm) -> StageReason:
    numbers = {"messages": len(request.messages), "user_turns": len(form.user_turns)}
    return StageReason(0, "normal_form", (), numbers, form.language)


def _pinned(situation: Situation, routes: Routes) -> tuple[StageReason, ...]:
    pin = situation.pinned
    if pin is None:
        return ()
    return (StageReason(0, "pinned", tuple(r for r in routes if r is not pin), {}, pin),)


def _prefer(case: _Case, scales: Scales, left: Routes, reasons: list[StageReason]) -> _Preference:
    """The device unless leaving is worth more than the threshold; a tool chain stays."""
    score = _with_session(case, case.score(case.form))
    threshold = _threshold(case)
    remote = next((route for route in left if route is not Route.DEVICE), None)
    memory = case.situation.memory
    verdict: _Verdict = (left[0], _why_only(left[0], reasons, case), "only_route")
    tradeoffs: Mapping[str, float] = {}
    if Route.DEVICE in left and remote is not None:
        tradeoffs = scales.tradeoffs(remote, score.gain)
        if case.form.in_tool_chain and memory.route in left and memory.reason is not None:
            verdict = (memory.route, memory.reason, "tool_chain_stays")
        elif (doubt := _doubt(case, score)) is not None:
            verdict = (remote, RouteReason.ESCALATE, doubt)
        else:
            verdict = _weigh(case, remote, score.gain, sum(tradeoffs.values()), threshold)
    route, reason, code = verdict
    numbers = {
        "p_device_right": _measured(case.policy, "device", score.p_device_right),
        "p_cloud_right": _measured(case.policy, "cloud", score.p_cloud_right),
        "gain": score.gain,
        "threshold": threshold,
        "confidence": score.confidence,
        "fitted": float(score.fitted),
    }
    stage = StageReason(COMPLEXITY, code, (), numbers, score.domain)
    weighed = (StageReason(WEIGHED, "weighed", (), tradeoffs),) if tradeoffs else ()
    return _Preference(route, reason, stage, score, threshold, tradeoffs, weighed)


def _weigh(case: _Case, remote: Route, gain: float, tradeoffs: float, threshold: float) -> _Verdict:
    """Quality and everything else against the threshold.

    What else there is may send a request away under any policy. It keeps one on the device against
    the quality that leaving gains only where no certificate bounds what staying may cost.
    """
    worth = gain + tradeoffs
    if gain > threshold:
        if _leaves_to_monitor(case, remote, max(gain, worth) - threshold):
            return Route.DEVICE, RouteReason.TRIAL, "left_to_monitor"
        if worth > threshold or case.policy.certificate:
            return remote, RouteReason.ESCALATE, "gain_over_threshold"
        return Route.DEVICE, RouteReason.NOT_WORTH_IT, "gain_not_worth_it"
    if worth > threshold:
        return remote, RouteReason.SPILL, "worth_leaving"
    return Route.DEVICE, RouteReason.EASY_ENOUGH, "gain_within_threshold"


def _leaves_to_monitor(case: _Case, remote: Route, over: float) -> bool:
    """Whether the device may begin though leaving is worth it: a certified monitor sees more of its
    answer than stage 3 sees of the prompt, and moves it. Never where time is short."""
    monitor, request = case.policy.monitor, case.request
    return (
        monitor is not None
        and over <= monitor.lean
        and remote is Route.CLOUD
        and request.deadline_s is None
        and request.first_token_s is None
        and not case.policy.is_expired(case.situation.now_unix)
        and monitor.is_certified_for(case.cards[Route.DEVICE])
    )


def _doubt(case: _Case, score: Score) -> str | None:
    """Why the scorer's word keeps nothing on the device, or None: a strict policy wants a scorer
    fitted on this very pair, a calibrated one the scorer and the quantization that it was certified
    with, and an expired one is strict."""
    if not case.policy.is_for(case.scorer.sha256):
        return "scorer_not_certified"
    if not case.policy.is_for_quantization(case.cards[Route.DEVICE].quantization):
        return "quantization_not_certified"
    expired = case.policy.is_expired(case.situation.now_unix)
    if expired and case.policy.scorer_sha256:
        return "policy_expired"
    if (case.policy.strict or expired) and not score.fitted:
        return "unfitted_in_strict_mode"
    return None


def _measured(policy: RoutingPolicy, model: str, probability: float) -> float:
    """P(right) as the calibration measured it, where it did; the gain stays the exact sum."""
    curve = policy.isotonic.get(model)
    return curve(probability) if curve else probability


def _threshold(case: _Case) -> float:
    """The policy's, moved in favour of where the conversation's KV cache already is."""
    price = case.policy.switching_price
    where = case.situation.memory.route
    if where is None:
        return case.policy.threshold
    return case.policy.threshold + (price if where is Route.DEVICE else -price)


def _with_session(case: _Case, score: Score) -> Score:
    """The score with what earlier turns hold against it, as one more contribution."""
    release = case.policy.release
    memory = case.situation.memory
    held = memory.held_gain if memory.turns else _replayed(case)
    extra = with_memory(score.gain, held, release) - score.gain
    if extra <= 0:
        return score
    contributions = {**score.contributions, "session_memory": extra}
    return replace(score, gain=sum(contributions.values()), contributions=contributions)


def _replayed(case: _Case) -> float:
    """What the conversation's earlier turns would have left behind, had we been asked."""
    turns = case.form.user_turns
    earlier = range(max(1, len(turns) - _REPLAYED_TURNS), len(turns))
    gains = [case.score(case.form.until(n)).gain for n in earlier]
    return replay(gains, case.policy.release)


def _why_only(route: Route, reasons: list[StageReason], case: _Case) -> RouteReason:
    """The reason where no choice was left: pinned, privacy, room, or simply nothing else there."""
    if case.situation.pinned is not None:
        return RouteReason.PINNED
    if any(r.stage == 2 and (r.removed or r.detail == Privacy.DEVICE) for r in reasons):
        return RouteReason.PRIVACY
    lost_device = {r.code for r in reasons if Route.DEVICE in r.removed}
    if route is not Route.DEVICE and lost_device and lost_device <= _CAPACITY:
        return RouteReason.SPILL
    return RouteReason.ONLY_ROUTE
