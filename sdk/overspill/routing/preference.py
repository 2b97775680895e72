"""Stage 3's outcome: of the routes that are left, the device or one that is worth leaving for.

What the scorer says is put beside what the session remembers, what a certificate is for, and what
stage 4 has on its scales. Nothing here gives a route back: one of those that are left is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from overspill.routing.complexity import STAGE as COMPLEXITY
from overspill.routing.complexity import Score, Scorer
from overspill.routing.cost import Scales
from overspill.routing.features import extract
from overspill.routing.lateness import LATE
from overspill.routing.lateness import STAGE as WEIGHED
from overspill.routing.normalise import NormalForm
from overspill.routing.policy import RoutingPolicy
from overspill.routing.privacy import STAGE as PRIVACY
from overspill.routing.session_memory import replay, with_memory
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Privacy, Request
from overspill.types.route import Route, RouteReason, StageReason

_REPLAYED_TURNS = 4
# Of what stage 1 compares, these are about room; the rest is about what a model can do at all.
_CAPACITY = frozenset({"context", "memory", "unavailable", LATE, "all_late"})
Routes = tuple[Route, ...]
_Verdict = tuple[Route, RouteReason, str]


class Case(NamedTuple):
    """What stage 3 weighs."""

    request: Request
    form: NormalForm
    situation: Situation
    policy: RoutingPolicy
    cards: Mapping[Route, ModelCard]
    scorer: Scorer

    def score(self, form: NormalForm) -> Score:
        """Of the form's last turn."""
        scorer = self.scorer
        features = extract(form, self.request, scorer.buckets, shaped=scorer.reads_shape)
        return scorer.score(features, self.cards)


class Preference(NamedTuple):
    """Stage 3's outcome, and what stage 4 laid on the scales beside it."""

    route: Route
    reason: RouteReason
    stage: StageReason
    score: Score
    threshold: float
    tradeoffs: Mapping[str, float]
    weighed: tuple[StageReason, ...]


def prefer(
    case: Case, scales: Scales, left: Routes, reasons: tuple[StageReason, ...]
) -> Preference:
    """The device unless leaving is worth more than the threshold; a tool chain stays."""
    score = _with_session(case, case.score(case.form))
    threshold = _threshold(case)
    remote = next((route for route in left if route is not Route.DEVICE), None)
    memory = case.situation.memory
    verdict: _Verdict
    tradeoffs: Mapping[str, float] = {}
    if Route.DEVICE in left and remote is not None:
        tradeoffs = scales.tradeoffs(remote, score.gain)
        if case.form.in_tool_chain and memory.route in left and memory.reason is not None:
            verdict = (memory.route, memory.reason, "tool_chain_stays")
        elif (doubt := _doubt(case, score)) is not None:
            verdict = (remote, RouteReason.ESCALATE, doubt)
        else:
            verdict = _weigh(case, remote, score.gain, sum(tradeoffs.values()), threshold)
    else:
        verdict = (left[0], _why_only(left[0], reasons, case), "only_route")
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
    return Preference(route, reason, stage, score, threshold, tradeoffs, weighed)


def _weigh(case: Case, remote: Route, gain: float, tradeoffs: float, threshold: float) -> _Verdict:
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


def _leaves_to_monitor(case: Case, remote: Route, over: float) -> bool:
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


def _doubt(case: Case, score: Score) -> str | None:
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


def _threshold(case: Case) -> float:
    """The policy's, moved in favour of where the conversation's KV cache already is."""
    price = case.policy.switching_price
    where = case.situation.memory.route
    if where is None:
        return case.policy.threshold
    return case.policy.threshold + (price if where is Route.DEVICE else -price)


def _with_session(case: Case, score: Score) -> Score:
    """The score with what earlier turns hold against it, as one more contribution."""
    memory, release = case.situation.memory, case.policy.release
    held = memory.held_gain if memory.turns else _replayed(case)
    extra = with_memory(score.gain, held, release) - score.gain
    if extra <= 0:
        return score
    contributions = {**score.contributions, "session_memory": extra}
    return score._replace(gain=sum(contributions.values()), contributions=contributions)


def _replayed(case: Case) -> float:
    """What the conversation's earlier turns would have left behind, had we been asked."""
    turns = case.form.user_turns
    if len(turns) == 1:
        return 0.0
    earlier = range(max(1, len(turns) - _REPLAYED_TURNS), len(turns))
    gains = [case.score(case.form.until(n)).gain for n in earlier]
    return replay(gains, case.policy.release)


def _why_only(route: Route, reasons: tuple[StageReason, ...], case: Case) -> RouteReason:
    """The reason where no choice was left: pinned, privacy, room, or simply nothing else there."""
    if case.situation.pinned is not None:
        return RouteReason.PINNED
    for reason in reasons:
        if reason.stage == PRIVACY and (reason.removed or reason.detail == Privacy.DEVICE):
            return RouteReason.PRIVACY
    lost_device = {r.code for r in reasons if Route.DEVICE in r.removed}
    if route is not Route.DEVICE and lost_device and lost_device <= _CAPACITY:
        return RouteReason.SPILL
    return RouteReason.ONLY_ROUTE
