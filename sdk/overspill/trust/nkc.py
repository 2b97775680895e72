"""NodeKeyConfig (NKC): the exact bytes that a node's evidence binds its keys with.

Layout, big-endian::

    "OVSN" | u8 version = 1 | u8 mode (0 production, 1 dev) | u16 kem | u16 kdf | u16 aead
    u16 length + HPKE public key | u16 length + receipt key (Ed25519, 32)
    u64 not_before | u64 not_after                      Unix seconds
    release_id 32 | models_digest 32 | config_digest 32 | gpu_claims_digest 32
    boot_id 16 | freshness_anchor_sha256 32

Absent digests are 32 zero bytes. There is one encoding of a configuration: decoding is strict.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from overspill.errors import EvidenceRejected, UsageError
from overspill.types.binary import ByteReader, prefixed

PRODUCTION: Final = 0
DEV: Final = 1
MAGIC: Final = b"OVSN"
VERSION: Final = 1
NO_DIGEST: Final = bytes(32)
NO_NONCE: Final = bytes(32)
MAX_LIFETIME_S: Final = 24 * 3600

LABEL: Final = b"overspill/rd/v1"
DEV_LABEL: Final = b"overspill/DEV-rd/v1"

_MAX_KEY_BYTES: Final = 2048
_STEP: Final = "1"
_DIGEST_FIELDS: Final = (
    "release_id",
    "models_digest",
    "config_digest",
    "gpu_claims_digest",
)


@dataclass(frozen=True, slots=True)
class NodeKeyConfig:
    """A node's keys and what they are bound to. Digests have 32 bytes, ``boot_id`` 16."""

    mode: int
    kem_id: int
    kdf_id: int
    aead_id: int
    hpke_public_key: bytes
    receipt_public_key: bytes
    not_before: int
    not_after: int
    models_digest: bytes
    config_digest: bytes
    boot_id: bytes
    release_id: bytes = NO_DIGEST
    gpu_claims_digest: bytes = NO_DIGEST
    freshness_anchor_sha256: bytes = NO_DIGEST

    def encode(self) -> bytes:
        """The bytes that evidence binds. Raises ``UsageError`` for a field that does not fit."""
        self._check()
        return b"".join(
            (
                MAGIC,
                struct.pack(">BBHHH", VERSION, self.mode, self.kem_id, self.kdf_id, self.aead_id),
                prefixed(2, self.hpke_public_key),
                prefixed(2, self.receipt_public_key),
                struct.pack(">QQ", self.not_before, self.not_after),
                *(getattr(self, name) for name in _DIGEST_FIELDS),
                self.boot_id,
                self.freshness_anchor_sha256,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> NodeKeyConfig:
        """Strict decoding. Raises ``EvidenceRejected``: nkc_malformed or nkc_not_canonical."""
        config = _decode(ByteReader(data, _malformed))
        if config.encode() != data:
            raise _rejected("nkc_not_canonical", "its one canonical encoding", "another")
        return config

    @property
    def is_dev(self) -> bool:
        """True for a configuration that says of itself that it is for development only."""
        return self.mode == DEV

    def _check(self) -> None:
        sizes = [(name, 32) for name in (*_DIGEST_FIELDS, "freshness_anchor_sha256")]
        for name, size in (*sizes, ("boot_id", 16), ("receipt_public_key", 32)):
            if len(getattr(self, name)) != size:
                raise UsageError(f"A node key configuration's {name} has {size} bytes.")
        if not 0 < len(self.hpke_public_key) <= _MAX_KEY_BYTES:
            raise UsageError(f"An HPKE public key has 1 to {_MAX_KEY_BYTES} bytes.")


def report_data(nkc_bytes: bytes, nonce: bytes | None, dev: bool) -> bytes:
    """What hardware reports and operator signatures carry: 64 bytes (SHA-512)."""
    return hashlib.sha512(_binding(nkc_bytes, nonce, dev)).digest()


def qualifying_data(nkc_bytes: bytes, nonce: bytes | None, dev: bool) -> bytes:
    """The same binding for a TPM quote's ``extraData``: 32 bytes (SHA-256)."""
    return hashlib.sha256(_binding(nkc_bytes, nonce, dev)).digest()


def _binding(nkc_bytes: bytes, nonce: bytes | None, dev: bool) -> bytes:
    label = DEV_LABEL if dev else LABEL
    return label + b"\x00" + hashlib.sha256(nkc_bytes).digest() + (nonce or NO_NONCE)


def _decode(reader: ByteReader) -> NodeKeyConfig:
    magic, version = reader.take(4, "the magic"), reader.uint(1, "the version")
    if magic != MAGIC or version != VERSION:
        raise _malformed(f"magic {magic!r}, version {version} is not OVSN version {VERSION}")
    mode = reader.uint(1, "the mode")
    if mode not in (PRODUCTION, DEV):
        raise _malformed(f"mode {mode} is neither production nor dev")
    config = NodeKeyConfig(
        mode=mode,
        kem_id=reader.uint(2, "the KEM id"),
        kdf_id=reader.uint(2, "the KDF id"),
        aead_id=reader.uint(2, "the AEAD id"),
        hpke_public_key=reader.prefixed(2, "the HPKE key", max_bytes=_MAX_KEY_BYTES),
        receipt_public_key=reader.prefixed(2, "the receipt key", max_bytes=_MAX_KEY_BYTES),
        not_before=reader.uint(8, "not_before"),
        not_after=reader.uint(8, "not_after"),
        release_id=reader.take(32, "the release id"),
        models_digest=reader.take(32, "the models digest"),
        config_digest=reader.take(32, "the config digest"),
        gpu_claims_digest=reader.take(32, "the GPU claims digest"),
        boot_id=reader.take(16, "the boot id"),
        freshness_anchor_sha256=reader.take(32, "the freshness anchor's digest"),
    )
    if len(config.receipt_public_key) != 32 or not config.hpke_public_key:
        raise _malformed("a key has the wrong length")
    return config


def _malformed(what: str) -> EvidenceRejected:
    return _rejected("nkc_malformed", "a node key configuration", what)


def _rejected(reason: str, expected: str, actual: str) -> EvidenceRejected:
    return EvidenceRejected(reason, _STEP, expected=expected, actual=actual)
