"""Requests that are still arriving: nobody is known yet, and each may hold 16 MiB."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from overspill.errors import BusyError, InvalidRequest, OverspillError
from overspill_cloud.streams import StreamLimits


@dataclass(eq=False, slots=True)
class Place:
    """One arriving request's. ``begun_s`` is on the owner's clock."""

    begun_s: float
    timeout_s: float
    _reading: asyncio.Timeout | None = None
    _refusal: OverspillError | None = None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """While the request is read. Raises ``InvalidRequest`` when it takes too long, or what it
        was refused with."""
        self._reading = asyncio.timeout(0 if self._refusal else self.timeout_s)
        try:
            async with self._reading:
                yield
        except TimeoutError:
            late = InvalidRequest("The request did not arrive in time.")
            raise self._refusal or late from None
        finally:
            self._reading = None

    def give_way(self) -> bool:
        """End the reading now; False when nothing is being read."""
        if self._reading is None or self._reading.expired():
            return False
        self._reading.reschedule(asyncio.get_running_loop().time())
        return True

    def refuse(self, why: OverspillError) -> None:
        """End the reading with ``why``, now or as soon as it begins."""
        self._refusal = why
        self.give_way()


class Arrivals:
    """Places for requests on their way. A request that dawdles gives way to a newer one, so that
    streams which never send keep nobody out. ``clock`` gives seconds."""

    def __init__(self, limits: StreamLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._places: dict[Place, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Hold a place. Raises ``BusyError`` when all are taken by requests that just began."""
        if len(self._places) >= self._limits.max_arriving:
            self._make_room()
        place = Place(self._clock(), self._limits.request_timeout_s)
        self._places[place] = None
        self._empty.clear()
        try:
            yield place
        finally:
            self._places.pop(place, None)
            if not self._places:
                self._empty.set()

    async def drain(self, timeout_s: float, why: OverspillError) -> None:
        """Wait until all have arrived; after ``timeout_s`` refuse the rest with ``why``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            for place in tuple(self._places):
                place.refuse(why)

    def _make_room(self) -> None:
        late = self._clock() - self._limits.arriving_grace_s
        for place in self._places:
            if place.begun_s > late:
                break
            if place.give_way():
                del self._places[place]
                return
        raise BusyError(
            "Too many requests are arriving.",
            mend="Try again later.",
            retry_after_s=self._limits.arriving_grace_s,
            reason="QUEUE_FULL",
        )
