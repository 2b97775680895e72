"""Device keys: made, kept privately, and refused when that cannot be."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import threading

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import ConfigurationError, MissingExtra, UsageError
from overspill.identity.file import FileKeyStore, load_or_create, obtain
from overspill.identity.keyring import KeyringStore
from overspill.identity.keys import ED25519, ES256, SoftwareKey
from overspill.identity.private_file import create_private, read_private, write_private
from overspill.identity.select import KeyPlace, device_key, select_store

NOW = 1_800_000_000
posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")


# --- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [ED25519, ES256])
def test_a_key_names_itself_by_its_public_half(algorithm):
    key = SoftwareKey.generate(NOW, algorithm)
    assert key.algorithm == algorithm
    assert key.thumbprint == hashlib.sha256(key.public_der).digest()
    assert load_der_public_key(key.public_der)
    assert len(key.sign(b"data")) == 64


@pytest.mark.parametrize("algorithm", [ED25519, ES256])
def test_a_stored_key_is_the_same_key(algorithm):
    key = SoftwareKey.generate(NOW, algorithm)
    again = SoftwareKey.from_text(key.to_text(), "here")
    assert (again.public_der, again.not_after_unix) == (key.public_der, NOW)


def test_a_key_says_when_it_is_over():
    key = SoftwareKey.generate(NOW)
    assert not key.is_expired(NOW - 1)
    assert key.is_expired(NOW)


def test_a_key_shows_nothing_of_its_private_half():
    key = SoftwareKey.generate(NOW)
    assert "PRIVATE" not in repr(key)
    with pytest.raises(UsageError):
        pickle.dumps(key)


def test_other_algorithms_are_refused():
    with pytest.raises(UsageError, match="rsa"):
        SoftwareKey.generate(NOW, "rsa")


def _stored(**changes) -> str:
    return json.dumps(json.loads(SoftwareKey.generate(NOW).to_text()) | changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        _stored(version=2),
        _stored(not_after_unix="soon"),
        _stored(not_after_unix=True),
        _stored(private_key=None),
        _stored(private_key="-----BEGIN PRIVATE KEY-----"),
        _stored(more=1),
        "[" * 100_000,
    ],
)
def test_a_damaged_key_is_named_and_not_replaced(text):
    with pytest.raises(ConfigurationError, match="the drawer"):
        SoftwareKey.from_text(text, "the drawer")


@given(st.text(max_size=200))
def test_garbage_raises_one_type(text):
    with pytest.raises(ConfigurationError):
        SoftwareKey.from_text(text, "here")


# --- the file ---------------------------------------------------------------------------------


def test_a_key_is_made_at_first_use_and_found_again(tmp_path):
    path = tmp_path / "state" / "device-key"
    first = load_or_create(path, now_unix=NOW)
    assert load_or_create(path, now_unix=NOW).thumbprint == first.thumbprint
    assert first.not_after_unix == NOW + 180 * 24 * 3600
    assert [p.name for p in path.parent.iterdir()] == ["device-key"]


@posix
def test_the_file_is_private_from_the_start(tmp_path):
    path = tmp_path / "state" / "device-key"
    old_mask = os.umask(0)
    try:
        load_or_create(path)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o601, 0o777])
def test_a_file_open_to_others_is_refused(tmp_path, mode):
    path = tmp_path / "device-key"
    key = load_or_create(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="open to others") as caught:
        load_or_create(path)
    assert f"chmod 600 {path}" in caught.value.mend
    path.chmod(0o600)
    assert load_or_create(path).thumbprint == key.thumbprint


@posix
def test_a_link_or_a_folder_is_no_key_file(tmp_path):
    real = tmp_path / "real"
    load_or_create(real)
    link = tmp_path / "link"
    link.symlink_to(real)
    for path in (link, tmp_path):
        with pytest.raises(ConfigurationError):
            read_private(path)


def test_a_damaged_file_is_kept(tmp_path):
    path = tmp_path / "device-key"
    write_private(path, "half a k")
    with pytest.raises(ConfigurationError, match="no device key"):
        load_or_create(path)
    assert path.read_text() == "half a k"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="as text"):
        load_or_create(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be"):
        load_or_create(tmp_path / "file" / "device-key")


def test_an_expired_key_is_not_replaced_in_silence(tmp_path):
    path = tmp_path / "device-key"
    key = load_or_create(path, now_unix=NOW)
    with pytest.raises(ConfigurationError, match="expired"):
        load_or_create(path, now_unix=key.not_after_unix)


def test_writing_replaces_in_one_step(tmp_path):
    path = tmp_path / "secret"
    write_private(path, "one")
    write_private(path, "two")
    assert read_private(path) == "two"
    assert len(list(tmp_path.iterdir())) == 1


# --- the keychain -----------------------------------------------------------------------------


def test_apps_that_start_at_once_have_one_key(tmp_path):
    """Whoever enrols a key that another app replaced is a stranger at its next start."""
    path = tmp_path / "keys" / "device-key"
    ready, found = threading.Barrier(8), []

    def work():
        ready.wait()
        found.append(load_or_create(path, now_unix=NOW).thumbprint)

    for _ in range(10):
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(found) == {load_or_create(path, now_unix=NOW).thumbprint}
        assert len(found) == 8
        assert [one.name for one in path.parent.iterdir()] == [path.name]
        found.clear()
        path.unlink()


@pytest.mark.parametrize("links", [True, False])
def test_what_is_there_is_not_replaced_by_what_comes_later(tmp_path, monkeypatch, links):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    if not links:  # a file system without hard links
        monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "device-key"
    assert create_private(path, "first")
    assert not create_private(path, "second")
    assert path.read_text() == "first"
    assert [one.name for one in tmp_path.iterdir()] == ["device-key"]


@pytest.fixture
def keychain():
    """A keychain in memory, at the seam that the keyring library gives to its backends."""
    keyring_backend = pytest.importorskip(
        "keyring.backend", reason='keyring is not installed: pip install "overspill[keys]"'
    )

    class MemoryKeychain(keyring_backend.KeyringBackend):
        priority = 1

        def __init__(self):
            super().__init__()
            self.entries = {}

        def get_password(self, service, username):
            return self.entries.get((service, username))

        def set_password(self, service, username, password):
            self.entries[service, username] = password

        def delete_password(self, service, username):
            del self.entries[service, username]

    return MemoryKeychain()


@pytest.fixture(params=["file", "keychain"])
def store(request, tmp_path):
    """Each kind of store in turn."""
    if request.param == "file":
        return FileKeyStore(tmp_path / "device-key")
    return KeyringStore(backend=request.getfixturevalue("keychain"))


def test_a_store_keeps_one_key(store):
    assert store.load() is None
    store.delete()
    key = obtain(store, now_unix=NOW)
    assert store.load().thumbprint == key.thumbprint
    assert obtain(store, now_unix=NOW).thumbprint == key.thumbprint
    other = SoftwareKey.generate(NOW, ES256)
    store.save(other)
    assert store.load().thumbprint == other.thumbprint
    store.delete()
    assert store.load() is None


def test_stores_name_their_place(store):
    assert store.place
    store.save(SoftwareKey.generate(NOW))
    with pytest.raises(ConfigurationError, match="expired") as caught:
        obtain(store, now_unix=NOW)
    assert store.place in caught.value.message


def test_a_locked_keychain_is_a_clear_error(keychain):
    from keyring.errors import KeyringLocked

    def locked(*args):
        raise KeyringLocked("locked")

    keychain.get_password = keychain.set_password = locked
    store = KeyringStore(backend=keychain)
    for attempt in (store.load, lambda: store.save(SoftwareKey.generate(NOW)), store.delete):
        with pytest.raises(ConfigurationError, match="keychain refused"):
            attempt()


def test_an_absent_keyring_library_names_the_extra(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(MissingExtra, match="keys"):
        KeyringStore()
    with pytest.raises(MissingExtra):
        select_store(tmp_path / "device-key", KeyPlace.KEYCHAIN)
    assert isinstance(select_store(tmp_path / "device-key"), FileKeyStore)


# --- which store ------------------------------------------------------------------------------


@pytest.fixture
def os_keychain(keychain):
    """The keychain in memory as this process's keychain."""
    import keyring

    before = keyring.get_keyring()
    keyring.set_keyring(keychain)
    yield keychain
    keyring.set_keyring(before)


