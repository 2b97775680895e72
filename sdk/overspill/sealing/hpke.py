"""A fresh secret, sealed to a node's key by HPKE (RFC 9180) in base mode, one-shot.

KEMs: MLKEM768-X25519 ("X-Wing", draft-ietf-hpke-pq) and DHKEM(X25519); KDF HKDF-SHA256; AEAD
ChaCha20-Poly1305. The only door to a node's public key is an
:class:`~overspill.types.evidence.AttestationResult`: nothing can be sealed to a key that no
verifier accepted.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from overspill.errors import EvidenceRejected, StreamCorrupt, UsageError

if TYPE_CHECKING:
    from overspill.types.evidence import AttestationResult

KEM_X25519: Final = 0x0020
KEM_MLKEM768_X25519: Final = 0x647A
KDF_HKDF_SHA256: Final = 1
AEAD_CHACHA20_POLY1305: Final = 3
SECRET_BYTES: Final = 32

_INFO_LABEL: Final = b"overspill/v1/seal\x00"
_MLKEM768_PUBLIC_BYTES: Final = 1184
_X25519_PUBLIC_BYTES: Final = 32

_SUITES: Final = {
    KEM_X25519: Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305),
    KEM_MLKEM768_X25519: Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305),
}
_ENC_BYTES: Final = {KEM_X25519: 32, KEM_MLKEM768_X25519: 1120}

SEALED_KEY_BYTES: Final = {kem: enc + SECRET_BYTES + 16 for kem, enc in _ENC_BYTES.items()}
"""Length of a sealed key by KEM: encapsulation, secret, tag."""

PUBLIC_KEY_BYTES: Final = {
    KEM_X25519: _X25519_PUBLIC_BYTES,
    KEM_MLKEM768_X25519: _MLKEM768_PUBLIC_BYTES + _X25519_PUBLIC_BYTES,
}
"""Length of a node's public key by KEM."""


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A request's secret (32 bytes, stays here) and the same secret sealed to the node."""

    sealed_key: bytes
    secret: bytes = field(repr=False)


def seal_secret(result: AttestationResult) -> SealedSecret:
    """Seals 32 fresh random bytes to the key that the verifier accepted.

    ``info`` binds them to the exact NodeKeyConfig, so a sealed key moved to another node's
    configuration opens nowhere. Raises ``UsageError`` for a suite that this build cannot seal to,
    ``EvidenceRejected("hpke_key_invalid")`` for a key that is no key of its KEM.
    """
    if (result.kdf_id, result.aead_id) != (KDF_HKDF_SHA256, AEAD_CHACHA20_POLY1305):
        raise UsageError(
            f"HPKE suite kdf {result.kdf_id:#06x}, aead {result.aead_id:#06x} is not supported.",
            mend="Use HKDF-SHA256 with ChaCha20-Poly1305.",
        )
    secret = secrets.token_bytes(SECRET_BYTES)
    suite = _suite(result.kem_id)
    try:
        public_key = _public_key(result.kem_id, result.hpke_public_key)
        sealed_key = suite.encrypt(secret, public_key, info=_INFO_LABEL + result.nkc_sha256)
    except (ValueError, UnsupportedAlgorithm) as error:  # off the curve, of small order, cut
        raise EvidenceRejected(
            "hpke_key_invalid",
            "seal",
            expected=f"a public key of KEM {result.kem_id:#06x}",
            actual=f"{len(result.hpke_public_key)} bytes that nothing can be sealed to",
        ) from error
    return SealedSecret(sealed_key, secret)


class NodeKeyPair:
    """A node's HPKE key: made at start, kept in memory, never stored or copied out."""

    def __init__(
        self, kem_id: int, private_key: X25519PrivateKey | MLKEM768X25519PrivateKey, public: bytes
    ) -> None:
        self.kem_id = kem_id
        self.public_bytes = public
        self._private_key = private_key

    @classmethod
    def generate(cls, kem_id: int = KEM_MLKEM768_X25519) -> NodeKeyPair:
        """A new pair. Raises ``UsageError`` for a KEM outside this module's two."""
        _suite(kem_id)
        x25519 = X25519PrivateKey.generate()
        if kem_id == KEM_X25519:
            return cls(kem_id, x25519, x25519.public_key().public_bytes_raw())
        return cls._hybrid(MLKEM768PrivateKey.generate(), x25519)

    @classmethod
    def _hybrid(cls, mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey) -> NodeKeyPair:
        public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        return cls(KEM_MLKEM768_X25519, MLKEM768X25519PrivateKey(mlkem, x25519), public)

    def open(self, sealed_key: bytes, nkc_sha256: bytes) -> bytes:
        """The 32-byte secret. Raises ``StreamCorrupt`` when this key and NKC do not open it."""
        if len(sealed_key) != SEALED_KEY_BYTES[self.kem_id]:
            raise StreamCorrupt(
                f"The sealed key has {len(sealed_key)} bytes, "
                f"this KEM makes {SEALED_KEY_BYTES[self.kem_id]}."
            )
        try:
            secret = _suite(self.kem_id).decrypt(
                sealed_key, self._private_key, info=_INFO_LABEL + nkc_sha256
            )
        except (InvalidTag, ValueError) as error:
            raise StreamCorrupt("The sealed key does not open under this node's key.") from error
        return secret

    def __reduce__(self) -> str | tuple[object, ...]:
        raise UsageError("A node's private key is never serialised.")


def _suite(kem_id: int) -> Suite:
    if kem_id not in _SUITES:
        known = ", ".join(f"{kem:#06x}" for kem in _SUITES)
        raise UsageError(f"HPKE KEM {kem_id:#06x} is not supported.", mend=f"Use one of {known}.")
    return _SUITES[kem_id]


@lru_cache(maxsize=8)  # reading ML-KEM's matrix takes a sixth of sealing; a node's key lasts hours
def _public_key(kem_id: int, public: bytes) -> X25519PublicKey | MLKEM768X25519PublicKey:
    """The key's parts. Raises ``ValueError`` for bytes that are no key of this KEM."""
    x25519 = X25519PublicKey.from_public_bytes(public[-_X25519_PUBLIC_BYTES:])
    if len(public) != PUBLIC_KEY_BYTES[kem_id]:
        raise ValueError("wrong length")
    if kem_id == KEM_X25519:
        return x25519
    mlkem = MLKEM768PublicKey.from_public_bytes(public[:_MLKEM768_PUBLIC_BYTES])
    return MLKEM768X25519PublicKey(mlkem, x25519)
