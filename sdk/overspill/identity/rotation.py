"""Replacing this device's key without losing either one.

The new key is kept under a name of its own before anybody hears of it, and takes the old one's
place only when the node has confirmed it. A crash anywhere between leaves both, and the same steps
again end well: the node takes the same rotation twice.
"""

from __future__ import annotations

from overspill.errors import ConfigurationError
from overspill.identity.base import KeyStore
from overspill.identity.keys import DEFAULT_LIFETIME_S, ED25519, SoftwareKey


class KeyRotation:
    """The key in ``current`` and the one in ``following`` that is to replace it."""

    def __init__(self, current: KeyStore, following: KeyStore) -> None:
        self._current = current
        self._following = following

    def old(self) -> SoftwareKey:
        """The key in use. Raises ``ConfigurationError`` when there is none."""
        key = self._current.load()
        if key is None:
            raise ConfigurationError(
                f"There is no device key in {self._current.place}.",
                mend="Enrol this device first: overspill cloud enroll CODE",
            )
        return key

    def new(
        self,
        now_unix: float,
        *,
        lifetime_s: int = DEFAULT_LIFETIME_S,
        algorithm: str = ED25519,
    ) -> SoftwareKey:
        """The key that follows: one that an earlier attempt left behind, else a new one, kept."""
        key = self._following.load()
        if key is None or key.is_expired(now_unix):
            key = SoftwareKey.generate(int(now_unix) + lifetime_s, algorithm)
            self._following.save(key)
        return key

    def finish(self) -> None:
        """The new key takes the old one's place. Raises ``ConfigurationError`` without one."""
        key = self._following.load()
        if key is None:
            raise ConfigurationError("No key rotation has begun.", mend="overspill cloud rotate")
        self._current.save(key)
        self._following.delete()
