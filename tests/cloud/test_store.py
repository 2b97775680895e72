"""The node's memory: private, durable against kills, and the same over either database."""

from __future__ import annotations

import itertools
import stat
import threading

import pytest

from overspill.errors import ConfigurationError, DeviceRejected
from overspill_cloud.store import Device, Store, UsageEntry, open_backend

DEVICE = Device(b"t" * 32, b"der", "laptop", 10, 1000)
FAR = 1 << 40


def enrolled(store: Store, name: bytes = b"t", **fields) -> Device:
    device = Device(name * 32, b"der", "laptop", 10, FAR, **fields)
    store.enrol(device, store.new_code(FAR), 10)
    return device


def successor(device: Device, name: bytes) -> Device:
    return Device(name * 32, b"der", device.label, 20, FAR)


def test_the_folder_and_the_file_are_private(tmp_path):
    store = Store(tmp_path / "state")
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    store.close()


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


def test_a_code_is_used_once_whoever_asks_first(open_store):
    replicas = [open_store() for _ in range(4)]
    code = replicas[0].new_code(FAR)
    refused = []

    def enrol(index: int) -> None:
        try:
            replicas[index].enrol(Device(bytes([index]) * 32, b"", "", 10, FAR), code, 10)
        except DeviceRejected as error:
            refused.append(error.reason)

    together(enrol, len(replicas))
    assert refused == ["code"] * 3
    assert len(replicas[0].devices()) == 1


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


def test_another_replica_sees_a_revocation_at_once(open_store):
    one, other = open_store(), open_store()
    device = enrolled(other)
    assert one.device(device.thumbprint) == device
    other.revoke(device.thumbprint, 11)
    found = one.device(device.thumbprint)
    assert found is not None
    assert found.revoked_unix == 11


def test_a_rotation_ends_the_old_key_and_keeps_its_quota(store):
    first = enrolled(store)
    store.set_quota(first.thumbprint, 500)
    second = successor(first, b"u")
    store.rotate(first.thumbprint, second, 20, 60)
    store.rotate(first.thumbprint, second, 20, 60)  # the same again changes nothing
    third = successor(second, b"v")
    store.rotate(second.thumbprint, third, 30, 70)
    found = [store.device(one.thumbprint) for one in (first, second, third)]
    assert [one.not_after_unix for one in found] == [60, 70, FAR]
    assert [one.account for one in found] == [first.thumbprint] * 3
    assert [one.quota_tokens for one in found] == [500] * 3
    with pytest.raises(DeviceRejected) as caught:
        store.rotate(first.thumbprint, successor(first, b"w"), 40, 80)
    assert caught.value.reason == "rotated"
    assert store.device(b"w" * 32) is None


def test_a_revoked_key_cannot_be_rotated_away(store):
    first = enrolled(store)
    store.revoke(first.thumbprint, 15)
    with pytest.raises(DeviceRejected) as caught:
        store.rotate(first.thumbprint, successor(first, b"u"), 20, 60)
    assert caught.value.reason == "revoked"
    assert store.device(b"u" * 32) is None


def test_no_key_survives_a_revocation_that_runs_beside_rotations(open_store):
    one, other = open_store(), open_store()
    for turn in range(20):
        names = [bytes([turn * 3 + n]) * 32 for n in range(3)]
        device = Device(names[0], b"", "", 10, FAR)
        one.enrol(device, one.new_code(FAR), 10)

        def work(index: int, names: list[bytes] = names) -> None:
            if index:
                assert other.revoke(names[0], 30)
                return
            for old, new in itertools.pairwise(names):
                try:
                    one.rotate(old, Device(new, b"", "", 20, FAR), 20, 60)
                except DeviceRejected:
                    return

        together(work, 2)
        keys = [found for name in names if (found := one.device(name)) is not None]
        assert all(key.revoked_unix == 30 for key in keys), turn


def test_an_attempt_is_charged_once(store):
    entry = UsageEntry(b"r" * 16, 0, b"t" * 32, 90, "m", 5, 7, "stop")
    store.append_usage(entry)
    store.append_usage(entry)
    store.append_usage(UsageEntry(b"r" * 16, 1, b"t" * 32, 90, "m", 5, 7, "stop"))
    assert [(line["attempt"], line["minute_unix"]) for line in store.usage()] == [(0, 60), (1, 60)]


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "node.sqlite3").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(ConfigurationError, match=r"node\.sqlite3"):
        Store(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file"):
        Store(tmp_path / "file" / "state")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://here/fleet", "postgresql://"),
        ("postgresql+psycopg://here/fleet", "postgresql://"),
        ("fleet", "not understood"),
        ("postgresql://me:secret@localhost/fleet", "password"),
        ("postgresql://localhost/fleet?password=secret", "password"),
        ("postgresql://db.example.org/fleet", "verified"),
        ("postgresql://db.example.org/fleet?sslmode=require", "verified"),
        ("postgresql://127.0.0.1/fleet?host=10.0.0.1", "verified"),
        ("postgresql:///fleet?host=/run,db.example.org", "verified"),
    ],
)
def test_a_url_that_is_wrong_or_unsafe_is_refused_without_quoting_it(tmp_path, url, why):
    with pytest.raises(ConfigurationError, match=why) as caught:
        open_backend(tmp_path, url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///fleet",
        "postgresql://localhost/fleet",
        "postgresql://[::1]:5433/fleet",
        "postgresql:///fleet?host=/run/postgresql",
        "postgresql://me@db.example.org/fleet?sslmode=verify-full",
    ],
)
def test_a_url_on_this_machine_or_to_a_verified_server_is_taken(tmp_path, url):
    pytest.importorskip("psycopg")
    open_backend(tmp_path, url).close()


def test_a_server_that_does_not_answer_is_refused_by_name(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(ConfigurationError, match=r"fleet cannot be used.*Check that the server"):
        Store(tmp_path, f"postgresql:///fleet?host={tmp_path}")


def together(work, count: int) -> None:
    """Run ``work(index)`` on threads that begin at the same moment; their failures are ours."""
    barrier, failed = threading.Barrier(count), []

    def run(index: int) -> None:
        try:
            barrier.wait()
            work(index)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
