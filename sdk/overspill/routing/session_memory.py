"""What one conversation teaches the next decision: fast attack, slow release.

Routing on the last message alone sends "commit it" after a hard turn to the small model. So
the gain of a hard turn is held, and fades by ``policy.release`` with each turn; personal data
taints the session for good; a tool chain stays where it began, unless the monitor moves it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

from overspill.types.chat import Privacy
from overspill.types.route import MonitorCheck, Route, RouteReason


@dataclass(frozen=True, slots=True)
class SessionMemory:
    """``route`` and ``reason`` of the last turn (None before the first), and what is held.

    ``held_gain`` is the last decision's gain with its memory; ``taint`` the floor that earlier
    findings demand.
    """

    turns: int = 0
    route: Route | None = None
    reason: RouteReason | None = None
    held_gain: float = 0.0
    taint: Privacy = Privacy.ANY


def with_memory(gain: float, held_gain: float, release: float) -> float:
    """This turn's gain, or what is left of an earlier turn's: whichever is more."""
    return max(gain, held_gain * release)


def after_escalation(memory: SessionMemory, check: MonitorCheck) -> SessionMemory:
    """The memory once the monitor sent a turn away: what it saw counts at once, as what stage 3
    predicts does, and a tool chain goes on where the turn was answered."""
    return replace(memory, held_gain=max(memory.held_gain, min(1.0, check.gain or 0.0)))


def replay(gains: list[float], release: float) -> float:
    """The gain held after a series of turns, for a conversation that comes without memory."""
    return reduce(lambda held, gain: with_memory(gain, held, release), gains, 0.0)
