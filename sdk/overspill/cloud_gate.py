"""Whether the cloud can be considered now: its verified evidence, or why not.

A problem is remembered for a few seconds, so that a cloud which is down costs one connection
attempt and not one for every request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from overspill.errors import OverspillError
from overspill.remote import RemoteEngine
from overspill.types.card import ModelCard
from overspill.types.evidence import AttestationResult

PROBLEM_MEMORY_S = 5.0


@dataclass(frozen=True, slots=True)
class CloudState:
    """``result`` and ``cards`` of a verified cloud, or the ``problem`` that kept it out."""

    result: AttestationResult | None = None
    cards: tuple[ModelCard, ...] = ()
    problem: OverspillError | None = None


class CloudGate:
    """Asks a remote engine for verified evidence, and remembers a failure for a moment."""

    def __init__(self, engine: RemoteEngine | None) -> None:
        self.engine = engine
        self._problem: OverspillError | None = None
        self._problem_until = 0.0

    async def state(self) -> CloudState:
        """The cloud's state; contacts it only when nothing is known or evidence ran out."""
        if self.engine is None:
            return CloudState()
        if self._problem is not None and time.monotonic() < self._problem_until:
            return CloudState(problem=self._problem)
        try:
            result = await self.engine.attest()
            cards = await self.engine.cards()
        except OverspillError as error:
            self.remember(error)
            return CloudState(problem=error)
        self._problem = None
        return CloudState(result, cards)

    def remember(self, problem: OverspillError) -> None:
        """Keep the cloud out for a moment because of ``problem``."""
        self._problem = problem
        self._problem_until = time.monotonic() + PROBLEM_MEMORY_S
