"""Stage 4, time: how long a route would take, how likely it is late, and what is taken away.

Speeds are what generations on a route really reached, so the same app spills more from a slower
machine. A route that nobody has measured counts as in time. A route that is expected to miss the
deadline is taken away; where every route would, the fastest is kept: an answer that is late beats
none. What is in time on average but may well be late is weighed in :mod:`overspill.routing.cost`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from overspill.routing.situation import AnswerLength, Situation
from overspill.types.chat import Request
from overspill.types.route import DeviceProfile, NetworkState, Route, StageReason

STAGE = 4
LATE = "deadline"
EXPECTED_ANSWER_TOKENS = 128
"""Of an answer whose length nobody limits to less, and of whose kind there is no history."""
P95_SIGMAS = 1.645
"""A normal distribution's 95th percentile lies so many standard deviations over its mean."""
_UNKNOWN_ANSWER = AnswerLength(EXPECTED_ANSWER_TOKENS)
_SQRT_2 = math.sqrt(2.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds until the whole answer is there: mean, standard deviation, and to the first token."""

    mean_s: float
    sd_s: float = 0.0
    first_s: float = 0.0
    first_sd_s: float = 0.0

    @property
    def first_p95_s(self) -> float:
        """Seconds that 95% of first tokens take at most."""
        return self.first_s + P95_SIGMAS * self.first_sd_s

    def p_over(self, limit_s: float) -> float:
        """The probability that it takes longer than ``limit_s`` seconds."""
        if self.sd_s <= 0.0:
            return float(self.mean_s > limit_s)
        return 0.5 * math.erfc((limit_s - self.mean_s) / (self.sd_s * _SQRT_2))


Estimates = dict[Route, Estimate]


def estimates(request: Request, situation: Situation, routes: tuple[Route, ...]) -> Estimates:
    """An estimate for each route that was measured."""
    found: Estimates = {}
    if not situation.prompt_tokens:
        return found
    answer = answer_length(request, situation)
    for route in routes:
        estimate = _estimate(route, answer, situation)
        if estimate is not None:
            found[route] = estimate
    return found


def lateness(
    request: Request,
    known: Estimates,
    routes: tuple[Route, ...],
) -> tuple[StageReason, ...]:
    """One reason where the request has a deadline (seconds from now), else none."""
    deadline_s = request.deadline_s
    if deadline_s is None or not routes:
        return ()
    numbers = {f"{route}_s": estimate.mean_s for route, estimate in known.items()}
    late = {route: e.mean_s for route, e in known.items() if e.mean_s > deadline_s}
    if len(late) < len(routes):
        code = LATE if late else "in_time"
    else:
        code = "all_late"
        del late[min(late, key=lambda route: (late[route], routes.index(route)))]
    return (StageReason(STAGE, code, tuple(late), {**numbers, "deadline_s": deadline_s}),)


def expected_s(route: Route, request: Request, situation: Situation) -> float | None:
    """Seconds until the whole answer is there; None where nobody has measured."""
    estimate = _estimate(route, answer_length(request, situation), situation)
    return None if estimate is None else estimate.mean_s


def answer_length(request: Request, situation: Situation) -> AnswerLength:
    """The answer's expected tokens, from answers of its kind, within what the request allows."""
    known = situation.answer or _UNKNOWN_ANSWER
    limit = request.max_tokens
    if limit is None or limit >= known.tokens + P95_SIGMAS * known.sd_tokens:
        return known
    mean = min(limit, known.tokens)
    return AnswerLength(mean, min(known.sd_tokens, (limit - mean) / P95_SIGMAS))


def _estimate(route: Route, answer: AnswerLength, situation: Situation) -> Estimate | None:
    pace = _pace(route, situation)
    prompt = situation.tokens_for(route)
    if pace is None or prompt is None:
        return None
    prefill, decode = pace.prefill_tokens_per_s, pace.decode_tokens_per_s
    if not prefill or not decode:
        return None
    first_s, first_var = prompt / prefill, 0.0
    slow_prefill, slow_decode = pace.prefill_slow_tokens_per_s, pace.decode_slow_tokens_per_s
    if slow_prefill and slow_prefill < prefill:
        first_var = ((prompt / slow_prefill - first_s) / P95_SIGMAS) ** 2
    if isinstance(pace, NetworkState):
        first_s += (pace.rtt_s or 0.0) + pace.queue_s
        first_var += _road_variance(pace)
    decode_s = answer.tokens / decode
    variance = first_var + (answer.sd_tokens / decode) ** 2
    if slow_decode and slow_decode < decode:
        variance += ((answer.tokens / slow_decode - decode_s) / P95_SIGMAS) ** 2
    return Estimate(first_s + decode_s, math.sqrt(variance), first_s, math.sqrt(first_var))


def _pace(route: Route, situation: Situation) -> DeviceProfile | NetworkState | None:
    """What was measured of a route; a third party's API tells nobody how fast it is."""
    if route is Route.DEVICE:
        return situation.device
    return situation.network if route is Route.CLOUD else None


def _road_variance(network: NetworkState) -> float:
    rtt = max(0.0, (network.rtt_slow_s or 0.0) - (network.rtt_s or 0.0)) / P95_SIGMAS
    queue = max(0.0, network.queue_slow_s - network.queue_s) / P95_SIGMAS
    return rtt * rtt + queue * queue
