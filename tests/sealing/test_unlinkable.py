"""What a relay sees of two devices: the same fields and lengths, and nothing that tells which."""

from __future__ import annotations

import pytest

from overspill.identity.keys import ED25519, ES256, SoftwareKey
from overspill.sealing.frames import CLIENT, FrameSealer, FrameType
from overspill.sealing.hpke import seal_secret
from overspill.sealing.schedule import derive
from overspill.sealing.signing import sign_request


def outer_bytes(result, key: SoftwareKey, body: bytes) -> list[bytes]:
    """All that leaves a device in clear or sealed, as the relay sees it."""
    sealed = seal_secret(result)
    keys = derive(result.nkc_sha256, sealed.sealed_key, sealed.secret)
    signature = sign_request(
        key, th=keys.th, body=body, request_id=bytes(16), unix_ms=1_800_000_000_000
    )
    auth = signature.request_id + signature.device_thumbprint + signature.signature
    sealer = FrameSealer(keys.request, CLIENT)
    frames = [sealer.seal(FrameType.AUTH, auth), *sealer.seal_body(body)]
    return [result.nkc_sha256, sealed.sealed_key, *frames]


@pytest.mark.parametrize("algorithm", [ED25519, ES256])
def test_two_devices_outer_bytes_cannot_be_told_apart(ends, algorithm):
    body = b"the same question"
    one, two = SoftwareKey.generate(2**31), SoftwareKey.generate(2**31, algorithm)
    first, second = outer_bytes(ends.result, one, body), outer_bytes(ends.result, two, body)
    assert [len(part) for part in first] == [len(part) for part in second]
    assert first[0] == second[0]
    assert [frame[:2] for frame in first[2:]] == [frame[:2] for frame in second[2:]]
    everything = b"".join(first + second)
    for key in (one, two):
        assert key.thumbprint not in everything
        assert key.public_der[-32:] not in everything


def test_questions_of_one_bucket_look_alike(ends):
    key = SoftwareKey.generate(2**31)
    lengths = [
        [len(part) for part in outer_bytes(ends.result, key, b"x" * size)] for size in (1, 30, 60)
    ]
    assert lengths[0] == lengths[1] == lengths[2]
