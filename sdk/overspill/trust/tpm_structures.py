"""Strict parsers of the TPM 2.0 structures in a quote (TCG TPM 2.0 Library, Part 2: Structures).

Every length is checked against what is left and every structure has to be used up: what these
functions accept, they read in full. They raise ``EvidenceRejected`` and nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from overspill.errors import EvidenceRejected
from overspill.trust.base import rejected
from overspill.types.binary import ByteReader

GENERATED: Final = 0xFF544347  # TPM_GENERATED_VALUE, "\xffTCG"
ST_ATTEST_QUOTE: Final = 0x8018
ALG_SHA256: Final = 0x000B
ALG_NULL: Final = 0x0010
ALG_ECDSA: Final = 0x0018
ALG_ECC: Final = 0x0023
ECC_NIST_P256: Final = 0x0003

# TPMA_OBJECT
FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18

_MAX_SIZED: Final = 1024
_MAX_SELECTIONS: Final = 16
_COORDINATE_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """TPMS_PCR_SELECTION: a bank's hash algorithm and the indexes that are selected in it."""

    hash_alg: int
    pcrs: frozenset[int]


@dataclass(frozen=True, slots=True)
class Quote:
    """TPMS_ATTEST of type quote. ``qualifying_data`` is what the quote was made over."""

    qualifying_data: bytes
    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes
    reset_count: int
    restart_count: int


@dataclass(frozen=True, slots=True)
class EccKey:
    """TPMT_PUBLIC of a P-256 signing key. ``name`` is nameAlg || SHA-256 of the structure."""

    attributes: int
    x: int
    y: int
    name: bytes


@dataclass(frozen=True, slots=True)
class EcdsaSignature:
    """TPMT_SIGNATURE of scheme ECDSA with SHA-256."""

    r: int
    s: int


def parse_quote(data: bytes) -> Quote:
    """TPMS_ATTEST. Reasons: ``tpm_magic``, ``tpm_type``, ``tpm_malformed``."""
    reader = ByteReader(data, _malformed)
    magic, kind = reader.uint(4, "the magic"), reader.uint(2, "the type")
    if magic != GENERATED:  # made outside a TPM: a restricted key signs no such thing
        raise rejected(
            "tpm_magic", "2", expected=f"TPM_GENERATED {GENERATED:#x}", actual=f"{magic:#x}"
        )
    if kind != ST_ATTEST_QUOTE:
        raise rejected("tpm_type", "2", expected="a quote (0x8018)", actual=f"{kind:#06x}")
    _sized(reader, "the qualified signer")
    qualifying_data = _sized(reader, "the extra data")
    reader.take(8, "the clock")
    reset_count = reader.uint(4, "the reset count")
    restart_count = reader.uint(4, "the restart count")
    if reader.uint(1, "the safe flag") > 1:
        raise _malformed("a flag that is neither 0 nor 1")
    reader.take(8, "the firmware version")
    selections = _selections(reader)
    pcr_digest = _sized(reader, "the PCR digest")
    reader.end("the quote")
    return Quote(qualifying_data, selections, pcr_digest, reset_count, restart_count)


def parse_ecc_key(data: bytes) -> EccKey:
    """TPMT_PUBLIC of an unkeyed ECDSA-SHA256 key on P-256. Reasons: ``tpm_malformed``,
    ``ak_algorithm``."""
    reader = ByteReader(data, _malformed)
    kind, name_alg = reader.uint(2, "the key type"), reader.uint(2, "the name algorithm")
    attributes = reader.uint(4, "the attributes")
    _sized(reader, "the policy")
    symmetric, scheme = reader.uint(2, "the symmetric scheme"), reader.uint(2, "the scheme")
    if (kind, name_alg, symmetric, scheme) != (ALG_ECC, ALG_SHA256, ALG_NULL, ALG_ECDSA):
        raise _algorithm(f"type {kind:#06x}, name {name_alg:#06x}, scheme {scheme:#06x}")
    hash_alg, curve = reader.uint(2, "the scheme's hash"), reader.uint(2, "the curve")
    kdf = reader.uint(2, "the KDF")
    if (hash_alg, curve, kdf) != (ALG_SHA256, ECC_NIST_P256, ALG_NULL):
        raise _algorithm(f"hash {hash_alg:#06x}, curve {curve:#06x}")
    x, y = _number(reader, "x"), _number(reader, "y")
    reader.end("the attestation key")
    name = ALG_SHA256.to_bytes(2, "big") + hashlib.sha256(data).digest()
    return EccKey(attributes, x, y, name)


def parse_signature(data: bytes) -> EcdsaSignature:
    """TPMT_SIGNATURE. Reasons: ``tpm_malformed``, ``signature_algorithm``."""
    reader = ByteReader(data, _malformed)
    scheme, hash_alg = reader.uint(2, "the scheme"), reader.uint(2, "the hash")
    if (scheme, hash_alg) != (ALG_ECDSA, ALG_SHA256):
        raise rejected(
            "signature_algorithm",
            "2",
            expected="ECDSA with SHA-256",
            actual=f"scheme {scheme:#06x}, hash {hash_alg:#06x}",
        )
    signature = EcdsaSignature(_number(reader, "r"), _number(reader, "s"))
    reader.end("the signature")
    return signature


def _selections(reader: ByteReader) -> tuple[PcrSelection, ...]:
    count = reader.uint(4, "the number of PCR selections")
    if count > _MAX_SELECTIONS:
        raise _malformed(f"{count} PCR selections")
    return tuple(_selection(reader) for _ in range(count))


def _selection(reader: ByteReader) -> PcrSelection:
    hash_alg = reader.uint(2, "a bank")
    bitmap = reader.prefixed(1, "a PCR bitmap", max_bytes=4)
    pcrs = {8 * n + bit for n, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1}
    return PcrSelection(hash_alg, frozenset(pcrs))


def _sized(reader: ByteReader, what: str) -> bytes:
    return reader.prefixed(2, what, max_bytes=_MAX_SIZED)


def _number(reader: ByteReader, what: str) -> int:
    """A P-256 number in its full length: without leading zeros there would be a second form."""
    number = reader.prefixed(2, what, max_bytes=_COORDINATE_BYTES)
    if len(number) != _COORDINATE_BYTES:
        raise _malformed(f"{what} has {len(number)} bytes, not {_COORDINATE_BYTES}")
    return int.from_bytes(number, "big")


def _malformed(what: str) -> EvidenceRejected:
    return rejected("tpm_malformed", "2", expected="a TPM 2.0 structure", actual=what)


def _algorithm(what: str) -> EvidenceRejected:
    return rejected("ak_algorithm", "2", expected="an ECDSA P-256 key with SHA-256", actual=what)
