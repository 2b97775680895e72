"""What a chain of calls has left."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Left:
    """What this call and those that follow may take together; None is no limit.

    ``calls`` is how many are still expected, with this one. ``cost`` is in currency units and
    ``tokens`` counts prompts and answers: more than that this call never takes. ``seconds`` end
    for all of them at the same moment, which is also the call's own deadline.
    """

    seconds: float | None = None
    cost: float | None = None
    tokens: int | None = None
    calls: int = 1
