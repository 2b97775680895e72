"""A device key in a declared file of mode 0600: for machines without a keychain."""

from __future__ import annotations

import time
from pathlib import Path

from overspill.errors import ConfigurationError
from overspill.identity.base import KeyStore
from overspill.identity.keys import DEFAULT_LIFETIME_S, ED25519, SoftwareKey
from overspill.identity.private_file import create_private, read_private, write_private


class FileKeyStore:
    """A :class:`~overspill.identity.base.KeyStore` in one private file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def place(self) -> str:
        """The file's path."""
        return f"the key file {self._path}"

    def load(self) -> SoftwareKey | None:
        """See :class:`~overspill.identity.base.KeyStore`."""
        text = read_private(self._path)
        return None if text is None else SoftwareKey.from_text(text, self.place)

    def save(self, key: SoftwareKey) -> None:
        """See :class:`~overspill.identity.base.KeyStore`."""
        write_private(self._path, key.to_text())

    def add(self, key: SoftwareKey) -> SoftwareKey:
        """See :class:`~overspill.identity.base.KeyStore`: of several apps at once one wins."""
        create_private(self._path, key.to_text())
        return self.load() or key

    def delete(self) -> None:
        """See :class:`~overspill.identity.base.KeyStore`."""
        self._path.unlink(missing_ok=True)


def load_or_create(path: Path, *, now_unix: float | None = None) -> SoftwareKey:
    """The device key in ``path``, made there (Ed25519, 180 days) when there is none.

    Raises ``ConfigurationError`` for a file that is damaged, open to others, or holds a key that
    has expired: a new key has to be enrolled, so none is made in silence.
    """
    return obtain(FileKeyStore(path), now_unix=now_unix)


def obtain(
    store: KeyStore,
    *,
    now_unix: float | None = None,
    lifetime_s: int = DEFAULT_LIFETIME_S,
    algorithm: str = ED25519,
) -> SoftwareKey:
    """The key in ``store``, made there when there is none. Raises as :func:`load_or_create`."""
    now = time.time() if now_unix is None else now_unix
    key = store.load()
    if key is None:
        key = SoftwareKey.generate(int(now) + lifetime_s, algorithm)
        key = store.add(key)
    if key.is_expired(now):
        raise ConfigurationError(
            f"The device key in {store.place} has expired.",
            mend="Remove it and enrol this device again.",
        )
    return key
