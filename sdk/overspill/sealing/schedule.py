"""The key schedule: every key of one request from its 32-byte secret (HKDF-SHA256, RFC 5869).

::

    th    = SHA-256("overspill/v1/th" || SHA-256(NKC) || sealed_key)
    prk   = HKDF-Extract(salt = th, secret)
    k_req, n_req, rs, cancel, salt = HKDF-Expand(prk, label)
    prk_r = HKDF-Extract(salt = th || response_nonce, rs)
    k_resp, n_resp = HKDF-Expand(prk_r, label)

The node adds 32 random bytes (``response_nonce``) of its own, so an attached or repeated start
never seals two answers under one key.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from overspill.errors import StreamCorrupt

RESPONSE_NONCE_BYTES: Final = 32
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_CANCEL_LABEL: Final = b"overspill/v1/cancel"
_RESUME_LABEL: Final = b"overspill/v1/resume"


@dataclass(frozen=True, slots=True)
class FrameKeys:
    """A direction's ChaCha20-Poly1305 key (32 bytes) and base nonce (12 bytes)."""

    key: bytes = field(repr=False)
    nonce: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeySchedule:
    """All keys of one request. ``th`` is public; the rest never leaves the two ends.

    ``commitment_salt`` salts a receipt's commitments: without it a short prompt could be guessed
    from its digest.
    """

    th: bytes
    request: FrameKeys
    cancel_mac_key: bytes = field(repr=False)
    commitment_salt: bytes = field(repr=False)
    response_secret: bytes = field(repr=False)

    def response(self, response_nonce: bytes) -> FrameKeys:
        """The keys of the answer. Raises ``StreamCorrupt`` unless the nonce has 32 bytes."""
        if len(response_nonce) != RESPONSE_NONCE_BYTES:
            raise StreamCorrupt(f"The response nonce has {len(response_nonce)} bytes, not 32.")
        prk = HKDF.extract(SHA256(), self.th + response_nonce, self.response_secret)
        return FrameKeys(
            key=_expand(prk, b"resp key", _KEY_BYTES),
            nonce=_expand(prk, b"resp nonce", _NONCE_BYTES),
        )


def derive(nkc_sha256: bytes, sealed_key: bytes, secret: bytes) -> KeySchedule:
    """Both ends' keys from what both know: the NKC's digest, the sealed key and the secret."""
    th = hashlib.sha256(b"overspill/v1/th" + nkc_sha256 + sealed_key).digest()
    prk = HKDF.extract(SHA256(), th, secret)
    return KeySchedule(
        th=th,
        request=FrameKeys(
            key=_expand(prk, b"req key", _KEY_BYTES),
            nonce=_expand(prk, b"req nonce", _NONCE_BYTES),
        ),
        cancel_mac_key=_expand(prk, b"cancel mac", _KEY_BYTES),
        commitment_salt=_expand(prk, b"commitment salt", _KEY_BYTES),
        response_secret=_expand(prk, b"resp secret", _KEY_BYTES),
    )


def stream_id(sealed_key: bytes) -> bytes:
    """What names a running stream in clear: SHA-256(sealed_key), 32 bytes."""
    return hashlib.sha256(sealed_key).digest()


def cancel_mac(keys: KeySchedule, stream: bytes) -> bytes:
    """HMAC-SHA256 with which the client that began ``stream`` (a stream id) may cancel it."""
    return hmac.digest(keys.cancel_mac_key, _CANCEL_LABEL + stream, "sha256")


def check_cancel_mac(keys: KeySchedule, stream: bytes, mac: bytes) -> None:
    """Raises ``StreamCorrupt`` unless ``mac`` was made by the client that began the stream."""
    if not hmac.compare_digest(cancel_mac(keys, stream), mac):
        raise StreamCorrupt("The cancellation does not come from whoever began the stream.")


def resume_mac(keys: KeySchedule, stream: bytes, next_frame: int) -> bytes:
    """HMAC-SHA256 with which the client that began ``stream`` asks for its frames from
    ``next_frame`` on. Labels keep it apart from a cancellation under the same key."""
    message = _RESUME_LABEL + stream + next_frame.to_bytes(8, "big")
    return hmac.digest(keys.cancel_mac_key, message, "sha256")


def check_resume_mac(keys: KeySchedule, stream: bytes, next_frame: int, mac: bytes) -> None:
    """Raises ``StreamCorrupt`` unless ``mac`` was made by the client that began the stream."""
    if not hmac.compare_digest(resume_mac(keys, stream, next_frame), mac):
        raise StreamCorrupt("The resumption does not come from whoever began the stream.")


def _expand(prk: bytes, label: bytes, length: int) -> bytes:
    return HKDFExpand(SHA256(), length, label).derive(prk)
