"""A key rotation loses neither key, wherever it stops; in files and in a keychain."""

from __future__ import annotations

import pytest

from overspill.errors import ConfigurationError
from overspill.identity.file import FileKeyStore
from overspill.identity.keyring import KeyringStore
from overspill.identity.keys import SoftwareKey
from overspill.identity.rotation import KeyRotation
from overspill.identity.select import KeyPlace, device_key, key_rotation

NOW = 1_800_000_000


@pytest.fixture
def memory_keychain(monkeypatch):
    """A keychain at keyring's own seam: a backend of its kind, chosen by keyring itself."""
    keyring = pytest.importorskip("keyring", reason='pip install "overspill[keys]"')
    from keyring.backend import KeyringBackend

    class MemoryKeyring(KeyringBackend):
        priority = 9

        def __init__(self):
            super().__init__()
            self.kept = {}

        def get_password(self, service, username):
            return self.kept.get((service, username))

        def set_password(self, service, username, password):
            self.kept[service, username] = password

        def delete_password(self, service, username):
            del self.kept[service, username]

    before, backend = keyring.get_keyring(), MemoryKeyring()
    keyring.set_keyring(backend)
    yield backend
    keyring.set_keyring(before)


@pytest.fixture(params=["file", "keychain"])
def stores(request, tmp_path):
    if request.param == "file":
        return FileKeyStore(tmp_path / "key"), FileKeyStore(tmp_path / "key.next")
    backend = request.getfixturevalue("memory_keychain")
    return KeyringStore(name="key", backend=backend), KeyringStore(name="next", backend=backend)


def test_the_new_key_takes_the_old_ones_place(stores):
    current, following = stores
    old = SoftwareKey.generate(NOW + 100)
    current.save(old)
    rotation = KeyRotation(current, following)
    assert rotation.old().thumbprint == old.thumbprint
    new = rotation.new(NOW)
    assert current.load().thumbprint == old.thumbprint  # until the node has confirmed
    rotation.finish()
    assert current.load().thumbprint == new.thumbprint
    assert following.load() is None


def test_a_rotation_that_stopped_goes_on_with_the_same_key(stores):
    current, following = stores
    current.save(SoftwareKey.generate(NOW + 100))
    first = KeyRotation(current, following).new(NOW)
    again = KeyRotation(current, following).new(NOW + 5)
    assert first.thumbprint == again.thumbprint


def test_a_key_left_behind_long_ago_is_not_taken_up(stores):
    current, following = stores
    current.save(SoftwareKey.generate(NOW + 100))
    stale = KeyRotation(current, following).new(NOW, lifetime_s=10)
    assert KeyRotation(current, following).new(NOW + 11).thumbprint != stale.thumbprint


def test_without_a_key_there_is_nothing_to_rotate(stores):
    with pytest.raises(ConfigurationError, match="no device key"):
        KeyRotation(*stores).old()
    with pytest.raises(ConfigurationError, match="No key rotation has begun"):
        KeyRotation(*stores).finish()


def test_a_key_in_the_keychain_is_rotated_there(memory_keychain, tmp_path):
    file = tmp_path / "device-key"
    old = device_key(file, KeyPlace.KEYCHAIN)
    rotation = key_rotation(file, KeyPlace.KEYCHAIN)
    new = rotation.new(NOW)
    assert len(memory_keychain.kept) == 2
    rotation.finish()
    assert device_key(file, KeyPlace.AUTO).thumbprint == new.thumbprint != old.thumbprint
    assert len(memory_keychain.kept) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_key_in_its_file_is_rotated_there(memory_keychain, tmp_path):
    file = tmp_path / "device-key"
    device_key(file, KeyPlace.FILE)
    rotation = key_rotation(file)  # AUTO: a key that is in its file stays there
    new = rotation.new(NOW)
    rotation.finish()
    assert device_key(file).thumbprint == new.thumbprint
    assert memory_keychain.kept == {}
    assert [path.name for path in tmp_path.iterdir()] == ["device-key"]
