"""An attester's Ed25519 key: PKCS #8 PEM in a private file."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from overspill.errors import ConfigurationError
from overspill.identity.private_file import create_private, read_private


def load_key(path: Path) -> Ed25519PrivateKey:
    """The key in ``path``. Raises ``ConfigurationError`` when it is absent, open to others or no
    Ed25519 key."""
    text = read_private(path)
    if text is None:
        raise ConfigurationError(
            f"There is no key file at {path}.",
            mend=f"Make one: (umask 077; openssl genpkey -algorithm ed25519 -out {path})",
        )
    try:
        key = load_pem_private_key(text.encode("utf-8"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path)
    return key


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """As :func:`load_key`, making the key (file mode 0600) at first start. Replicas that start at
    once have one key."""
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        create_private(path, pem.decode("ascii"))
    return load_key(path)


def _no_key(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path} holds no Ed25519 private key in PEM.", mend="Give another file."
    )
