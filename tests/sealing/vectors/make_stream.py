"""Writes stream.json: one whole request with fixed keys, for implementations in any language.

python tests/sealing/vectors/make_stream.py            write it
python tests/sealing/vectors/make_stream.py --check    exit 1 when it differs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overspill.identity.keys import SoftwareKey
from overspill.sealing.frames import CLIENT, SERVER, FrameSealer, FrameType
from overspill.sealing.grant import GrantClaims, sign_grant
from overspill.sealing.receipt import ReceiptClaims, ReceiptKey, commitment, response_content
from overspill.sealing.rotation import sign_rotation
from overspill.sealing.schedule import cancel_mac, derive, stream_id
from overspill.sealing.signing import sign_request

FILE = Path(__file__).resolve().parent / "stream.json"
NKC_SHA256, SECRET, RESPONSE_NONCE = bytes([1] * 32), bytes([2] * 32), bytes([3] * 32)
SEALED_KEY = bytes(i % 251 for i in range(1168))
REQUEST_ID, UNIX_MS = bytes(range(16)), 1_800_000_000_000
AUTH, BODY, ANSWER = b"who asks", b"what is 2 + 2", "4 — four"
DEVICE = SoftwareKey(Ed25519PrivateKey.from_private_bytes(bytes([4] * 32)), 2_000_000_000)
NEXT = SoftwareKey(Ed25519PrivateKey.from_private_bytes(bytes([5] * 32)), 2_000_000_000)
NODE = ReceiptKey(Ed25519PrivateKey.from_private_bytes(bytes([6] * 32)))


def stream() -> dict[str, object]:
    keys = derive(NKC_SHA256, SEALED_KEY, SECRET)
    client = FrameSealer(keys.request, CLIENT)
    node = FrameSealer(keys.response(RESPONSE_NONCE), SERVER)
    request = [client.seal(FrameType.AUTH, AUTH), *client.seal_body(BODY)]
    response = [node.seal(FrameType.EVENT, piece.encode()) for piece in (ANSWER[:3], ANSWER[3:])]
    transcript = node.transcript_sha256
    response.append(node.seal(FrameType.FINAL, transcript))
    grant = sign_grant(DEVICE, GrantClaims("provider", REQUEST_ID, 1_800_000_060))
    signature = sign_request(
        DEVICE, th=keys.th, body=BODY, request_id=REQUEST_ID, unix_ms=UNIX_MS, grant=grant
    )
    return {
        "th": keys.th,
        "stream_id": stream_id(SEALED_KEY),
        "cancel_mac": cancel_mac(keys, stream_id(SEALED_KEY)),
        "request_frames": request,
        "response_frames": response,
        "transcript_sha256": transcript,
        "device_public_der": DEVICE.public_der,
        "grant": grant,
        "request_signature": signature.signature,
        "rotation": sign_rotation(DEVICE, NEXT, not_after_unix=2_000_000_000, unix_ms=UNIX_MS),
        "receipt_public_key": NODE.public_bytes,
        "receipt": NODE.sign(claims(keys.th, keys.commitment_salt)),
        "cards_signature": NODE.sign_cards(NKC_SHA256, b"cards"),
    }


def claims(th: bytes, salt: bytes) -> ReceiptClaims:
    return ReceiptClaims(
        nkc_sha256=NKC_SHA256,
        th=th,
        request_id=REQUEST_ID,
        request_commitment=commitment(salt, BODY),
        response_commitment=commitment(salt, response_content(ANSWER, [])),
        model="river",
        model_sha256=bytes([7] * 32),
        adapter="",
        prompt_tokens=11,
        completion_tokens=3,
        unix_s=1_800_000_000,
        finish_reason="stop",
    )


def text() -> str:
    inputs = {
        "nkc_sha256": NKC_SHA256,
        "sealed_key": SEALED_KEY,
        "secret": SECRET,
        "response_nonce": RESPONSE_NONCE,
        "auth": AUTH,
        "body": BODY,
        "answer": ANSWER.encode(),
        "request_id": REQUEST_ID,
    }
    everything = {"unix_ms": UNIX_MS, **inputs, **stream()}
    return json.dumps(everything, indent=1, default=_hex) + "\n"


def _hex(value: object) -> str:
    if not isinstance(value, bytes):
        raise TypeError(type(value))
    return value.hex()


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        return int(not FILE.exists() or FILE.read_text("utf-8") != text())
    FILE.write_text(text(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
