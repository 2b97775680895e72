"""Stage 4, the hedge: when a second route may be started because the first one is late.

Only between the device and a cloud that stages 1 and 2 left, so never against a floor; never to
a third party, whose grant is for one use; never where the caller chose, or inside a tool chain. And
only while the share of requests that were hedged is under the policy's cap.
"""

from __future__ import annotations

from overspill.routing.lateness import P95_SIGMAS, Estimates
from overspill.routing.situation import Situation
from overspill.types.chat import Request
from overspill.types.route import Hedge, Route

LEAST_WAIT_S = 0.05
"""A first route is always given this much of a start."""


def hedge(
    chosen: Route,
    routes: tuple[Route, ...],
    request: Request,
    situation: Situation,
    known: Estimates,
    cap: float,
) -> Hedge | None:
    """When to start the other route, or None.

    With a deadline as late as it can be: when the other would only just make it. Never before the
    first is later than 95% of its first tokens were.
    """
    other = Route.CLOUD if chosen is Route.DEVICE else Route.DEVICE
    if situation.hedged_share >= cap or situation.pinned is not None:
        return None
    if chosen not in (Route.DEVICE, Route.CLOUD) or other not in routes or chosen not in known:
        return None
    after_s = max(LEAST_WAIT_S, known[chosen].first_p95_s)
    if request.deadline_s is not None and other in known:
        needs_s = known[other].mean_s + P95_SIGMAS * known[other].sd_s
        after_s = max(after_s, request.deadline_s - needs_s)
    return None if _is_pointless(after_s, other, request, known) else Hedge(other, after_s)


def _is_pointless(after_s: float, other: Route, request: Request, known: Estimates) -> bool:
    """Whether even the second route's answer would be late."""
    if request.deadline_s is None or other not in known:
        return False
    return after_s + known[other].mean_s > request.deadline_s
