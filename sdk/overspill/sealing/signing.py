"""Who asks: a request signed by an enrolled device, inside the seal where no relay sees it.

Ed25519 (RFC 8032) or ES256 (ECDSA P-256 with SHA-256; signature as ``r || s``, 64 bytes, as in
RFC 7518) over::

    "overspill/v1/req-sig" || 0x00 || th || SHA-256(body) || request_id (16) || u64 unix_ms
      || thumbprint (32) || u32 flags || SHA-256(grant or empty)

``th`` binds the signature to one sealed key of one node; the fields have fixed lengths, so no two
requests share a signed message.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from overspill.errors import DeviceRejected, UsageError

REQUEST_ID_BYTES: Final = 16
SIGNATURE_BYTES: Final = 64
MAX_CLOCK_SKEW_S: Final = 90
_LABEL: Final = b"overspill/v1/req-sig\x00"
_U64: Final = 1 << 64
_U32: Final = 1 << 32


class DeviceSigner(Protocol):
    """A device's key, wherever it lives. ``sign`` gives 64 bytes (ES256 as ``r || s``)."""

    @property
    def public_der(self) -> bytes:
        """The public key as DER SubjectPublicKeyInfo."""

    @property
    def thumbprint(self) -> bytes:
        """SHA-256 of :attr:`public_der`, 32 bytes."""

    def sign(self, data: bytes) -> bytes:
        """A 64-byte signature over ``data``."""


@dataclass(frozen=True, slots=True)
class RequestSignature:
    """The first frame of a request: who asks, when, and the signature. Lengths as above."""

    request_id: bytes
    unix_ms: int
    device_thumbprint: bytes
    flags: int
    grant: bytes
    signature: bytes


def sign_request(
    signer: DeviceSigner,
    *,
    th: bytes,
    body: bytes,
    request_id: bytes,
    unix_ms: int,
    flags: int = 0,
    grant: bytes = b"",
) -> RequestSignature:
    """Signs ``body`` (the request's bytes as sent) for the one stream that ``th`` names.

    Raises ``UsageError`` for a request id that has not 16 bytes or numbers out of range.
    """
    unsigned = RequestSignature(request_id, unix_ms, signer.thumbprint, flags, grant, b"")
    if not _well_formed(unsigned):
        raise UsageError("A request id has 16 bytes; time and flags are unsigned.")
    signature = signer.sign(_message(unsigned, th, body))
    return RequestSignature(request_id, unix_ms, signer.thumbprint, flags, grant, signature)


def check_request(
    signature: RequestSignature, public_der: bytes, *, th: bytes, body: bytes
) -> None:
    """Checks a request against the enrolled key. Raises ``DeviceRejected(reason="signature")``."""
    if not _well_formed(signature):
        raise _rejected("The request's signature is malformed.")
    if hashlib.sha256(public_der).digest() != signature.device_thumbprint:
        raise _rejected("The request names another device key than the one enrolled.")
    verify_signature(public_der, signature.signature, _message(signature, th, body))


def verify_signature(public_der: bytes, signature: bytes, message: bytes) -> None:
    """Verifies a device key's 64-byte signature. Raises ``DeviceRejected(reason="signature")``."""
    if len(signature) != SIGNATURE_BYTES:
        raise _rejected("The signature has not 64 bytes.")
    try:
        key = _loaded(public_der)
        if isinstance(key, Ed25519PublicKey):
            return key.verify(signature, message)
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return key.verify(_der(signature), message, ec.ECDSA(SHA256()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        raise _rejected("The signature does not verify under the device's key.") from error
    raise _rejected("The device's key is neither Ed25519 nor P-256.")


def check_clock(signature: RequestSignature, now_unix_ms: int) -> None:
    """Raises ``DeviceRejected(reason="clock")`` when the two clocks differ by more than 90 s."""
    off_ms = abs(now_unix_ms - signature.unix_ms)
    if off_ms > MAX_CLOCK_SKEW_S * 1000:
        raise DeviceRejected(
            f"The request's time is {off_ms / 1000:.0f} s off; at most {MAX_CLOCK_SKEW_S} s pass.",
            reason="clock",
            mend="Set the device's clock.",
        )


@lru_cache(maxsize=1024)  # reading a key takes as long as a check under it
def _loaded(public_der: bytes) -> PublicKeyTypes:
    return load_der_public_key(public_der)


def _message(signature: RequestSignature, th: bytes, body: bytes) -> bytes:
    return b"".join(
        (
            _LABEL,
            th,
            hashlib.sha256(body).digest(),
            signature.request_id,
            struct.pack(">Q", signature.unix_ms),
            signature.device_thumbprint,
            struct.pack(">I", signature.flags),
            hashlib.sha256(signature.grant).digest(),
        )
    )


def _well_formed(signature: RequestSignature) -> bool:
    return (
        len(signature.request_id) == REQUEST_ID_BYTES
        and len(signature.device_thumbprint) == 32
        and 0 <= signature.unix_ms < _U64
        and 0 <= signature.flags < _U32
    )


def _der(signature: bytes) -> bytes:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    return encode_dss_signature(r, s)


def _rejected(message: str) -> DeviceRejected:
    return DeviceRejected(message, reason="signature", mend="Enrol this device again.")
