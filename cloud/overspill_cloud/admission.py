"""Who may ask, and whether there is room: the checks between the seal and the engine, in order.

A refusal raises; an admitted request holds a slot until its :class:`Admitted` is released.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from overspill.errors import DeviceRejected
from overspill.sealing.signing import RequestSignature, check_clock, check_request
from overspill_cloud.database import Database
from overspill_cloud.limits import AdmissionLimits
from overspill_cloud.quota import Hold, Quotas
from overspill_cloud.room import Demand, Room
from overspill_cloud.store import Device
from overspill_cloud.store.replay import Seen

__all__ = ["Admission", "AdmissionLimits", "Admitted", "Database"]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that passed: its device, the tokens of its quota, and the slot to give back."""

    device: Device
    hold: Hold
    free_slot: Callable[[], None]

    def release(self, used_tokens: int = 0) -> None:
        """Give the slot back, and of the quota what was not used. Only the first time counts."""
        self.hold.settle(used_tokens)
        self.free_slot()


class Admission:
    """Checks 1 to 7 of a signed request. ``clock`` gives Unix seconds."""

    def __init__(
        self, database: Database, clock: Callable[[], float], limits: AdmissionLimits
    ) -> None:
        self._database = database
        self._clock = clock
        self._limits = limits
        self._room = Room(limits)
        self._quotas = Quotas(database, clock, limits.quota_tokens, limits.quota)

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
        self._database.check_ledger()  # what could not be counted is not served
        device = await self.enrolled(signature.device_thumbprint)  # 1, 2
        check_request(signature, device.public_der, th=th, body=body)  # 3. its own signature
        check_clock(signature, int(self._clock() * 1000))  # 4. a fresh one
        asked = demand()
        free_slot = self._room.take(device.thumbprint, asked)  # 5. room
        try:
            hold = await self._quotas.hold(device, asked.kv_tokens)  # 6. quota
        except BaseException:
            free_slot()
            raise
        admitted = Admitted(device, hold, free_slot)
        try:
            await self._check_unseen(signature)  # 7. never before
        except BaseException:
            admitted.release()
            raise
        return admitted

    async def enrolled(self, thumbprint: bytes) -> Device:
        """An enrolled device whose key is in force. Raises ``DeviceRejected``."""
        device = await self._database.device(thumbprint)
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
        seen = Seen(signature.device_thumbprint, signature.request_id, int(self._clock()))
        fresh = await self._database.is_fresh(seen, self._limits.replay_window_s)
        if not fresh:
            raise DeviceRejected(
                "This request was already made.", reason="replay", mend="Sign a new request."
            )
