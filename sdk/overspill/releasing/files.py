"""Files that others read while they are written, and the keys that sign releases and logs."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from overspill.errors import ConfigurationError, LogInvalid, UsageError
from overspill.identity.private_file import read_private, write_private
from overspill.trust.log.note import SignerKey


def write_atomically(path: Path, data: bytes) -> None:
    """A reader, and a machine after a crash, finds the old content or the new one, never a part.

    Raises ``ConfigurationError`` when it cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror}.", mend="Check the folder and its space."
        ) from error


def read_file(path: Path, what: str) -> bytes:
    """A file's bytes. Raises ``UsageError`` when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{what} {path} cannot be read: {error.strerror}.", mend="Check the path."
        ) from error


def load_note_key(path: Path) -> SignerKey:
    """The private key of a log or a witness. Raises ``ConfigurationError``."""
    text = read_private(path)
    try:
        if text is not None:
            return SignerKey.parse(text.strip())
    except LogInvalid as error:
        raise ConfigurationError(
            f"{path} holds no note key: {error.actual}.", mend="Give another file."
        ) from error
    raise ConfigurationError(f"There is no key at {path}.", mend="Make one first.")


def make_note_key(path: Path, name: str, kind: int) -> SignerKey:
    """A new key in a file of mode 0600. Raises ``UsageError`` where there is one, or for a name
    that notes cannot carry."""
    _refuse_present(path)
    try:
        key = SignerKey.generate(name, kind)
    except LogInvalid as error:
        raise UsageError(
            f"'{name}' is no name for a key.", mend="Use a URL without its scheme."
        ) from error
    write_private(path, key.private_text() + "\n")
    return key


def load_release_key(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 key (PEM, mode 0600) that signs releases. Raises ``ConfigurationError``."""
    text = read_private(path)
    if text is None:
        raise ConfigurationError(
            f"There is no key at {path}.", mend=f"Run: overspill trust release key {path}"
        )
    try:
        key = load_pem_private_key(text.encode("utf-8"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"{path} holds no Ed25519 private key in PEM.", mend="Give another file."
        )
    return key


def make_release_key(path: Path) -> Ed25519PrivateKey:
    """A new one. Raises ``UsageError`` where there is a file."""
    _refuse_present(path)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(path, pem.decode("ascii"))
    return key


def _refuse_present(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} is there already.", mend="Remove it, or give another name.")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows has no descriptor of a folder; its rename is journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
