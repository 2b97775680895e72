"""A signed statement about a node: the evidence of those who have a key instead of hardware.

Layout, 229 bytes: ``magic 4 | u8 version = 1 | Ed25519 public key 32 | nonce 32 | report data 64 |
log digest 32 | signature 64``; the signature is over ``label || 0x00 || report data || log
digest``. Magic and label differ by kind, so a statement of one kind never reads as another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from overspill.errors import EvidenceRejected
from overspill.trust.base import Subject, check_binding, rejected
from overspill.trust.measured import log_digest
from overspill.trust.nkc import NO_NONCE, report_data
from overspill.types.binary import ByteReader

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class StatementKind:
    """What tells kinds of statement apart: four bytes in front, a label under the signature."""

    magic: bytes
    label: bytes

    def message(self, report: bytes, log_sha256: bytes) -> bytes:
        """The signed bytes, from report data (64 bytes) and log digest (32 bytes)."""
        return self.label + b"\x00" + report + log_sha256

    def make(
        self,
        public_key: bytes,
        nonce: bytes | None,
        report: bytes,
        log_sha256: bytes,
        sign: Callable[[bytes], bytes],
    ) -> bytes:
        """The statement of whoever holds ``public_key`` and can ``sign`` under it.

        ``report`` is the report data over ``nonce``, which binds that too.
        """
        signature = sign(self.message(report, log_sha256))
        head = self.magic + bytes((_VERSION,))
        return head + public_key + (nonce or NO_NONCE) + report + log_sha256 + signature


@dataclass(frozen=True, slots=True)
class Statement:
    """A decoded statement; nothing in it is believed yet."""

    public_key: bytes
    nonce: bytes
    report: bytes
    log_sha256: bytes
    signature: bytes


def decode(kind: StatementKind, data: bytes) -> Statement:
    """Strict decoding. Raises ``EvidenceRejected("evidence_malformed")``."""

    def fail(what: str) -> EvidenceRejected:
        return rejected("evidence_malformed", "2", expected="a signed statement", actual=what)

    reader = ByteReader(data, fail)
    if reader.take(5, "the head") != kind.magic + bytes((_VERSION,)):
        raise fail("a head of another kind or version")
    statement = Statement(
        public_key=reader.take(32, "the key"),
        nonce=reader.take(32, "the nonce"),
        report=reader.take(64, "the report data"),
        log_sha256=reader.take(32, "the log digest"),
        signature=reader.take(64, "the signature"),
    )
    reader.end("the statement")
    return statement


def check(
    kind: StatementKind,
    data: bytes,
    subject: Subject,
    *,
    dev: bool,
    keys: frozenset[bytes],
    unknown_key: str,
    mend: str,
) -> Statement:
    """Verifies a statement of ``kind`` by one of ``keys`` about ``subject``, in numbered steps.

    ``unknown_key`` is the reason for a key that the policy does not name.
    """
    statement = decode(kind, data)  # 8.2
    if statement.public_key not in keys:  # 8.3
        raise rejected(
            unknown_key,
            "3",
            expected="a key that the policy names",
            actual=statement.public_key.hex(),
            mend=mend,
        )
    _verify(kind, statement)  # 8.4
    check_binding(  # 8.5
        statement.report, statement.nonce, subject, dev=dev, digest=report_data, step="5"
    )
    if statement.log_sha256 != log_digest(subject.raw_log):  # 8.6
        raise rejected(
            "log_not_bound", "6", expected="the measured log that was signed", actual="another"
        )
    return statement


def _verify(kind: StatementKind, statement: Statement) -> None:
    message = kind.message(statement.report, statement.log_sha256)
    try:
        Ed25519PublicKey.from_public_bytes(statement.public_key).verify(
            statement.signature, message
        )
    except (InvalidSignature, ValueError) as error:
        raise rejected(
            "evidence_signature", "4", expected="a valid signature", actual="one that is not"
        ) from error
