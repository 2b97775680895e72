"""The key schedule, against a second derivation from RFC 5869 written out here."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from overspill.errors import StreamCorrupt
from overspill.sealing.schedule import (
    cancel_mac,
    check_cancel_mac,
    check_resume_mac,
    derive,
    resume_mac,
    stream_id,
)

NKC, SEALED, SECRET, NONCE = bytes([1] * 32), bytes([2] * 1168), bytes([3] * 32), bytes([4] * 32)


def extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt, secret, "sha256")


def expand(prk: bytes, label: bytes, size: int) -> bytes:
    return hmac.digest(prk, label + b"\x01", "sha256")[:size]


def test_every_key_is_the_protocols():
    th = hashlib.sha256(b"overspill/v1/th" + NKC + SEALED).digest()
    prk = extract(th, SECRET)
    keys = derive(NKC, SEALED, SECRET)
    assert keys.th == th
    assert keys.request.key == expand(prk, b"req key", 32)
    assert keys.request.nonce == expand(prk, b"req nonce", 12)
    assert keys.cancel_mac_key == expand(prk, b"cancel mac", 32)
    assert keys.commitment_salt == expand(prk, b"commitment salt", 32)
    response = keys.response(NONCE)
    prk_r = extract(th + NONCE, expand(prk, b"resp secret", 32))
    assert response.key == expand(prk_r, b"resp key", 32)
    assert response.nonce == expand(prk_r, b"resp nonce", 12)


def test_all_keys_differ_and_each_input_changes_all():
    def everything(nkc, sealed, secret):
        keys = derive(nkc, sealed, secret)
        answer = keys.response(NONCE)
        return {
            keys.th,
            keys.request.key,
            keys.request.nonce,
            keys.cancel_mac_key,
            keys.commitment_salt,
            keys.response_secret,
            answer.key,
            answer.nonce,
        }

    base = everything(NKC, SEALED, SECRET)
    assert len(base) == 8
    assert not base & everything(bytes(32), SEALED, SECRET)
    assert not base & everything(NKC, bytes(1168), SECRET)
    assert len(base & everything(NKC, SEALED, bytes(32))) == 1  # th is public


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_response_nonce_has_32_bytes(size):
    with pytest.raises(StreamCorrupt, match="response nonce"):
        derive(NKC, SEALED, SECRET).response(bytes(size))


def test_only_who_began_a_stream_cancels_it():
    keys, stream = derive(NKC, SEALED, SECRET), stream_id(SEALED)
    check_cancel_mac(keys, stream, cancel_mac(keys, stream))
    stranger = derive(NKC, SEALED, bytes(32))
    for mac in (cancel_mac(stranger, stream), cancel_mac(keys, bytes(32)), b"", stream):
        with pytest.raises(StreamCorrupt):
            check_cancel_mac(keys, stream, mac)


def test_only_who_began_a_stream_resumes_it_and_from_the_frame_that_was_named():
    keys, stream = derive(NKC, SEALED, SECRET), stream_id(SEALED)
    mac = resume_mac(keys, stream, 7)
    check_resume_mac(keys, stream, 7, mac)
    message = b"overspill/v1/resume" + stream + (7).to_bytes(8, "big")
    assert mac == hmac.digest(keys.cancel_mac_key, message, "sha256")
    stranger = derive(NKC, SEALED, bytes(32))
    others = (
        resume_mac(stranger, stream, 7),
        resume_mac(keys, stream, 8),
        resume_mac(keys, bytes(32), 7),
        cancel_mac(keys, stream),
        b"",
    )
    for other in others:
        with pytest.raises(StreamCorrupt, match="The resumption does not come from"):
            check_resume_mac(keys, stream, 7, other)
    with pytest.raises(StreamCorrupt, match="The cancellation does not come from"):
        check_cancel_mac(keys, stream, mac)


def test_keys_are_not_printed():
    keys = derive(NKC, SEALED, SECRET)
    text = repr(keys) + repr(keys.response(NONCE))
    for secret in (keys.request.key, keys.cancel_mac_key, keys.response_secret):
        assert repr(secret) not in text
