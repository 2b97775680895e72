"""Request signatures and rotation: the right key, over exactly this, now."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import DeviceRejected, UsageError
from overspill.identity.keys import ED25519, ES256, SoftwareKey
from overspill.sealing.rotation import open_rotation, sign_rotation
from overspill.sealing.signing import (
    MAX_CLOCK_SKEW_S,
    check_clock,
    check_request,
    sign_request,
    verify_signature,
)

TH, BODY, REQUEST_ID, NOW_MS = bytes([7] * 32), b"the request", bytes(16), 1_800_000_000_000
DEVICE = SoftwareKey.generate(2_000_000_000)
OTHER = SoftwareKey.generate(2_000_000_000)


def signed(key=DEVICE, **changes):
    fields = {"th": TH, "body": BODY, "request_id": REQUEST_ID, "unix_ms": NOW_MS} | changes
    return sign_request(key, **fields)


@pytest.mark.parametrize("algorithm", [ED25519, ES256])
def test_an_enrolled_device_is_believed(algorithm):
    key = SoftwareKey.generate(2_000_000_000, algorithm)
    signature = signed(key, flags=3, grant=b"a grant")
    assert len(signature.signature) == 64
    check_request(signature, key.public_der, th=TH, body=BODY)


def refused(signature, key=DEVICE, th=TH, body=BODY):
    with pytest.raises(DeviceRejected) as caught:
        check_request(signature, key.public_der, th=th, body=body)
    assert caught.value.reason == "signature"
    return caught.value


def test_t39_signature_over_another_body():
    refused(signed(), body=BODY + b" ")


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": bytes([1] * 16)},
        {"unix_ms": NOW_MS + 1},
        {"flags": 1},
        {"grant": b"a grant"},
        {"device_thumbprint": OTHER.thumbprint},
        {"signature": bytes(64)},
        {"signature": b""},
        {"request_id": b"short"},
        {"flags": 1 << 32},
        {"unix_ms": -1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_signed_field_counts(change):
    refused(replace(signed(), **change))


def test_another_stream_is_refused():
    refused(signed(), th=bytes(32))


def test_another_device_is_refused():
    assert "another device key" in refused(signed(), key=OTHER).message


@pytest.mark.parametrize("off_s", [-91, 91])
def test_t38_clock_off_by_91_s(off_s):
    with pytest.raises(DeviceRejected) as caught:
        check_clock(signed(), NOW_MS + off_s * 1000)
    assert caught.value.reason == "clock"


@pytest.mark.parametrize("off_s", [-MAX_CLOCK_SKEW_S, 0, MAX_CLOCK_SKEW_S])
def test_a_clock_within_90_s_passes(off_s):
    check_clock(signed(), NOW_MS + off_s * 1000)


@pytest.mark.parametrize(
    "public_key",
    [
        ec.generate_private_key(ec.SECP384R1()).public_key(),
        rsa.generate_private_key(65537, 2048).public_key(),
    ],
    ids=["P-384", "RSA"],
)
def test_other_algorithms_are_refused(public_key):
    der = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(DeviceRejected, match="neither"):
        verify_signature(der, bytes(64), b"")


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_garbage_keys_and_signatures_raise_one_type(der, signature):
    with pytest.raises(DeviceRejected):
        verify_signature(der, signature.ljust(64, b"\0")[:64], b"message")


def test_malformed_requests_are_not_signed():
    with pytest.raises(UsageError):
        signed(request_id=b"short")


# --- rotation ---------------------------------------------------------------------------------


def test_a_rotation_names_the_new_key():
    data = sign_rotation(DEVICE, OTHER, not_after_unix=5, unix_ms=NOW_MS)
    rotation = open_rotation(data, DEVICE.public_der)
    assert rotation.old_thumbprint == DEVICE.thumbprint
    assert rotation.new_public_der == OTHER.public_der
    assert rotation.new_thumbprint == OTHER.thumbprint
    assert (rotation.not_after_unix, rotation.unix_ms) == (5, NOW_MS)


def test_a_rotation_needs_both_keys():
    class NotReallyOther(SoftwareKey):
        def sign(self, data: bytes) -> bytes:
            return DEVICE.sign(data)

    impostor = NotReallyOther(OTHER._private_key, 0)
    data = sign_rotation(DEVICE, impostor, not_after_unix=5, unix_ms=NOW_MS)
    with pytest.raises(DeviceRejected):
        open_rotation(data, DEVICE.public_der)
    data = sign_rotation(impostor, OTHER, not_after_unix=5, unix_ms=NOW_MS)
    with pytest.raises(DeviceRejected):
        open_rotation(data, OTHER.public_der)


def test_every_flipped_byte_of_a_rotation_is_refused():
    data = sign_rotation(DEVICE, OTHER, not_after_unix=5, unix_ms=NOW_MS)
    for at in range(len(data)):
        bad = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(DeviceRejected):
            open_rotation(bad, DEVICE.public_der)


@given(st.binary(max_size=400))
def test_garbage_is_no_rotation(data):
    with pytest.raises(DeviceRejected):
        open_rotation(data, DEVICE.public_der)
