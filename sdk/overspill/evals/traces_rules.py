"""Who decides in a replay: the policy, through the real ``decide``, or a static rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from overspill.evals.traces import Job, Trace, Truth
from overspill.evals.traces_world import Gate, Outcome
from overspill.hedging import HedgeShare
from overspill.lengths import AnswerLengths
from overspill.pace import CloudMeter, Pace, Timing
from overspill.routing.decide import decide
from overspill.routing.policy import RoutingPolicy
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Request
from overspill.types.evidence import Assurance
from overspill.types.route import DeviceProfile, Hedge, Route, RouteDecision

Cards = Mapping[Route, ModelCard]
_EPOCH = 1_800_000_000


@dataclass(slots=True)
class Memory:
    """What a client learns while a trace runs: the same classes that a live one learns with."""

    device: Pace = field(default_factory=Pace)
    cloud: CloudMeter = field(default_factory=CloudMeter)
    lengths: AnswerLengths = field(default_factory=AnswerLengths)
    hedges: HedgeShare = field(default_factory=HedgeShare)
    gate: Gate = field(default_factory=Gate)
    under_way: int = 0

    def learn(self, job: Job, outcome: Outcome, cards: Cards, now_s: float) -> None:
        """From a try that ended now."""
        if outcome.failed:
            self.gate.fail(now_s)
            self.cloud.observe_failure(now_s)
            return
        self.lengths.observe(job.request, outcome.usage)
        if outcome.route is Route.DEVICE:
            self.device.observe(outcome.usage, now_s, outcome.beside)
            return
        self.gate.work()
        finish = outcome.finish(cards[Route.CLOUD].name)
        self.cloud.observe(finish, Timing(outcome.first_s, outcome.total_s), now_s)


@dataclass(frozen=True, slots=True)
class Choice:
    """The route to take, whether the other may follow, and a hedge."""

    route: Route
    may_move: bool = True
    hedge: Hedge | None = None


class Rule(Protocol):
    """Decides on one job; ``request`` is the job's own, with what its chain has left."""

    @property
    def name(self) -> str:
        """What the rule is called in a report."""

    def choose(
        self, job: Job, request: Request, memory: Memory, trace: Trace, now_s: float, cards: Cards
    ) -> Choice:
        """The choice."""


@dataclass(frozen=True, slots=True)
class Static:
    """The device unless the prompt is longer than ``max_tokens`` or leaving gains more than
    ``max_gain`` by the scorer: always device, always cloud, by length, or by a fixed threshold."""

    name: str
    gains: Mapping[str, float] = field(default_factory=dict)
    max_tokens: float = float("inf")
    max_gain: float = float("inf")

    def choose(
        self, job: Job, request: Request, memory: Memory, trace: Trace, now_s: float, cards: Cards
    ) -> Choice:
        """By the rule, or the device while the cloud is left alone."""
        leaves = job.prompt_tokens > self.max_tokens
        leaves = leaves or self.gains.get(request.id, 0.0) > self.max_gain
        return Choice(Route.CLOUD if leaves and memory.gate.is_open(now_s) else Route.DEVICE)


@dataclass(frozen=True, slots=True)
class ByPolicy:
    """The real decision, over what the client has learnt up to this moment."""

    name: str = "policy"
    policy: RoutingPolicy = field(default_factory=RoutingPolicy)

    def choose(
        self, job: Job, request: Request, memory: Memory, trace: Trace, now_s: float, cards: Cards
    ) -> Choice:
        """As ``overspill.session`` would."""
        situation = situation_of(job, request, memory, trace, now_s, cards)
        decision = decide(request, situation, self.policy, cards)
        return Choice(decision.route, bool(decision.alternatives), decision.hedge)


def situation_of(
    job: Job, request: Request, memory: Memory, trace: Trace, now_s: float, cards: Cards
) -> Situation:
    """What ``overspill.gathering`` would gather of this client at this moment."""
    speeds = memory.device.speeds(job.prompt_tokens, now_s, memory.under_way)
    on_battery = now_s >= trace.battery_from_s
    device = DeviceProfile(
        prefill_tokens_per_s=speeds.prefill,
        decode_tokens_per_s=speeds.decode,
        prefill_slow_tokens_per_s=speeds.prefill_slow,
        decode_slow_tokens_per_s=speeds.decode_slow,
        on_battery=on_battery,
        battery_percent=50.0 if on_battery else None,
    )
    away = {} if memory.gate.is_open(now_s) else {Route.CLOUD: "connect_failed"}
    return Situation(
        device=device,
        network=memory.cloud.network(cards[Route.CLOUD].name, job.prompt_tokens, now_s),
        prompt_tokens={Route.DEVICE: job.prompt_tokens},
        attestation=_ATTESTED,
        unavailable=away,
        device_loaded=True,
        now_unix=_EPOCH + int(now_s),
        answer=memory.lengths.expected(request),
        hedged_share=memory.hedges.share,
    )


def gains_of(jobs: tuple[Job, ...], cards: Cards) -> dict[str, float]:
    """What the scorer says leaving gains, for each job by its request's id."""
    found = {}
    for job in jobs:
        decision = _undisturbed(job.request, cards)
        found[job.request.id] = sum(decision.contributions.values())
    return found


def truth_of(requests: Sequence[Request], cards: Cards) -> list[Truth]:
    """P(right) on each route as the scorer says it, for :func:`overspill.evals.traces.make_trace`
    to draw the truth around."""
    found = []
    for request in requests:
        decision = _undisturbed(request, cards)
        device, cloud = decision.p_device_right or 0.0, decision.p_cloud_right or 0.0
        found.append({Route.DEVICE: device, Route.CLOUD: cloud})
    return found


def _undisturbed(request: Request, cards: Cards) -> RouteDecision:
    situation = Situation(attestation=_ATTESTED, device_loaded=True, now_unix=_EPOCH)
    return decide(replace(request, deadline_s=None), situation, RoutingPolicy(), cards)


@dataclass(frozen=True, slots=True)
class _Proven:
    """Trust is not what a replay is about: its cloud is proven. There is no key to seal to."""

    assurance: Assurance = Assurance.HARDWARE_TEE
    accepted_until: int = 1 << 60
    satisfies_attested: bool = True


_ATTESTED = _Proven()
