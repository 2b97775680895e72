"""What is kept beside a receipt, so that it can be judged later and by others: the evidence as it
came, what the verifier said of it, and the device's signature over all of it.

Kept evidence is ``"OVSE" | u8 version = 1 | u8 local | u16 + nonce | u16 + address | bundle``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from overspill.errors import InvalidRequest, ReceiptInvalid
from overspill.sealing.receipt import ReceiptClaims
from overspill.sealing.signing import DeviceSigner
from overspill.types.binary import ByteReader, prefixed
from overspill.types.evidence import AttestationResult, EvidenceBundle
from overspill.types.reply import ReceiptRecord
from overspill.wire import plaintext

_HEAD: Final = b"OVSE\x01"
_LABEL: Final = b"overspill/v1/receipt-record\x00"
_MAX_ADDRESS_BYTES: Final = 1024
_MEASUREMENTS: Final = ("measurement", "mrtd", "ak_name")
"""The claim that says best what booted: a launch measurement, or the TPM's key."""


@dataclass(frozen=True, slots=True)
class KeptEvidence:
    """A bundle and what the verifier was told when it came: challenge (or nothing) and place."""

    bundle: EvidenceBundle
    nonce: bytes
    address: str
    is_local: bool

    def encode(self) -> bytes:
        """The kept form."""
        head = _HEAD + bytes((self.is_local,))
        context = prefixed(2, self.nonce) + prefixed(2, self.address.encode("utf-8"))
        return head + context + plaintext.bundle_to_bytes(self.bundle)

    @classmethod
    def decode(cls, data: bytes) -> KeptEvidence:
        """Strict decoding. Raises ``ReceiptInvalid``."""
        reader = ByteReader(data, _malformed)
        if reader.take(len(_HEAD), "the head") != _HEAD:
            raise _malformed("another head")
        is_local = bool(reader.uint(1, "the place"))
        nonce = reader.prefixed(2, "the nonce", max_bytes=32)
        address = reader.text(2, "the address", max_bytes=_MAX_ADDRESS_BYTES)
        try:
            bundle = plaintext.bundle_from_bytes(data[reader.position :])
        except InvalidRequest as error:
            raise _malformed("no bundle") from error
        return cls(bundle, nonce, address, is_local)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier said of the evidence; hex where it is bytes, "" where there was nothing."""

    assurance: str = ""
    evidence_type: str = ""
    release: str = ""
    release_id: str = ""
    measurement: str = ""
    closed: str = ""
    policy_sha256: str = ""

    @classmethod
    def of(cls, result: AttestationResult) -> Verdict:
        """In the words of an attestation result."""
        return cls(
            assurance=result.assurance.name,
            evidence_type=result.evidence_type,
            release=result.claims.get("release", ""),
            release_id=result.release_id.hex() if any(result.release_id) else "",
            measurement=_measurement(result.claims),
            closed=result.claims.get("closed", ""),
            policy_sha256=result.policy_sha256.hex(),
        )

    def encode(self) -> str:
        """As JSON, one spelling."""
        return json.dumps({f.name: getattr(self, f.name) for f in fields(self)}, sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> Verdict:
        """Of a record's ``verdict``; an older record has none. Raises ``ReceiptInvalid``."""
        if not text:
            return cls()
        try:
            found = json.loads(text)
            verdict = cls(**found)
        except (ValueError, TypeError, RecursionError) as error:
            raise _malformed("no verdict") from error
        if not all(isinstance(value, str) for value in found.values()):
            raise _malformed("a verdict of other things than text")
        return verdict


def make_record(
    request_id: str,
    node: str,
    receipt: bytes,
    claims: ReceiptClaims,
    result: AttestationResult,
    *,
    th: bytes,
    salt: bytes,
    kept: KeptEvidence,
    device: DeviceSigner,
) -> ReceiptRecord:
    """A receipt with what it takes to check it later, offline; signed by the device."""
    record = ReceiptRecord(
        id=receipt_id(receipt),
        request_id=request_id,
        unix_s=claims.unix_s,
        node=node,
        assurance=result.assurance.name,
        data=receipt,
        node_key_config=result.node_key_config,
        receipt_public_key=result.receipt_public_key,
        transcript_th=th,
        salt=salt,
        evidence=kept.encode(),
        verdict=Verdict.of(result).encode(),
        device_public_der=device.public_der,
    )
    return replace(record, device_signature=device.sign(signed_bytes(record)))


def receipt_id(receipt: bytes) -> str:
    """A receipt's name: the beginning of its digest."""
    return hashlib.sha256(receipt).hexdigest()[:32]


def signed_bytes(record: ReceiptRecord) -> bytes:
    """What the device signs: a label, and every field but the signature, in its place."""
    values = (getattr(record, f.name) for f in fields(record) if f.name != "device_signature")
    return _LABEL + hashlib.sha256(b"".join(prefixed(4, _bytes(one)) for one in values)).digest()


def _bytes(value: str | int | bytes) -> bytes:
    if isinstance(value, int):
        return value.to_bytes(8, "big")
    return value.encode("utf-8") if isinstance(value, str) else value


def _measurement(claims: Mapping[str, str]) -> str:
    return next((claims[name] for name in _MEASUREMENTS if name in claims), "")


def _malformed(what: str) -> ReceiptInvalid:
    return ReceiptInvalid(f"What is kept beside the receipt is damaged: {what}.")
