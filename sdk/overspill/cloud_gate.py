"""Whether the cloud can be considered now: its verified evidence, or why not.

A problem is remembered, for longer each time, so that a cloud which is down does not cost every
request a connection attempt; and a request that the device could answer waits a moment only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio

from overspill.errors import ConnectFailed, OverspillError
from overspill.pace import CloudMeter
from overspill.remote import RemoteEngine
from overspill.types.card import ModelCard
from overspill.types.evidence import AttestationResult

PROBLEM_MEMORY_S = 5.0
"""A first problem is remembered for so long; each further one in a row for twice as long."""
MAX_PROBLEM_MEMORY_S = 8.0
"""A cloud that is back is found within ten seconds."""


@dataclass(frozen=True, slots=True)
class CloudState:
    """``result`` and ``cards`` of a verified cloud, or the ``problem`` that kept it out."""

    result: AttestationResult | None = None
    cards: tuple[ModelCard, ...] = ()
    problem: OverspillError | None = None


@dataclass(frozen=True, slots=True)
class KnownCloud:
    """What is known of a cloud without asking it: the evidence that was verified last and when
    (Unix seconds), and what keeps the cloud out just now."""

    address: str
    result: AttestationResult | None = None
    checked_unix: int | None = None
    problem: OverspillError | None = None


class CloudGate:
    """Asks a remote engine for verified evidence, and remembers a failure for a moment."""

    def __init__(self, engine: RemoteEngine | None) -> None:
        self.engine = engine
        self.known_cards: tuple[ModelCard, ...] = ()
        """The cards that were verified last; asking for them contacts nobody."""
        self._result: AttestationResult | None = None
        self._checked_unix: int | None = None
        self.meter = CloudMeter()
        """What its answers took."""
        self._problem: OverspillError | None = None
        self._problem_until = 0.0
        self._problems_in_a_row = 0

    async def state(self, patience_s: float | None = None) -> CloudState:
        """The cloud's state; contacts it only when nothing is known or evidence ran out.

        After ``patience_s`` seconds without an answer the cloud counts as out of reach; None
        waits as long as the transport does.
        """
        if self.engine is None:
            return CloudState()
        if self._problem is not None and time.monotonic() < self._problem_until:
            return CloudState(problem=self._problem)
        try:
            with anyio.fail_after(patience_s):
                result = await self.engine.attest()
                self.known_cards = await self.engine.cards()
        except TimeoutError:
            return self._failed(
                ConnectFailed(f"{self.engine.address} did not answer within {patience_s:g} s.")
            )
        except OverspillError as error:
            return self._failed(error)
        if result is not self._result:
            self._result, self._checked_unix = result, int(time.time())
        self._problem, self._problems_in_a_row = None, 0
        return CloudState(result, self.known_cards)

    def known(self) -> KnownCloud | None:
        """What is known already; None without a cloud. Nobody is contacted."""
        if self.engine is None:
            return None
        address = ", ".join(self.engine.addresses)
        return KnownCloud(address, self._result, self._checked_unix, self._problem)

    def _failed(self, problem: OverspillError) -> CloudState:
        self.remember(problem)
        return CloudState(problem=problem)

    def remember(self, problem: OverspillError) -> None:
        """Keep the cloud out for a moment because of ``problem``."""
        memory_s = min(PROBLEM_MEMORY_S * 2**self._problems_in_a_row, MAX_PROBLEM_MEMORY_S)
        self._problems_in_a_row += 1
        self.meter.observe_failure(time.monotonic())
        self._problem = problem
        self._problem_until = time.monotonic() + memory_s
