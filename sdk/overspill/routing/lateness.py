"""Stage 4: routes that would miss the deadline are taken away, by measured speed.

The device's speeds are what generations on it really reached, so the same app spills more from a
slower machine. A route whose speed nobody has measured counts as in time. Where every route would
be late, the fastest is kept: an answer that is late beats none.
"""

from __future__ import annotations

from overspill.routing.situation import Situation
from overspill.types.chat import Request
from overspill.types.route import Route, StageReason

STAGE = 4
LATE = "deadline"
EXPECTED_ANSWER_TOKENS = 128
"""Of an answer whose length nobody limits to less."""


def lateness(
    request: Request, situation: Situation, routes: tuple[Route, ...]
) -> tuple[StageReason, ...]:
    """One reason where the request has a deadline (seconds from now), else none."""
    deadline_s = request.deadline_s
    if deadline_s is None or not routes:
        return ()
    known = {route: expected_s(route, request, situation) for route in routes}
    numbers = {f"{route}_s": s for route, s in known.items() if s is not None}
    late = {route: s for route, s in known.items() if s is not None and s > deadline_s}
    if len(late) < len(routes):
        code = LATE if late else "in_time"
    else:
        code = "all_late"
        del late[min(late, key=lambda route: (late[route], routes.index(route)))]
    return (StageReason(STAGE, code, tuple(late), {**numbers, "deadline_s": deadline_s}),)


def expected_s(route: Route, request: Request, situation: Situation) -> float | None:
    """Seconds until the whole answer is there; None where nobody has measured."""
    if route is not Route.DEVICE:
        return None
    prefill, decode = (
        situation.device.prefill_tokens_per_s,
        situation.device.decode_tokens_per_s,
    )
    prompt = situation.tokens_for(route)
    if not prefill or not decode or prompt is None:
        return None
    answer = min(request.max_tokens or EXPECTED_ANSWER_TOKENS, EXPECTED_ANSWER_TOKENS)
    return prompt / prefill + answer / decode
