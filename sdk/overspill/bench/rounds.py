"""Rounds: two sides measured in turn, in one run, so that a drifting machine moves both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Measure = Callable[[int], Awaitable[float]]
"""Takes the number of the round (negative while warming up) and returns one sample."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the things compared; ``detail`` says how it was run (a command line, options)."""

    name: str
    unit: str
    measure: Measure
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Samples:
    """What one side gave, in the order of the rounds; the warm-up is not among them."""

    side: str
    unit: str
    values: tuple[float, ...]
    detail: Mapping[str, Any] = field(default_factory=dict)


async def alternate(
    *sides: Side, rounds: int, warmups: int = 1, settle_s: float = 0.3
) -> list[Samples]:
    """Measure each side once a round, the order turned each time: A B, B A, A B ...

    ``settle_s`` passes before each sample: one side's spinning threads come to rest, and who
    chooses threads by the machine's load (this engine does) doesn't take the other side for it.
    """
    taken: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(-warmups, rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            await asyncio.sleep(settle_s)
            sample = await side.measure(number)
            if number >= 0:
                taken[side.name].append(sample)
    return [Samples(s.name, s.unit, tuple(taken[s.name]), s.detail) for s in sides]
