"""Which store holds this device's key: the OS keychain where there is one, else a declared file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from overspill.errors import ConfigurationError, MissingExtra
from overspill.identity.base import KeyStore
from overspill.identity.file import FileKeyStore, obtain
from overspill.identity.keyring import KeyringStore
from overspill.identity.keys import SoftwareKey
from overspill.identity.rotation import KeyRotation


class KeyPlace(StrEnum):
    """Where the device key is kept. ``AUTO`` prefers the keychain and never moves a key."""

    AUTO = "auto"
    KEYCHAIN = "keychain"
    FILE = "file"


def device_key(file: Path, place: KeyPlace = KeyPlace.AUTO) -> SoftwareKey:
    """This device's key from the store that :func:`select_store` picks, made there at first use.

    Raises ``ConfigurationError`` for a key that is damaged, expired, or open to others.
    """
    return obtain(select_store(file, place))


def key_rotation(file: Path, place: KeyPlace = KeyPlace.AUTO) -> KeyRotation:
    """The rotation of this device's key, in the very store that holds it."""
    current = select_store(file, place)
    following = file.with_name(f"{file.name}.next")
    if isinstance(current, FileKeyStore):
        return KeyRotation(current, FileKeyStore(following))
    return KeyRotation(current, KeyringStore(name=str(following.absolute())))


def select_store(file: Path, place: KeyPlace = KeyPlace.AUTO) -> KeyStore:
    """The store for this machine. ``file`` is the declared file; a key that is there stays there.

    A keychain's entry is named for ``file``, so each place of settings has a key of its own.

    Raises ``ConfigurationError`` or ``MissingExtra`` when ``KEYCHAIN`` is asked for and there is
    none: a key is not put elsewhere than asked.
    """
    if place is KeyPlace.FILE or (place is KeyPlace.AUTO and file.exists()):
        return FileKeyStore(file)
    keychain = _keychain(str(file.absolute()), required=place is KeyPlace.KEYCHAIN)
    return FileKeyStore(file) if keychain is None else keychain


def _keychain(name: str, *, required: bool) -> KeyringStore | None:
    try:
        store = KeyringStore(name=name)
    except MissingExtra:
        if required:
            raise
        return None
    if store.is_usable:
        return store
    if required:
        raise ConfigurationError(
            "This machine has no OS keychain that can be used.",
            mend="Keep the device key in a file instead.",
        )
    return None
