"""Which store holds this device's key: the OS keychain where there is one, else a declared file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from overspill.errors import ConfigurationError, MissingExtra
from overspill.identity.base import KeyStore
from overspill.identity.file import FileKeyStore
from overspill.identity.keyring import KeyringStore


class KeyPlace(StrEnum):
    """Where the device key is kept. ``AUTO`` prefers the keychain and never moves a key."""

    AUTO = "auto"
    KEYCHAIN = "keychain"
    FILE = "file"


def select_store(file: Path, place: KeyPlace = KeyPlace.AUTO) -> KeyStore:
    """The store for this machine. ``file`` is the declared file; a key that is there stays there.

    Raises ``ConfigurationError`` or ``MissingExtra`` when ``KEYCHAIN`` is asked for and there is
    none: a key is not put elsewhere than asked.
    """
    if place is KeyPlace.FILE or (place is KeyPlace.AUTO and file.exists()):
        return FileKeyStore(file)
    keychain = _keychain(required=place is KeyPlace.KEYCHAIN)
    return FileKeyStore(file) if keychain is None else keychain


def _keychain(*, required: bool) -> KeyringStore | None:
    try:
        store = KeyringStore()
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
