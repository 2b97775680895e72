"""Grants: one request, one provider, one time; nothing else goes to a third party."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import DeviceRejected, UsageError
from overspill.identity.keys import ES256, SoftwareKey
from overspill.sealing.grant import GrantClaims, check_grant, sign_grant

NOW = 1_800_000_000
DEVICE, OTHER = SoftwareKey.generate(2**31), SoftwareKey.generate(2**31, ES256)
CLAIMS = GrantClaims("openai", bytes([5] * 16), NOW + 60)
GRANT = sign_grant(DEVICE, CLAIMS)
ASKED = {"provider": "openai", "request_id": CLAIMS.request_id, "now_unix": NOW}


def refused(grant, key=DEVICE, **changes) -> str:
    with pytest.raises(DeviceRejected) as caught:
        check_grant(grant, key.public_der, **(ASKED | changes))
    return caught.value.reason


@pytest.mark.parametrize("key", [DEVICE, OTHER])
def test_what_was_granted_passes(key):
    assert check_grant(sign_grant(key, CLAIMS), key.public_der, **ASKED) == CLAIMS


def test_t63_no_grant():
    assert refused(b"") == "no_grant"


def test_t64_a_grant_for_another_request():
    assert refused(GRANT, request_id=bytes(16)) == "grant_request"


def test_a_grant_for_another_provider_or_time():
    assert refused(GRANT, provider="other") == "grant_provider"
    assert refused(GRANT, now_unix=NOW + 60) == "grant_expired"


def test_another_devices_grant():
    assert refused(GRANT, key=OTHER) == "signature"


def test_every_flipped_byte_is_refused():
    for at in range(len(GRANT)):
        refused(GRANT[:at] + bytes([GRANT[at] ^ 1]) + GRANT[at + 1 :])


@given(st.binary(max_size=300))
def test_garbage_raises_one_type(data):
    refused(data)


@pytest.mark.parametrize(
    "change",
    [{"provider": ""}, {"provider": "x" * 257}, {"request_id": b""}, {"expires_unix": -1}],
)
def test_claims_that_do_not_fit_are_not_signed(change):
    with pytest.raises(UsageError):
        sign_grant(DEVICE, replace(CLAIMS, **change))
