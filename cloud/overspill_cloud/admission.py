"""Who may ask, and whether there is room: the checks between the seal and the engine, in order.

A refusal raises; an admitted request holds a slot until its :class:`Admitted` is released.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from overspill.errors import DeviceRejected
from overspill.sealing.signing import RequestSignature, check_clock, check_request
from overspill_cloud.limits import AdmissionLimits
from overspill_cloud.room import Demand, Room
from overspill_cloud.store import Device, Store

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that passed: its device, and the slot to give back."""

    device: Device
    release: Callable[[], None]


class Database:
    """The store on a thread of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="overspill-store")

    async def call(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` on the store's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def submit(self, work: Callable[[], None]) -> None:
        """Queue ``work``; nobody waits for it, and :meth:`close` does not lose it."""
        self._thread.submit(work)

    def close(self) -> None:
        """Finish what is queued, then close the store."""
        self._thread.shutdown(wait=True)
        self.store.close()


class Admission:
    """Checks 1 to 6 of a signed request. ``clock`` gives Unix seconds."""

    def __init__(
        self, database: Database, clock: Callable[[], float], limits: AdmissionLimits
    ) -> None:
        self._database = database
        self._clock = clock
        self._limits = limits
        self._room = Room(limits)

    @property
    def room(self) -> Room:
        """What is taken, to be looked at."""
        return self._room

    @property
    def active(self) -> int:
        """Streams that hold a slot."""
        return self._room.streams

    async def admit(
        self,
        signature: RequestSignature,
        *,
        th: bytes,
        body: bytes,
        demand: Callable[[], Demand] = lambda: Demand(""),
    ) -> Admitted:
        """Admit a request. ``demand`` is asked once it is known to be the device's own.

        Raises ``DeviceRejected`` or ``BusyError``, each with a ``reason``.
        """
        device = await self.enrolled(signature.device_thumbprint)  # 1, 2
        check_request(signature, device.public_der, th=th, body=body)  # 3. its own signature
        check_clock(signature, int(self._clock() * 1000))  # 4. a fresh one
        release = self._room.take(device.thumbprint, demand())  # 5. room
        try:
            await self._check_unseen(signature)  # 6. never before
        except BaseException:
            release()
            raise
        return Admitted(device, release)

    async def enrolled(self, thumbprint: bytes) -> Device:
        """An enrolled device whose key is in force. Raises ``DeviceRejected``."""
        store = self._database.store
        device = await self._database.call(lambda: store.device(thumbprint))
        if device is None:  # 1. known
            raise DeviceRejected(
                "This device is not enrolled at this node.",
                reason="not_enrolled",
                mend="Enrol it with a code from the node's operator.",
            )
        if device.revoked_unix is not None:  # 2. in force
            raise DeviceRejected(
                "This device was revoked.", reason="revoked", mend="Make and enrol a new key."
            )
        if device.not_after_unix <= self._clock():
            raise DeviceRejected(
                "This device's key has expired.", reason="expired", mend="Enrol it again."
            )
        return device

    async def _check_unseen(self, signature: RequestSignature) -> None:
        store, now = self._database.store, int(self._clock())
        fresh = await self._database.call(
            lambda: store.record_request(
                signature.device_thumbprint,
                signature.request_id,
                now,
                self._limits.replay_window_s,
            )
        )
        if not fresh:
            raise DeviceRejected(
                "This request was already made.", reason="replay", mend="Sign a new request."
            )
