"""Grants: consent to send one request to one third party, signed by the device that asked its user.

A grant is ``"overspill/v1/grant" || 0x00 || request_id (16) || u64 expires_unix || u16 + provider``
and the device's signature (64) over it. It travels in ``RequestSignature.grant`` and is covered by
that signature too. It is used once because its request id is: a node sees each id once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from overspill.errors import DeviceRejected, UsageError
from overspill.sealing.signing import (
    REQUEST_ID_BYTES,
    SIGNATURE_BYTES,
    DeviceSigner,
    verify_signature,
)
from overspill.types.binary import ByteReader, prefixed

_LABEL: Final = b"overspill/v1/grant\x00"
_MAX_PROVIDER_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class GrantClaims:
    """What was consented to: one provider, one request, until ``expires_unix`` (seconds)."""

    provider: str
    request_id: bytes
    expires_unix: int


def sign_grant(signer: DeviceSigner, claims: GrantClaims) -> bytes:
    """The grant, after the user's consent. Raises ``UsageError`` for claims that do not fit."""
    provider = claims.provider.encode("utf-8")
    if len(claims.request_id) != REQUEST_ID_BYTES or not 0 < len(provider) <= _MAX_PROVIDER_BYTES:
        raise UsageError("A grant names one request (16 bytes) and one provider.")
    if not 0 <= claims.expires_unix < 1 << 64:
        raise UsageError("A grant's expiry is an unsigned time.")
    message = _LABEL + claims.request_id + struct.pack(">Q", claims.expires_unix)
    message += prefixed(2, provider)
    return message + signer.sign(message)


def check_grant(
    grant: bytes, public_der: bytes, *, provider: str, request_id: bytes, now_unix: float
) -> GrantClaims:
    """Checks that the device granted exactly this. Raises ``DeviceRejected`` with its ``reason``:
    ``no_grant``, ``grant_malformed``, ``signature``, ``grant_request``, ``grant_provider`` or
    ``grant_expired``."""
    if not grant:
        raise _refused("no_grant", "There is no grant")
    message, signature = grant[:-SIGNATURE_BYTES], grant[-SIGNATURE_BYTES:]
    claims = _decode(message)
    verify_signature(public_der, signature, message)
    if claims.request_id != request_id:
        raise _refused("grant_request", "The grant is for another request")
    if claims.provider != provider:
        raise _refused("grant_provider", f"The grant is for '{claims.provider}'")
    if now_unix >= claims.expires_unix:
        raise _refused("grant_expired", "The grant has expired")
    return claims


def _decode(message: bytes) -> GrantClaims:
    def fail(what: str) -> DeviceRejected:
        return _refused("grant_malformed", f"The grant is malformed ({what})")

    reader = ByteReader(message, fail)
    if reader.take(len(_LABEL), "the label") != _LABEL:
        raise fail("another label")
    request_id = reader.take(REQUEST_ID_BYTES, "the request id")
    expires_unix = reader.uint(8, "the expiry")
    provider = reader.text(2, "the provider", max_bytes=_MAX_PROVIDER_BYTES)
    reader.end("the grant")
    return GrantClaims(provider, request_id, expires_unix)


def _refused(reason: str, what: str) -> DeviceRejected:
    return DeviceRejected(
        f"{what}: nothing goes to a third party.", reason=reason, mend="Ask the user for consent."
    )
