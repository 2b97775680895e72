"""The wire format held still: the committed stream, read by a second implementation.

Nothing of ``overspill.sealing`` is used here: it is what a client in another language would write
from ``proto/README.md``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import load_der_public_key

from overspill.config import child_environment

FOLDER = Path(__file__).resolve().parent / "vectors"


def _bytes(value):
    if isinstance(value, str):
        return bytes.fromhex(value)
    return [bytes.fromhex(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def v() -> dict:
    raw = json.loads((FOLDER / "stream.json").read_text())
    return {name: _bytes(value) for name, value in raw.items()}


@pytest.fixture(scope="module")
def prk(v) -> bytes:
    return hmac.digest(v["th"], v["secret"], "sha256")


@pytest.fixture(scope="module")
def device(v):
    return load_der_public_key(v["device_public_der"])


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def expand(prk: bytes, label: bytes, size: int) -> bytes:
    return hmac.digest(prk, label + b"\x01", "sha256")[:size]


def opened(frames: list[bytes], key: bytes, nonce: bytes, direction: bytes) -> list[tuple]:
    found = []
    for index, frame in enumerate(frames):
        aad = b"ovs1" + direction + struct.pack(">Q", index) + frame[:2]
        at = (int.from_bytes(nonce, "big") ^ index).to_bytes(12, "big")
        padded = ChaCha20Poly1305(key).decrypt(at, frame[2:], aad)
        size = int.from_bytes(padded[:4], "big")
        assert len(padded) % 64 == 0
        assert not any(padded[4 + size :])
        found.append((frame[0], frame[1], padded[4 : 4 + size]))
    return found


def test_names_in_clear(v, prk):
    assert v["th"] == sha256(b"overspill/v1/th" + v["nkc_sha256"] + v["sealed_key"])
    assert v["stream_id"] == sha256(v["sealed_key"])
    mac_key = expand(prk, b"cancel mac", 32)
    assert v["cancel_mac"] == hmac.digest(
        mac_key, b"overspill/v1/cancel" + v["stream_id"], "sha256"
    )


def test_request_frames(v, prk):
    key, nonce = expand(prk, b"req key", 32), expand(prk, b"req nonce", 12)
    assert opened(v["request_frames"], key, nonce, b"C") == [(1, 0, v["auth"]), (2, 1, v["body"])]


def test_response_frames(v, prk):
    prk_r = hmac.digest(v["th"] + v["response_nonce"], expand(prk, b"resp secret", 32), "sha256")
    key, nonce = expand(prk_r, b"resp key", 32), expand(prk_r, b"resp nonce", 12)
    *events, final = opened(v["response_frames"], key, nonce, b"S")
    assert [event[:2] for event in events] == [(3, 0), (3, 0)]
    assert b"".join(event[2] for event in events) == v["answer"]
    pieces = (bytes([kind]) + struct.pack(">I", len(text)) + text for kind, _, text in events)
    assert final == (4, 1, v["transcript_sha256"])
    assert v["transcript_sha256"] == sha256(b"".join(pieces))


def test_request_signature(v, device):
    message = (
        b"overspill/v1/req-sig\0"
        + v["th"]
        + sha256(v["body"])
        + v["request_id"]
        + struct.pack(">Q", v["unix_ms"])
        + sha256(v["device_public_der"])
        + struct.pack(">I", 0)
        + sha256(v["grant"])
    )
    device.verify(v["request_signature"], message)


def test_grant(v, device):
    message = b"overspill/v1/grant\0" + v["request_id"] + struct.pack(">Q", 1_800_000_060)
    message += b"\x00\x08provider"
    assert v["grant"][:-64] == message
    device.verify(v["grant"][-64:], message)


def test_rotation(v, device):
    message, old, new = v["rotation"][:-128], v["rotation"][-128:-64], v["rotation"][-64:]
    head = b"overspill/v1/rotate\0" + sha256(v["device_public_der"])
    head += struct.pack(">QQ", 2_000_000_000, v["unix_ms"])
    assert message.startswith(head)
    size = int.from_bytes(message[len(head) : len(head) + 2], "big")
    new_key = load_der_public_key(message[len(head) + 2 :])
    assert size == len(message) - len(head) - 2
    device.verify(old, message)
    new_key.verify(new, message)


def test_receipt(v, prk):
    salt = expand(prk, b"commitment salt", 32)
    claims = (
        b"overspill/v1/receipt"
        + v["nkc_sha256"]
        + v["th"]
        + v["request_id"]
        + hmac.digest(salt, v["body"], "sha256")
        + hmac.digest(salt, v["answer"], "sha256")
        + bytes([7] * 32)
        + bytes(32)
        + b"\x00\x05river\x00\x00"
        + struct.pack(">QQQ", 11, 3, 1_800_000_000)
        + b"\x00\x04stop"
    )
    assert v["receipt"][:-64] == claims
    node = Ed25519PublicKey.from_public_bytes(v["receipt_public_key"])
    node.verify(v["receipt"][-64:], claims)
    node.verify(v["cards_signature"], b"overspill/v1/cards" + v["nkc_sha256"] + sha256(b"cards"))


def test_the_script_makes_exactly_this_stream():
    environment = child_environment({"PYTHONPATH": ":".join(sys.path)})
    done = subprocess.run(
        [sys.executable, FOLDER / "make_stream.py", "--check"],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
