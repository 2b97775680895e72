"""How devices get in: with a one-time code, or by a rotation from a key that is enrolled.

Either way the new key signs the enrolment, so that nobody enrols a key that he does not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from overspill.errors import DeviceRejected
from overspill.sealing.rotation import claimed_device, open_rotation
from overspill.sealing.signing import MAX_CLOCK_SKEW_S, check_clock, check_request
from overspill.wire import plaintext
from overspill_cloud.admission import Admission, Database
from overspill_cloud.sealed_stream import SealedRequest
from overspill_cloud.store import Device

DEVICE_LIFETIME_S: Final = 365 * 86_400
OVERLAP_S: Final = 24 * 3600
"""The old key holds for so long after a rotation: programs that run have it in memory."""
_MAX_LABEL: Final = 64


class Enrolment:
    """Checks enrolments and keeps the devices. ``clock`` gives Unix seconds."""

    def __init__(
        self, database: Database, admission: Admission, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._admission = admission
        self._clock = clock

    async def enrol(self, sealed: SealedRequest, *, th: bytes) -> plaintext.Enrolled:
        """Enrol the device that signed this. Raises ``DeviceRejected``, ``InvalidRequest``."""
        asked = plaintext.enrolment_from_bytes(sealed.body)
        check_request(sealed.signature, asked.public_key, th=th, body=sealed.body)
        now = int(self._clock())
        check_clock(sealed.signature, now * 1000)
        longest = now + DEVICE_LIFETIME_S
        device = Device(
            thumbprint=sealed.signature.device_thumbprint,
            public_der=asked.public_key,
            label=asked.label[:_MAX_LABEL],
            enrolled_unix=now,
            not_after_unix=min(asked.not_after_unix or longest, longest),
        )
        if asked.rotation:
            await self._rotate(asked, device, now)
        else:
            store = self._database.store
            await self._database.call(lambda: store.enrol(device, asked.code, now))
        return plaintext.Enrolled(device.thumbprint, device.not_after_unix)

    async def _rotate(self, asked: plaintext.Enrolment, device: Device, now: int) -> None:
        old = await self._admission.enrolled(claimed_device(asked.rotation))
        rotation = open_rotation(asked.rotation, old.public_der)
        if rotation.new_thumbprint != device.thumbprint:
            raise _refused("it is to another key")
        if rotation.new_thumbprint == old.thumbprint:
            raise _refused("it is to the same key")
        if rotation.not_after_unix != asked.not_after_unix:
            raise _refused("it says another end of the new key")
        if abs(rotation.unix_ms - now * 1000) > MAX_CLOCK_SKEW_S * 1000:
            raise _refused("it is not of this moment")
        following = replace(device, label=old.label)
        store = self._database.store
        await self._database.call(
            lambda: store.rotate(old.thumbprint, following, now, now + OVERLAP_S)
        )


def _refused(why: str) -> DeviceRejected:
    return DeviceRejected(
        f"The key rotation is refused: {why}.", reason="rotation", mend="Rotate again."
    )
