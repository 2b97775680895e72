"""The named cases that need a node's memory: a real store, and the node's own checks in order."""

from __future__ import annotations

import pytest

from overspill.errors import DeviceRejected
from overspill.identity.keys import SoftwareKey
from overspill.sealing.grant import GrantClaims, check_grant, sign_grant
from overspill.sealing.signing import sign_request

pytest.importorskip("sqlalchemy", reason='the node needs: pip install "overspill[cloud]"')

from overspill_cloud.admission import Admission, AdmissionLimits, Database
from overspill_cloud.store import Device, Store

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000
TH, BODY = bytes([7] * 32), b"the request"


class Clock:
    """Unix seconds that a test sets."""

    now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def device():
    return SoftwareKey.generate(NOW + 3600)


@pytest.fixture
def store(tmp_path, device):
    store = Store(tmp_path)
    row = Device(device.thumbprint, device.public_der, "test", NOW, device.not_after_unix)
    store.enrol(row, store.new_code(NOW + 60), NOW)
    return store


@pytest.fixture
def database(store):
    database = Database(store)
    yield database
    database.close()


@pytest.fixture
def admission(database, clock):
    return Admission(database, clock, AdmissionLimits())


def signed(device, clock, request_id=bytes(16), **changes):
    fields = {"th": TH, "body": BODY, "request_id": request_id, "unix_ms": int(clock() * 1000)}
    return sign_request(device, **(fields | changes))


async def admit(admission, signature, th=TH):
    (await admission.admit(signature, th=th, body=BODY)).release()


async def refused(admission, signature, **how) -> str:
    with pytest.raises(DeviceRejected) as caught:
        await admit(admission, signature, **how)
    return caught.value.reason


async def test_t37_replayed_request_id(admission, device, clock):
    await admit(admission, signed(device, clock))
    assert await refused(admission, signed(device, clock)) == "replay"
    elsewhere = signed(device, clock, th=bytes(32))
    assert await refused(admission, elsewhere, th=bytes(32)) == "replay"
    await admit(admission, signed(device, clock, request_id=bytes([1] * 16)))


async def test_t37_an_id_is_remembered_longer_than_its_signature_passes(admission, device, clock):
    signature = signed(device, clock)
    await admit(admission, signature)
    for seconds in (1, 89, 90, 91, 179, 180, 181, 10_000):
        clock.now = NOW + seconds
        assert await refused(admission, signature) in {"replay", "clock", "expired"}


async def test_t38_clock_off_by_91_s(admission, device, clock):
    signature = signed(device, clock)
    clock.now = NOW + 91
    assert await refused(admission, signature) == "clock"


async def test_t39_signature_over_another_body(admission, device, clock):
    assert await refused(admission, signed(device, clock, body=b"another")) == "signature"


async def test_t40_device_revoked_or_expired(admission, store, device, clock):
    clock.now = device.not_after_unix
    assert await refused(admission, signed(device, clock)) == "expired"
    clock.now = float(NOW)
    store.revoke(device.thumbprint, NOW)
    assert await refused(admission, signed(device, clock)) == "revoked"
    stranger = SoftwareKey.generate(NOW + 3600)
    assert await refused(admission, signed(stranger, clock)) == "not_enrolled"


async def test_t65_a_grant_used_twice(admission, device, clock):
    """A grant names a request id, and a node takes each id once."""
    grant = sign_grant(device, GrantClaims("openai", bytes(16), NOW + 60))
    check_grant(grant, device.public_der, provider="openai", request_id=bytes(16), now_unix=clock())
    await admit(admission, signed(device, clock, grant=grant))
    assert await refused(admission, signed(device, clock, grant=grant)) == "replay"
