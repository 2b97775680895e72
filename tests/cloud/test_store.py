"""The node's memory: private, durable against kills, and strict about its format."""

from __future__ import annotations

import sqlite3
import stat

import pytest

from overspill.errors import ConfigurationError, DeviceRejected
from overspill_cloud.store import Device, Store, UsageEntry

DEVICE = Device(b"t" * 32, b"der", "laptop", 10, 1000)


@pytest.fixture
def store(tmp_path):
    with_state = Store(tmp_path / "state")
    yield with_state
    with_state.close()


def test_the_folder_and_the_file_are_private(store):
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_a_code_that_fails_enrols_nothing_and_a_device_that_fails_uses_no_code(store):
    with pytest.raises(DeviceRejected):
        store.enrol(DEVICE, "guess", 10)
    assert store.devices() == []
    code = store.new_code(100)
    store.enrol(DEVICE, code, 10)
    store.revoke(DEVICE.thumbprint, 11)
    second = store.new_code(100)
    with pytest.raises(DeviceRejected) as caught:
        store.enrol(DEVICE, second, 12)
    assert caught.value.reason == "revoked"
    other = Device(b"u" * 32, b"der", "", 12, 1000)
    store.enrol(other, second, 12)  # the failed enrolment did not use it up
    assert store.device(b"u" * 32) == other


def test_a_revocation_keeps_its_first_time(store):
    store.enrol(DEVICE, store.new_code(100), 10)
    assert store.revoke(DEVICE.thumbprint, 20)
    assert store.revoke(DEVICE.thumbprint, 30)
    found = store.device(DEVICE.thumbprint)
    assert found is not None
    assert found.revoked_unix == 20
    assert not store.revoke(b"x" * 32, 30)


def test_a_device_enrols_again_with_another_end(store):
    store.enrol(DEVICE, store.new_code(100), 10)
    later = Device(DEVICE.thumbprint, DEVICE.public_der, "renamed", 20, 2000)
    store.enrol(later, store.new_code(100), 20)
    [found] = store.devices()
    assert (found.label, found.not_after_unix, found.enrolled_unix) == ("renamed", 2000, 10)


def test_the_replay_window_is_per_device_and_slides(store):
    assert store.record_request(b"a" * 32, b"1" * 16, 100, 180)
    assert not store.record_request(b"a" * 32, b"1" * 16, 100, 180)
    assert store.record_request(b"b" * 32, b"1" * 16, 100, 180)
    assert not store.record_request(b"a" * 32, b"1" * 16, 280, 180)
    assert store.record_request(b"a" * 32, b"1" * 16, 281, 180)


def test_what_another_process_wrote_is_seen(store):
    other = Store(store.path.parent)
    other.enrol(DEVICE, other.new_code(100), 10)
    assert store.device(DEVICE.thumbprint) == DEVICE
    other.revoke(DEVICE.thumbprint, 11)
    found = store.device(DEVICE.thumbprint)
    assert found is not None
    assert found.revoked_unix == 11
    other.close()


def test_an_attempt_is_charged_once(store):
    entry = UsageEntry(b"r" * 16, 0, b"t" * 32, 90, "m", 5, 7, "stop")
    store.append_usage(entry)
    store.append_usage(entry)
    store.append_usage(UsageEntry(b"r" * 16, 1, b"t" * 32, 90, "m", 5, 7, "stop"))
    assert [(line["attempt"], line["minute_unix"]) for line in store.usage()] == [(0, 60), (1, 60)]


def test_a_newer_schema_is_refused_by_name(store):
    with sqlite3.connect(store.path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="99"):
        Store(store.path.parent)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "node.sqlite3").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(ConfigurationError, match=r"node\.sqlite3"):
        Store(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file"):
        Store(tmp_path / "file" / "state")
