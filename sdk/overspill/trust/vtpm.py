"""A virtual TPM inside a confidential guest: the guest's own report names its attestation key.

Azure's HCL report: ``"HCLA" | version u32 | 24 bytes | hardware report 1,184 | data size u32 |
version u32 | report type u32 | hash type u32 | JSON size u32 | JSON``, then zeros of a fixed
buffer. The hardware report's data begin with SHA-256 of the JSON, whose key ``HCLAkPub`` signs the
quotes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa

from overspill.errors import EvidenceRejected
from overspill.trust import json_strict
from overspill.trust.base import rejected
from overspill.trust.snp_report import REPORT_BYTES
from overspill.types.binary import ByteReader

MAX_BYTES: Final = 16 << 10
REPORT_SNP: Final = 2
REPORT_TDX: Final = 4

_HEADER_BYTES: Final = 32
_HASH_SHA256: Final = 1
_AK_NAME: Final = "HCLAkPub"
_MIN_RSA_BITS: Final = 2048
_STEP: Final = "2"


@dataclass(frozen=True, slots=True)
class HclReport:
    """A decoded report; nothing in it is believed yet. ``report`` is the hardware's own."""

    kind: int
    report: bytes
    runtime_data: bytes
    key: rsa.RSAPublicKey
    secure_boot: bool

    def check_bound(self, report_data: bytes) -> str:
        """Whether the hardware report names this runtime data. Reason: ``ak_not_bound``."""
        bound = hashlib.sha256(self.runtime_data).digest()
        if report_data != bound.ljust(64, b"\0"):
            raise rejected(
                "ak_not_bound",
                "4",
                expected="the runtime data that the hardware report names",
                actual="others: the attestation key is another guest's",
            )
        return "the hardware report names the vTPM's key"


def parse_hcl(data: bytes) -> HclReport:
    """Strict decoding. Raises ``EvidenceRejected("hcl_malformed")``."""
    if len(data) > MAX_BYTES:
        raise _malformed(f"{len(data)} bytes, at most {MAX_BYTES} are read")
    reader = ByteReader(data, _malformed)
    header = reader.take(_HEADER_BYTES, "the header")
    if header[:4] != b"HCLA":
        raise _malformed("another magic")
    report = reader.take(REPORT_BYTES, "the hardware report")
    sizes = struct.unpack("<5I", reader.take(20, "the runtime data's header"))
    _, _, kind, hash_type, size = sizes
    if kind not in (REPORT_SNP, REPORT_TDX) or hash_type != _HASH_SHA256:
        raise _malformed(f"report type {kind}, hash type {hash_type}")
    runtime = reader.take(size, "the runtime data")
    if any(data[reader.position :]):
        raise _malformed("bytes after the runtime data")
    claims = json_strict.loads(runtime, step=_STEP)
    if not isinstance(claims, dict):
        raise _malformed("runtime data that is no object")
    configuration = claims.get("vm-configuration")
    is_on = isinstance(configuration, dict) and configuration.get("secure-boot") is True
    return HclReport(kind, report, runtime, _attestation_key(claims), is_on)


def _attestation_key(claims: dict[str, Any]) -> rsa.RSAPublicKey:
    """The one key of that name: RSA, as a JWK (RFC 7518, 6.3.1)."""
    keys = claims.get("keys")
    named = [
        key
        for key in (keys if isinstance(keys, list) else [])
        if isinstance(key, dict) and key.get("kid") == _AK_NAME and key.get("kty") == "RSA"
    ]
    if len(named) != 1:
        raise _malformed(f"{len(named)} keys named {_AK_NAME}")
    modulus, exponent = (_number(named[0].get(name)) for name in ("n", "e"))
    if modulus.bit_length() < _MIN_RSA_BITS:
        raise _malformed(f"RSA of {modulus.bit_length()} bits")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise _malformed("an RSA key that is none") from error


def _number(text: Any) -> int:
    if not isinstance(text, str):
        raise _malformed("a key without its numbers")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed("a key's number that is no base64url") from error
    return int.from_bytes(raw, "big")


def _malformed(what: str) -> EvidenceRejected:
    return rejected("hcl_malformed", _STEP, expected="an HCL report", actual=what)
