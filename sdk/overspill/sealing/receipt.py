"""Receipts: a node's signed word about which request it answered, with what, and how.

A receipt is ``claims || Ed25519 signature (64)``. The claims are a fixed big-endian layout that
starts with its own label, so the key signs nothing that could be read as something else::

    "overspill/v1/receipt" || SHA-256(NKC) || th || request_id (16) || request commitment (32)
      || response commitment (32) || model digest (32) || adapter digest (32, zeros for none)
      || u16 model || u16 adapter
      || u64 prompt tokens || u64 completion tokens || u64 unix_s || u16 finish reason

(``u16 x`` is a length and UTF-8 text.) Commitments are salted from the key schedule: the digest of
a short prompt could be guessed. How much the node is to be believed is the verifier's word and is
kept beside the receipt, not in it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from overspill.errors import ReceiptInvalid, UsageError
from overspill.types.binary import ByteReader, prefixed
from overspill.types.chat import ToolCall

_LABEL: Final = b"overspill/v1/receipt"
_CARDS_LABEL: Final = b"overspill/v1/cards"
_REPLICAS_LABEL: Final = b"overspill/v1/replicas"
_SIGNATURE_BYTES: Final = 64
_MAX_NAME_BYTES: Final = 256
_DIGEST_BYTES: Final = 32
_REQUEST_ID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class ReceiptClaims:
    """What a receipt says. Digests have 32 bytes, ``request_id`` 16; ``adapter`` "" is none."""

    nkc_sha256: bytes
    th: bytes
    request_id: bytes
    request_commitment: bytes
    response_commitment: bytes
    model: str
    model_sha256: bytes
    adapter: str
    prompt_tokens: int
    completion_tokens: int
    unix_s: int
    finish_reason: str
    adapter_sha256: bytes = bytes(_DIGEST_BYTES)

    def encode(self) -> bytes:
        """The signed bytes. Raises ``UsageError`` for a field that does not fit the layout."""
        fixed = (
            (self.nkc_sha256, _DIGEST_BYTES),
            (self.th, _DIGEST_BYTES),
            (self.request_id, _REQUEST_ID_BYTES),
            (self.request_commitment, _DIGEST_BYTES),
            (self.response_commitment, _DIGEST_BYTES),
            (self.model_sha256, _DIGEST_BYTES),
            (self.adapter_sha256, _DIGEST_BYTES),
        )
        if any(len(value) != size for value, size in fixed):
            raise UsageError("A receipt's digests have 32 bytes and its request id 16.")
        numbers = (self.prompt_tokens, self.completion_tokens, self.unix_s)
        if not all(0 <= number < 1 << 64 for number in numbers):
            raise UsageError("A receipt's counts and time are unsigned 64-bit numbers.")
        return b"".join(
            (
                _LABEL,
                *(value for value, _ in fixed),
                _name(self.model),
                _name(self.adapter),
                struct.pack(">QQQ", *numbers),
                _name(self.finish_reason),
            )
        )


class ReceiptKey:
    """The node's Ed25519 key for receipts and model cards; its public half is in the NKC."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_bytes = private_key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> ReceiptKey:
        """A new key, made at start and kept in memory."""
        return cls(Ed25519PrivateKey.generate())

    def sign(self, claims: ReceiptClaims) -> bytes:
        """The receipt: encoded claims and their signature."""
        encoded = claims.encode()
        return encoded + self._private_key.sign(encoded)

    def sign_cards(self, nkc_sha256: bytes, cards: bytes) -> bytes:
        """A signature that ties serialised model cards to this node's configuration."""
        return self._private_key.sign(_cards_message(nkc_sha256, cards))

    def sign_replicas(self, nkc_sha256: bytes, replicas: bytes) -> bytes:
        """A signature that ties a serialised list of replicas to this node's configuration."""
        return self._private_key.sign(_replicas_message(nkc_sha256, replicas))


def open_receipt(data: bytes, receipt_public_key: bytes) -> ReceiptClaims:
    """Verifies and decodes a receipt. Raises ``ReceiptInvalid``, and nothing else."""
    encoded, signature = data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]
    _verify(receipt_public_key, signature, encoded, "The receipt's signature does not verify.")
    return _decode(encoded)


def read_claims(data: bytes) -> ReceiptClaims:
    """What a receipt says, for display alone: nobody's signature is checked.

    Raises ``ReceiptInvalid``.
    """
    return _decode(data[:-_SIGNATURE_BYTES])


