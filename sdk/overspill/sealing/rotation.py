"""Rotation of device keys: the old key names the new one, and both sign.

A rotation is ``"overspill/v1/rotate" || 0x00 || old thumbprint (32) || u64 not_after_unix ||
u64 unix_ms || u16 + new public key (DER)`` and the two signatures (64 each, old then new) over it.
The new key's signature shows that whoever rotates holds it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from overspill.errors import DeviceRejected
from overspill.sealing.signing import SIGNATURE_BYTES, DeviceSigner, verify_signature
from overspill.types.binary import ByteReader, prefixed

_LABEL: Final = b"overspill/v1/rotate\x00"
_MAX_KEY_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Rotation:
    """A verified rotation: the device of ``old_thumbprint`` goes on under ``new_public_der``."""

    old_thumbprint: bytes
    new_public_der: bytes
    not_after_unix: int
    unix_ms: int

    @property
    def new_thumbprint(self) -> bytes:
        """SHA-256 of the new key, 32 bytes."""
        return hashlib.sha256(self.new_public_der).digest()


def sign_rotation(
    old: DeviceSigner, new: DeviceSigner, *, not_after_unix: int, unix_ms: int
) -> bytes:
    """The rotation from ``old`` to ``new``, which expires at ``not_after_unix``."""
    numbers = struct.pack(">QQ", not_after_unix, unix_ms)
    message = _LABEL + old.thumbprint + numbers + prefixed(2, new.public_der)
    return message + old.sign(message) + new.sign(message)


def claimed_device(data: bytes) -> bytes:
    """The thumbprint of the device that a rotation says it is of; nothing is verified yet.

    Raises ``DeviceRejected``.
    """
    return _decode(data[: -2 * SIGNATURE_BYTES]).old_thumbprint


def open_rotation(data: bytes, old_public_der: bytes) -> Rotation:
    """Verifies a rotation against the enrolled key. Raises ``DeviceRejected``, and nothing else.

    Whether the old key is still in force, and the time recent, is the node's to check.
    """
    message, signatures = data[: -2 * SIGNATURE_BYTES], data[-2 * SIGNATURE_BYTES :]
    rotation = _decode(message)
    if rotation.old_thumbprint != hashlib.sha256(old_public_der).digest():
        raise _rejected("it is for another device key")
    verify_signature(old_public_der, signatures[:SIGNATURE_BYTES], message)
    verify_signature(rotation.new_public_der, signatures[SIGNATURE_BYTES:], message)
    return rotation


def _decode(message: bytes) -> Rotation:
    reader = ByteReader(message, _rejected)
    if reader.take(len(_LABEL), "the label") != _LABEL:
        raise _rejected("it has another label")
    old = reader.take(32, "the old thumbprint")
    not_after_unix, unix_ms = reader.uint(8, "not_after"), reader.uint(8, "the time")
    new = reader.prefixed(2, "the new key", max_bytes=_MAX_KEY_BYTES)
    reader.end("the rotation")
    return Rotation(old, new, not_after_unix, unix_ms)


def _rejected(what: str) -> DeviceRejected:
    return DeviceRejected(
        f"The key rotation is refused: {what}.", reason="rotation", mend="Enrol this device again."
    )
