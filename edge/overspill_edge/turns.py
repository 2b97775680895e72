"""Fair turns in front of the device's engine: one app's crowd does not keep another app waiting.

The engine serves first come, first served. So no more requests are let in than it can work on,
with one more so that it never waits for us; who waits is taken by app in turn, each app's own in
the order that they came. The interactive lane goes first, and the batch lane's oldest goes first
once it has waited for ``ageing_s`` and nobody overtook by age for as long.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import zip_longest

from overspill.engines.around import EngineAround
from overspill.engines.base import Engine
from overspill.errors import BusyError
from overspill.types.chat import Chunk, Lane, Request


@dataclass(frozen=True, slots=True)
class TurnOptions:
    """``places`` are requests that the engine has at once; ``max_waiting`` holds for each app."""

    places: int = 5
    max_waiting: int = 256
    ageing_s: float = 10.0


@dataclass(eq=False, slots=True)
class _Ticket:
    app: str
    request_id: str
    since_s: float
    called: asyncio.Event = field(default_factory=asyncio.Event)


class _Rotation:
    """Who waits in one lane: the apps in turn, each with its own in order."""

    def __init__(self) -> None:
        self.apps: dict[str, deque[_Ticket]] = {}

    def put(self, ticket: _Ticket) -> None:
        self.apps.setdefault(ticket.app, deque()).append(ticket)

    def take(self) -> _Ticket | None:
        """The next one; its app goes to the end of the round."""
        if not self.apps:
            return None
        app = next(iter(self.apps))
        waiting = self.apps.pop(app)
        ticket = waiting.popleft()
        if waiting:
            self.apps[app] = waiting
        return ticket

    def remove(self, ticket: _Ticket) -> None:
        waiting = self.apps.get(ticket.app)
        if waiting is not None and ticket in waiting:
            waiting.remove(ticket)
            if not waiting:
                del self.apps[ticket.app]

    def oldest(self) -> _Ticket | None:
        heads = (waiting[0] for waiting in self.apps.values())
        return min(heads, key=lambda ticket: ticket.since_s, default=None)

    def in_order(self) -> Iterator[_Ticket]:
        """As they would be taken if nobody came or left."""
        for round_ in zip_longest(*self.apps.values()):
            yield from (ticket for ticket in round_ if ticket is not None)


@dataclass(frozen=True, slots=True)
class Queued:
    """A request that waits for its turn; ``position`` 0 is next, ``waited_s`` in seconds."""

    app: str
    request_id: str
    lane: Lane
    position: int
    waited_s: float


class Turns:
    """Hands out an engine's places; see the module's docstring. ``clock`` is in seconds."""

    def __init__(
        self, options: TurnOptions | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.options = options or TurnOptions()
        self._clock = clock
        self._free = self.options.places
        self._lanes: dict[Lane, _Rotation] = {"interactive": _Rotation(), "batch": _Rotation()}
        self._overtook_s = -math.inf

    @asynccontextmanager
    async def turn(self, app: str, request_id: str, lane: Lane) -> AsyncIterator[None]:
        """A place while the block runs. Raises ``BusyError`` where this app has too many waiting;
        whoever leaves while it waits loses its turn and nobody else's."""
        ticket = _Ticket(app, request_id, self._clock())
        await self._wait(ticket, self._lanes[lane])
        try:
            yield
        finally:
            self._give_back()

    def position(self, request_id: str) -> int | None:
        """How many go first; None for one that does not wait here."""
        places = (queued.position for queued in self.queued() if queued.request_id == request_id)
        return next(places, None)

    def queued(self) -> list[Queued]:
        """Everybody who waits, in the order that they would be called."""
        now = self._clock()
        order = [(lane, ticket) for lane, them in self._lanes.items() for ticket in them.in_order()]
        return [
            Queued(ticket.app, ticket.request_id, lane, index, now - ticket.since_s)
            for index, (lane, ticket) in enumerate(order)
        ]

    async def _wait(self, ticket: _Ticket, lane: _Rotation) -> None:
        if self._free:  # then nobody waits
            self._free -= 1
            return
        if len(lane.apps.get(ticket.app, ())) >= self.options.max_waiting:
            raise BusyError(
                f"{self.options.max_waiting} requests of this app wait already.",
                mend="Ask again when some of them are done.",
            )
        lane.put(ticket)
        try:
            await ticket.called.wait()
        except asyncio.CancelledError:
            if ticket.called.is_set():  # called, and gone before it came
                self._give_back()
            lane.remove(ticket)
            raise

    def _give_back(self) -> None:
        following = self._following()
        if following is None:
            self._free += 1
        else:
            following.called.set()

    def _following(self) -> _Ticket | None:
        now, batch = self._clock(), self._lanes["batch"]
        oldest = batch.oldest()
        aged = oldest is not None and now - oldest.since_s >= self.options.ageing_s
        if oldest is not None and aged and now - self._overtook_s >= self.options.ageing_s:
            self._overtook_s = now
            batch.remove(oldest)
            return oldest
        return self._lanes["interactive"].take() or batch.take()


class FairEngine(EngineAround):
    """An engine that apps take turns at; prompts are counted without waiting."""

    def __init__(self, engine: Engine, turns: Turns) -> None:
        super().__init__(engine)
        self.turns = turns

    def queue_position(self, request_id: str) -> int | None:
        """How many go first: those that wait here, after those that wait in the engine."""
        position = self.turns.position(request_id)
        return self._engine.queue_position(request_id) if position is None else position

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        async with (
            self.turns.turn(request.app, request.id, request.lane),
            aclosing(self._engine.generate(request)) as chunks,
        ):
            async for chunk in chunks:
                yield chunk
