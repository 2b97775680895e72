"""A device key in the OS keychain (macOS Keychain, Windows Credential Locker, Secret Service)."""

from __future__ import annotations

from typing import Any

from overspill.errors import ConfigurationError, MissingExtra
from overspill.identity.keys import SoftwareKey


class KeyringStore:
    """A :class:`~overspill.identity.base.KeyStore` through the ``keyring`` library.

    Raises ``MissingExtra`` where that is not installed. ``backend`` is a keyring backend; None
    takes the one that the library finds for this machine.
    """

    def __init__(
        self, service: str = "overspill", name: str = "device-key", backend: Any | None = None
    ) -> None:
        try:
            import keyring
            import keyring.errors
        except ImportError as error:
            raise MissingExtra("The OS keychain", "keys") from error
        self._errors = keyring.errors
        self._backend = keyring.get_keyring() if backend is None else backend
        self._service = service
        self._name = name

    @property
    def is_usable(self) -> bool:
        """Whether this machine has a keychain that keeps secrets (and not a stand-in for one)."""
        return bool(getattr(self._backend, "priority", 0) >= 1)

    @property
    def place(self) -> str:
        """The keychain's entry."""
        return f"the keychain entry {self._service}/{self._name}"

    def load(self) -> SoftwareKey | None:
        """See :class:`~overspill.identity.base.KeyStore`."""
        try:
            text = self._backend.get_password(self._service, self._name)
        except self._errors.KeyringError as error:
            raise self._refused(error) from error
        return None if text is None else SoftwareKey.from_text(text, self.place)

    def save(self, key: SoftwareKey) -> None:
        """See :class:`~overspill.identity.base.KeyStore`."""
        try:
            self._backend.set_password(self._service, self._name, key.to_text())
        except self._errors.KeyringError as error:
            raise self._refused(error) from error

    def add(self, key: SoftwareKey) -> SoftwareKey:
        """See :class:`~overspill.identity.base.KeyStore`. A keychain only replaces: of two apps
        that come within the same moment, the one that came first has to enrol again."""
        if (there := self.load()) is not None:
            return there
        self.save(key)
        return self.load() or key

    def delete(self) -> None:
        """See :class:`~overspill.identity.base.KeyStore`."""
        try:
            if self._backend.get_password(self._service, self._name) is not None:
                self._backend.delete_password(self._service, self._name)
        except self._errors.KeyringError as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> ConfigurationError:
        return ConfigurationError(
            f"The OS keychain refused: {type(error).__name__}.",
            mend="Unlock it, or keep the device key in a file.",
        )
