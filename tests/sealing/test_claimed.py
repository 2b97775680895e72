"""What can be read before anything is verified: for display, and to find the key to verify with."""

from __future__ import annotations

import pytest

from overspill.errors import DeviceRejected, ReceiptInvalid
from overspill.identity.keys import SoftwareKey
from overspill.sealing.receipt import ReceiptClaims, ReceiptKey, open_receipt, read_claims
from overspill.sealing.rotation import claimed_device, open_rotation, sign_rotation

CLAIMS = ReceiptClaims(
    nkc_sha256=bytes([1] * 32),
    th=bytes([2] * 32),
    request_id=bytes(16),
    request_commitment=bytes(32),
    response_commitment=bytes(32),
    model="river",
    model_sha256=bytes([3] * 32),
    adapter="formal",
    prompt_tokens=1,
    completion_tokens=2,
    unix_s=3,
    finish_reason="stop",
    adapter_sha256=bytes([4] * 32),
)


def test_a_receipt_is_shown_whoever_signed_it():
    receipt = ReceiptKey.generate().sign(CLAIMS)
    assert read_claims(receipt) == CLAIMS
    with pytest.raises(ReceiptInvalid):
        open_receipt(receipt, ReceiptKey.generate().public_bytes)
    with pytest.raises(ReceiptInvalid):
        read_claims(receipt[1:])


def test_an_adapters_digest_is_signed():
    key = ReceiptKey.generate()
    receipt = key.sign(CLAIMS)
    at = receipt.index(CLAIMS.adapter_sha256)
    assert open_receipt(receipt, key.public_bytes).adapter_sha256 == CLAIMS.adapter_sha256
    with pytest.raises(ReceiptInvalid):
        open_receipt(receipt[:at] + b"\0" + receipt[at + 1 :], key.public_bytes)


def test_a_rotation_says_whose_it_is_before_it_is_believed():
    old, new, other = (SoftwareKey.generate(1 << 40) for _ in range(3))
    rotation = sign_rotation(old, new, not_after_unix=1 << 40, unix_ms=5)
    assert claimed_device(rotation) == old.thumbprint
    with pytest.raises(DeviceRejected):
        open_rotation(rotation, other.public_der)
    for bad in (b"", rotation[:100], b"x" + rotation):
        with pytest.raises(DeviceRejected):
            claimed_device(bad)
