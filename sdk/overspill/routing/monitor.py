"""Stages 5 and 6: judges the device's answer while it grows, and once more when it is whole.

It looks after 0, 1, 8, 32 and 128 tokens and at the end, and says one of four things:

============  =================================================================================
``show``      good enough: what is held back may be seen
``go_on``     not sure yet: hold back, up to ``hold_tokens``
``escalate``  leaving is worth it, and nothing was seen: the cloud answers instead
``doubt``     as bad, but it may not, cannot or need not leave: the answer is marked
============  =================================================================================

Two things speak. *Heads* (linear, shipped with the policy) read the model's own certainty: a
:class:`~overspill.routing.monitor_policy.MonitorPolicy` that is certified for this model,
quantization and runtime. Without one its numbers are not looked at, and can keep nothing on the
device. *Faults* need no calibration: a refusal, an answer that goes round in circles, a call or
JSON that nobody can read, nothing at all. A faulty answer counts as wrong.

The gain is P(cloud right) - P(device right), so a prompt that both get wrong buys no cloud call.
Pure: everything is an argument, and nothing of the answer's text is in a check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from overspill.routing.lateness import answer_length, estimates
from overspill.routing.monitor_features import (
    PROMPT_LIFT,
    dot,
    features,
    is_looping,
    is_refusal,
    may_become_refusal,
)
from overspill.routing.monitor_policy import CHECKS, END, MonitorPolicy
from overspill.routing.policy import RoutingPolicy
from overspill.routing.situation import Situation
from overspill.routing.validity import answer_fault, call_fault
from overspill.types.card import ModelCard
from overspill.types.chat import Request, TokenSignal, ToolCall, Watch
from overspill.types.route import MonitorCheck, Route, RouteDecision, Verdict

UNCERTIFIED_HOLD_TOKENS = 8
"""How much is held back where faults alone speak, and only as long as the text may become one."""


@dataclass(frozen=True, slots=True)
class Progress:
    """An answer so far. ``call_is_open``: a tool call is being written. ``is_whole``: it ended."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    signals: tuple[TokenSignal, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    call_is_open: bool = False
    is_whole: bool = False

    @property
    def tokens(self) -> int:
        """Tokens that were generated."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Monitor:
    """What is known before the first token, for one request.

    ``heads`` are the certified ones, None where there are none. ``p_device_right`` and
    ``p_cloud_right`` are stage 3's; ``prompt_lift`` is its gain beyond the prior's, which heads
    weigh beside the answer's own signals. ``may_leave``: the request may go to the cloud, and did
    not. ``threshold`` is the least gain that is worth it.
    """

    request: Request
    heads: MonitorPolicy | None
    p_device_right: float
    p_cloud_right: float
    knows_cloud: bool
    threshold: float
    may_leave: bool
    prompt_lift: float = 0.0

    @classmethod
    def of(
        cls,
        request: Request,
        decision: RouteDecision,
        policy: RoutingPolicy,
        cards: Mapping[Route, ModelCard],
        now_unix: int,
        route: Route = Route.DEVICE,
        *,
        may_leave: bool,
    ) -> Monitor:
        """The monitor of a request that runs on ``route``; elsewhere than on the device faults
        alone speak. An expired policy's heads are no longer certified."""
        found, cloud = policy.monitor, cards.get(Route.CLOUD)
        certified = (
            found is not None
            and route is Route.DEVICE
            and found.is_certified_for(cards[route])
            and not policy.is_expired(now_unix)
        )
        heads = found if certified else None
        return cls(
            request=request,
            heads=heads,
            p_device_right=decision.p_device_right or 0.0,
            p_cloud_right=decision.p_cloud_right or 0.0,
            knows_cloud=heads is not None and cloud is not None and heads.cloud == cloud.name,
            threshold=policy.threshold if heads is None else heads.threshold,
            may_leave=may_leave,
            prompt_lift=sum(g for name, g in decision.contributions.items() if name != "prior"),
        )

    @property
    def hold_tokens(self) -> int:
        """How many tokens may be held back; none where nothing can come of it."""
        if not self.may_leave:
            return 0
        return UNCERTIFIED_HOLD_TOKENS if self.heads is None else self.heads.hold_tokens

    @property
    def watch(self) -> Watch | None:
        """What the engine has to tell; None where nobody would read it."""
        if self.heads is None:
            return None
        return Watch(self.heads.watched_tokens, self.heads.state_ids)

    def due(self, before: int, now: int, *, ended: bool) -> tuple[str, ...]:
        """The checks that are due when an answer grew from ``before`` tokens to ``now``; -1 before
        its first sign."""
        passed = tuple(str(at) for at in CHECKS if before < at <= now)
        return (*passed, END) if ended else passed

    def look(self, progress: Progress, check: str, *, shown: bool) -> MonitorCheck:
        """What is to be done. ``shown``: something of the answer was seen, so that it stays."""
        fault = self._fault(progress, check)
        if fault is not None:
            return self._faulty(progress, check, fault, shown=shown)
        values = features(progress.signals, None if check == END else int(check))
        weights = {} if self.heads is None else self.heads.heads.get(check, {})
        if self.heads is None or not weights or not values:
            return self._without_heads(progress, check)
        values[PROMPT_LIFT] = self.prompt_lift
        return self._judged(progress, check, dot(weights, values), self.heads, shown=shown)

    def _fault(self, progress: Progress, check: str) -> str | None:
        """The first plain fault, by its code. Nothing is wrong with what is not whole, but for what
        no continuation mends."""
        if is_refusal(progress.text) and not progress.calls:
            return "refusal"
        if progress.tokens >= CHECKS[-2] and is_looping(progress.token_ids):
            return "endless_repetition"
        if check == END:
            return answer_fault(self.request, progress.text, progress.calls)
        faults = (call_fault(call, self.request.tools) for call in progress.calls)
        return next((fault for fault in faults if fault is not None), None)

    def _faulty(self, progress: Progress, check: str, fault: str, *, shown: bool) -> MonitorCheck:
        """P(device right) is 0, so the gain is what the cloud's model is worth."""
        gain = self.p_cloud_right
        leaves = self.may_leave and not shown and gain > self.threshold
        return MonitorCheck(
            check=check,
            tokens=progress.tokens,
            verdict=Verdict.ESCALATE if leaves else Verdict.DOUBT,
            code=fault,
            p_device_right=0.0,
            p_cloud_right=self.p_cloud_right,
            gain=gain,
            threshold=self.threshold,
            contributions={fault: gain},
        )

    def _without_heads(self, progress: Progress, check: str) -> MonitorCheck:
        waits = check != END and (self.heads is not None or may_become_refusal(progress.text))
        return MonitorCheck(
            check=check,
            tokens=progress.tokens,
            verdict=Verdict.GO_ON if waits else Verdict.SHOW,
            code="not_certified" if self.heads is None else "no_head",
            p_device_right=self.p_device_right,
            p_cloud_right=self.p_cloud_right,
            gain=None,
            threshold=self.threshold,
        )

    def _judged(
        self,
        progress: Progress,
        check: str,
        summands: Mapping[str, tuple[float, float]],
        heads: MonitorPolicy,
        *,
        shown: bool,
    ) -> MonitorCheck:
        device = sum(pair[0] for pair in summands.values())
        if self.knows_cloud:
            cloud = sum(pair[1] for pair in summands.values())
            contributions = {name: pair[1] - pair[0] for name, pair in summands.items()}
        else:
            cloud = self.p_cloud_right
            contributions = {"p_cloud_right": cloud}
            contributions |= {name: -pair[0] for name, pair in summands.items()}
        gain = sum(contributions.values())
        verdict, code = self._verdict(gain, device, check, heads, shown=shown)
        return MonitorCheck(
            check=check,
            tokens=progress.tokens,
            verdict=verdict,
            code=code,
            p_device_right=_clip(device),
            p_cloud_right=_clip(cloud),
            gain=gain,
            threshold=self.threshold,
            contributions=contributions,
        )

    def _verdict(
        self, gain: float, device: float, check: str, heads: MonitorPolicy, *, shown: bool
    ) -> tuple[Verdict, str]:
        if gain > self.threshold and self.may_leave and not shown:
            return Verdict.ESCALATE, "gain_over_threshold"
        if check == END and device < heads.unsure:
            return Verdict.DOUBT, "unlikely_right" if gain > self.threshold else "both_unlikely"
        if check == END or gain <= heads.clear:
            return Verdict.SHOW, "gain_within_threshold"
        return Verdict.GO_ON, "not_clear_yet"


def has_time_to_move(request: Request, situation: Situation, hold_tokens: int) -> bool:
    """Whether the cloud could still answer in time after the device was tried for as long as text
    is held back, by measured speeds. A route that nobody has measured counts as in time."""
    if request.deadline_s is None and request.first_token_s is None:
        return True
    known = estimates(request, situation, (Route.DEVICE, Route.CLOUD))
    device, cloud = known.get(Route.DEVICE), known.get(Route.CLOUD)
    if device is None or cloud is None:
        return True
    held = min(1.0, hold_tokens / max(1.0, answer_length(request, situation).tokens))
    tried_s = device.first_s + held * (device.mean_s - device.first_s)
    whole, first = request.deadline_s, request.first_token_s
    return (whole is None or tried_s + cloud.mean_s <= whole) and (
        first is None or tried_s + cloud.first_s <= first
    )


def _clip(probability: float) -> float:
    return min(1.0, max(0.0, probability))
