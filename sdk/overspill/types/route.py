"""Where a request runs, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from overspill.types.usage import Usage


class Route(StrEnum):
    """The places a request can end up."""

    DEVICE = "device"
    CLOUD = "cloud"
    THIRD_PARTY = "third_party"
    REFUSED = "refused"

    # A member equals its value; with Enum's own hash, which is computed in Python, a mapping by
    # route would find neither by the value nor quickly.
    __hash__ = str.__hash__


class RouteReason(StrEnum):
    """What decided. **escalate** is quality, **spill** is capacity, **fall back** is failure.

    A **trial** is the device's under a certified monitor, which may still escalate it."""

    EASY_ENOUGH = "easy_enough"
    ESCALATE = "escalate"
    SPILL = "spill"
    FALL_BACK = "fall_back"
    NOT_WORTH_IT = "not_worth_it"
    TRIAL = "trial"
    PRIVACY = "privacy"
    ONLY_ROUTE = "only_route"
    PINNED = "pinned"
    NO_ROUTE = "no_route"


@dataclass(frozen=True, slots=True)
class StageReason:
    """One machine-readable reason, appended by the stage that narrowed (or kept) the routes.

    ``stage`` is 0 to 5 as in the routing policy, ``code`` stable, ``removed`` the routes it took
    away, ``numbers`` what was compared. Never any prompt text.
    """

    stage: int
    code: str
    removed: tuple[Route, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Hedge:
    """Start ``route`` too where the chosen one has given no text ``after_s`` seconds from its
    start; the first to give text answers, the other is cancelled, and both are charged."""

    route: Route
    after_s: float


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """The outcome of ``routing.decide``: pure data, explainable to the last contribution.

    ``alternatives`` are routes that were allowed but not chosen, best first: where a failure may
    fall back to. ``contributions`` are the scorer's exact summands (it is linear), which add up to
    the gain in quality; ``tradeoffs`` what stage 4 adds to it for leaving, in the same unit:
    lateness, waiting, cost, energy. Their sum is held against ``threshold``.
    """

    route: Route
    reason: RouteReason
    stages: tuple[StageReason, ...]
    alternatives: tuple[Route, ...] = ()
    p_device_right: float | None = None
    p_cloud_right: float | None = None
    threshold: float | None = None
    contributions: Mapping[str, float] = field(default_factory=dict)
    policy_sha256: str = ""
    decision_us: float = 0.0
    tradeoffs: Mapping[str, float] = field(default_factory=dict)
    hedge: Hedge | None = None


class Verdict(StrEnum):
    """What the monitor says to do with a device's answer."""

    SHOW = "show"
    GO_ON = "go_on"
    ESCALATE = "escalate"
    DOUBT = "doubt"


@dataclass(frozen=True, slots=True)
class MonitorCheck:
    """One look at a device's answer while it grew. Never any of its text.

    ``check`` is the number of tokens it was due after, or ``end``; ``tokens`` how many there were;
    ``code`` stable. ``contributions`` are exact: they add up to ``gain``, the P(right) that leaving
    would gain. ``gain`` is None where no certified signal spoke.
    """

    check: str
    tokens: int
    verdict: Verdict
    code: str
    p_device_right: float | None = None
    p_cloud_right: float | None = None
    gain: float | None = None
    threshold: float | None = None
    contributions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RouteTaken:
    """What really happened, for the answer and the log: the decision plus how it ended.

    ``bytes_sent`` counts everything that left the device for this request (0 when it stayed).
    ``changes`` lists each escalation, spill or fall-back after the decision. ``monitor`` is what
    the device's answer was judged by, and ``low_confidence`` the outcome: it is there, and likely
    wrong. ``thrown`` are the tokens of an answer that nobody saw, because another took its place;
    the answer's own usage does not hold them.
    """

    route: Route
    reason: RouteReason
    decision: RouteDecision
    model: str
    bytes_sent: int = 0
    assurance: str = "NONE"
    node: str = ""
    changes: tuple[str, ...] = ()
    monitor: tuple[MonitorCheck, ...] = ()
    low_confidence: bool = False
    thrown: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a request would run and what it would cost; nothing was generated.

    ``would_leave`` says in words what would leave the device, ``bytes_leaving`` about how much.
    """

    decision: RouteDecision
    model: str
    prompt_tokens: int
    would_leave: str
    bytes_leaving: int
    estimated_s: float | None
    estimated_cost: float
    assurance: str
    request_id: str = ""
    """The request that was planned: what a :class:`Grant` for it names."""

    @property
    def route(self) -> Route:
        """The decision's route."""
        return self.decision.route

    @property
    def reason(self) -> RouteReason:
        """The decision's reason."""
        return self.decision.reason


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """This device, measured: what latency and capability stages weigh. None is unknown.

    A ``slow`` speed is one that 95% of generations exceeded. ``power_w`` is what the battery
    gives while it is used; ``thermal_headroom_c`` degrees Celsius to where the system throttles.
    """

    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    memory_free_bytes: int | None = None
    on_battery: bool | None = None
    battery_percent: float | None = None
    prefill_slow_tokens_per_s: float | None = None
    decode_slow_tokens_per_s: float | None = None
    power_w: float | None = None
    thermal_headroom_c: float | None = None


@dataclass(frozen=True, slots=True)
class NetworkState:
    """The way to the cloud, and how fast its answers were: None means never measured.

    ``rtt_s`` is what an answer's first token takes beyond the node's own queue and prefill: the
    road and the sealing. ``queue_s`` is the wait that the node told of, ``cloud_queue`` how many
    were ahead. A ``slow`` value is one that 95% of answers were better than. ``failure_share`` of
    late tries ended without an answer.
    """

    online: bool = True
    rtt_s: float | None = None
    cloud_queue: int | None = None
    rtt_slow_s: float | None = None
    queue_s: float = 0.0
    queue_slow_s: float = 0.0
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    prefill_slow_tokens_per_s: float | None = None
    decode_slow_tokens_per_s: float | None = None
    failure_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Grant:
    """Consent to send one request to one provider, once, until ``expires_unix`` (seconds)."""

    provider: str
    request_id: str
    expires_unix: int
    signature: bytes = b""