def check_receipt(
    data: bytes,
    receipt_public_key: bytes,
    *,
    nkc_sha256: bytes,
    th: bytes,
    request_id: bytes,
    salt: bytes,
    request: bytes,
    response: bytes,
) -> ReceiptClaims:
    """Verifies that a receipt is for this node, stream, request and answer.

    ``request`` is the request body as sent, ``response`` the answer as :func:`response_content`
    gives it, ``salt`` the schedule's ``commitment_salt``. Raises ``ReceiptInvalid`` naming the
    first difference.
    """
    claims = open_receipt(data, receipt_public_key)
    pairs = (
        ("node key configuration", claims.nkc_sha256, nkc_sha256),
        ("stream", claims.th, th),
        ("request id", claims.request_id, request_id),
        ("request", claims.request_commitment, commitment(salt, request)),
        ("response", claims.response_commitment, commitment(salt, response)),
    )
    for what, claimed, expected in pairs:
        if not hmac.compare_digest(claimed, expected):
            raise ReceiptInvalid(f"The receipt is for another {what}.")
    return claims


def response_content(text: str, tool_calls: Iterable[ToolCall]) -> bytes:
    """What a response commitment covers: the answer's text in UTF-8, and any tool calls.

    With calls it is ``0xFF || u64 + text`` and per call ``u32 + JSON [id, name, arguments]``. No
    UTF-8 starts with 0xFF, so no text is ever an answer with calls.
    """
    calls = [json.dumps([c.id, c.name, c.arguments]).encode() for c in tool_calls]
    if not calls:
        return text.encode()
    return b"\xff" + prefixed(8, text.encode()) + b"".join(prefixed(4, call) for call in calls)


def commitment(salt: bytes, content: bytes) -> bytes:
    """HMAC-SHA256 under the request's own salt: binding, and not to be guessed without it."""
    return hmac.digest(salt, content, "sha256")


def check_cards(
    cards: bytes, signature: bytes, receipt_public_key: bytes, nkc_sha256: bytes
) -> None:
    """Raises ``ReceiptInvalid`` unless the attested node signed these model cards."""
    message = _cards_message(nkc_sha256, cards)
    _verify(receipt_public_key, signature, message, "The model cards' signature does not verify.")


def check_replicas(
    replicas: bytes, signature: bytes, receipt_public_key: bytes, nkc_sha256: bytes
) -> None:
    """Raises ``ReceiptInvalid`` unless the attested node signed this list of replicas."""
    message = _replicas_message(nkc_sha256, replicas)
    _verify(receipt_public_key, signature, message, "The replicas' signature does not verify.")


def _replicas_message(nkc_sha256: bytes, replicas: bytes) -> bytes:
    return _REPLICAS_LABEL + nkc_sha256 + hashlib.sha256(replicas).digest()


def _cards_message(nkc_sha256: bytes, cards: bytes) -> bytes:
    return _CARDS_LABEL + nkc_sha256 + hashlib.sha256(cards).digest()


def _verify(public_key: bytes, signature: bytes, message: bytes, complaint: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise ReceiptInvalid(complaint) from error


def _decode(encoded: bytes) -> ReceiptClaims:
    reader = ByteReader(encoded, lambda what: ReceiptInvalid(f"The receipt is malformed: {what}."))
    if reader.take(len(_LABEL), "the label") != _LABEL:
        raise ReceiptInvalid("These bytes are no receipt of this version.")
    claims = ReceiptClaims(
        nkc_sha256=reader.take(_DIGEST_BYTES, "the NKC digest"),
        th=reader.take(_DIGEST_BYTES, "th"),
        request_id=reader.take(_REQUEST_ID_BYTES, "the request id"),
        request_commitment=reader.take(_DIGEST_BYTES, "the request commitment"),
        response_commitment=reader.take(_DIGEST_BYTES, "the response commitment"),
        model_sha256=reader.take(_DIGEST_BYTES, "the model digest"),
        adapter_sha256=reader.take(_DIGEST_BYTES, "the adapter digest"),
        model=reader.text(2, "the model", max_bytes=_MAX_NAME_BYTES),
        adapter=reader.text(2, "the adapter", max_bytes=_MAX_NAME_BYTES),
        prompt_tokens=reader.uint(8, "the prompt tokens"),
        completion_tokens=reader.uint(8, "the completion tokens"),
        unix_s=reader.uint(8, "the time"),
        finish_reason=reader.text(2, "the finish reason", max_bytes=_MAX_NAME_BYTES),
    )
    reader.end("the receipt")
    return claims


def _name(text: str) -> bytes:
    encoded = text.encode("utf-8")
    if len(encoded) > _MAX_NAME_BYTES:
        raise UsageError(f"A name in a receipt has at most {_MAX_NAME_BYTES} bytes.")
    return prefixed(2, encoded)
