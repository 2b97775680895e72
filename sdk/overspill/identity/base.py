"""What a device key and a place for it owe."""

from __future__ import annotations

from typing import Protocol

from overspill.identity.keys import SoftwareKey


class DeviceKey(Protocol):
    """A device's signing key, wherever its private half lives (a Secure Enclave never shows it)."""

    @property
    def public_der(self) -> bytes:
        """The public key as DER SubjectPublicKeyInfo."""

    @property
    def thumbprint(self) -> bytes:
        """SHA-256 of :attr:`public_der`, 32 bytes: the device's name at a node."""

    @property
    def not_after_unix(self) -> int:
        """Unix seconds after which the device no longer uses this key."""

    def sign(self, data: bytes) -> bytes:
        """64 bytes over ``data``: Ed25519, or ES256 as ``r || s``."""


class KeyStore(Protocol):
    """One place that holds one device key."""

    @property
    def place(self) -> str:
        """Where that is, for people, e.g. ``the OS keychain``."""

    def load(self) -> SoftwareKey | None:
        """The stored key, None when there is none. Raises ``ConfigurationError`` when it is there
        and cannot be used: a damaged key is never replaced in silence."""

    def save(self, key: SoftwareKey) -> None:
        """Stores ``key`` in place of whatever was there. Raises ``ConfigurationError``."""

    def add(self, key: SoftwareKey) -> SoftwareKey:
        """Stores ``key`` where there is none; gives the one that is there then. Raises
        ``ConfigurationError``."""

    def delete(self) -> None:
        """Forgets the key, if there is one."""