def test_the_keychain_is_preferred(os_keychain, tmp_path):
    path = tmp_path / "device-key"
    key = device_key(path)
    assert not path.exists()
    assert len(os_keychain.entries) == 1
    assert device_key(path).thumbprint == key.thumbprint


def test_each_place_of_settings_has_its_own_key(os_keychain, tmp_path):
    one, two = device_key(tmp_path / "a" / "key"), device_key(tmp_path / "b" / "key")
    assert one.thumbprint != two.thumbprint


def test_a_key_that_is_in_a_file_stays_there(os_keychain, tmp_path):
    path = tmp_path / "device-key"
    key = load_or_create(path)
    assert device_key(path).thumbprint == key.thumbprint
    assert os_keychain.entries == {}


def test_a_file_when_a_file_is_asked_for(os_keychain, tmp_path):
    path = tmp_path / "device-key"
    device_key(path, KeyPlace.FILE)
    assert path.exists()
    assert os_keychain.entries == {}


def test_a_stand_in_for_a_keychain_is_none(keychain, os_keychain, tmp_path):
    type(keychain).priority = 0
    assert isinstance(select_store(tmp_path / "key"), FileKeyStore)
    with pytest.raises(ConfigurationError, match="no OS keychain"):
        select_store(tmp_path / "key", KeyPlace.KEYCHAIN)
