"""DSSE: a payload, its type, and signatures over both (Dead Simple Signing Envelope v1).

Signed is the PAE, ``DSSEv1 SP LEN(type) SP type SP LEN(payload) SP payload``, so that bytes signed
as one type never count as another. A release is signed by a threshold of the keys that the policy
names; each key counts once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from overspill.errors import EvidenceRejected, LogInvalid
from overspill.trust import json_strict
from overspill.trust.log.encoding import decode_base64, encode_base64
from overspill.trust.log.tiles import MAX_ENTRY_BYTES

IN_TOTO: Final = "application/vnd.in-toto+json"
STEP: Final = "7"
_MAX_SIGNATURES: Final = 16
_SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature (Ed25519, 64 bytes). ``key_id`` is a hint, not yet a key; it may be empty."""

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed envelope; nothing in it is believed before :meth:`check`."""

    payload: bytes
    signatures: tuple[Signature, ...]
    payload_type: str = IN_TOTO

    @property
    def release_id(self) -> bytes:
        """SHA-256 of the payload: what a node key configuration names."""
        return hashlib.sha256(self.payload).digest()

    def encode(self) -> bytes:
        """The envelope as JSON."""
        signatures = [
            {"keyid": one.key_id, "sig": encode_base64(one.signature)} for one in self.signatures
        ]
        document = {
            "payload": encode_base64(self.payload),
            "payloadType": self.payload_type,
            "signatures": signatures,
        }
        return json.dumps(document, separators=(",", ":")).encode("utf-8")

    @classmethod
    def parse(cls, data: bytes) -> Envelope:
        """Strict parsing. Raises ``EvidenceRejected``: ``release_malformed`` or, for a payload of
        another type than in-toto's, ``dsse_payload_type``."""
        document = fields(parse_json(data), {"payload", "payloadType", "signatures"}, "a DSSE")
        payload_type = text(document["payloadType"], "the payload type")
        if payload_type != IN_TOTO:
            raise refused("dsse_payload_type", IN_TOTO, payload_type[:128])
        raw = document["signatures"]
        if not isinstance(raw, list) or len(raw) > _MAX_SIGNATURES:
            raise malformed(f"no list of at most {_MAX_SIGNATURES} signatures")
        return cls(_base64(document["payload"], "the payload"), tuple(map(_signature, raw)))

    def signed(self, public: bytes, sign: Callable[[bytes], bytes]) -> Envelope:
        """With one more signature, in place of an older one by the same key."""
        new = Signature(key_id_of(public), sign(pae(self.payload_type, self.payload)))
        others = (one for one in self.signatures if one.key_id != new.key_id)
        return Envelope(self.payload, (*others, new), self.payload_type)

    def check(self, keys: Iterable[bytes], threshold: int) -> int:
        """How many of ``keys`` signed, at least ``threshold``.

        Raises ``EvidenceRejected``: ``release_signature`` for a false signature of a known key,
        ``release_threshold`` for too few.
        """
        known = {key_id_of(key): key for key in keys}
        message = pae(self.payload_type, self.payload)
        signed = set()
        for one in self.signatures:
            hinted = known.get(one.key_id)
            if hinted is not None and not _is_valid(hinted, one.signature, message):
                raise refused("release_signature", "a valid signature", "one that is not")
            signed |= {key for key in known.values() if _is_valid(key, one.signature, message)}
        if len(signed) < threshold:
            raise refused(
                "release_threshold", f"{threshold} signatures by release keys", str(len(signed))
            )
        return len(signed)


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed."""
    kind = payload_type.encode("utf-8")
    head = b"DSSEv1 %d %s %d " % (len(kind), kind, len(payload))
    return head + payload


def key_id_of(public: bytes) -> str:
    """The hint that names a key: SHA-256 of its 32 bytes, hex."""
    return hashlib.sha256(public).hexdigest()


# Strict JSON, for envelope and payload ----------------------------------------------------------


def parse_json(data: bytes) -> Any:
    """JSON without repeated keys or endless numbers. Raises ``release_malformed``."""
    if len(data) > MAX_ENTRY_BYTES:
        raise malformed(f"{len(data)} bytes, at most {MAX_ENTRY_BYTES} are allowed")
    try:
        return json_strict.parse(data)
    except (ValueError, RecursionError) as error:
        raise malformed("no JSON") from error


def fields(value: Any, names: set[str], what: str) -> dict[str, Any]:
    """An object with exactly these keys."""
    if not isinstance(value, dict) or value.keys() != names:
        raise malformed(f"{what} without exactly {', '.join(sorted(names))}")
    return value


def text(value: Any, what: str) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise malformed(f"{what} that is no text")
    return value


def malformed(what: str) -> EvidenceRejected:
    """The refusal of bytes that are no release."""
    return refused("release_malformed", "a release in its one form", what)


def refused(reason: str, expected: str, actual: str, mend: str = "") -> EvidenceRejected:
    """A refusal of step 7."""
    return EvidenceRejected(reason, STEP, expected=expected, actual=actual, mend=mend)


def _signature(value: Any) -> Signature:
    one = fields(value, {"keyid", "sig"}, "a signature")
    signature = _base64(one["sig"], "a signature")
    if len(signature) != _SIGNATURE_BYTES:
        raise malformed(f"a signature of {len(signature)} bytes")
    if not isinstance(one["keyid"], str):
        raise malformed("a key id that is no text")
    return Signature(one["keyid"], signature)


def _is_valid(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _base64(value: Any, what: str) -> bytes:
    try:
        return decode_base64(text(value, what), what)
    except LogInvalid as error:
        raise malformed(f"{what}: {error.actual}") from error
