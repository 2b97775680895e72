"""What happens to a job on a route, at a moment of a trace: pure arithmetic over its world."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from overspill.cloud_gate import MAX_PROBLEM_MEMORY_S, PROBLEM_MEMORY_S
from overspill.evals.traces import Job, Trace
from overspill.types.chat import Finish, FinishReason
from overspill.types.route import Route
from overspill.types.usage import Usage

CONNECT_S = 2.0
"""A road that is gone is noticed so late: what a client has for patience."""
SEALING_S = 0.004


@dataclass(frozen=True, slots=True)
class Outcome:
    """One try on one route, ``beside`` so many others there. Times are seconds from its start;
    ``failed`` gave no answer."""

    route: Route
    first_s: float
    total_s: float
    usage: Usage
    failed: bool = False
    beside: int = 0

    def finish(self, model: str) -> Finish:
        """As an engine tells it."""
        return Finish(FinishReason.STOP, self.usage, model)


def attempt(trace: Trace, job: Job, route: Route, at_s: float, active: int, slow: float) -> Outcome:
    """Answer a job on ``route`` from ``at_s`` on, beside ``active`` others on the device.

    ``slow`` divides the device's speed: an older machine of the same kind.
    """
    return (
        _on_device(trace, job, at_s, active, slow)
        if route is Route.DEVICE
        else _in_cloud(trace, job, at_s)
    )


def _on_device(trace: Trace, job: Job, at_s: float, active: int, slow: float) -> Outcome:
    world = trace.world
    factor = trace.device.at(at_s) / slow / (1 + 0.4 * active) * _jitter(world.jitter, job.noise[0])
    prefill_s = job.prompt_tokens / (world.prefill_device * factor)
    decode_s = (job.answer_tokens - 1) / (world.decode_device * factor)
    usage = Usage(job.prompt_tokens, job.answer_tokens, prefill_s=prefill_s, decode_s=decode_s)
    return Outcome(Route.DEVICE, prefill_s, prefill_s + decode_s, usage, beside=active)


def _in_cloud(trace: Trace, job: Job, at_s: float) -> Outcome:
    world = trace.world
    if trace.outage.at(at_s) != 1.0:
        return Outcome(Route.CLOUD, CONNECT_S, CONNECT_S, Usage(), failed=True)
    factor = _jitter(world.jitter, job.noise[1])
    road_s = SEALING_S + world.rtt_s * trace.road.at(at_s) * _jitter(3 * world.jitter, job.noise[2])
    queue_s = world.queue_s * trace.queue.at(at_s) * _jitter(3 * world.jitter, -job.noise[2])
    prefill_s = job.prompt_tokens / (world.prefill_cloud * factor)
    decode_s = (job.answer_tokens - 1) / (world.decode_cloud * factor)
    first_s = road_s + queue_s + prefill_s
    usage = Usage(
        job.prompt_tokens,
        job.answer_tokens,
        queue_s=queue_s,
        prefill_s=prefill_s,
        decode_s=decode_s,
    )
    if trace.outage.at(at_s + first_s + decode_s) != 1.0:  # the road goes away meanwhile
        return Outcome(Route.CLOUD, first_s, first_s + decode_s + CONNECT_S, usage, failed=True)
    return Outcome(Route.CLOUD, first_s, first_s + decode_s, usage)


def _jitter(sigma: float, draw: float) -> float:
    return math.exp(sigma * draw)


class Gate:
    """A cloud that failed is left alone for a while, as :class:`overspill.cloud_gate.CloudGate`
    does it; every rule is given one."""

    def __init__(self) -> None:
        self._until_s = -math.inf
        self._in_a_row = 0

    def is_open(self, at_s: float) -> bool:
        """Whether the cloud is a candidate."""
        return at_s >= self._until_s

    def fail(self, at_s: float) -> None:
        """It failed."""
        memory_s = min(PROBLEM_MEMORY_S * 2**self._in_a_row, MAX_PROBLEM_MEMORY_S)
        self._in_a_row += 1
        self._until_s = at_s + memory_s

    def work(self) -> None:
        """It answered."""
        self._in_a_row = 0


def with_feasible_deadlines(trace: Trace, room: float = 1.3) -> Trace:
    """The trace with each deadline at least ``room`` times what the better route takes at that
    moment: a request that nobody could answer in time tells no rule from another."""
    jobs = []
    for job in trace.jobs:
        tries = [attempt(trace, job, route, job.at_s, 0, 1.0) for route in job.p_right]
        best_s = min((one.total_s for one in tries if not one.failed), default=0.0)
        deadline_s = max(job.request.deadline_s or 0.0, room * best_s)
        jobs.append(replace(job, request=replace(job.request, deadline_s=deadline_s)))
    return replace(trace, jobs=tuple(jobs))
